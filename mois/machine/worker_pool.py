"""Work for other processes while this process goes on: a few pieces at once, results in the order of the work."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mois.machine.system_calls import usable_cores

Result = TypeVar("Result")

SPARSE_FROM = 1 << 20
"""Maps of at least so many elements travel as their elements that are not 0, if these are few."""


class _Waiting(NamedTuple):
    """Work that was given away: its name, its result to come, and what to do with the result."""

    name: str
    future: Future[Any]
    then: Callable[[Any], None]


class WorkerPool:
    """Processes that work for this process, as a context. They start with the first piece of work.

    - The processes are started anew (`spawn`), which is safe beside threads and GPUs, and the same on all systems.
    - Each computes with one thread. Ctrl-C is left to this process. No worker outlives this process.
    - At most one piece more than there are workers is under way, which limits the memory.

    Args:
        workers: Number of processes; with 0, this process does all work itself, at once.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._waiting: deque[_Waiting] = deque()
        self._others: set[object] = set()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._end()

    def submit(
        self, name: str, work: Callable[[], Result], then: Callable[[Result], None], *, here: bool = False
    ) -> None:
        """Have a piece of work done. `then` gets its result, in this process, before the context ends.

        Args:
            name: Name of the work for messages, such as "scan p3".
            work: A picklable function without arguments.
            then: Gets the result.
            here: Do the work at once, in this process.

        Raises:
            ValueError: If this or an earlier piece of work raised it, or a worker was killed.
        """
        if here or self.workers < 1:
            with _named(name):
                result = work()
            then(result)
            return
        if self._executor is None:
            self._others = set(multiprocessing.active_children())
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _start_worker)
        while len(self._waiting) > self.workers:
            self._take()
        try:
            future = self._executor.submit(_do, packed(work))
        except BrokenProcessPool as error:
            raise _killed(name) from error
        self._waiting.append(_Waiting(name, future, then))
        while self._waiting and self._waiting[0].future.done():
            self._take()

    def finish(self) -> None:
        """Wait for all work."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        """Wait for the oldest piece of work, and hand on its result."""
        name, future, then = self._waiting.popleft()
        with _named(name):
            try:
                result = pickle.loads(future.result())
            except BrokenProcessPool as error:
                raise _killed(name) from error
        then(result)

    def _end(self) -> None:
        """End all workers, whatever they do."""
        if self._executor is None:
            return
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - self._others:
            worker.terminate()  # type: ignore[attr-defined]
        self._executor = None
        self._waiting.clear()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors say which work they are about. Of "scan p3", p3 is enough."""
    try:
        yield
    except ValueError as error:
        if (name.partition(" ")[2] or name) in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        error.add_note(f"This happened to {name}.")
        raise


def _killed(name: str) -> ValueError:
    return ValueError(
        f"{name}: the process that worked on it was killed, maybe for want of memory; start again with "
        "--score_processes=0 (what is finished is not done again)."
    )


def free_cores() -> int:
    """Return how many cores this process may use, its share if a launcher started several on this machine, less one."""
    return max(0, usable_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) - 1)


def packed(work: object) -> bytes:
    """Return an object as bytes for `pickle.loads`. Sparse maps take little room, and tensors no shared memory."""
    stream = io.BytesIO()
    _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(work)
    return stream.getvalue()


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Return how to pickle tensors and sparse maps of whole numbers; other values as usual."""
        if isinstance(value, torch.Tensor):
            return _tensor, (value.detach().cpu().numpy(),)
        if type(value) is np.ndarray and value.dtype.kind in "biu" and value.size >= SPARSE_FROM:
            flat = value.reshape(-1)
            where = np.flatnonzero(flat)
            if 4 * len(where) < value.size:
                return _spread, (where, flat[where], value.shape)
        return NotImplemented


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _spread(where: npt.NDArray[np.int64], values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.zeros(shape, values.dtype)
    array.reshape(-1)[where] = values
    return array


def _do(work: bytes) -> bytes:
    return packed(pickle.loads(work)())


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
