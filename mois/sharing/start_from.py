"""`start_from`: a new training begins with the adapter and propagation weights of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mois.interfaces import Adapter, Backbone, Propagation
from mois.sharing.bundle import load_weights, with_defaults
from mois.sharing.bundle_files import PROPAGATION, check_files
from mois.sharing.bundle_record import DESCRIPTION, ModelSpec, read_description
from mois.sharing.identity import ModelIdentity, dotted, rules_apart
from mois.sharing.old_settings import PLACEMENT


def start_from(
    bundle: str | Path,
    config: Mapping[str, Any],
    backbone: Backbone,
    adapter: Adapter,
    propagation: Propagation,
    pixel_mm: float,
    channels: Sequence[str] = (),
) -> list[str]:
    """Give a new model the trained weights of a bundle: every tensor or none.

    Optimiser, schedule and step begin anew.

    Args:
        bundle: Folder of the bundle.
        config: Settings under `model`.
        backbone: Backbone of the new model.
        adapter: Adapter of the new model; its weights are replaced.
        propagation: Propagation of the new model; its weights are replaced.
        pixel_mm: Millimetres per pixel of the new model.
        channels: Names of the channels of the new model.

    Returns:
        Sentences for the user: the weights were loaded, and which settings differ without changing a shape.

    Raises:
        ValueError: If the folder is no bundle or is damaged; or if its backbone, classes or shapes are others.
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
    _check_classes(folder, name, record.model, {"backbone": backbone, "adapter": adapter, "propagation": propagation})
    _check_backbone(name, record.identity, backbone)
    load_weights(folder, name, record, adapter, propagation)
    sentences = [f"{name}: adapter and propagation begin with what it holds"]
    sentences += [
        f"{name}: {difference}" for difference in _differences(record.model, with_defaults(ModelSpec.of(config)))
    ]
    if record.inference.pixel_mm != pixel_mm:
        sentences.append(
            f"{name}: it was trained at {record.inference.pixel_mm:g} mm per pixel, this model sees "
            f"{pixel_mm:g} mm (model.inference.pixel_mm)"
        )
    if record.inference.channels != tuple(channels):
        before, now = (", ".join(names) or "one image" for names in (record.inference.channels, channels))
        sentences.append(f"{name}: it was trained on {before}, this model sees {now} (model.inference.channels)")
    return sentences


def _check_classes(folder: Path, name: str, trained: ModelSpec, parts: Mapping[str, object]) -> None:
    """Refuse a bundle whose backbone, adapter or propagation is of another class than the new model's."""
    for role, part in parts.items():
        class_path = getattr(trained, role).class_path
        if class_path.rpartition(".")[2] != type(part).__name__:
            other = (
                f"take its propagation alone (model.propagation.init_args.weights={folder / PROPAGATION})"
                if role == "adapter"
                else "leave start_from out"
            )
            raise ValueError(
                f"{name} is of model.{role}={class_path}, this model's is {type(part).__name__}; set "
                f"model.{role}={class_path}, or {other}."
            )


def _check_backbone(name: str, trained: ModelIdentity, backbone: Backbone) -> None:
    """Refuse a bundle that was trained with other backbone weights or other rules of the backbone."""
    theirs, ours = trained.backbone, backbone.identity
    if theirs.sha256 != ours.sha256:
        raise ValueError(
            f"{name} belongs to backbone {theirs.name} ({theirs.source}, sha256 {theirs.sha256[:12]}), this one is "
            f"{ours.name} ({ours.source}, sha256 {ours.sha256[:12]}); set model.backbone.init_args accordingly, or "
            "leave start_from out."
        )
    before, now = trained.behaviour, backbone.behaviour()
    if before != now:
        raise ValueError(
            f"{name} was trained with other rules of its backbone ({rules_apart(before, now)} instead of "
            f"{rules_apart(now, before)}); set model.backbone.init_args.rules accordingly."
        )


def _differences(before: ModelSpec, now: ModelSpec) -> list[str]:
    """Return one sentence for each argument that differs from the training of the bundle."""
    given, ours = _dotted_arguments(before), _dotted_arguments(now)
    return [
        f"it was trained with model.{role}.init_args.{key}={given[role][key]}, now {ours[role][key]}"
        for role in given
        for key in given[role].keys() & ours[role].keys()
        if given[role][key] != ours[role][key]
    ]


def _dotted_arguments(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Return the arguments by role and dotted name, under their current names."""
    arguments = spec.arguments()
    if PLACEMENT.takes(spec.adapter.class_path):
        arguments["adapter"] = PLACEMENT.with_group(arguments["adapter"])
    return {role: dotted(given) for role, given in arguments.items()}
