"""The reduced nnU-Net: plan, preprocessing, augmentation, loss and sliding window of nnU-Net, with a smaller network.

It needs the extra `nnunet`. Axes in this module are the axes of nnU-Net: the reversed axes of the file, then the axis
with the largest spacing first.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mois.files.json_records import read_record
from mois.scans.image_files import write_volume

CONFIGURATION = "3d_reduced"
BATCH = 2
THICK_SLICE = 2.0  # slices this many times thicker than their pixels get a flat patch
ReportProgress = Callable[[str], None]
"""Takes a line about the progress."""


class Size(NamedTuple):
    """Size of the patch and of the network.

    Attributes:
        patch: Voxels along the axes of nnU-Net, coarsest first.
        features: Channels of each stage, finest first.
    """

    patch: tuple[int, int, int]
    features: tuple[int, ...]


class TrainingLog(NamedTuple):
    """Record of a training.

    Attributes:
        iterations: Number of steps.
        seconds: Seconds on the clock of the budget.
        losses: Seconds, and mean loss since the entry before; about 20 entries.
    """

    iterations: int
    seconds: float
    losses: list[tuple[float, float]]


def default_size(spacing_mm: Sequence[float]) -> Size:
    """Return patch and features for a spacing, coarsest first: flat patches for thick slices."""
    if spacing_mm[0] > THICK_SLICE * min(spacing_mm):
        return Size((16, 64, 64), (8, 16, 32, 64))
    return Size((48, 64, 64), (12, 24, 48, 96))


def reduce_plan(plans: dict[str, Any], size: Size) -> dict[str, Any]:
    """Return the plans of nnU-Net with a further, smaller configuration that inherits from 3d_fullres.

    Poolings and kernels follow from spacing and patch by the rule of nnU-Net.

    Args:
        plans: The plans of nnU-Net.
        size: Size of the reduced configuration. Stages that are too deep for its patch are left out.

    Raises:
        ValueError: If the plans lack 3d_fullres, or the network has fewer than three stages.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    if "3d_fullres" not in plans["configurations"]:
        raise ValueError("nnU-Net planned no 3d_fullres: these scans are single slices; the reduced nnU-Net is 3-D.")
    full = plans["configurations"]["3d_fullres"]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(full["spacing"], size.patch, 4, len(size.features) - 1)
    stages = min(len(size.features), len(strides))
    if stages < 3:  # nnU-Net's deep supervision divides 0 by 0 with two (test_two_stages_are_refused)
        raise ValueError(
            f"patch={list(size.patch)} and features={list(size.features)} make {stages} stages of the 3 or more that "
            "nnU-Net needs; give three features and a patch of 16 or more along the fine axes."
        )
    architecture = copy.deepcopy(full["architecture"])
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(size.features[:stages]),
        "kernel_sizes": [list(kernel) for kernel in kernels[:stages]],
        "strides": [list(stride) for stride in strides[:stages]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    reduced = {
        "inherits_from": "3d_fullres",
        "data_identifier": f"{plans['plans_name']}_{CONFIGURATION}",
        "patch_size": [int(edge) for edge in patch],
        "batch_size": BATCH,
        "architecture": architecture,
    }
    return plans | {"configurations": plans["configurations"] | {CONFIGURATION: reduced}}


def plan_and_preprocess(number: int, raw: Path, preprocessed: Path, size: Size | None) -> dict[str, Any]:
    """Let nnU-Net plan and preprocess the training scans. Return its plans with the reduced configuration."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    extract_fingerprints([number], num_processes=1, verbose=False, show_progress_bar=False)
    plans_file = preprocessed / f"{plan_experiments([number])}.json"
    plans = read_record(plans_file, dict[str, Any])
    full = plans["configurations"].get("3d_fullres", {"spacing": (1.0, 1.0, 1.0)})
    plans = reduce_plan(plans, size or default_size(full["spacing"]))
    plans_file.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    preprocessor = DefaultPreprocessor(verbose=False)
    about = read_record(raw / "dataset.json", dict[str, Any])
    folder = preprocessed / configuration.data_identifier
    folder.mkdir(parents=True, exist_ok=True)
    for case, files in get_filenames_of_train_images_and_targets(str(raw), about).items():
        preprocessor.run_case_save(str(folder / case), files["images"], files["label"], manager, configuration, about)
    return plans


def make_trainer(plans: dict[str, Any], about: dict[str, Any], fold: int | str, device: str) -> Any:
    """Return the trainer of nnU-Net for the reduced configuration. It writes no checkpoints."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    settings = copy.deepcopy(plans) | {"continue_training": False}
    trainer = nnUNetTrainer(settings, CONFIGURATION, fold, about, torch.device(device))
    trainer.disable_checkpointing = True
    return trainer


def train(trainer: Any, budget_seconds: float, clock: Callable[[], float], report: ReportProgress) -> TrainingLog:
    """Train until the budget is spent. The learning rate falls with the spent share, by the rule of nnU-Net.

    Args:
        trainer: The trainer of `make_trainer`.
        budget_seconds: Seconds on the clock, with the first step, which also starts the loaders.
        clock: Returns seconds.
        report: Called about twenty times with a line about the progress.

    Raises:
        RuntimeError: If the loss becomes NaN or infinite.
    """
    start = clock()
    trainer.on_train_start()
    trainer.network.train()
    losses: list[tuple[float, float]] = []
    recent: list[float] = []
    iterations, spent = 0, clock() - start
    while spent < budget_seconds:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - spent / budget_seconds) ** 0.9
        recent.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        iterations, spent = iterations + 1, clock() - start
        if spent >= budget_seconds * (len(losses) + 1) / 20:
            losses.append((round(spent, 2), sum(recent) / len(recent)))
            recent = []
            if not math.isfinite(losses[-1][1]):
                raise RuntimeError(f"nnU-Net's loss is {losses[-1][1]} after {iterations} iterations.")
            report(
                f"{spent / 60:.2f} of {budget_seconds / 60:.2f} minutes, {iterations} steps, loss {losses[-1][1]:.3f}"
            )
    trainer.on_train_end()
    return TrainingLog(iterations, spent, losses)


def predict(trainer: Any, images: Sequence[Path], values: Sequence[int], out: Path, mirroring: bool) -> None:
    """Segment a scan and write its semantic map on its own grid.

    Args:
        trainer: The trainer of `make_trainer`, trained, or initialised with stored weights.
        images: Files of one scan, in order of channel.
        values: Classes of the dataset. Class n + 1 of nnU-Net is written as `values[n]`.
        out: File to write.
        mirroring: Average over all mirrored versions, as nnU-Net does. It takes eight times the work.
    """
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=False, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network, manager, configuration, None, trainer.dataset_json, "nnUNetTrainer", (0, 1, 2)
    )
    data, _, properties = configuration.preprocessor_class(verbose=False).run_case(
        [str(image) for image in images], None, manager, configuration, trainer.dataset_json
    )
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).cpu()
    classes = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, configuration, trainer.label_manager, properties, num_threads_torch=1
    )
    affine = torch.from_numpy(np.array(properties["nibabel_stuff"]["original_affine"], np.float64))
    table = np.array([0, *values], np.int32)
    write_volume(table[classes.transpose(2, 1, 0)], affine, out)
