"""What the frozen part of an encoder makes of an image, in files that ranks, workers and runs share.

An entry is found by its content: the image's bytes and shape, the backbone's SHA-256, how far its frozen part reaches,
and the precision it is worked out in. So nothing has to be thrown away when a dataset, a seed or an adapter changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mois.files import is_abandoned, write_bytes
from mois.interfaces import Backbone, Features

VERSION = 1
"""Part of every key: count on when `Backbone.encode` treats images otherwise, or an entry's form changes."""

GIB = 1 << 30


@dataclass(frozen=True)
class CacheSettings:
    """Where features of frozen encoders are kept on disk.

    Attributes:
        folder: Shared by all ranks, workers and runs that can write to it; None keeps nothing.
        gib: Most that it may hold, in GiB; what was not used for longest goes first.
    """

    folder: Path | None = None
    gib: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a cache without room."""
        if not self.gib > 0:
            raise ValueError(f"model.cache.gib={self.gib} leaves no room; set it above 0, or model.cache.folder=null.")


class FeatureCache:
    """Half-precision tensors by key, one file for each, written whole or not at all and checked when read.

    Each process looks through the folder after writing a sixteenth of what it may hold, and removes the entries that
    were not read for longest until an eighth is free.

    Args:
        folder: Where the files are.
        gib: Most that they may take, in GiB.

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
        self._most = int(gib * GIB)
        self._unseen = self._most  # bytes written since the folder was looked through: the first one looks
        self._writes = True
        self._reported = False

    def read(self, key: str) -> tuple[Tensor, ...] | None:
        """Return an entry's tensors, float16 on the CPU; None where there is none, or a damaged one."""
        path = self._path(key)
        try:
            # at once: another process may replace or remove the file (safe_open opens twice)
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error))
            return None
        with suppress(OSError):  # another process has removed it by now, or it is another user's
            os.utime(path)
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            named = load(content)
            tensors = tuple(named[str(number)] for number in range(len(named)))
            if header["__metadata__"]["digest"] == _digest(tensors):
                return tensors
            reason = "its checksum is another one"
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
        self._report(path, reason)
        return None

    def write(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Keep tensors, float16 on the CPU; that a disk takes no more is said once, and then it is left alone."""
        if not self._writes:
            return
        kept = {str(number): tensor.contiguous() for number, tensor in enumerate(tensors)}
        content = save(kept, {"digest": _digest(tensors)})
        try:
            if self._unseen + len(content) > self._most // 16:
                self._make_room()
            write_bytes(self._path(key), content)
        except OSError as error:
            self._writes = False
            warnings.warn(
                f"model.cache.folder={self.folder} takes no more features ({error.strerror}): this process goes on "
                "without writing; free some space, or lower model.cache.gib",
                stacklevel=2,
            )
        self._unseen += len(content)

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
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*.safetensors*"):  # and those that are being written
            with suppress(FileNotFoundError):  # another process may remove it now
                if is_abandoned(path):
                    path.unlink()
                else:
                    status = path.stat()
                    entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._most * 7 // 8:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._unseen = 0


class CachedEncoder:
    """`Backbone.encode` that runs the frozen part of the encoder only on images that no cache has seen.

    What is taken from the cache and what is worked out are the same to the bit: an image is encoded alone, and rounded
    to half precision before it is used.

    Args:
        backbone: Some of whose encoder is frozen.
        settings: Where to keep what.

    Attributes:
        hits: Share of the images of the last call that the cache had.
        waited_s: Seconds that went by with digests, files and the way to the device, in all; not with the encoder.

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

    def keys(self, images: Tensor, precision: str = "32-true") -> list[str]:
        """Return the key of each image.

        Args:
            images: (N, P, P) float32; on the CPU, or the device has to be waited for.
            precision: In which they will be encoded.
        """
        backbone = (self.backbone.identity.sha256, self.part, precision, VERSION)
        start = hashlib.blake2b(repr((*backbone, tuple(images.shape[1:]))).encode(), digest_size=20)
        keys = []
        with self._waiting():
            for image in images.contiguous().cpu().numpy():
                total = start.copy()
                total.update(image.tobytes())
                keys.append(total.hexdigest())
        return keys

    def __call__(self, images: Tensor, keys: Sequence[str]) -> Features:
        """Return the features of images (N, P, P) float32, N of 1 or more, with these keys."""
        rows, hits = [], 0
        for number, key in enumerate(keys):
            with self._waiting():
                kept = self.cache.read(key)
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
        with self._waiting(), torch.autocast("cpu", enabled=False):  # it knows bfloat16 only
            halves = [torch.stack(part) for part in zip(*rows, strict=True)]
            parts = [half.to(images.device, non_blocking=True).float() for half in halves]
        return self.backbone.encode_rest(images, tuple(parts))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - start


def _digest(tensors: Sequence[Tensor]) -> str:
    total = hashlib.blake2b(digest_size=20)
    for tensor in tensors:
        total.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
