"""Recognises errors of full memory, on any device and from any library, and stores advice with them."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ACCELERATOR, MACHINE, SHARED = "the accelerator's", "the machine's", "the machine's shared"

_REQUESTED_SIZE = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ ?\w+)")
_ON_ACCELERATOR = re.compile(
    r"(MPS backend|CUDA|HIP|XPU|CUDA error:|HIP error:) out of memory"
    r"|CU(DNN|BLAS|SPARSE|FFT)_STATUS_(INTERNAL_ERROR_HOST_ALLOCATION_FAILED|ALLOC_FAILED)"
)
_ON_MACHINE = re.compile(r"DefaultCPUAllocator: (can't|not enough)|[Cc]annot allocate memory")
_SHARED = re.compile(r"unable to (?:write to|allocate|resize|open|mmap) .*</?torch_|Bus error.*shared memory")
_NOTE = "cure: "
_CURE = "end other programs that use it, or compute where there is more of it"


def full_memory(error: BaseException) -> str:
    """Return which memory is full, and the requested size, in words; "" for any other error."""
    text = " ".join(str(error).split())
    if not (owner := _full_memory_of(error, text)):
        return ""
    requested = _REQUESTED_SIZE.search(text)
    return f"{owner} memory is full{f' ({requested[1]} more were asked for)' if requested else ''}"


@contextmanager
def memory_cure(cure: Callable[[BaseException], str]) -> Iterator[None]:
    """Add advice to errors of full memory that leave the block.

    Args:
        cure: Returns the advice for an error.
    """
    try:
        yield
    except Exception as error:
        if full_memory(error):
            error.add_note(_NOTE + cure(error))
        raise


def cure_of(error: BaseException) -> str:
    """Return the advice of the innermost `memory_cure` around the error; general advice without any."""
    notes = [note.removeprefix(_NOTE) for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)]
    return notes[0] if notes else _CURE


def passed_through(error: BaseException, *functions: str) -> bool:
    """Return whether an error passed through one of these functions, by name."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in functions:
            return True
        trace = trace.tb_next
    return False


def _full_memory_of(error: BaseException, text: str) -> str:
    """Return the owner of the full memory; "" for any other error."""
    if isinstance(error, RuntimeError) and _SHARED.search(text):
        return SHARED
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return MACHINE
    if isinstance(error, RuntimeError) and _ON_MACHINE.search(text):
        return MACHINE
    on_accelerator = isinstance(error, RuntimeError) and _ON_ACCELERATOR.search(text)
    return ACCELERATOR if on_accelerator or type(error).__name__ == "OutOfMemoryError" else ""
