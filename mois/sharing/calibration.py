"""How likely a found lesion is one: confidence fitted on scans whose lesions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

Numbers = Sequence[float] | npt.NDArray[np.floating[Any]]
Flags = Sequence[bool] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReliabilityBin:
    """Candidates of about one confidence, for a reliability plot.

    Attributes:
        low: Confidence from which the bin counts.
        high: Confidence up to which it does.
        confidence: Mean confidence of its candidates.
        hits: Share of them that are lesions.
        count: How many they are, 1 or more.
    """

    low: float
    high: float
    confidence: float
    hits: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """From a candidate's peak probability to the probability that it is a lesion.

    Attributes:
        peaks: Peaks at the knots, ascending.
        confidences: Confidence there, never falling, above 0 and below 1; linear in between and constant outside.
        candidates: How many candidates it was fitted on.
        hits: How many of them are lesions.
    """

    peaks: tuple[float, ...]
    confidences: tuple[float, ...]
    candidates: int
    hits: int

    def __post_init__(self) -> None:
        if not self.peaks or len(self.peaks) != len(self.confidences):
            raise ValueError(
                f"a calibration needs as many confidences as peaks, got {len(self.confidences)} and {len(self.peaks)}."
            )
        if any(np.diff(self.peaks) < 0) or any(np.diff(self.confidences) < 0):
            raise ValueError("a calibration's peaks and confidences must not fall.")
        if not 0 < self.confidences[0] <= self.confidences[-1] < 1:
            raise ValueError("a calibration's confidences must lie between 0 and 1.")

    @classmethod
    def fit(cls, peaks: Numbers, hits: Flags) -> Calibration:
        """Fit a confidence that never falls with the peak.

        Isotonic regression finds the steps; a step of h hits among n candidates becomes (h + 1) / (n + 2), and steps
        that this puts out of order are joined.

        Args:
            peaks: (K,) highest probability of each candidate.
            hits: (K,) whether it is a lesion.

        Raises:
            ValueError: If there is no candidate, or a peak that is no probability.

        Source: Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002.
        """
        peak, hit = _checked(peaks, hits)
        if not len(peak):
            raise ValueError(
                "a calibration needs one candidate or more; validate on scans in which something is found."
            )
        levels, which = np.unique(peak, return_inverse=True)
        total = np.bincount(which).astype(np.float64)
        positive = np.bincount(which, weights=hit)
        steps = isotonic_regression(positive / total, weights=total).blocks
        counts, found = np.add.reduceat(total, steps[:-1]), np.add.reduceat(positive, steps[:-1])
        smooth = isotonic_regression((found + 1) / (counts + 2), weights=counts + 2).x
        knots: list[tuple[float, float]] = []
        for first, end, value in zip(steps[:-1], steps[1:], smooth, strict=True):
            knots.append((float(levels[first]), float(value)))
            if end - first > 1:
                knots.append((float(levels[end - 1]), float(value)))
        return cls(tuple(x for x, _ in knots), tuple(y for _, y in knots), len(peak), int(hit.sum()))

    def confidence(self, peaks: Numbers) -> npt.NDArray[np.float64]:
        """Return the probability that each candidate (K,) is a lesion."""
        return np.asarray(np.interp(np.asarray(peaks, dtype=np.float64), self.peaks, self.confidences))

    def reliability(self, peaks: Numbers, hits: Flags, bins: int = 10) -> tuple[ReliabilityBin, ...]:
        """Compare confidence and truth of candidates that were not fitted on.

        Args:
            peaks: (K,) highest probability of each.
            hits: (K,) whether it is a lesion.
            bins: Number of bins of equal width; those without candidates are left out.
        """
        if bins < 1:
            raise ValueError(f"bins={bins} must be 1 or more.")
        peak, hit = _checked(peaks, hits)
        said = self.confidence(peak)
        where = np.minimum((said * bins).astype(np.int64), bins - 1)
        return tuple(
            ReliabilityBin(
                float(index / bins),
                float((index + 1) / bins),
                float(said[where == index].mean()),
                float(hit[where == index].mean()),
                int((where == index).sum()),
            )
            for index in np.unique(where)
        )

    @staticmethod
    def peak_for_budget(peaks: Numbers, hits: Flags, scans: int, false_per_scan: float) -> float:
        """Return the lowest peak threshold that leaves at most so many false candidates per scan.

        Args:
            peaks: (K,) highest probability of each candidate of all scans.
            hits: (K,) whether it is a lesion.
            scans: How many scans they are of, those without candidates included.
            false_per_scan: How many false ones a scan may have on average.

        Returns:
            0 where all may stay. Half-way between the first false candidate too many and the next surer candidate;
            1 if no candidate is surer: what reaches 1 cannot be told from a lesion.
        """
        if scans < 1 or false_per_scan < 0:
            raise ValueError(f"scans={scans} must be 1 or more, and bundle.false_per_scan={false_per_scan} 0 or more.")
        peak, hit = _checked(peaks, hits)
        false = np.sort(peak[~hit])[::-1]
        allowed = int(np.floor(false_per_scan * scans + 1e-9))
        if len(false) <= allowed:
            return 0.0
        worst = float(false[allowed])
        surer = peak[peak > worst]
        following = float(surer.min()) if len(surer) else 1.0
        middle = (worst + following) / 2
        return middle if middle > worst else following

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as JSON holds them."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Calibration:
        """Return what `as_dict` was made from."""
        return cls(tuple(plain["peaks"]), tuple(plain["confidences"]), int(plain["candidates"]), int(plain["hits"]))


def _checked(peaks: Numbers, hits: Flags) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    peak, hit = np.asarray(peaks, dtype=np.float64), np.asarray(hits, dtype=bool)
    if peak.shape != hit.shape or peak.ndim != 1:
        raise ValueError(f"peaks and hits need one length each, got shapes {peak.shape} and {hit.shape}.")
    if not bool(((peak >= 0) & (peak <= 1)).all()):
        raise ValueError("a peak is a probability; every one must lie between 0 and 1.")
    return peak, hit
