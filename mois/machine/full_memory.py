"""Errors of full memory, of whatever device and library, and what would free some."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ACCELERATOR, MACHINE, SHARED = "the accelerator's", "the machine's", "the machine's shared"

_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ ?\w+)")
_ON_ACCELERATOR = re.compile(
    r"(MPS backend|CUDA|HIP|XPU|CUDA error:|HIP error:) out of memory"
    r"|CU(DNN|BLAS|SPARSE|FFT)_STATUS_(INTERNAL_ERROR_HOST_ALLOCATION_FAILED|ALLOC_FAILED)"
)
_ON_MACHINE = re.compile(r"DefaultCPUAllocator: (can't|not enough)|[Cc]annot allocate memory")
_SHARED = re.compile(r"unable to (?:write to|allocate|resize|open|mmap) .*</?torch_|Bus error.*shared memory")
_NOTE = "cure: "
_CURE = "end other programs that use it, or compute where there is more of it"


def full_memory(error: BaseException) -> str:
    """Return which memory is full, with what was asked for; nothing where the error is another one."""
    text = " ".join(str(error).split())
    if not (whose := _whose(error, text)):
        return ""
    asked = _ASKED.search(text)
    return f"{whose} memory is full{f' ({asked[1]} more were asked for)' if asked else ''}"


@contextmanager
def memory_cure(cure: Callable[[BaseException], str]) -> Iterator[None]:
    """Note in errors of full memory that pass what would free some here.

    Args:
        cure: Given the error, the end of its line.
    """
    try:
        yield
    except Exception as error:
        if full_memory(error):
            error.add_note(_NOTE + cure(error))
        raise


def cure_of(error: BaseException) -> str:
    """Return what `memory_cure` noted, nearest to the place of the error."""
    notes = [note.removeprefix(_NOTE) for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)]
    return notes[0] if notes else _CURE


def passed_through(error: BaseException, *functions: str) -> bool:
    """Tell whether an error came out of one of these functions."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in functions:
            return True
        trace = trace.tb_next
    return False


def _whose(error: BaseException, text: str) -> str:
    if isinstance(error, RuntimeError) and _SHARED.search(text):
        return SHARED
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return MACHINE
    if isinstance(error, RuntimeError) and _ON_MACHINE.search(text):
        return MACHINE
    on_accelerator = isinstance(error, RuntimeError) and _ON_ACCELERATOR.search(text)
    return ACCELERATOR if on_accelerator or type(error).__name__ == "OutOfMemoryError" else ""
