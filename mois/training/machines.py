"""Which of Lightning's ways to use a machine this training can go, said before anything is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn

from mois.inference.execution import unused_gpu

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "single_device")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
_KINDS = (DDPStrategy, SingleDeviceStrategy)
_OWN_PROCESSES = "popen"
_ONE = ("1", "auto", "None")


def check_strategy(given: Any, devices: Any = None) -> None:
    """Refuse a strategy under which this training would fail in the middle, or go on unwatched.

    FSDP and DeepSpeed shard weights, of which checkpoints, adapters and the clipping of gradients need the whole; what
    forks or spawns processes shares a CUDA context or cannot send the model, and `RankWatch` cannot watch it.

    Args:
        given: `trainer.strategy` as in the config: a name, or a class_path with init_args.
        devices: `trainer.devices` as in the config.

    Raises:
        ValueError: If it is none of `STRATEGIES`, and no class of their kind; or takes fewer devices than are given.
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
        return kind in _KINDS  # of Lightning's own ones, DeepSpeed and XLA are among the descendants
    return isinstance(kind, type) and issubclass(kind, _KINDS)


def check_accelerator(given: Any) -> None:
    """Refuse what is no accelerator, and say why a training is not on the GPU that the machine has.

    Args:
        given: `trainer.accelerator` as in the config.

    Raises:
        ValueError: If it is none of `ACCELERATORS`, or a GPU was asked for that torch cannot use.
    """
    if not isinstance(given, str):
        return  # an object that a program gives
    if given not in ACCELERATORS:
        raise ValueError(f"trainer.accelerator={given} is not supported; choose one of {', '.join(ACCELERATORS)}.")
    why = unused_gpu()
    if why is None or given in ("cpu", "mps"):
        return
    if given != "auto":
        raise ValueError(f"trainer.accelerator={given}: {why}, or set trainer.accelerator=cpu.")
    rank_zero_warn(f"trainer.accelerator=auto trains on the CPU: {why}, or say so with trainer.accelerator=cpu.")


def check_precision(given: str, accelerator: Any) -> None:
    """Refuse what this training cannot compute in; Lightning would take bfloat16 on a CPU, whatever the config says.

    Args:
        given: `trainer.precision` as in the config.
        accelerator: `trainer.accelerator`.

    Raises:
        ValueError: If it is none of `PRECISIONS`, or float16 on a CPU.
    """
    if given not in PRECISIONS:
        raise ValueError(f"trainer.precision={given} is not supported; use {', '.join(PRECISIONS)}")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if given in ("16", "16-mixed") and (accelerator == "cpu" or (accelerator == "auto" and not gpu)):
        raise ValueError(
            f"trainer.precision={given} needs a GPU, this training is on the CPU; use 32-true or bf16-mixed"
        )
