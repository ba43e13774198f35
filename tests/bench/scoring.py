"""What scoring a large scan costs, beside scoring it on whole volumes as `tests.support.plain_scoring` does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.evaluation.figures import Figures
from mois.evaluation.scoring import ClassResult, candidate_rows, grown, score_answer
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ScanPlan
from mois.geometry import SliceGrid
from mois.lesions import Candidates, InstanceMap, LesionVoxels, components, dilate_in_plane, renumber
from mois.metrics.overlap import Overlap
from tests.bench.measure import Measurement, Outcome, interleaved
from tests.support import plain_scoring

QUESTIONS = 12
"""Answers that an evaluation with its usual curves compares with the never-prompted lesions."""
SETTINGS = ProtocolSettings(counts=(0, 1, 3, 5, 10, 20))


@dataclass(frozen=True)
class _Answered:
    """A scan of 44 x 1100 x 512 with 300 lesions, of which most were found, and the prompted lesions of each class."""

    plan: ScanPlan
    found: InstanceMap
    results: dict[int, ClassResult]

    def ours(self) -> object:
        """Score as an evaluation does."""
        lesions, plan = self.plan.lesions, self.plan
        never = []
        for _ in range(QUESTIONS):
            counts = lesions.count(LesionVoxels.of(self.found), plan.taken_out)
            never += [counts.overlap(one.never).dice() for one in plan.classes.values()]
        scored: list[object] = []
        for target_class, result in self.results.items():
            one = plan.classes[target_class]
            scored.append(score_answer(lesions, one, result, SETTINGS, Figures())[:3])
            counts = lesions.count(LesionVoxels.of(self.found), grown(lesions, result.prompted, SETTINGS.margin_px))
            rest = set(one.lesions).difference(result.prompted)
            scored.append(candidate_rows(self._candidates(), counts, rest, lesions.voxel_ml))
        return never, scored

    def plain(self) -> object:
        """Score on whole volumes."""
        lesions, plan = self.plan.lesions, self.plan
        maps = [plain_scoring.only(lesions, one.never) for one in plan.classes.values()]
        never = [Overlap.of(self.found, one, plan.taken_out).dice() for _ in range(QUESTIONS) for one in maps]
        scored: list[object] = []
        for target_class, result in self.results.items():
            one = plan.classes[target_class]
            scored.append(plain_scoring.score_answer(lesions, one, result, SETTINGS, Figures())[:3])
            parts = plain_scoring.unprompted_lesions(lesions, one, result.prompted, SETTINGS.margin_px)
            scored.append(plain_scoring.candidate_rows(self._candidates(), *parts, lesions.voxel_ml))
        return never, scored

    def _candidates(self) -> Candidates:
        return Candidates(self.found, np.ones(int(self.found.max()), dtype=np.float32))


@cache
def answered() -> _Answered:
    """Return the scan: three of four lesions are found, each a little larger than it is."""
    rng = np.random.default_rng(5)
    types = draw_lesion_types(np.random.default_rng(0), 2)
    phantom = make_phantom(rng, types, shape=(44, 1100, 512), spacing_mm=(5.0, 0.7, 0.7), lesions=(300, 300))
    volume = as_volume(phantom, "large")
    plan = ScanPlan.of(volume, SliceGrid.of(volume.shape, volume.affine), SETTINGS)
    some = [lesion for lesion in plan.lesions.ids.tolist() if lesion % 4]
    found = components(dilate_in_plane(plan.lesions.only(some) > 0, 1))
    results = {}
    for target_class, one in plan.classes.items():
        prompted = one.order[: SETTINGS.prompted]
        tracked = renumber(plan.lesions.only(prompted), {id_: n for n, id_ in enumerate(prompted, start=1)})
        results[target_class] = ClassResult(prompted, found, tracked, len(prompted))
    return _Answered(plan, found, results)


def evaluate_scoring(repeats: int) -> Outcome:
    """Scoring of a scan of 44 x 1100 x 512 with 300 lesions, against scoring it on whole volumes; figures are equal.

    Raises:
        ValueError: If a figure differs.
    """
    scan = answered()
    if scan.ours() != scan.plain():
        raise ValueError("scoring differs from scoring on whole volumes.")
    seconds = interleaved({"scored": scan.ours, "scored_on_whole_volumes": scan.plain}, repeats)
    ratio = seconds["scored"] / seconds["scored_on_whole_volumes"]
    return Outcome({"evaluate_scoring_vs_before": ratio}, {f"{name}_s": spent for name, spent in seconds.items()})


MEASUREMENTS: list[Measurement] = [evaluate_scoring]
