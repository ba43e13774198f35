"""A folder of results as its readers see it: metrics.json, its tables and its pictures, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from mois.evaluation.result_files import Row
from mois.evaluation.result_records import EVALUATE_AGAIN, CaptionRecord, ChangesRecord, read_metrics, read_rows
from mois.evaluation.statistics import SCHEMA
from mois.files.atomic import refuse_links
from mois.files.json_records import as_record, read_json, read_record

METRICS = "metrics.json"


class Estimate(NamedTuple):
    """One figure over scans.

    Attributes:
        mean: Over the scans in which it was measured, None where it was measured in none.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end.
        n: How many scans.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Estimate:
        """Read what metrics.json holds for a figure."""
        low, high = given.get("ci95") or (None, None)
        return cls(given["mean"], low, high, int(given.get("n") or 0))


def is_estimate(given: object) -> bool:
    """Return whether this is a figure over scans."""
    return isinstance(given, Mapping) and "mean" in given


def estimates(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Estimate]]:
    """Yield every figure of a summary with the names that lead to it, in order."""
    for name, part in tree.items():
        if is_estimate(part):
            yield (*path, name), Estimate.of(part)
        elif isinstance(part, Mapping):
            yield from estimates(part, (*path, name))


def number(text: str | None) -> float | None:
    """Return a cell as a number, None where it is empty or no finite number."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if isfinite(value) else None


@dataclass(frozen=True)
class Results:
    """What an evaluation left in its folder.

    Attributes:
        folder: Where.
        metrics: metrics.json.
        subjects: Lines of subjects.csv.
        lesions: Lines of lesions.csv.
        candidates: Lines of candidates.csv, empty where there is none.
        overlays: Pictures by scan, each with its file's name without the scan's (such as "class1").
    """

    folder: Path
    metrics: dict[str, Any]
    subjects: list[Row]
    lesions: list[Row]
    candidates: list[Row]
    overlays: dict[str, list[tuple[str, Path]]]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read a folder that `mois evaluate` or `train.py test` wrote.

        Raises:
            ValueError: If it holds no metrics.json, or one of another layout.
        """
        path = folder / METRICS
        if not path.is_file():
            raise ValueError(
                f"{folder}: no {METRICS} in it; give a folder that mois evaluate wrote (its --out), or that of a run "
                "which was tested (python train.py test)."
            )
        metrics = read_metrics(path, SCHEMA)
        refuse_links(folder, ("", "overlays", "overlays/worst"))
        subjects = read_rows(folder / "subjects.csv", ["subject"])
        names = sorted({row["subject"] for row in subjects}, key=len, reverse=True)
        overlays: dict[str, list[tuple[str, Path]]] = {}
        for picture in sorted((folder / "overlays").glob("*.png")):
            whose = next((name for name in names if picture.stem in (name, *_parts(name, picture.stem))), None)
            if whose is not None:
                overlays.setdefault(whose, []).append((picture.stem.removeprefix(whose).lstrip("_"), picture))
        return cls(
            folder,
            metrics,
            subjects,
            read_lesions(folder),
            read_rows(folder / "candidates.csv", ["hit", "peak"], shares=["peak"]),
            overlays,
        )

    @property
    def scan_count(self) -> int:
        """Number of scans."""
        return len(self.metrics["subjects"])

    @property
    def patient_count(self) -> int:
        """Number of patients."""
        return len({one["patient"] for one in self.metrics["subjects"]})

    def estimate(self, *path: str) -> Estimate | None:
        """Return a figure of the summary, such as `estimate("unprompted", "dice")`; None where it is not there."""
        part: Any = self.metrics["summary"]
        for name in path:
            part = part.get(name) if isinstance(part, Mapping) else None
        return Estimate.of(part) if is_estimate(part) else None

    def changes(self) -> dict[str, Any] | None:
        """Return robustness.json, None where there is none."""
        path = self.folder / "robustness.json"
        if not path.exists():
            return None
        found: dict[str, Any] = read_json(path, EVALUATE_AGAIN)
        as_record(found, ChangesRecord, str(path), EVALUATE_AGAIN)
        return found

    def captions(self) -> list[CaptionRecord]:
        """Return which pictures of single lesions there are, and what they show; none where there are none."""
        path = self.folder / "overlays" / "worst" / "captions.json"
        return read_record(path, list[CaptionRecord], EVALUATE_AGAIN) if path.exists() else []


def read_lesions(folder: Path) -> list[Row]:
    """Return the lines of lesions.csv."""
    needed = ["subject", "target_class", "lesion", "role", "found", "volume_ml", "dice"]
    return read_rows(folder / "lesions.csv", needed, ["volume_ml"])


def _parts(name: str, stem: str) -> tuple[str, ...]:
    """Return the stem itself where it is a scan's name and a class."""
    return (stem,) if stem.startswith(f"{name}_class") else ()
