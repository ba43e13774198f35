"""Calibration: from the peak of a found lesion to its confidence, fitted on scans with known lesions."""

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
    """Candidates of similar confidence, for a reliability plot.

    Attributes:
        low: Lowest confidence of the bin.
        high: Highest confidence of the bin.
        confidence: Mean confidence of its candidates.
        hits: Share of its candidates that are lesions.
        count: Number of its candidates, 1 or more.
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
        confidences: Confidences at the knots, never falling, above 0 and below 1. The confidence is linear between the
            knots and constant outside.
        candidates: Number of candidates in the fit.
        hits: Number of these candidates that are lesions.
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

        Isotonic regression finds the steps. A step with h hits among n candidates gets the confidence
        (h + 1) / (n + 2). Steps that are out of order then are joined.

        Args:
            peaks: Highest probability of each candidate, (K,).
            hits: Whether the candidate is a lesion, (K,).

        Raises:
            ValueError: If there is no candidate, or a peak is not between 0 and 1.

        Source: Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002.
        """
        peak, hit = _checked(peaks, hits)
        if not len(peak):
            raise ValueError(
                "a calibration needs at least one candidate; validate on scans in which something is found."
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
        """Return the confidence (K,) of candidates with these peaks (K,): the probability that each is a lesion."""
        return np.asarray(np.interp(np.asarray(peaks, dtype=np.float64), self.peaks, self.confidences))

    def reliability(self, peaks: Numbers, hits: Flags, bins: int = 10) -> tuple[ReliabilityBin, ...]:
        """Compare confidence and truth of candidates that were not in the fit.

        Args:
            peaks: Highest probability of each candidate, (K,).
            hits: Whether the candidate is a lesion, (K,).
            bins: Number of bins of equal width. Bins without candidates are left out.
        """
        if bins < 1:
            raise ValueError(f"bins={bins} must be 1 or more.")
        peak, hit = _checked(peaks, hits)
        confidence = self.confidence(peak)
        bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        return tuple(
            ReliabilityBin(
                float(index / bins),
                float((index + 1) / bins),
                float(confidence[bin_of == index].mean()),
                float(hit[bin_of == index].mean()),
                int((bin_of == index).sum()),
            )
            for index in np.unique(bin_of)
        )

    @staticmethod
    def peak_for_budget(peaks: Numbers, hits: Flags, scans: int, false_per_scan: float) -> float:
        """Return the lowest peak threshold that leaves at most `false_per_scan` false candidates per scan.

        Args:
            peaks: Highest probability of each candidate of all scans, (K,).
            hits: Whether the candidate is a lesion, (K,).
            scans: Number of scans, with those without candidates.
            false_per_scan: Allowed number of false candidates per scan, on average.

        Returns:
            0 if all candidates may stay. Otherwise the middle between the first false candidate that must go and the
            candidate with the next higher peak. If there is no such candidate, 1 takes its place.
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
        """Return the calibration as plain lists and numbers, for JSON."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Calibration:
        """Return the calibration of plain lists and numbers, as `as_dict` gives them."""
        return cls(tuple(plain["peaks"]), tuple(plain["confidences"]), int(plain["candidates"]), int(plain["hits"]))


def _checked(peaks: Numbers, hits: Flags) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return peaks and hits as arrays of one length (K,), checked."""
    peak, hit = np.asarray(peaks, dtype=np.float64), np.asarray(hits, dtype=bool)
    if peak.shape != hit.shape or peak.ndim != 1:
        raise ValueError(f"peaks and hits must have the same length, got shapes {peak.shape} and {hit.shape}.")
    if not bool(((peak >= 0) & (peak <= 1)).all()):
        raise ValueError("a peak is a probability; each peak must lie between 0 and 1.")
    return peak, hit
