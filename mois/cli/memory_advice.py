"""Settings that free memory in a training or a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mois.machine.full_memory import MACHINE, SHARED, full_memory, passed_through

SMALLEST_PX = 64
"""Patches and tiles below this edge show too little around a lesion."""


def what_frees_memory(error: BaseException, config: Mapping[str, Any], command: str) -> str:
    """Return the settings that would free memory, with their present values. Settings at their lowest are left out.

    Args:
        error: Message that a memory is full.
        config: Plain values of `trainer`, `model` and `data`.
        command: fit, validate, test or predict.
    """
    model, trainer = config.get("model") or {}, config.get("trainer") or {}
    data = (config.get("data") or {}).get("init_args") or {}
    which = full_memory(error)
    if which.startswith(SHARED):
        return f"lower data.init_args.num_workers ({data.get('num_workers')}), or give the container more (--shm-size)"
    whole = command != "fit" or passed_through(error, "validation_step")
    if whole:
        settings = model.get("inference") or {}
        ways = _lower("model.inference.batch_size", settings.get("batch_size"), 1)
        ways += _lower("model.inference.tile_px", settings.get("tile_px"), SMALLEST_PX)
    else:
        ways = _of_training(model, trainer, data)
    if which.startswith(MACHINE):
        ways += _lower("data.init_args.num_workers", data.get("num_workers"), 0)
        # several processes map their scans anyway
        if "prepared" in data and data["prepared"] is None and not _several_processes():
            ways.append("set data.init_args.prepared to a folder, which scans are mapped from")
    elif whole:
        ways.append("compute on the CPU (trainer.accelerator=cpu)")
    return ", or ".join(ways) or "end other programs that use it, or take a smaller backbone"


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _of_training(model: Mapping[str, Any], trainer: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    backbone = (model.get("backbone") or {}).get("init_args") or {}
    ways = _lower("data.init_args.batch_size", data.get("batch_size"), 1)
    if ways:
        ways[0] += " and accumulate (trainer.accumulate_grad_batches)"
    if backbone.get("checkpoint_trunk") is False:
        ways.append("set model.backbone.init_args.checkpoint_trunk=true")
    ways += _lower("data.init_args.exemplars", data.get("exemplars"), 1)
    ways += _lower("data.init_args.clip", data.get("clip"), 1)
    ways += _lower("data.init_args.patch_px", data.get("patch_px"), SMALLEST_PX)
    if str(trainer.get("precision")) in ("32-true", "32") and trainer.get("accelerator") != "cpu":
        ways.append("set trainer.precision=bf16-mixed")
    return ways


def _lower(key: str, value: Any, least: int) -> list[str]:
    return [f"lower {key} ({value})"] if isinstance(value, int) and value > least else []
