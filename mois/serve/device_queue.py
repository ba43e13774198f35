"""One queue for the device: clicks before propagations, propagations before idle work."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from functools import partial
from itertools import count
from typing import Any, TypeVar

from mois.machine.steps import Steps

Result = TypeVar("Result")


class Urgency(IntEnum):
    """How urgent a piece of work is; the lowest number goes first."""

    CLICK = 0
    PROPAGATION = 1
    IDLE = 2


class DeviceQueue:
    """Does all work of all clients, one piece after another, in one thread.

    - The most urgent piece goes first; among equals, the one that came first.
    - Work in steps lets more urgent pieces in between its steps.
    - An error goes to the client whose work it was. The queue goes on.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Steps[Any], Future[Any]]] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Result], urgency: Urgency = Urgency.CLICK) -> Future[Result]:
        """Put a piece of work into the queue, and return its future."""
        return self.submit_steps(partial(_in_one_step, work), urgency)

    def submit_steps(
        self, begin: Callable[[], Steps[Result]], urgency: Urgency = Urgency.PROPAGATION
    ) -> Future[Result]:
        """Put work in steps into the queue.

        Args:
            begin: Returns the generator of the steps. What the generator returns is the result.
            urgency: How urgent each step is.
        """
        future: Future[Result] = Future()
        self._put(urgency, next(self._numbers), begin(), future)
        return future

    def close(self) -> None:
        """End the thread after the step under way. Work that waits is cancelled."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for _, _, steps, future in waiting:
            steps.close()
            if not future.cancel():  # between two of its steps
                future.set_exception(RuntimeError("the server ends"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _put(self, urgency: int, number: int, steps: Steps[Any], future: Future[Any]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError("the server ends")
            heapq.heappush(self._waiting, (urgency, number, steps, future))
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                urgency, number, steps, future = heapq.heappop(self._waiting)
            if not future.running() and not future.set_running_or_notify_cancel():
                continue
            try:
                next(steps)
            except StopIteration as end:
                future.set_result(end.value)
            except BaseException as error:
                future.set_exception(error)
            else:
                try:
                    self._put(urgency, number, steps, future)
                except RuntimeError as error:
                    future.set_exception(error)
            del steps, future  # the result belongs to the client alone


def _in_one_step(work: Callable[[], Result]) -> Steps[Result]:
    return work()
    yield
