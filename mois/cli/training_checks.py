"""Checks of settings before a training begins: machine, precision, seed, scales, edge of patches, folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn

from mois.cli.settings import Setting
from mois.inference.execution import resolve_precision, unused_gpu
from mois.inference.settings import InferenceSettings
from mois.training.checkpoints.checkpoint_io import NAMED
from mois.training.module import ExemplarSegmenter

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "single_device")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
_KINDS = (DDPStrategy, SingleDeviceStrategy)
_OWN_PROCESSES = "popen"
_ONE = ("1", "auto", "None")


def check_strategy(given: Any, devices: Any = None) -> None:
    """Refuse a strategy that cannot work in our trainings.

    - FSDP and DeepSpeed split the weights. Checkpoints, adapters and clipping of gradients need whole weights.
    - Forked processes share a CUDA context, and spawned processes cannot receive the model. `RankWatch` cannot watch
      either of them.

    Args:
        given: `trainer.strategy` in the config: a name, or a class_path with init_args.
        devices: `trainer.devices` in the config.

    Raises:
        ValueError: If the strategy is not supported, or takes fewer devices than are given.
    """
    path, start = given, _OWN_PROCESSES
    if isinstance(given, Mapping) or hasattr(given, "class_path"):
        path = given["class_path"]
        start = (given.get("init_args") or {}).get("start_method") or _OWN_PROCESSES
    if path == "single_device" and (len(devices) > 1 if isinstance(devices, list) else str(devices) not in _ONE):
        raise ValueError(
            f"trainer.strategy=single_device takes one device, trainer.devices={devices} are more; set "
            "trainer.devices=1, or trainer.strategy=ddp."
        )
    if path is None or path in STRATEGIES or (_is_of_their_kind(str(path)) and start == _OWN_PROCESSES):
        return
    name = path if start == _OWN_PROCESSES else f"{path} with start_method={start}"
    raise ValueError(
        f"trainer.strategy={name} is not supported: a training needs whole weights on every rank, and ranks that are "
        f"processes of their own; choose one of {', '.join(STRATEGIES)}. Where memory is short, lower "
        "data.init_args.batch_size, or set model.backbone.init_args.checkpoint_trunk=true."
    )


def _is_of_their_kind(path: str) -> bool:
    module, _, name = path.rpartition(".")
    if not module:
        return False
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if module.startswith(("lightning.", "pytorch_lightning.")):
        return kind in _KINDS  # DeepSpeed and XLA are subclasses of them in Lightning
    return isinstance(kind, type) and issubclass(kind, _KINDS)


def check_accelerator(given: Any) -> None:
    """Refuse an unknown accelerator. Warn if the machine has a GPU that the training does not use.

    Args:
        given: `trainer.accelerator` in the config.

    Raises:
        ValueError: If it is unknown, or a GPU is wanted that torch cannot use.
    """
    if not isinstance(given, str):
        return  # an object of a Python program
    if given not in ACCELERATORS:
        raise ValueError(f"trainer.accelerator={given} is not supported; choose one of {', '.join(ACCELERATORS)}.")
    why = unused_gpu()
    if why is None or given in ("cpu", "mps"):
        return
    if given != "auto":
        raise ValueError(f"trainer.accelerator={given}: {why}, or set trainer.accelerator=cpu.")
    rank_zero_warn(f"trainer.accelerator=auto trains on the CPU: {why}, or say so with trainer.accelerator=cpu.")


def check_precision(given: str, accelerator: Any) -> None:
    """Refuse a precision that this training cannot use. On a CPU, Lightning would silently take bfloat16.

    Args:
        given: `trainer.precision` in the config.
        accelerator: `trainer.accelerator`.

    Raises:
        ValueError: If the precision is not supported, or is float16 on a CPU.
    """
    if given not in PRECISIONS:
        raise ValueError(f"trainer.precision={given} is not supported; use {', '.join(PRECISIONS)}")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if given in ("16", "16-mixed") and (accelerator == "cpu" or (accelerator == "auto" and not gpu)):
        raise ValueError(
            f"trainer.precision={given} needs a GPU, this training is on the CPU; use 32-true or bf16-mixed"
        )


def choose_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """Return bf16-mixed for a CUDA device with bfloat16 in hardware, 32-true for all other devices."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if cuda and resolve_precision(torch.device("cuda"), "auto") == "bf16" else "32-true"


def check_seed(given: Sequence[Setting], seed: int) -> None:
    """Refuse a seed of the data that differs from `seed_everything`.

    Raises:
        ValueError: If the seeds differ.
    """
    for setting in given:
        if setting.key == "data.init_args.seed" and setting.value != seed:
            raise ValueError(
                f"{setting.key}={setting.value}{setting.place} is not taken: seed_everything={seed} serves all; "
                "leave it out"
            )


def check_groups(given: Sequence[Setting], groups: Mapping[str, Any]) -> None:
    """Refuse one value for a group of settings, such as `trainer: 5`, which the parser would drop.

    Raises:
        ValueError: If a group has one value.
    """
    for setting in given:
        if setting.key in groups and not isinstance(setting.value, dict | str | None):
            raise ValueError(
                f"{setting.key}={setting.value}{setting.place} is not allowed: {setting.key} is a group of "
                f"settings; write them under it, {setting.key}: {{NAME: VALUE}}"
            )


def pixel_mm_of_data(config: Mapping[str, Any]) -> float:
    """Return the millimetres per pixel of the training patches; the default if the datamodule has no `pixel_mm`."""
    data = (config.get("data") or {}).get("init_args") or {}
    pixel_mm = data.get("pixel_mm")  # not every datamodule has it
    return InferenceSettings.pixel_mm if pixel_mm is None else float(pixel_mm)


def channels_of_data(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the channels of the training patches; none if the datamodule has no `channels`."""
    data = (config.get("data") or {}).get("init_args") or {}
    return list(data.get("channels") or ())  # not every datamodule has it


def check_scales(config: Mapping[str, Any]) -> None:
    """Refuse patches with other pixels, intensities or channels than whole scans.

    To test or predict at another scale, set both keys.

    Raises:
        ValueError: If two values differ.
    """
    data, inference = (config.get("data") or {}).get("init_args") or {}, config["model"].get("inference") or {}
    for key in ("pixel_mm", "normalisation", "channels"):
        trained, inferred = data.get(key), inference.get(key)  # not every datamodule has them
        if key == "channels":
            trained, inferred = (None if names is None else list(names) for names in (trained, inferred))
        if trained is not None and inferred is not None and trained != inferred:
            raise ValueError(
                f"data.init_args.{key}={trained} and model.inference.{key}={inferred} differ; set both to the same"
            )


def check_patch_edge(model: Any, data: Any) -> None:
    """Refuse patches with another edge in pixels than the tiles of whole scans.

    Raises:
        ValueError: If the edges differ.
    """
    patch_px = getattr(getattr(data, "settings", None), "patch_px", None)  # not every datamodule has one
    if patch_px is None or not isinstance(model, ExemplarSegmenter):
        return
    edge, key = model.inference.tile_px, "model.inference.tile_px"
    if edge is None:
        edge, key = model.backbone.patch_px, "model.backbone.init_args.patch_px"
    if patch_px != edge:
        raise ValueError(
            f"data.init_args.patch_px={patch_px} (what the model learns on) and {key}={edge} (what it sees of "
            "whole volumes at once) differ; set both to the same, such as 512 for SAM 2.1's own sizes"
        )


def check_new_folder(folder: Path, checkpoints: Path) -> None:
    """Refuse a new training in a folder with the checkpoints of another training.

    Raises:
        ValueError: If the folder holds checkpoints.
    """
    if any((checkpoints / f"{name}.ckpt").exists() for name in NAMED if name != "start"):
        raise ValueError(
            f"trainer.default_root_dir={folder} holds a training already; go on with it (--ckpt_path last), "
            "or choose another folder"
        )
