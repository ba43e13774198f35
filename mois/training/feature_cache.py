"""Features of the frozen part of an encoder, in files that ranks, workers and runs share.

The key of an entry is a digest of its content: bytes and shape of the image, class and frozen tensors of the backbone,
the last frozen layer, and the precision. So entries stay valid when a dataset, a seed or an adapter changes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from mois.files.atomic import is_abandoned, read_regular, write_bytes
from mois.files.tensor_records import parse_tensors, tensors_sha256
from mois.inference.feature_store import GIB
from mois.interfaces import Backbone
from mois.records import Features

VERSION = 1
"""Part of every key. Add 1 when `Backbone.encode` changes its results, or an entry changes its form."""

_SMALL = 64
"""Edge in pixels of the image that shows the shapes of an entry."""
LOOKS = 64
"""How often the folder is cleaned while as many bytes are written as it may hold."""


@dataclass(frozen=True)
class CacheSettings:
    """Where features of frozen encoders are kept on disk.

    Attributes:
        folder: Folder for all ranks, workers and runs that can write to it; None keeps nothing.
        gib: Largest size of the folder in GiB. If the patches of a training need more, the same share of them is kept
            in every epoch. Entries of earlier trainings are removed as soon as patches come again.
    """

    folder: Path | None = None
    gib: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a cache without room."""
        if not self.gib > 0:
            raise ValueError(f"model.cache.gib={self.gib} leaves no room; set it above 0, or model.cache.folder=null.")


class FeatureCache:
    """Tensors in half precision by key. Each entry is a file, written whole or not at all, and checked when read.

    Cleaning. About one write in N cleans the folder. The key, a digest, decides which, so no shared counter is needed
    (test_it_stays_bounded_however_many_write_and_is_seldom_looked_through).

    - More bytes than allowed -> entries that were not read since this cache was opened are removed first, once entries
      come again: this training does not need them.
    - Still too many bytes -> entries with the highest keys are removed, and not written again. A training reads its
      entries in the same order in every epoch. To remove the entry that was not read for longest would remove the
      entry that is needed next (test_room_for_a_part_of_what_is_read_in_turn_serves_nearly_that_part).

    Args:
        folder: Folder of the files.
        gib: Largest size of all files in GiB.

    Attributes:
        most_bytes: Largest size of all files in bytes.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, gib: float) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"model.cache.folder={folder} cannot be made ({error.strerror}); choose one that can be written to."
            ) from error
        self.folder = folder
        self.most_bytes = int(gib * GIB)
        self._opened = _now(folder)
        self._first_left_out: str | None = None  # lowest key without room
        self._first_read: str | None = None
        self._comes_again = False
        self._writes = True
        self._reported = False

    def read(self, key: str, fits: Callable[[Sequence[Tensor]], bool] = lambda _: True) -> tuple[Tensor, ...] | None:
        """Return the tensors of an entry, float16 on the CPU; None if there is no entry, or a damaged entry.

        Args:
            key: Key of the entry.
            fits: Returns whether tensors have the expected number and shapes.
        """
        path = self._path(key)
        if key == self._first_read and not self._comes_again:
            self._comes_again, self._first_left_out = True, None
        self._first_read = self._first_read or key
        try:
            # read once: another process may replace or remove the file, and safe_open would open it twice
            content = read_regular(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error))
            return None
        except ValueError as error:  # a pipe or a device
            self._report(path, str(error))
            return None
        with suppress(OSError):  # another process has removed it, or it belongs to another user
            os.utime(path)
        try:
            named, metadata = parse_tensors(content, "it")
            tensors = tuple(named[str(number)] for number in range(len(named)))
            if metadata["digest"] != _digest(tensors):
                reason = "its checksum is another one"
            elif not all(tensor.dtype == torch.float16 and bool(tensor.isfinite().all()) for tensor in tensors):
                reason = "it holds what is no finite half-precision number"
            elif not fits(tensors):
                reason = "its tensors are of another number or shape"
            else:
                return tensors
        except (ValueError, KeyError) as error:
            reason = str(error)
        self._report(path, reason)
        return None

    def write(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Write an entry. If the disk is full, warn once and write no more entries.

        Args:
            key: Key of the entry, a hexadecimal digest.
            tensors: Tensors that `read` will return, float16 on the CPU.
        """
        if not self._writes:
            return
        kept = {str(number): tensor.contiguous() for number, tensor in enumerate(tensors)}
        content = save(kept, {"digest": _digest(tensors)})
        try:
            if self._first_left_out is None or key < self._first_left_out:
                write_bytes(self._path(key), content)
            # the end of the key decides, because its beginning decides which entries stay
            if int(key[-8:], 16) * self.most_bytes < 2**32 * LOOKS * len(content):
                self._make_room()
        except OSError as error:
            self._writes = False
            warnings.warn(
                f"model.cache.folder={self.folder} takes no more features ({error.strerror}): this process goes on "
                "without writing; free some space, or lower model.cache.gib",
                stacklevel=2,
            )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _report(self, path: Path, reason: str) -> None:
        if not self._reported:
            self._reported = True
            warnings.warn(
                f"{path}: this entry of the feature cache is damaged ({reason}); it is made anew, and so are others",
                stacklevel=3,
            )

    def _make_room(self) -> None:
        total = 0
        unread: list[tuple[float, int, Path]] = []
        read: list[tuple[str, int, Path]] = []
        for path in self.folder.glob("*/*.safetensors*"):  # also files that are being written
            with suppress(FileNotFoundError):  # another process may remove it now
                if is_abandoned(path):
                    path.unlink()
                    continue
                status = path.stat()
                total += status.st_size
                if path.suffix == ".part":
                    continue
                if self._comes_again and status.st_mtime < self._opened:
                    unread.append((status.st_mtime, status.st_size, path))
                else:
                    read.append((path.stem, status.st_size, path))
        if total <= self.most_bytes * (LOOKS - 2) // LOOKS:
            self._first_left_out = None
        if total <= self.most_bytes:
            return
        for _, size, path in sorted(unread):
            if total <= self.most_bytes * 7 // 8:
                return
            path.unlink(missing_ok=True)
            total -= size
        for key, size, path in sorted(read, reverse=True):
            if total <= self.most_bytes * (LOOKS - 1) // LOOKS:  # room for what is written until the next cleaning
                break
            path.unlink(missing_ok=True)
            total -= size
            self._first_left_out = key


def _now(folder: Path) -> float:
    """Return the time in seconds by the clock of a folder's disk, which may belong to another machine.

    A new file without a name has this time. If no file can be made, the clock of this machine is used.
    """
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
    return time.time()


class CachedEncoder:
    """`Backbone.encode` that runs the frozen part of the encoder only on images that the cache does not hold.

    Cached and computed features are equal to the bit: an image is encoded alone, and rounded to half precision before
    its features are used.

    Args:
        backbone: Backbone with a frozen first part of its encoder.
        settings: Folder and size of the cache.

    Attributes:
        hits: Share of the images of the last call that were in the cache.
        waited_s: Seconds since the start for digests, files and copies to the device, without the encoder.

    Raises:
        ValueError: If nothing of the encoder is frozen, or the folder cannot be made.
    """

    def __init__(self, backbone: Backbone, settings: CacheSettings) -> None:
        self.part = backbone.frozen_part()
        if settings.folder is None or not self.part:
            raise ValueError(
                f"model.cache.folder={settings.folder} keeps what a frozen encoder sees, but this one is trained from "
                "its first layer on; leave model.cache out, or let model.adapter train late stages only."
            )
        self.backbone = backbone
        self.cache = FeatureCache(settings.folder, settings.gib)
        self.hits = 0.0
        self.waited_s = 0.0
        self._form = _form(backbone)
        self._identity = _identity(backbone, self.part, self._form)
        self._trained = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]

    def bytes_per_image(self, patch_px: int) -> int:
        """Return the bytes of an entry for an image (P, P). They grow with the area of the image."""
        return sum(2 * math.prod(shape) for shape in self._form) * patch_px**2 // _SMALL**2

    def keys(self, images: Tensor, precision: str = "32-true") -> list[str]:
        """Return the key of each image.

        Args:
            images: (N, P, P) float32. On the CPU this is fast; otherwise it waits for the device.
            precision: Precision in which the images will be encoded.
        """
        alike = (*self._identity, precision, tuple(images.shape[1:]))
        start = hashlib.blake2b(repr(alike).encode(), digest_size=20)
        keys = []
        with self._waiting():
            for image in images.contiguous().cpu().numpy():
                total = start.copy()
                total.update(image.tobytes())
                keys.append(total.hexdigest())
        return keys

    def __call__(self, images: Tensor, keys: Sequence[str]) -> Features:
        """Return the features of images (N, P, P) float32 with these N keys; N is 1 or more.

        Raises:
            ValueError: If the frozen part of the encoder changed, or half precision cannot hold its features.
        """
        self._check_part()
        rows, hits = [], 0
        for number, key in enumerate(keys):
            with self._waiting():
                kept = self.cache.read(key, partial(_fits, self._form, images.shape[-1]))
            hits += kept is not None
            if kept is None:
                with torch.no_grad():
                    seen = self.backbone.encode_frozen(images[number : number + 1])
                kept = tuple(tensor[0].half().cpu() for tensor in seen)
                if not all(bool(tensor.isfinite().all()) for tensor in kept):
                    raise ValueError(
                        f"model.cache.folder={self.cache.folder}: this encoder's features are too large for half "
                        "precision; set model.cache.folder=null."
                    )
                with self._waiting():
                    self.cache.write(key, kept)
            rows.append(kept)
        self.hits = hits / len(keys)
        with self._waiting(), torch.autocast("cpu", enabled=False):  # autocast of the CPU knows only bfloat16
            halves = [torch.stack(part) for part in zip(*rows, strict=True)]
            parts = [half.to(images.device, non_blocking=True).float() for half in halves]
        return self.backbone.encode_rest(images, tuple(parts))

    def _check_part(self) -> None:
        if all(parameter.requires_grad == trained for parameter, trained in self._trained):
            return  # `frozen_part` may take as long as the encoder
        part = self.backbone.frozen_part()
        if part != self.part:
            raise ValueError(
                f"model.cache.folder={self.cache.folder}: the encoder is frozen as far as {part or 'nothing'} now, "
                f"not as far as {self.part}; leave model.cache out of a training that frees or freezes on its way."
            )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - start


def _form(backbone: Backbone) -> list[tuple[int, ...]]:
    """Return the shapes of the features of the frozen part, for one image of `_SMALL` pixels."""
    device = next(backbone.parameters()).device
    with torch.no_grad():
        return [tuple(tensor.shape) for tensor in backbone.encode_frozen(torch.zeros(1, _SMALL, _SMALL, device=device))]


def _fits(form: Sequence[tuple[int, ...]], pixels: int, tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors have the shapes of the frozen part's features. Rows and columns grow with the image.

    Args:
        form: Shapes for one image of `_SMALL` pixels.
        pixels: Edge of the image in pixels.
        tensors: Features of one image, without the axis of images.
    """
    if len(tensors) != len(form):
        return False
    for tensor, (_, *small) in zip(tensors, form, strict=True):
        if tensor.ndim != len(small):
            return False
        grown = [(count, edge) for count, edge in zip(tensor.shape, small, strict=True) if count != edge]
        if any(count * _SMALL != edge * pixels for count, edge in grown) or len(grown) != (
            2 if pixels != _SMALL else 0
        ):
            return False
    return True


def _identity(backbone: Backbone, part: str, form: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Return what the features of an image depend on. Tensors count by their order: an adapter changes their names."""
    frozen = [value for value in backbone.parameters() if not value.requires_grad]
    tensors = {str(number): value for number, value in enumerate([*frozen, *backbone.buffers()])}
    kind = type(backbone)
    name = f"{kind.__module__}.{kind.__qualname__}"
    # `encode` may follow the rules; a backbone without rules has the keys of earlier versions
    rules = [json.dumps(backbone.behaviour(), sort_keys=True)] if backbone.behaviour() else []
    return name, tensors_sha256(tensors), part, str(form), str(VERSION), *rules


def _digest(tensors: Sequence[Tensor]) -> str:
    total = hashlib.blake2b(digest_size=20)
    for tensor in tensors:
        total.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
