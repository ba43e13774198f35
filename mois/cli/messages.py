"""Messages for errors while a command runs: bad data or files, full memory or disk, a missing GPU.

- A mistake of the user -> one line on stderr, and exit code 2.
- A fault of the program -> a traceback.

Messages on command lines and configs are in `usage.py` and `settings.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from mois.cli.terminal import accept_all_signs
from mois.errors import one_line, without_control_codes
from mois.machine.full_memory import cure_of, full_memory

OURS = ("mois", "adapters", "datamodules")
NO_GPU = "--trainer.accelerator cpu --trainer.devices 2 (with torchrun: as many as it starts)"
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Environment variables with the number of this process among the processes that share the work."""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of torchrun: a file in a folder of this process. The folders of all processes lie together."""

OTHERS_S = 2.0
"""Seconds that another process than the first waits before it writes its error. Most errors also occur in the first
process. The first process then writes the error, and its end is the end of all processes. Under load this takes longer
than the wait: what torchrun starts notes which line was written (`_another_wrote`)."""

_MISSING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FAULTS = (errno.EBADF, errno.EINVAL, errno.EFAULT, errno.ECHILD)
_CURES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "ask for the right to it, or choose another place",
    errno.EPERM: "ask for the right to it, or choose another place",
    errno.EROFS: "choose a folder that can be written to",
    errno.EEXIST: "choose another name",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "give a file",
    errno.ENOSPC: "make room, or choose another disk",
    errno.EDQUOT: "make room, or choose another disk",
    errno.EFBIG: "make room, or choose another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; give the file itself",
    errno.EIO: "the disk or its network fails; copy it elsewhere, try again",
    errno.ESTALE: "the network's disk was lost; mount it again",
    errno.EMFILE: "raise the limit (ulimit -n 65536)",
    errno.ENFILE: "close other programs",
    errno.ETXTBSY: "another program uses it; end that first",
    errno.EBUSY: "another program uses it; end that first",
}
_WITHOUT_NAME = {
    number: _CURES[number]
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
}
_SETTINGS_OF_LIGHTNING = re.compile(r"lightning\.pytorch\.trainer\.(connectors|configuration_validator|setup)\b")
_plain_format = warnings.formatwarning
_LIBRARIES = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib"))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of the user into one line `error: ...` on stderr and exit code 2. Our warnings become one line.

    With MOIS_TRACEBACK=1 in the environment, errors keep their traceback.
    """
    accept_all_signs()
    plainly, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        yield
    except BrokenPipeError:
        _leave_closed_pipe()
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("MOIS_TRACEBACK") == "1":
            raise
        if any(os.environ.get(name, "0") != "0" for name in RANKS):
            time.sleep(OTHERS_S)
        if not _another_wrote(line):
            sys.stderr.write(f"error: {without_control_codes(line)}\n")
        raise SystemExit(2) from None
    finally:
        warnings.formatwarning = plainly


def _another_wrote(line: str) -> bool:
    """Return whether another process of the same torchrun on this machine wrote this line, or is about to.

    torchrun gives its processes a folder with a folder for each of them. The first to write the line leaves an empty
    file there. So the line is written once, however late a process comes to its error.
    """
    if not (of_process := os.environ.get(ERROR_FILE)):
        return False
    said = Path(of_process).parent.parent / f"said_{hashlib.sha256(line.encode()).hexdigest()[:16]}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:  # no such folder, or no room: twice is better than not at all
        return False
    return False


def explain(error: Exception) -> str | None:
    """Return one line on what the user has to change; None if the error is a fault of the program.

    Explained errors:

    - A ValueError of our code or of a plug-in, also inside a ValueError of a library. A ValueError that a library
      raises by itself is a fault: we called the library wrongly.
    - A file or folder that the system refuses.
    - Full memory, or a data worker that was killed.
    - Errors of Lightning on its settings.
    """
    kind = type(error).__name__
    if full := full_memory(error):
        return f"{full}; {cure_of(error)}"
    if re.search(r"No supported gpu backend|`devices` selected with `CPUAccelerator`", str(error)):
        return f"{one_line(str(error))} Without a GPU: {NO_GPU}"
    if kind == "MisconfigurationException":
        return one_line(str(error))
    if type(error).__module__ == "omegaconf.errors":
        return _explain_interpolation(str(error))
    if isinstance(error, OSError):
        return _explain_system(error)
    if kind == "SafetensorError" and (system := re.search(r'\(os error (\d+)\)(?: at path "(.+)")?', str(error))):
        folder = str(Path(system[2]).parent) if system[2] else None  # the file has a temporary name, so name its folder
        return _explain_system(OSError(int(system[1]), os.strerror(int(system[1])), folder))
    if worker := re.search(r"^DataLoader worker \(pid.*\) (is killed|exited).*", str(error)):
        cure = "lower data.init_args.num_workers if so, and go on with --ckpt_path last"
        return f"{one_line(worker.group()).rstrip('.')}, maybe for want of memory; {cure}"
    if isinstance(error, ValueError):
        return _explain_value_error(error)
    return None


def _explain_system(error: OSError) -> str | None:
    """Explain an error of the system; None if no user can mend it, such as a file that was closed too early."""
    if error.errno == errno.ENOENT and _is_lost():
        return "the folder that this command runs in was deleted; change to another one (cd), and start again"
    if error.errno in _FAULTS or (error.errno is None and not isinstance(error, _MISSING)):
        return None
    if error.filename is None:
        if isinstance(error, ConnectionError) or error.errno not in _WITHOUT_NAME:
            return one_line(str(error)) if isinstance(error, _MISSING) else None
        return f"{error.strerror}; {_WITHOUT_NAME[error.errno]}"
    cure = _CURES.get(error.errno or 0, "")
    other = f" (to {error.filename2})" if error.filename2 is not None else ""
    return f"{_name(error.filename)}{other}: {error.strerror or one_line(str(error))}{cure and f'; {cure}'}"


def _is_lost() -> bool:
    """Return whether the working folder was deleted, so that no relative path works."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _name(file: object) -> str:
    return os.fsdecode(file) if isinstance(file, bytes) else str(file)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return our own warnings as one line, other warnings as Python formats them."""
    if _is_library(filename, None):
        return _plain_format(message, category, filename, lineno, line)
    return f"warning: {one_line(str(message))}\n"


def _leave_closed_pipe() -> NoReturn:
    """End without a message when the reader of our output is gone, as after `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at its end
    raise SystemExit(128 + signal.SIGPIPE) from None


def _explain_value_error(error: ValueError) -> str | None:
    text = str(error)
    if "Original Traceback" in text:  # from a worker of a DataLoader; its traceback is text
        files = re.findall(r'File "([^"]+)", line \d+', text)
        named = re.findall(r"^(?:[\w.]+(?:Error|Exception)): (.*)", text, flags=re.MULTILINE | re.DOTALL)
        return one_line(named[-1]) if files and named and not _is_library(files[-1], None) else None
    place = _last_frame(error.__traceback__)
    if place is None or not _is_library(*place):
        return one_line(text)
    if place is not None and _SETTINGS_OF_LIGHTNING.match(place[1] or ""):
        return f"trainer: {one_line(text)}"
    behind = error.__cause__ or error.__context__  # jsonargparse puts its own message over the error of a constructor
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


def say(line: str) -> None:
    """Write a line to the terminal at once."""
    sys.stdout.write(without_control_codes(line) + "\n")
    sys.stdout.flush()


def say_working(line: str) -> None:
    """Write at once what a command is doing, to stderr: it is no part of its result."""
    sys.stderr.write(without_control_codes(line) + "\n")
    sys.stderr.flush()
