"""Actions during a propagation: each is answered before its next step, none is lost, and the voxels stay the same."""

import threading
from collections.abc import Callable

import pytest
import torch

from mois.serve.host import Host, Seat
from mois.serve.refusals import Cancelled, Watching
from mois.session import InteractiveSession
from tests.support.fake_model import TYPE_A, make_scan
from tests.support.session_fakes import A1, B1, lps, make_model, three_lesions

SCAN = three_lesions()._replace(path="")
PLACE, OTHER_PLACE = lps(SCAN, 2, 20, 20), lps(SCAN, 2, 40, 12)
Action = Callable[[InteractiveSession], object]


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "studies", make_model())
    yield host
    host.close()


@pytest.fixture
def seat(host):
    return begin(host)


def begin(host: Host) -> Seat:
    """A seat at a scan with one clicked lesion."""
    seat = host.open("a", SCAN)
    seat.do(lambda s: s.click(PLACE))
    return seat


class AtStep:
    """Does actions at one step of a propagation, as another request does them, and counts the steps."""

    def __init__(self, seat: Seat, step: int = -1, *actions: Action) -> None:
        self.seat, self.step, self.actions = seat, step, actions
        self.count = 0
        self.requests: list[threading.Thread] = []

    def __call__(self, _share: float) -> None:
        if threading.current_thread().name != "device":  # before the first step, and after the last
            return
        if self.count == self.step:
            for action in self.actions:
                self.requests.append(threading.Thread(target=self.seat.do, args=(action,)))
                self.requests[-1].start()
                self.requests[-1].join(0.05)  # it waits for the device now, which is in this step
        elif self.requests:
            for request in self.requests:
                request.join(5)
            assert not any(request.is_alive() for request in self.requests)  # answered before this step
        self.count += 1


def names(seat: Seat) -> list[str]:
    return [action.name for action in seat.look(lambda s: s.actions)]


def assert_as_without_steps(seat: Seat) -> None:
    """The same actions one after the other, without a server and without steps, give the same lesions."""
    plain = InteractiveSession.replay(seat.folder, make_model(), SCAN)
    assert torch.equal(plain.label_map(), seat.look(lambda s: s.label_map()))
    assert plain.lesions() == seat.look(lambda s: s.lesions())


@pytest.mark.parametrize("step", [0, 4, 8])  # at 4, tiles were encoded, but none is done
def test_a_click_during_a_propagation_is_answered_before_the_next_step(seat, step):
    at_step = AtStep(seat, step, lambda s: s.click(OTHER_PLACE))
    seat.propagate(at_step)
    assert at_step.requests
    assert names(seat) == ["click", "click", "propagate"]
    assert_as_without_steps(seat)


def test_actions_that_keep_the_exemplars_do_not_begin_it_again(seat):
    shares: list[float] = []
    at_step = AtStep(seat, 4, lambda s: s.lock(1), lambda s: s.unlock(1))

    def progress(share: float) -> None:
        shares.append(share)
        at_step(share)

    seat.propagate(progress)
    assert names(seat) == ["click", "lock", "unlock", "propagate"]
    assert shares == sorted(shares)
    assert_as_without_steps(seat)


def test_actions_without_a_pause_are_all_answered_at_once(seat):
    (key,) = seat.look(lambda s: s.state.exemplars)
    requests: list[threading.Thread] = []

    def progress(_share: float) -> None:
        if threading.current_thread().name != "device":
            return
        for request in requests:
            request.join(5)
            assert not request.is_alive()
        if len(requests) < 12:
            weight = 2.0 + len(requests)
            requests.append(threading.Thread(target=seat.do, args=(lambda s: s.reweigh(key, weight),)))
            requests[-1].start()
            requests[-1].join(0.05)

    seat.propagate(progress)
    assert names(seat) == ["click", *["reweigh"] * 12, "propagate"]
    assert_as_without_steps(seat)


def think_of_other_exemplars(seat: Seat) -> None:
    """Leave the state as it is, and the model with the answer to other exemplars."""
    (key,) = seat.look(lambda s: s.state.exemplars)
    seat.do(lambda s: s.reweigh(key, 2.0))
    seat.propagate()
    seat.do(lambda s: (s.undo(), s.undo()))


def test_a_propagation_cancelled_at_any_step_changes_nothing(seat):
    before = seat.look(lambda s: s.state)
    think_of_other_exemplars(seat)
    seat.propagate(counter := AtStep(seat))
    seat.do(lambda s: s.undo())
    for step in range(counter.count):
        think_of_other_exemplars(seat)
        at_step = AtStep(seat)
        with pytest.raises(Cancelled):
            seat.propagate(at_step, lambda at_step=at_step, step=step: at_step.count > step)
        assert seat.look(lambda s: s.state) is before
    assert seat.propagate()
    assert_as_without_steps(seat)


def test_a_propagation_that_begins_again_goes_behind_that_of_another_client(host, seat):
    other = host.open("b", make_scan([(TYPE_A, A1), (TYPE_A, B1)])._replace(path=""))
    other.do(lambda s: s.click(PLACE))
    (key,) = seat.look(lambda s: s.state.exemplars)
    on_device: list[str] = []
    requests: list[threading.Thread] = []

    def note(name: str) -> None:
        if threading.current_thread().name == "device":
            on_device.append(name)

    def progress(_share: float) -> None:
        note("a")
        if not requests and on_device:
            for work in (lambda: other.propagate(lambda _: note("b")), lambda: seat.do(lambda s: s.reweigh(key, 2))):
                requests.append(threading.Thread(target=work))
                requests[-1].start()
                requests[-1].join(0.05)

    seat.propagate(progress)
    for request in requests:
        request.join(5)
    changes = [name for name, before in zip(on_device, ["", *on_device], strict=False) if name != before]
    assert changes == ["a", "b", "a"]
    assert_as_without_steps(seat)


def test_two_propagations_of_one_scan_go_one_after_the_other(seat):
    requests: list[threading.Thread] = []

    def progress(_share: float) -> None:
        if not requests:
            requests.append(threading.Thread(target=seat.propagate))
            requests[-1].start()

    seat.propagate(progress)
    requests[0].join(5)
    assert names(seat) == ["click", "propagate", "propagate"]
    assert_as_without_steps(seat)


def test_a_session_that_is_closed_during_a_propagation_is_opened_again(tmp_path):
    for step in (0, 3, 12):
        host = Host(tmp_path / str(step), make_model())
        seat = begin(host)
        at_step = AtStep(seat)

        def progress(share: float, at_step=at_step, seat=seat, step=step) -> None:
            at_step(share)
            if at_step.count == step + 1:
                seat._study.close()

        seat.propagate(progress)
        assert names(seat) == ["click", "propagate"]
        assert_as_without_steps(seat)
        host.close()


def test_a_propagation_of_a_client_that_left_does_not_write_for_another(host, seat):
    other = host.open("b", SCAN)
    at_step = AtStep(seat)

    def progress(share: float) -> None:
        at_step(share)
        if at_step.count == 2:
            seat.leave()
            other.ask_to_write()

    with pytest.raises(Watching, match="b writes"):
        seat.propagate(progress)
    assert names(other) == ["click"]
