"""What a client of nnInteractive does, as actions of a session. Its object is a lesion, its buffer a mask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mois.errors import told_where
from mois.geometry import SliceGrid
from mois.scans.image_files import write_volume
from mois.serve.host import Host, Seat
from mois.serve.nninteractive.drawn import drawn_box, drawn_line, drawn_outline
from mois.serve.nninteractive.images import Place, box_of, scan_of
from mois.serve.refusals import Refusal, all_or_nothing
from mois.session import InteractiveSession

MOST_CLICKS = 8
"""A line that is drawn across many slices becomes so many clicks."""
Prompt = Callable[[InteractiveSession, int | None], int]
"""Gives a prompt to the session for a lesion (None: a new lesion), and returns the id of its lesion."""


class Patch(NamedTuple):
    """What changed in the buffer of a client.

    Attributes:
        ran: Whether something was computed or undone.
        box: First voxel and voxel after the last, for each axis; None if nothing changed.
        voxels: The new voxels of the box, uint8, 1 inside the lesion.
    """

    ran: bool
    box: Place | None = None
    voxels: npt.NDArray[np.uint8] | None = None


class _Waiting(NamedTuple):
    """A prompt that is not done yet: its kind, where it lies, and what does it."""

    kind: str
    place: npt.NDArray[np.float64]
    prompt: Prompt


class Client:
    """A client at work.

    - `reset` begins the next lesion. So does the start. A first prompt inside a lesion is for that lesion.
    - `undo` takes back the latest prompt, of earlier objects and of earlier leases too.

    Args:
        host: The host of all sessions.
        name: Name of the client, as other clients of its scan read it.
    """

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self.lesion: int | None = None
        self._host = host
        self._seat: Seat | None = None
        self._grid: SliceGrid | None = None
        self._shown: Place | None = None  # box of the buffer that may hold voxels of the lesion
        self._waiting: list[_Waiting] = []
        self._done: list[tuple[int | None, int]] = []  # before each prompt: the lesion, the number of actions

    @property
    def seat(self) -> Seat:
        """The seat at the scan."""
        if self._seat is None:
            raise Refusal(400, "there is no image yet; send it with set_image.")
        return self._seat

    @property
    def grid(self) -> SliceGrid:
        """Grid of the scan."""
        if self._grid is None:
            raise Refusal(400, "there is no image yet; send it with set_image.")
        return self._grid

    def set_image(self, image: npt.NDArray[Any], properties: dict[str, Any]) -> None:
        """Open the session of an image: a new one, or the one that it has."""
        settings = self._host.model.segmenter.settings
        volume = scan_of(image, properties, settings.channels)
        self.leave()
        self._seat = self._host.open(self.name, volume)
        self._grid = SliceGrid.of(volume.shape, volume.affine, settings.slice_axis)

    def set_buffer(self, shape: Sequence[int]) -> None:
        """Note that the client has a new buffer."""
        if tuple(shape) != self.grid.shape:
            raise Refusal(400, f"the target buffer has shape {str(list(shape))[:80]}; the image has {self.grid.shape}.")
        self._shown = tuple((0, n) for n in self.grid.shape)

    def reset(self) -> None:
        """Begin the next lesion. The client has emptied its buffer."""
        self.lesion, self._shown = None, None
        self._waiting.clear()

    def leave(self) -> None:
        """Leave the scan; its session stays."""
        if self._seat is not None:
            self._seat.leave()
        self._seat, self._grid = None, None
        self._done.clear()
        self.reset()

    # -- prompts ---------------------------------------------------------------------------------------------------

    def point(self, voxel: Sequence[float], positive: bool, run: bool) -> Patch:
        """Click a voxel."""
        place = np.array(voxel, dtype=np.float64).reshape(1, -1)
        if place.shape != (1, 3) or not np.isfinite(place).all():
            raise Refusal(400, f"coordinates={str(list(voxel))[:80]} must be three numbers.")
        (point,) = self._mm(place)
        return self._prompt("click", place, lambda session, lesion: session.click(point, lesion, positive), run)

    def box(self, box: list[list[int]], positive: bool, run: bool) -> Patch:
        """Draw a box on a slice."""
        low, high = drawn_box(box, self.grid.shape, self.grid.order[0])
        first, second = self._mm(np.array([low, high]))
        middle = np.array([[(a + b) / 2 for a, b in zip(low, high, strict=True)]])
        return self._prompt("box", middle, lambda session, lesion: session.box(first, second, lesion, positive), run)

    def scribble(self, drawn: npt.NDArray[Any], box: list[list[int]] | None, positive: bool, run: bool) -> Patch:
        """Draw a line: on a slice of the session, or across slices."""
        lines = drawn_line(self._placed(drawn, box), self.grid.order[0])
        if len(lines) > 2:  # drawn in another view
            every = np.concatenate(lines)
            chosen = every[np.linspace(0, len(every) - 1, min(MOST_CLICKS, len(every))).round().astype(int)]
            points = self._mm(chosen)
            prompt = partial(_clicks, points=points, positive=positive)
            return self._prompt("scribble", chosen, prompt, run)
        prompt = partial(_scribbles, lines=[self._mm(line) for line in lines], positive=positive)
        return self._prompt("scribble", lines[0], prompt, run)

    def lasso(self, drawn: npt.NDArray[Any], box: list[list[int]] | None, positive: bool, run: bool) -> Patch:
        """Draw an outline on a slice."""
        corners = drawn_outline(self._placed(drawn, box), self.grid.order[0])
        inside = np.minimum(np.maximum(corners, 0), np.array(self.grid.shape) - 1)
        points = self._mm(corners)
        return self._prompt("lasso", inside[:0], lambda session, lesion: session.lasso(points, lesion, positive), run)

    def mask(self, given: npt.NDArray[Any], run: bool) -> Patch:
        """Give the voxels of the lesion."""
        mask = self._placed(given, None)
        if not mask.any():
            return Patch(False)
        self._shown = tuple((0, n) for n in self.grid.shape)  # the client has put them into its buffer
        nowhere = np.empty((0, 3))
        run = run or not self._waiting
        return self._prompt("mask", nowhere, lambda session, lesion: session.mask(mask, lesion), run)

    def predict(self) -> Patch:
        """Do the prompts that wait. One that is refused is dropped, and those after it go on waiting."""
        waiting, self._waiting = self._waiting, []
        for number, (kind, place, prompt) in enumerate(waiting, start=1):
            try:
                with told_where(f"prompt {number} of {len(waiting)}, {kind}") if len(waiting) > 1 else nullcontext():
                    self._do(place, prompt)
            except BaseException:
                self._waiting = waiting[number:]
                raise
        return self._patch() if waiting else Patch(False)

    def undo(self) -> Patch:
        """Take back the latest prompt."""
        if self._waiting:
            self._waiting.pop()
            return Patch(True)
        before, actions = self._done[-1] if self._done else (self.lesion, 1)
        if not self.seat.do(lambda session: all(session.undo() for _ in range(actions))):
            return Patch(False)
        if self._done:
            self._done.pop()
        self.lesion = before
        return self._patch()

    # -- what the protocol has no path for -------------------------------------------------------------------------

    def propagate(self, progress: Callable[[float], None], cancelled: Callable[[], bool]) -> int:
        """Find all lesions like the exemplars, and return their number."""
        found = self.seat.propagate(progress, cancelled)
        self._done.append((self.lesion, 1))
        return found

    def use(self, name: str) -> None:
        """Go on with the lesions of another type. The next prompt begins a lesion of it."""
        self.seat.do(lambda session: session.use(name))
        self._done.append((self.lesion, 1))
        self.reset()

    def judge(self, verdict: str, lesion: int | None) -> Patch:
        """Accept, reject or remove a lesion; without an id, the current one."""
        number = self.lesion if lesion is None else lesion
        if number is None:
            raise Refusal(400, "there is no current lesion; name one: lesion=ID.")
        self.seat.do(lambda session: getattr(session, verdict)(number))
        self._done.append((self.lesion, 1))
        return self._patch()

    def select(self, lesion: int) -> Patch:
        """Make a lesion the current one, and show it in the buffer."""
        if lesion not in self.seat.look(lambda session: session.state.lesions):
            raise Refusal(400, f"lesion={lesion} does not exist.")
        self.lesion = lesion
        return self._patch()

    @property
    def actions(self) -> int:
        """Number of actions of the session so far."""
        return self.seat.look(lambda session: len(session.actions))

    def lesions(self) -> list[dict[str, Any]]:
        """Return all lesions, as in lesions.csv."""
        return self.seat.look(lambda session: [asdict(row) for row in session.lesions()])

    def types(self) -> dict[str, Any]:
        """Return the types of lesions, and for which of them the next lesion is."""
        return self.seat.look(lambda session: {"type": session.state.type, "types": session.types})

    def suggestions(self, count: int) -> list[dict[str, Any]]:
        """Return the voxels where a click would help most."""
        found = self.seat.ask(lambda session: session.suggest(count))
        places = [self._voxel(each.point_lps_mm) for each in found]
        return [
            {"coordinates": place, "lesion": each.lesion, "reason": each.reason}
            for place, each in zip(places, found, strict=True)
        ]

    def result(self, affine: list[list[float]] | None) -> Path:
        """Write the results, and return the label map for the viewer.

        Args:
            affine: From voxel indices of the client's array to RAS mm, (4, 4); None: from spacing alone.
        """
        folder = self.seat.do(lambda session: session.save())
        if affine is None:
            segments = folder / "lesions.seg.nrrd"
            return segments if segments.is_file() else folder / "lesions.nii.gz"
        placed = torch.tensor(affine, dtype=torch.float64)
        if placed.shape != (4, 4) or not bool(torch.isfinite(placed).all()) or abs(float(torch.det(placed))) < 1e-9:
            raise Refusal(400, "affine must be 4 x 4 numbers, from voxel indices to RAS mm.")
        file = folder / "viewer.nii.gz"
        write_volume(self.seat.look(lambda session: session.label_map()), placed, file)
        return file

    # -- steps -----------------------------------------------------------------------------------------------------

    def _prompt(self, kind: str, place: npt.NDArray[np.float64], prompt: Prompt, run: bool) -> Patch:
        self._waiting.append(_Waiting(kind, place, prompt))
        if not run:
            return Patch(False)
        return self.predict()

    def _do(self, place: npt.NDArray[np.float64], prompt: Prompt) -> None:
        def act(session: InteractiveSession) -> tuple[int, int]:
            before = len(session.actions)
            lesion = self.lesion if self.lesion in session.state.lesions else self._lesion_at(session, place)
            with all_or_nothing(session):  # there may be several clicks or lines
                number = prompt(session, lesion)
            return number, len(session.actions) - before

        before = self.lesion
        number, actions = self.seat.do(act)
        self._done.append((before, actions))
        self.lesion = number if number in self.seat.look(lambda session: session.state.lesions) else before

    def _lesion_at(self, session: InteractiveSession, places: npt.NDArray[np.float64]) -> int | None:
        """Return the prompted lesion at the first of some voxels; None if the session decides."""
        if not len(places):
            return None
        place = np.rint(places[0]).astype(np.int64)
        for number, lesion in session.state.lesions.items():
            box = box_of(self.grid, lesion.mask) if lesion.owns else None
            if box is None:
                continue
            at = place - [low for low, _ in box[0]]
            if (at >= 0).all() and (at < box[1].shape).all() and box[1][tuple(at)]:
                return number
        return None

    def _patch(self) -> Patch:
        """Return what changes in the buffer, so that it shows the current lesion."""
        lesion = self.seat.look(lambda session: session.state.lesions.get(self.lesion or 0))
        now = None if lesion is None else box_of(self.grid, lesion.mask)
        boxes = [box for box in (self._shown, None if now is None else now[0]) if box is not None]
        self._shown = None if now is None else now[0]
        if not boxes:
            return Patch(True)
        whole = tuple((min(low for low, _ in ends), max(high for _, high in ends)) for ends in zip(*boxes, strict=True))
        voxels = np.zeros([high - low for low, high in whole], dtype=np.uint8)
        if now is not None:
            starts = [low for low, _ in whole]
            part = tuple(slice(low - n, high - n) for (low, high), n in zip(now[0], starts, strict=True))
            voxels[part] = now[1]
        return Patch(True, whole, voxels)

    def _placed(self, drawn: npt.NDArray[Any], box: list[list[int]] | None) -> npt.NDArray[np.bool_]:
        """Return drawn voxels on the whole scan, (I, J, K) bool."""
        if box is None:
            if drawn.shape != self.grid.shape:
                raise Refusal(400, f"the array has shape {list(drawn.shape)}; the image has {list(self.grid.shape)}.")
            inside: npt.NDArray[np.bool_] = drawn != 0
            return inside
        fits = len(box) == 3 and all(
            0 <= low < high <= n and high - low == size
            for (low, high), n, size in zip(box, self.grid.shape, drawn.shape, strict=True)
        )
        if not fits:
            raise Refusal(400, f"interaction_bbox={str(box)[:80]} must lie in the image, in the array's shape.")
        whole = np.zeros(self.grid.shape, dtype=bool)
        whole[tuple(slice(*ends) for ends in box)] = drawn != 0
        return whole

    def _mm(self, voxels: npt.NDArray[np.float64]) -> list[list[float]]:
        """Return voxels (N, 3) as points in LPS mm."""
        affine = self.grid.affine.numpy()
        ras = voxels @ affine[:3, :3].T + affine[:3, 3]
        return [[0.0 - x, 0.0 - y, z] for x, y, z in ras.tolist()]

    def _voxel(self, point_lps_mm: Sequence[float]) -> list[int]:
        affine, (x, y, z) = self.grid.affine.numpy(), point_lps_mm
        voxel = np.linalg.solve(affine[:3, :3], np.array([-x, -y, z]) - affine[:3, 3])
        return [int(index) for index in np.rint(voxel)]


def _clicks(session: InteractiveSession, lesion: int | None, *, points: list[list[float]], positive: bool) -> int:
    number = session.click(points[0], lesion, positive)
    for point in points[1:]:
        number = session.click(point, number, positive)
    return number


def _scribbles(
    session: InteractiveSession, lesion: int | None, *, lines: list[list[list[float]]], positive: bool
) -> int:
    number = lesion
    for line in lines:
        points = line if len(line) > 1 else [line[0], line[0]]
        number = session.scribble(points, number, positive)
        number = number if number in session.state.lesions else lesion
    return 0 if number is None else number
