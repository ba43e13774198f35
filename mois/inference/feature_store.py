"""Features of the tiles of a scan, and answers on it: in memory up to a budget, in a file beyond it."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.interfaces import with_channels
from mois.machine.system_calls import read_at, write_at
from mois.records import Features

GIB = 1 << 30
Encode = Callable[[Tensor], Features]


class FeatureBudget:
    """Memory for features that several scans share. The scan that was not used for longest gives its features away.

    Its features then lie in its file.

    Args:
        gib: Size of the features that all scans keep in memory together, in GiB.
    """

    def __init__(self, gib: float) -> None:
        self.gib = gib
        self._most_bytes = int(gib * GIB)
        self._stores: list[weakref.ref[FeatureStore]] = []  # the latest used last

    def use(self, store: FeatureStore) -> None:
        """Note that a scan is in use."""
        if not self._stores or self._stores[-1]() is not store:
            others = [known for known in self._stores if known() not in (None, store)]
            self._stores = [*others, weakref.ref(store)]

    def has_room(self, store: FeatureStore, size: int) -> bool:
        """Return whether a scan may keep `size` more bytes, once the others have given away what is needed."""
        known = [each for reference in self._stores if (each := reference()) is not None]
        excess = sum(each.kept_bytes for each in known) + size - self._most_bytes
        for other in known:
            if excess > 0 and other is not store:
                excess -= other.give_away(excess)
        return excess <= 0


class FeatureStore:
    """Features of tiles by row number, and answers that never change.

    - A missing row is asked for -> its tile is encoded and kept. Tiles are encoded one at a time. So the features of a
      tile do not depend on the order of the requests.
    - The budget of memory is used up -> further rows go to a file. Features from the file are equal bit by bit.
    - Answers are kept in the same way: within the same budget, else in a file, equal bit by bit.
    - Nothing is ever dropped. A scan is read from end to end many times, so dropping the oldest row would drop the row
      that is needed next.

    Args:
        encode: Turns images (N, P, P) or (N, C, P, P) float32 into features. It is called on the device of the model.
        device: Device of the features that are returned or kept within the budget.
        dtype: Type in which the feature levels are kept.
        budget_gib: Size of the features that are kept in memory, in GiB; 0 keeps all features in the file. Or a budget
            that several scans share.
    """

    def __init__(
        self, encode: Encode, device: torch.device, dtype: torch.dtype, budget_gib: float | FeatureBudget
    ) -> None:
        self.dtype = dtype
        self.kept_bytes = 0
        self.encoded = 0
        self.rows_in_file = 0
        self._encode = encode
        self._device = device
        self._budget = budget_gib if isinstance(budget_gib, FeatureBudget) else FeatureBudget(budget_gib)
        self._budget.use(self)
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._places: dict[int, int] = {}  # in the file, by row
        self._shapes: tuple[torch.Size, ...] = ()
        self._position: Tensor | None = None
        self._answers: dict[Hashable, Tensor | _Filed] = {}
        self._reaches: list[Tensor] = []  # largest absolute value of each level that is not checked yet
        self._file = _File(self._budget.gib)

    def __contains__(self, row: int) -> bool:
        return row in self._kept or row in self._places

    def put(self, rows: npt.NDArray[np.int64], images: Tensor) -> None:
        """Encode images (N, P, P) at once, and keep their features as these rows."""
        self._put(rows, images)
        self._check()

    @torch.inference_mode()  # kept features must not hold on to the graph of their encoding
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
            if self._budget.has_room(self, size):
                self.kept_bytes += size
                self._kept[row] = tuple(level.clone() for level in levels)
            else:
                self._write(row, levels)

    def select(self, rows: npt.NDArray[np.int64], images: Tensor) -> Features:
        """Return the features of N rows, float32.

        Args:
            rows: (N,); a row may be asked for more than once.
            images: (N, P, P) float32, the tiles of these rows.
        """
        self._budget.use(self)
        for place, row in enumerate(rows.tolist()):
            if row not in self:
                self._put(rows[place : place + 1], images[place : place + 1])
        self._check()
        levels_by_row = [self._kept[row] if row in self._kept else self._read(row) for row in rows.tolist()]
        with torch.autocast(self._device.type, enabled=False):  # autocast on a CPU does not know float16
            levels = tuple(torch.stack(level).float() for level in zip(*levels_by_row, strict=True))
        if self._position is None or not len(rows):
            raise LookupError("features of no rows: a caller asked for an empty selection")
        position = self._position.float().expand(len(rows), -1, -1, -1)
        return Features(levels, position, with_channels(images.to(self._device, non_blocking=True)))

    def keep(self, subject: Hashable, answer: Tensor) -> None:
        """Keep an answer on the scan that never changes, on the CPU, as long as the features.

        Args:
            subject: What it answers. Nothing else may have the same subject.
            answer: The answer; nobody may change it later.
        """
        self._budget.use(self)
        if self._budget.has_room(self, answer.nbytes):
            self.kept_bytes += answer.nbytes
            self._answers[subject] = answer
        else:
            self._answers[subject] = self._filed(answer)

    def answer(self, subject: Hashable) -> Tensor | None:
        """Return a kept answer, bit by bit as it was given; None if there is none."""
        kept = self._answers.get(subject)
        if not isinstance(kept, _Filed):
            return kept
        data = self._file.read(kept.place, kept.shape.numel() * kept.dtype.itemsize)
        return torch.frombuffer(data, dtype=kept.dtype).view(kept.shape)

    def give_away(self, size: int) -> int:
        """Write at least `size` bytes of what is kept to files, as far as there are so many. Return how many."""
        given = 0
        for subject, answer in self._answers.items():
            if given < size and isinstance(answer, Tensor):
                self._answers[subject] = self._filed(answer)
                given += answer.nbytes
        while self._kept and given < size:
            row = next(iter(self._kept))
            self._write(row, self._kept[row])
            del self._kept[row]
            given += self._bytes_per_row()
        self.kept_bytes -= given
        return given

    def _check(self) -> None:
        """Check that `dtype` can hold the features since the last check. It waits once for the device.

        Raises:
            ValueError: If a feature is too large or not finite.
        """
        if not self._reaches:
            return
        reach, self._reaches = float(torch.stack(self._reaches).amax()), []
        if not reach <= torch.finfo(self.dtype).max:
            self.kept_bytes -= len(self._kept) * self._bytes_per_row()
            self._kept.clear()
            self._places.clear()
            name = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"the backbone's features reach {reach:.3g}, which {name} cannot hold; check its weights "
                "(model.backbone.init_args.weights)."
            )

    def _bytes_per_row(self) -> int:
        return sum(shape.numel() for shape in self._shapes) * self.dtype.itemsize

    def _write(self, row: int, levels: tuple[Tensor, ...]) -> None:
        self._places[row] = self._file.append(torch.cat([level.flatten() for level in levels]))
        self.rows_in_file += 1

    def _read(self, row: int) -> tuple[Tensor, ...]:
        data = self._file.read(self._places[row], self._bytes_per_row())
        flat = torch.frombuffer(data, dtype=self.dtype).to(self._device, non_blocking=True)
        parts = torch.split(flat, [shape.numel() for shape in self._shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))

    def _filed(self, answer: Tensor) -> _Filed:
        return _Filed(self._file.append(answer.flatten()), answer.shape, answer.dtype)


class _Filed(NamedTuple):
    """An answer in the file: where, its shape, and its type."""

    place: int
    shape: torch.Size
    dtype: torch.dtype


class _File:
    """A file that grows. It has no name: the system removes it when the process ends.

    Args:
        gib: Size of the memory that was used up, for the message of an error.
    """

    def __init__(self, gib: float) -> None:
        self._gib = gib
        self._bytes = 0
        self._file = tempfile.TemporaryFile(prefix="mois-features-")  # noqa: SIM115 - as long as the store
        weakref.finalize(self, self._file.close)

    def append(self, numbers: Tensor) -> int:
        """Write numbers (n,) behind what is there, and return their place."""
        place = start = self._bytes
        view = memoryview(numbers.cpu().numpy().tobytes())
        try:
            while view:
                written = write_at(self._file.fileno(), view, place)
                view, place = view[written:], place + written
        except OSError as error:
            raise OSError(
                f"{tempfile.gettempdir()}: features cannot be written there ({error.strerror}); make room, set TMPDIR "
                f"to another folder, or raise inference.memory_gib={self._gib:g}."
            ) from error
        self._bytes = place
        return start

    def read(self, place: int, size: int) -> bytearray:
        """Return `size` bytes from a place on."""
        data = bytearray()
        while len(data) < size:
            part = read_at(self._file.fileno(), size - len(data), place + len(data))
            if not part:
                raise OSError(f"{tempfile.gettempdir()}: features written there cannot be read back; is the disk full?")
            data += part
        return data
