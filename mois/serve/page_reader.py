"""One open page: what its reader does with the session, and what it is shown."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mois.errors import one_line
from mois.files.csv_tables import csv_text
from mois.serve.finding import Finding
from mois.serve.host import Seat
from mois.serve.page_earlier import EarlierScan
from mois.serve.page_view import PageView, ShownMask, ShownMasks, Triple
from mois.serve.page_words import in_page_words, page_words
from mois.serve.refusals import Refusal
from mois.session import InteractiveSession
from mois.session.follow_up import columns, comparison_rows
from mois.session.history import reachable_states
from mois.session.workbench import DrawingKind

EPOCH = secrets.token_hex(4)
"""Name of this process: numbers of masks hold in one process only."""
SILENT_S = 15.0
"""A page that asked for nothing for so many seconds is taken for closed. Open pages ask every two seconds."""


class PageReader:
    """A page at the session of its scan.

    Args:
        seat: Its seat.
        view: How the scan is shown.
        numbers: Numbers of the masks, shared by all pages of the scan.
        earlier: An earlier scan of the patient.
    """

    def __init__(self, seat: Seat, view: PageView, numbers: ShownMasks, earlier: EarlierScan | None = None) -> None:
        self.view = view
        self._earlier = earlier
        self._seat = seat
        self._numbers = numbers
        self._finding: Finding | None = None
        self._heard = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether the page was not heard of for a while: its window was closed, or its browser ended."""
        busy = self._finding is not None and self._finding.is_running
        return not busy and time.monotonic() - self._heard > SILENT_S

    def heard(self) -> None:
        """Note that the page asked for something. It becomes the writer if nobody writes."""
        self._heard = time.monotonic()
        if not self._seat.writer:
            self._seat.ask_to_write()

    def leave(self) -> None:
        """Close the page."""
        self.cancel()
        self._seat.leave()

    # -- what changes the session --------------------------------------------------------------------------------------

    @in_page_words()
    def draw(self, kind: str, voxels: Sequence[Triple], lesion: int | None, positive: bool) -> dict[str, Any]:
        """Click, or draw a box, scribble or lasso, and return the lesion's id as result."""
        points = [self.view.lps_mm(voxel) for voxel in voxels]
        if kind == "click":
            points = self._exactly(points, 1, "a click is one place.")
            return self._answer(self._seat.do(lambda s: s.click(points[0], lesion, positive)))
        if kind == "box":
            points = self._exactly(points, 2, "a box is two corners.")
            return self._answer(self._seat.do(lambda s: s.box(points[0], points[1], lesion, positive)))
        if kind == "scribble":
            return self._answer(self._seat.do(lambda s: s.scribble(points, lesion, positive)))
        return self._answer(self._seat.do(lambda s: s.lasso(points, lesion, positive)))

    @in_page_words()
    def act(self, name: str, *arguments: int) -> dict[str, Any]:
        """Do another action of the session: accept, reject, lock, unlock, remove, undo, redo or save."""
        result = self._seat.do(lambda session: getattr(session, name)(*arguments))
        return self._answer(str(result) if isinstance(result, Path) else result)

    def use(self, name: str, bundle: Path | None = None) -> dict[str, Any]:
        """Go on with the lesions of a type. With a bundle, the type is a new one, whose lesions its model finds."""
        if bundle is None:
            self._seat.do(lambda session: session.use(name))
        else:
            self._seat.add_type(name, bundle)
        return self._answer(name)

    def propagate(self, every_type: bool) -> dict[str, Any]:
        """Begin to find all lesions like the exemplars, of the current type or of all. `state` says how far it is."""
        if self._finding is None or not self._finding.is_running:
            self._finding = Finding(self._seat, every_type)
        return self.state()

    def cancel(self) -> dict[str, Any]:
        """Stop the propagation."""
        if self._finding is not None:
            self._finding.cancel()
        return self.state()

    def bank_in(self, content: bytes) -> dict[str, Any]:
        """Add the exemplars of a bank's file, and return their number as result."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bank.safetensors"
            file.write_bytes(content)
            try:
                count = self._seat.do(lambda session: session.use_bank(file))
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), "this bank")) from None
        return self._answer(count)

    # -- what shows it -------------------------------------------------------------------------------------------------

    def scan(self) -> dict[str, Any]:
        """Return what stays the same: the scan's name and grid."""
        view = self.view
        return {
            "subject": self._seat.look(lambda session: session.volume.subject),
            "shape": view.shape,
            "spacing_mm": view.spacing_mm,
            "to_lps_mm": view.to_lps_mm.tolist(),
            "slice_axis": view.slice_axis,
            "earlier": "" if self._earlier is None else self._earlier.subject,
        }

    def state(self) -> dict[str, Any]:
        """Return what changes: lesions, exemplars, progress, and who writes."""
        return {**self._seat.look(self._session_state), **self.pulse()}

    def pulse(self) -> dict[str, Any]:
        """Return the short part of the state: what an open page asks for again and again."""
        finding = self._finding
        return {
            "epoch": EPOCH,
            "actions": self._seat.look(lambda session: len(session.actions)),
            "encoded": self._seat.look(_share_encoded),
            "role": self._seat.role,
            "writer": self._seat.writer,
            "finding": {
                "running": finding is not None and finding.is_running,
                "share": 0.0 if finding is None else finding.share,
                "found": None if finding is None else finding.found,
                "error": "" if finding is None else finding.error,
            },
        }

    def masks(self, numbers: Sequence[int]) -> dict[int, ShownMask]:
        """Return masks of the current lesions by number. A number that is no longer in use is left out."""
        wanted = set(numbers)
        lesions = self._seat.look(lambda session: session.state).lesions.values()
        return {
            number: self.view.mask(lesion.mask)
            for lesion in lesions
            if (number := self._numbers.number(lesion.mask).number) in wanted
        }

    def preview(
        self, kind: DrawingKind | Literal["click"], voxels: Sequence[Triple], lesion: int | None, positive: bool
    ) -> dict[str, Any]:
        """Return what a click or a drawing would show; `why` says in one line why it would be refused."""
        try:
            points = [self.view.lps_mm(voxel) for voxel in voxels]
            if kind == "click":
                shown = self._seat.preview(points[0], lesion, positive)
            else:
                shown = self._seat.ask(lambda session: session.preview_drawing(kind, points, lesion, positive))
        except ValueError as error:
            return {"lesion": None, "mask": None, "why": page_words(one_line(str(error)))}
        return {"lesion": shown.lesion, "mask": self.view.preview(shown), "why": ""}

    def suggest(self, count: int) -> list[dict[str, Any]]:
        """Return where a click would help most."""
        return [
            {"at": self.view.voxel(each.point_lps_mm), "lesion": each.lesion, "reason": each.reason}
            for each in self._seat.look(lambda session: session.suggest(count))
        ]

    def warnings(self) -> list[str]:
        """Return where the exemplars do not cover the found lesions."""
        return self._seat.look(lambda session: session.warnings())

    @property
    def earlier(self) -> EarlierScan:
        """The earlier scan.

        Raises:
            Refusal: If none is open.
        """
        if self._earlier is None:
            raise Refusal(404, "no earlier scan is open; start mois view with --earlier FOLDER.")
        return self._earlier

    def follow_up(self) -> dict[str, Any]:
        """Return what became of the lesions of the earlier time point, and after how many actions of the session."""
        actions, labels = self._seat.look(lambda session: (len(session.actions), session.label_map()))
        return {"actions": actions, **self.earlier.changes(labels)}

    def follow_up_table(self) -> str:
        """Return the same as CSV."""
        labels = self._seat.look(lambda session: session.label_map())
        return csv_text(columns(), comparison_rows(self.earlier.compare(labels)))

    def bank_out(self) -> bytes:
        """Return the exemplars as the content of a bank's file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bank.safetensors"
            self._seat.ask(lambda session: session.bank.save(file))
            return file.read_bytes()

    def _answer(self, result: Any) -> dict[str, Any]:
        return {"result": result, "state": self.state()}

    def _session_state(self, session: InteractiveSession) -> dict[str, Any]:
        state, actions = session.state, session.actions
        numbers, position = reachable_states(actions)
        lesions = []
        for number, lesion in state.lesions.items():
            shown = self._numbers.number(lesion.mask)
            lesions.append(
                {
                    "id": number,
                    "ml": shown.voxels * session.volume.voxel_ml,
                    "confidence": lesion.confidence,
                    "type": lesion.type,
                    "origin": lesion.origin,
                    "status": "accepted" if lesion.accepted else "locked" if lesion.locked else "open",
                    "prompts": len(lesion.prompts),
                    "mask": shown.number,
                    "at": shown.at,
                }
            )
        exemplars = state.of_type(state.type).exemplars.values()
        return {
            "can_undo": position > 0,
            "can_redo": position < len(numbers) - 1,
            "propagated": state.propagated,
            "type": state.type,
            "types": session.types,
            "exemplars": len(exemplars),
            "negative": sum(exemplar.negative for exemplar in exemplars),
            "lesions": lesions,
        }

    @staticmethod
    def _exactly(points: list[Triple], count: int, text: str) -> list[Triple]:
        if len(points) != count:
            raise ValueError(text)
        return points


def _share_encoded(session: InteractiveSession) -> float:
    """Return the share of the scan's tiles that are encoded: a click on others waits for them."""
    encoded = session._bench.on_scan.encoded
    return sum(row in encoded.store for row in range(encoded.shown)) / max(1, encoded.shown)
