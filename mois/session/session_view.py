"""What a session shows. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.lesions import InstanceMap
from mois.records import Volume
from mois.session.advice import Influence, Suggestion, coverage_warnings, suggestions
from mois.session.follow_up import Comparison, HasLesions, TimePoint, compare_time_points, time_point_of
from mois.session.history import SessionHistory
from mois.session.journal import Action
from mois.session.models.typed_workbench import TypedWorkbench
from mois.session.output_files import LesionRow, lesion_rows
from mois.session.points import as_floats
from mois.session.state import Preview, State
from mois.session.workbench import DrawingKind, Workbench
from mois.sharing.bank import ExemplarBank

Point = Sequence[float] | Tensor


class SessionView:
    """What a session shows to a reader or a viewer.

    Args:
        types: The workbenches of the session, one for each type of lesion.
        history: Its actions and states.
    """

    def __init__(self, types: TypedWorkbench, history: SessionHistory) -> None:
        self._types = types
        self._history = history

    @property
    def _bench(self) -> Workbench:
        """The workbench of the current type."""
        return self._types.of(self.state.type)

    @property
    def _shown(self) -> State:
        """What the current type has of the state."""
        return self.state.of_type(self.state.type)

    @property
    def types(self) -> tuple[str, ...]:
        """Types of lesions that have a model; first that of the model with which the session began."""
        return self._types.types

    @property
    def volume(self) -> Volume:
        """The scan."""
        return self._bench.volume

    @property
    def is_prepared(self) -> bool:
        """Whether the next `propagate` is computed already, and takes no time."""
        return self._types.is_prepared(self.state)

    @property
    def encoded(self) -> EncodedVolume:
        """The scan as tiles, as the model of the current type encodes them."""
        return self._bench.encoded

    @property
    def state(self) -> State:
        """The current state. A state never changes; an action replaces it by another state."""
        return self._history.state

    @property
    def actions(self) -> tuple[Action, ...]:
        """All actions so far, as in the journal."""
        return tuple(self._history.actions)

    @property
    def bank(self) -> ExemplarBank:
        """The exemplars of the current type as a new bank. A change of this bank does not change the session."""
        return self._bench.on_scan.bank(self._shown)

    def label_map(self) -> Tensor:
        """Return the lesions on the scanner's grid, (I, J, K) int32, with the id of the lesion as value."""
        stack: InstanceMap = self.state.label_map(self._bench.grid.stack_shape)
        return self._bench.grid.to_volume(torch.from_numpy(stack))

    def lesions(self) -> list[LesionRow]:
        """Return the rows of lesions.csv, by id."""
        return lesion_rows(self.state, self._bench.grid, self._bench.voxel_ml)

    def preview(self, point_lps_mm: Point, lesion: int | None = None, positive: bool = True) -> Preview:
        """Return what `click` with the same arguments would show on its slice. The session does not change.

        Raises:
            ValueError: As `click` raises it.
                If other lesions own all voxels of the lesion, `click` raises an error, but `preview` does not.
        """
        number = self.state.lesions[lesion].type if lesion in self.state.lesions else self.state.type
        return self._types.of(number).preview(self.state, as_floats(point_lps_mm), lesion, positive)

    def preview_drawing(
        self, kind: DrawingKind, points_lps_mm: Sequence[Point], lesion: int | None = None, positive: bool = True
    ) -> Preview:
        """Return what a box (two corners), scribble or lasso would show on its slice. The session does not change.

        Raises:
            ValueError: As the drawing raises it; or if it would reject a found lesion, or is on none at all.
        """
        number = self.state.lesions[lesion].type if lesion in self.state.lesions else self.state.type
        points = [as_floats(point) for point in points_lps_mm]
        return self._types.of(number).preview_drawing(self.state, kind, points, lesion, positive)

    def compare(self, earlier: HasLesions | TimePoint | Path) -> Comparison:
        """Match the lesions with those of an earlier time point: a session, its folder, or a scan with a label map.

        Raises:
            ValueError: If the scans are of two patients, or cannot be registered.
        """
        return compare_time_points(time_point_of(earlier), time_point_of(self))

    def suggest(self, count: int = 1) -> list[Suggestion]:
        """Return the places where a click would help most, after `propagate`."""
        return suggestions(self._shown, self._bench.grid, self._bench.voxel_ml, count)

    def warnings(self) -> list[str]:
        """Return warnings where the exemplars do not cover the found lesions: in size, intensity, place or look."""
        return coverage_warnings(self._shown, self._bench.grid)

    def attribute(self) -> list[Influence]:
        """Return how much each exemplar helps or harms, the most helpful first.

        Each is left out in turn, and none are merged. 20 take 2 s, 100 take 12 s (nano, 20 judged lesions, one core).
        Where rejected lesions veto, three questions are asked instead of one.
        """
        return self._bench.influences(self._shown)
