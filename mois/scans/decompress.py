"""Decompresses JPEG pictures with ITK, in a separate process: a damaged picture may crash ITK, but not this program."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 60
"""Longest time for one picture, in seconds."""


class Decompressor:
    """Reads the rescaled pictures of single DICOM files. The first call starts the process."""

    _process: subprocess.Popen[bytes] | None = None

    def read(self, file: Path, shape: tuple[int, int]) -> NDArray[Any] | None:
        """Return a picture (rows, columns); None if it cannot be read or has another shape."""
        if self._process is None:
            command = [sys.executable, str(Path(__file__).resolve())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None or "\n" in str(file):
            return None
        try:
            requests.write(f"{file.resolve()}\n".encode(errors="surrogateescape"))
            requests.flush()
        except BrokenPipeError:
            return None
        kind, *lengths = replies.readline().decode().split() or [""]
        if [int(length) for length in lengths] != list(shape):
            self.close()
            return None
        byte_count = np.dtype(kind).itemsize * shape[0] * shape[1]
        data = replies.read(byte_count)
        return np.frombuffer(data, kind).reshape(shape) if len(data) == byte_count else None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _serve() -> None:
    """Read names of files from stdin. Write a line (type, rows, columns) and the pixels of each file to stdout."""
    import SimpleITK as sitk  # noqa: N813 - its name everywhere

    for name in sys.stdin.buffer:
        _end_after(TIMEOUT_S)
        file = name.rstrip(b"\n").decode(errors="surrogateescape")
        picture = sitk.GetArrayFromImage(sitk.ReadImage(file, imageIO="GDCMImageIO"))
        picture = np.ascontiguousarray(picture.reshape(picture.shape[-2:]))
        sys.stdout.buffer.write(f"{picture.dtype.str} {picture.shape[0]} {picture.shape[1]}\n".encode())
        sys.stdout.buffer.write(picture.tobytes())
        sys.stdout.buffer.flush()
        _end_after(0)


def _end_after(seconds: int) -> None:
    """End this process after some seconds, 0: never. Windows cannot, so a damaged picture may take long there."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    _serve()
