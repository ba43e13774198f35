"""What a backbone saw in the tiles of a scan: in memory up to a budget, beyond it in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.records import Features

GIB = 1 << 30
Encode = Callable[[Tensor], Features]


class FeatureStore:
    """Features by row; what is missing is encoded when it is first asked for, one tile at a time, and kept.

    One tile at a time, so that what is kept of a tile depends on the tile alone, never on what was asked for first. For
    the same reason what went to the file comes back bit by bit. Rows stay where they were put: a scan is swept from
    end to end again and again, so that throwing out the oldest would throw out what is needed next.

    Args:
        encode: From images (N, P, P) float32 to their features; called on the device of the model.
        device: Where features are handed out, and kept within the budget.
        dtype: What the levels are kept as.
        budget_gib: How much is kept in memory; 0 keeps all in the file.
    """

    def __init__(self, encode: Encode, device: torch.device, dtype: torch.dtype, budget_gib: float) -> None:
        self.dtype = dtype
        self.encoded = 0
        self.spilt = 0
        self._encode = encode
        self._device = device
        self._budget_gib = budget_gib
        self._room = int(budget_gib * GIB)
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._slots: dict[int, int] = {}
        self._shapes: tuple[torch.Size, ...] = ()
        self._position: Tensor | None = None
        self._reaches: list[Tensor] = []  # of what was put and not checked yet
        # without a name: it is gone with the process, however that ends
        self._file = tempfile.TemporaryFile(prefix="mois-features-")  # noqa: SIM115 - as long as the store

    def __contains__(self, row: int) -> bool:
        return row in self._kept or row in self._slots

    def put(self, rows: npt.NDArray[np.int64], images: Tensor) -> None:
        """Encode images (N, P, P) at once, and keep them as these rows."""
        self._put(rows, images)
        self._check()

    def _put(self, rows: npt.NDArray[np.int64], images: Tensor) -> None:
        features = self._encode(images.to(self._device, non_blocking=True))
        self._shapes = tuple(level.shape[1:] for level in features.levels)
        if self._position is None:
            self._position = features.position[:1].to(self.dtype)
        self._reaches += [torch.stack(level.aminmax()).abs().amax().float() for level in features.levels]
        kept = tuple(level.to(self.dtype) for level in features.levels)
        self.encoded += len(images)
        for place, row in enumerate(rows.tolist()):
            levels = tuple(level[place] for level in kept)
            size = self._bytes_per_row()
            if size <= self._room:
                self._room -= size
                self._kept[row] = tuple(level.clone() for level in levels)
            else:
                self._write(row, levels)

    def select(self, rows: npt.NDArray[np.int64], images: Tensor) -> Features:
        """Return the features of N rows, float32.

        Args:
            rows: (N,); a row may be asked for more than once.
            images: (N, P, P) float32, the tiles, for those that are not encoded yet.
        """
        for place, row in enumerate(rows.tolist()):
            if row not in self:
                self._put(rows[place : place + 1], images[place : place + 1])
        self._check()
        found = [self._kept[row] if row in self._kept else self._read(row) for row in rows.tolist()]
        with torch.autocast(self._device.type, enabled=False):  # a CPU's knows no float16
            levels = tuple(torch.stack(level).float() for level in zip(*found, strict=True))
        if self._position is None or not len(rows):
            raise LookupError("features of no rows: a caller asked for an empty selection")
        position = self._position.float().expand(len(rows), -1, -1, -1)
        return Features(levels, position, images.to(self._device, non_blocking=True).unsqueeze(1))

    def _check(self) -> None:
        """Wait, once for all that was put since the last time, to learn whether the features could be kept."""
        if not self._reaches:
            return
        reach, self._reaches = float(torch.stack(self._reaches).amax()), []
        if not reach <= torch.finfo(self.dtype).max:
            self._kept.clear()
            self._slots.clear()
            name = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"the backbone's features reach {reach:.3g}, which {name} cannot hold; check its weights "
                "(model.backbone.init_args.weights)."
            )

    def _bytes_per_row(self) -> int:
        return sum(shape.numel() for shape in self._shapes) * self.dtype.itemsize

    def _write(self, row: int, levels: tuple[Tensor, ...]) -> None:
        data = torch.cat([level.flatten() for level in levels]).cpu().numpy().tobytes()
        slot = len(self._slots)
        view, place = memoryview(data), slot * len(data)
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, place)
                view, place = view[written:], place + written
        except OSError as error:
            raise OSError(
                f"{tempfile.gettempdir()}: features cannot be written there ({error.strerror}); make room, set TMPDIR "
                f"to another folder, or raise inference.memory_gib={self._budget_gib:g}."
            ) from error
        self._slots[row] = slot
        self.spilt += 1

    def _read(self, row: int) -> tuple[Tensor, ...]:
        size = self._bytes_per_row()
        data = bytearray(os.pread(self._file.fileno(), size, self._slots[row] * size))
        if len(data) != size:
            raise OSError(f"{tempfile.gettempdir()}: features written there cannot be read back; is the disk full?")
        flat = torch.frombuffer(data, dtype=self.dtype).to(self._device, non_blocking=True)
        parts = torch.split(flat, [shape.numel() for shape in self._shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
