"""How a model runs: device, precision, compilation, and number of tiles at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.records import Features

Precision = Literal["auto", "32", "bf16"]

CPU_CACHE_PX = 1 << 17
"""Pixels that go through a model at once on a CPU. Their activations fit the cache of the CPU. This is a third faster
than 32 tiles of 128 pixels at once."""

DEVICE_TYPES = ("cpu", "cuda", "mps")
"""Types of devices that a model can run on."""

DRIVER_FILE = Path("/proc/driver/nvidia/version")
"""File of the NVIDIA driver on Linux."""


def chosen_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Return the device with a name; `auto` is a GPU if the machine has one, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1` and so on.
        local_rank: Number of this process on its machine. With `auto` and `cuda`, each process takes its own GPU.

    Raises:
        ValueError: If the machine has no such device.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto" and not has_gpu:
        return torch.device("cpu")
    if name == "auto" or (name == "cuda" and has_gpu and local_rank):
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    refusal = ValueError(f"device={name} is unknown; choose auto, cpu, cuda, or cuda:1 for the second GPU.")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise refusal from error
    if device.type not in DEVICE_TYPES:  # such as meta, which has shapes but no numbers
        raise refusal
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={name}: this machine, or this torch, has no Apple GPU; choose auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        reason = f"; {why}" if (why := unused_gpu()) else ""
        raise ValueError(f"device={name}: torch finds {count} CUDA devices here{reason}; choose auto or cpu.")
    return device


def unused_gpu() -> str | None:
    """Return the reason why the NVIDIA GPU of this machine is not used; None if it is used or the machine has none."""
    if not DRIVER_FILE.is_file() or torch.cuda.is_available():
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not any(part.strip() not in ("", "-1") for part in hidden.split(",")):
        return None  # the user hid the GPUs
    if torch.version.cuda is None:
        return f"there is an NVIDIA driver, but torch {torch.__version__} was built without CUDA; install another torch"
    return (
        f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it: the driver is older than CUDA "
        f"{torch.version.cuda} asks for, or the GPU is not shared with this container; update the driver"
    )


def resolve_precision(device: torch.device, precision: Precision) -> Literal["32", "bf16"]:
    """Return the precision on a device. `auto` is bfloat16 on a GPU that computes with it, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for a device and a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bf16")


def tiles_at_once(device: torch.device, tile_px: int, most: int) -> int:
    """Return how many tiles of this edge go through a model at once: at least one, and `most` on a GPU."""
    return most if device.type != "cpu" else max(1, min(most, CPU_CACHE_PX // tile_px**2))


def batches(rows: npt.NDArray[np.int64], most: int, tiles: int) -> Iterator[slice]:
    """Cut ascending rows of tiles into parts for a model: at most `most` rows, on at most `tiles` different tiles."""
    start = 0
    while start < len(rows):
        some = rows[start : start + most]
        number = np.cumsum(np.diff(some, prepend=some[0]) != 0)  # number of the tile in this part, from 0
        stop = start + int(np.searchsorted(number, tiles))
        yield slice(start, stop)
        start = stop


class Compiled:
    """An encoder under torch.compile. If the compilation fails, one warning says so and the plain encoder is used.

    The encoder is compiled at the second call. The first call fills tables of the encoder that the compiled code needs.
    There is one compilation for a single image, and one for any larger number of images.

    Args:
        encode: Turns images (N, P, P) into features.
    """

    def __init__(self, encode: Callable[[Tensor], Features]) -> None:
        self._plain = encode
        self._fast: Callable[[Tensor], Features] | None = torch.compile(encode)
        self._called = False

    def __reduce__(self) -> tuple[type[Compiled], tuple[Callable[[Tensor], Features]]]:
        """Make a copy compile again, because compiled code is bound to the weights of the original."""
        return Compiled, (self._plain,)

    def __call__(self, images: Tensor) -> Features:
        """Encode images (N, P, P)."""
        if self._fast is not None and self._called:
            try:
                torch._dynamo.maybe_mark_dynamic(images, 0)
                return self._fast(images)
            except Exception as error:
                self._fast = None
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    f"inference.compile=true: the encoder cannot be compiled here ({reason}); it runs uncompiled.",
                    stacklevel=2,
                )
        self._called = True
        return self._plain(images)
