"""Work in other processes: results in order, errors that name the work, and no worker that is left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from mois.machine.worker_pool import WorkerPool, free_cores, packed


def own_id(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail(error: type[Exception], text: str) -> tuple[int, int]:
    raise error(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


def test_sparse_maps_travel_as_their_voxels_and_tensors_as_arrays() -> None:
    lesions = np.zeros((20, 300, 300), dtype=np.int32)
    lesions[3, 40:60, 5:9] = 7
    dense = np.ones((1200, 1000), dtype=np.int32)
    image = torch.rand(4, 5)
    together = packed({"lesions": lesions, "image": image, "name": "a"})
    assert len(together) < 3000  # 80 voxels of 12 bytes each
    back = pickle.loads(together)
    np.testing.assert_array_equal(back["lesions"], lesions)
    assert back["lesions"].dtype == np.int32
    assert torch.equal(back["image"], image)
    np.testing.assert_array_equal(pickle.loads(packed(dense)), dense)


def test_without_workers_this_process_works_at_once() -> None:
    got: list[tuple[int, int]] = []
    with WorkerPool(0) as pool:
        pool.submit("first", partial(own_id, 1), got.append)
        assert got == [(1, os.getpid())]
        with pytest.raises(ValueError, match=r"^second: too small$"):
            pool.submit("second", partial(fail, ValueError, "too small"), got.append)
        with pytest.raises(ValueError, match=r"^second is too small$"):
            pool.submit("second", partial(fail, ValueError, "second is too small"), got.append)
        with pytest.raises(ValueError, match=r"^p3\.nii\.gz is too small$"):
            pool.submit("scan p3", partial(fail, ValueError, "p3.nii.gz is too small"), got.append)


@pytest.mark.ci
def test_results_come_in_order_from_other_processes_and_no_worker_is_left() -> None:
    got: list[tuple[int, int]] = []
    before = set(multiprocessing.active_children())
    with WorkerPool(2) as pool:
        for number in range(5):
            pool.submit(f"work {number}", partial(own_id, number), got.append)
            assert len(pool._waiting) <= 3
    assert [number for number, _ in got] == [0, 1, 2, 3, 4]
    assert os.getpid() not in {process for _, process in got}
    time.sleep(0.5)
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.ci
def test_errors_and_killed_workers_name_the_work() -> None:
    with pytest.raises(ValueError, match=r"^scan p3: no lesion$"), WorkerPool(1) as pool:
        pool.submit("scan p3", partial(fail, ValueError, "no lesion"), print)
    with pytest.raises(TypeError, match="odd") as odd, WorkerPool(1) as pool:
        pool.submit("scan p4", partial(fail, TypeError, "odd"), print)
    assert odd.value.__notes__ == ["This happened to scan p4."]
    killed = r"scan p5: the process that worked on it was killed.*--score_processes=0"
    with pytest.raises(ValueError, match=killed), WorkerPool(1) as pool:
        pool.submit("scan p5", die, print)


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_ends_with_its_parent_and_leaves_ctrl_c_to_it() -> None:
    code = (
        "import os, sys, time\n"
        "from mois.machine.worker_pool import WorkerPool\n"
        "from tests.unit.machine import test_worker_pool as t\n"
        "with WorkerPool(1) as pool:\n"
        "    pool.submit('first', t.own_process, lambda process: print(process, flush=True))\n"
        "    pool.finish()\n"
        "    pool.submit('long', t.sleep, print)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8") as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        os.kill(worker, 0)  # it is still there
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_program_in_one_line_with_its_workers() -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mois.machine.interrupts import ctrl_c_ends\n"
        "from mois.machine.worker_pool import WorkerPool\n"
        "from tests.unit.machine import test_worker_pool as t\n"
        "with ctrl_c_ends(to_the_end=True), WorkerPool(1) as pool:\n"
        "    pool.submit('first', t.own_process, lambda process: print(process, flush=True))\n"
        "    pool.finish()\n"
        "    pool.submit('long', t.sleep, print)\n"
        "    pool.finish()\n"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, encoding="utf-8", start_new_session=True, **pipes) as parent:  # type: ignore[call-overload]
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        _, said = parent.communicate(timeout=60)
    assert (parent.returncode, said) == (130, "\nstopped by Ctrl-C; give the command again\n")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def own_process() -> int:
    return os.getpid()


def sleep() -> None:
    time.sleep(60)


def test_ranks_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_cores() == 11
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_cores() == 2  # 12 / 4 cores, one of which the model needs
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "12")
    assert free_cores() == 0
