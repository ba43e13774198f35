"""A new training that begins with what another one has learned: the adapter and propagation of its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from mois.sharing.bundle import PROPAGATION, check_files, fill, in_full
from mois.sharing.bundle_record import DESCRIPTION, ModelSpec, read_description
from mois.sharing.identity import rules_apart
from mois.training.module import ExemplarSegmenter


def start_from(module: ExemplarSegmenter, bundle: str | Path, config: Mapping[str, Any]) -> None:
    """Give a new model the trained weights of a bundle, every tensor or none.

    Optimiser, schedule and step begin anew. What is said: arguments that differ without changing a shape, and that
    companions begin as they were made.

    Args:
        module: As its config makes it.
        bundle: Its folder.
        config: What stands under `model`.

    Raises:
        ValueError: If it is no bundle, is damaged, or is of another backbone, of other classes or of other shapes.
    """
    folder, name = Path(bundle), f"start_from={bundle}"
    if not bundle:
        raise ValueError("start_from names nothing; give the folder `bundle` of a training, or leave it out.")
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"{name} is no bundle; give the folder `bundle` of a training (RUN/bundle), or go on with a training by "
            "--ckpt_path."
        )
    record = read_description(folder)
    check_files(folder, record.files)
    parts = {"backbone": module.backbone, "adapter": module.adapter, "propagation": module.propagation}
    for role, made in parts.items():
        there = getattr(record.model, role).class_path
        if there.rpartition(".")[2] != type(made).__name__:
            other = (
                f"take its propagation alone (model.propagation.init_args.weights={folder / PROPAGATION})"
                if role == "adapter"
                else "leave start_from out"
            )
            raise ValueError(
                f"{name} is of model.{role}={there}, this model's is {type(made).__name__}; set model.{role}={there}, "
                f"or {other}."
            )
    theirs, ours = record.identity.backbone, module.backbone.identity
    if theirs.sha256 != ours.sha256:
        raise ValueError(
            f"{name} belongs to backbone {theirs.name} ({theirs.source}, sha256 {theirs.sha256[:12]}), this one is "
            f"{ours.name} ({ours.source}, sha256 {ours.sha256[:12]}); set model.backbone.init_args accordingly, or "
            "leave start_from out."
        )
    before, now = record.identity.behaviour, module.backbone.behaviour()
    if before != now:
        raise ValueError(
            f"{name} was trained with other rules of its backbone ({rules_apart(before, now)} instead of "
            f"{rules_apart(now, before)}); set model.backbone.init_args.rules accordingly."
        )
    fill(folder, name, record, module.adapter, module.propagation)
    rank_zero_info(f"{name}: adapter and propagation begin with what it holds")
    for told in _differences(record.model, in_full(ModelSpec.of(config))):
        rank_zero_info(f"{name}: {told}")
    if record.inference.pixel_mm != module.inference.pixel_mm:
        rank_zero_info(
            f"{name}: it was trained at {record.inference.pixel_mm:g} mm per pixel, this model sees "
            f"{module.inference.pixel_mm:g} mm (model.inference.pixel_mm)"
        )
    if len(module.companions):
        rank_zero_info(f"{name}: companions begin as they were made")


def _differences(before: ModelSpec, now: ModelSpec) -> list[str]:
    """Return a sentence on each argument that is not what the bundle was trained with."""
    given, ours = before.arguments(), now.arguments()
    return [
        f"it was trained with model.{role}.init_args.{key}={given[role][key]}, now {ours[role][key]}"
        for role in given
        for key in given[role].keys() & ours[role].keys()
        if given[role][key] != ours[role][key]
    ]
