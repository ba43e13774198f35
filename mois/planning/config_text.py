"""Writes a plan as a config that `mois fit` runs as it is. Each derived value says where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mois.files.text import as_yaml
from mois.planning import rules
from mois.planning.plan import Plan
from mois.sharing.bundle_record import ModelSpec

WIDTH = 62
"""Column at which comments begin, where the setting is shorter."""


def config_text(plan: Plan, file: Path, start: ModelSpec | None = None) -> str:
    """Return the YAML of a plan.

    Args:
        plan: The plan.
        file: Where the config will lie, for the command in its first line.
        start: Classes of the bundle that the training begins with; None for the bundled nano.
    """
    parts = _parts(plan) if start is None else _parts_of_bundle(start)
    lines = [(f"mois fit --config {file}", ""), *_trainer(plan), *parts, *_model(plan), *_data(plan)]
    (first, _), *rest = lines
    return "\n".join([f"# {first}", *(_line(setting, why) for setting, why in rest)]) + "\n"


def _line(setting: str, why: str) -> str:
    return f"{setting:{WIDTH}} # {why}" if why else setting


def _trainer(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "seed_everything: 0", ""
    yield "trainer:", ""
    yield "  accelerator: auto", ""
    yield "  devices: 1", ""
    yield f"  max_epochs: {plan.epochs}", f"{plan.steps} steps in all: {plan.reasons['steps']}"
    if plan.split.val_subjects or plan.split.val_slab or plan.split.fold is not None:
        yield "  check_val_every_n_epoch: 2", "and once before the first step"


def _parts_of_bundle(start: ModelSpec) -> Iterator[tuple[str, str]]:
    yield "model:", "backbone, adapter and propagation as in the bundle that the training begins with"
    for name, spec in asdict(start).items():
        yield f"  {name}: {as_yaml(spec)}", ""


def _parts(plan: Plan) -> Iterator[tuple[str, str]]:
    parts = plan.adaptation.parts
    yield "model:", ""
    yield "  backbone: {class_path: mois.backbones.SAM2, init_args: {size: nano, weights: bundled-2}}", ""
    if parts:
        yield "  adapter:", plan.adaptation.reason
        yield "    class_path: adapters.Lora", ""
        yield f"    init_args: {{rank: 8, placement: {{parts: [{', '.join(parts)}], stages: [3, 4]}}}}", ""
        yield "  optimisation: {adapter_learning_rate: 1.0e-4}", "a tenth of that of the propagation: clicks stay"
    else:
        yield "  adapter: {class_path: adapters.Frozen}", plan.adaptation.reason
    yield "  propagation: {class_path: mois.propagation.LearnedMatching, init_args: {weights: bundled-2}}", ""


def _model(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.one_class:
        first = f"  learning: {{corrections: 2, first_masks: {rules.FIRST_MASKS:g}}}"
        yield first, "exemplars as one click shows them, as often as that"
    else:
        yield "  learning: {corrections: 2}", ""
    yield "  inference:", ""
    yield "    {overlap: 0.25, threshold: 0.5, peak_threshold: 0.6, clicks: near, level: moderate,", ""
    size = "" if plan.sizes.patch_px == 128 else f", tile_px: {plan.sizes.patch_px}"
    least = f"    rejections: vetoes, split_prominence_mm: null, min_lesion_voxels: {plan.min_lesion_voxels}{size}}}"
    yield least, f"voxels: {plan.reasons['min_lesion_voxels']}"
    yield "  protocol:", ""
    yield f"    prompted: {plan.prompted}", plan.reasons["prompted"]
    if plan.surface_mm is not None:
        yield f"    surface_mm: {plan.surface_mm:g}", plan.reasons["protocol"]
    if plan.bins_ml is not None:
        yield f"    bins_ml: [{', '.join(f'{edge:g}' for edge in plan.bins_ml)}]", plan.reasons["protocol"]


def _data(plan: Plan) -> Iterator[tuple[str, str]]:
    split = plan.split
    yield "data:", ""
    yield "  class_path: datamodules.NiftiDataModule", ""
    yield "  init_args:", ""
    yield f"    root: {as_yaml(str(plan.root))}", ""
    seen = f"channels: {as_yaml(list(plan.channels))}" if plan.channels else f"channel: {plan.channel}"
    yield f"    {seen}", plan.reasons["channel"]
    if split.fold is not None:
        yield f"    split: {{fold: {split.fold}}}", split.reason
    elif split.val_subjects:
        yield f"    split: {{val_subjects: {as_yaml(list(split.val_subjects))}}}", split.reason
    elif split.val_slab:
        yield f"    split: {{val_slab: {split.val_slab:g}}}", split.reason
    else:
        yield "    split: {val_subjects: null}", split.reason
    yield f"    pixel_mm: {plan.sizes.pixel_mm:g}", plan.reasons["pixel_mm"]
    yield f"    patch_px: {plan.sizes.patch_px}", plan.reasons["patch_px"]
    yield f"    clip: {plan.clip}", plan.reasons["clip"]
    yield f"    exemplars: {plan.exemplars}", plan.reasons["exemplars"]
    if plan.one_class:
        yield f"    replay: {rules.REPLAY:g}", plan.reasons["one_class"]
        yield f"    mix: {{background: {rules.BACKGROUND:g}}}", "places without a lesion, as often as that"
        zoomed = f"    augmentation: {{affine: {rules.AFFINE:g}, zoom: {rules.ZOOM:g}}}"
        yield zoomed, "lesions of other patients may be larger or smaller"
    yield f"    batch_size: {plan.batch_size}", ""
    yield f"    episodes_per_epoch: {plan.episodes_per_epoch}", ""
