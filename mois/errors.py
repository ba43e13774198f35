"""A mistake of the user's ends in one line on stderr and exit code 2; a mistake of ours keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

OURS = ("mois", "adapters", "datamodules")
NO_GPU = "--trainer.accelerator cpu --trainer.devices 2 (with torchrun: as many as it starts)"
_MISSING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIBRARIES = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib"))


class DataError(ValueError):
    """A file or a dataset that cannot be used: one line that names it and the cure."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what `explain` can explain into `error: ...` on stderr and exit code 2.

    With MOIS_TRACEBACK=1 in the environment nothing is caught, so that the place can be seen.
    """
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("MOIS_TRACEBACK") == "1":
            raise
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(2) from None


def explain(error: Exception) -> str | None:
    """Return one line on what the user has to change, or None where the error is a fault of the program.

    Explained are a ValueError raised by our code or by a plug-in, also one that a library passes on in a ValueError of
    its own (one that a library raises by itself means that we called it wrongly), a file that is missing or may not be
    touched, a full disk or accelerator, a data worker that was killed, and Lightning's complaints.
    """
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return "the accelerator's memory is full; lower data.init_args.batch_size, or train fewer parts"
    if re.search(r"No supported gpu backend|`devices` selected with `CPUAccelerator`", str(error)):
        return f"{one_line(str(error))} Without a GPU: {NO_GPU}"
    if kind == "MisconfigurationException":
        return one_line(str(error))
    if type(error).__module__ == "omegaconf.errors":
        return _explain_interpolation(str(error))
    if isinstance(error, _MISSING) or (isinstance(error, OSError) and error.errno in _FULL):
        return f"{error.filename}: {error.strerror}" if error.filename else one_line(str(error))
    if worker := re.search(r"^DataLoader worker \(pid.*\) (is killed|exited).*", str(error)):
        cure = "lower data.init_args.num_workers if so, and go on with --ckpt_path last"
        return f"{one_line(worker.group()).rstrip('.')}, maybe for want of memory; {cure}"
    if isinstance(error, ValueError):
        return _explain_value_error(error)
    return None


def one_line(text: str) -> str:
    """Return the text without line breaks and without runs of blanks."""
    return " ".join(text.split())


def _explain_value_error(error: ValueError) -> str | None:
    text = str(error)
    if "Original Traceback" in text:  # a worker of a DataLoader raised it; its traceback came over as text
        files = re.findall(r'File "([^"]+)", line \d+', text)
        named = re.findall(r"^(?:[\w.]+(?:Error|Exception)): (.*)", text, flags=re.MULTILINE | re.DOTALL)
        return one_line(named[-1]) if files and named and not _is_library(files[-1], None) else None
    place = _last_frame(error.__traceback__)
    if place is None or not _is_library(*place):
        return one_line(text)
    behind = error.__cause__ or error.__context__  # jsonargparse covers what a constructor raises with its own words
    return _explain_value_error(behind) if isinstance(behind, ValueError) else None


def _last_frame(trace: TracebackType | None) -> tuple[str, str | None] | None:
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_frame.f_globals.get("__name__")


def _is_library(file: str, module: str | None) -> bool:
    if module is not None and module.partition(".")[0] in OURS:
        return False
    path = str(Path(file).resolve())
    return path.startswith(_LIBRARIES) and not any(f"{os.sep}{name}{os.sep}" in path for name in OURS)


def _explain_interpolation(text: str) -> str:
    variable = re.search(r"Environment variable '([^']+)' not found", text)
    key = re.search(r"full_key: (\S+)", text)
    place = f"{key.group(1)}: " if key else ""
    if variable:
        return f"{place}environment variable {variable.group(1)} is not set; set it, or give a default: " + (
            f"${{oc.env:{variable.group(1)},DEFAULT}}"
        )
    return place + one_line(text.partition("\n")[0])
