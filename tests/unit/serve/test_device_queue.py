"""The order of work on the device: clicks first, between the parts of a propagation, errors to their own client."""

import threading

import pytest

from mois.serve.device_queue import DeviceQueue, Urgency


@pytest.fixture
def queue():
    queue = DeviceQueue()
    yield queue
    queue.close()


def held(queue):
    """Hold the device until the returned event is set."""
    begun, go = threading.Event(), threading.Event()
    queue.submit(lambda: (begun.set(), go.wait(5)))
    assert begun.wait(5)
    return go


def test_clicks_go_before_propagations_before_idle_work(queue):
    done: list[str] = []
    go = held(queue)
    names = {
        "idle": Urgency.IDLE,
        "propagation": Urgency.PROPAGATION,
        "click 1": Urgency.CLICK,
        "click 2": Urgency.CLICK,
    }
    waiting = [queue.submit(lambda name=name: done.append(name), urgency) for name, urgency in names.items()]
    go.set()
    for future in waiting:
        future.result(5)
    assert done == ["click 1", "click 2", "propagation", "idle"]


def test_a_click_is_answered_between_two_parts_of_a_propagation(queue):
    done: list[str] = []
    clicks = []

    def parts():
        for number in range(3):
            done.append(f"part {number}")
            if number == 0:
                clicks.append(queue.submit(lambda: done.append("click")))
            yield
        return "found"

    assert queue.submit_steps(parts).result(5) == "found"
    assert done == ["part 0", "click", "part 1", "part 2"]


def test_an_error_goes_to_its_own_client_and_the_queue_goes_on(queue):
    def broken():
        yield
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        queue.submit_steps(broken).result(5)
    assert queue.submit(lambda: 7).result(5) == 7


def test_work_that_waits_is_cancelled_at_the_end():
    queue = DeviceQueue()
    go = held(queue)
    future = queue.submit(lambda: 7)
    threading.Timer(0.05, go.set).start()
    queue.close()
    assert future.cancelled()
    with pytest.raises(RuntimeError, match="the server ends"):
        queue.submit(lambda: 7)
