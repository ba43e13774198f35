"""Reads a folder of results: metrics.json, its tables and its pictures."""

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
    """The mean of a figure over scans, with its interval.

    Attributes:
        mean: Mean over the scans that have the figure; None if no scan has it.
        low: Lower end of the 95 % interval; None without an interval.
        high: Upper end of the 95 % interval.
        n: Number of scans that have the figure.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Estimate:
        """Read the entry of a figure in metrics.json."""
        low, high = entry.get("ci95") or (None, None)
        return cls(entry["mean"], low, high, int(entry.get("n") or 0))


def is_estimate(entry: object) -> bool:
    """Tell whether an entry of metrics.json is a figure over scans."""
    return isinstance(entry, Mapping) and "mean" in entry


def estimates(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Estimate]]:
    """Yield every figure of a summary with the names that lead to it, in order."""
    for name, part in tree.items():
        if is_estimate(part):
            yield (*path, name), Estimate.of(part)
        elif isinstance(part, Mapping):
            yield from estimates(part, (*path, name))


def number(text: str | None) -> float | None:
    """Return a cell as a number; None if it is empty or no finite number."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if isfinite(value) else None


@dataclass(frozen=True)
class Results:
    """The results in the folder of an evaluation.

    Attributes:
        folder: The folder.
        metrics: Content of metrics.json.
        subjects: Lines of subjects.csv.
        lesions: Lines of lesions.csv.
        candidates: Lines of candidates.csv; empty without this file.
        overlays: Pictures by scan, each with the end of its file's name, "class1" for example.
    """

    folder: Path
    metrics: dict[str, Any]
    subjects: list[Row]
    lesions: list[Row]
    candidates: list[Row]
    overlays: dict[str, list[tuple[str, Path]]]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read a folder that `mois evaluate` or `mois test` wrote.

        Raises:
            ValueError: If the folder holds no metrics.json, or metrics.json has another layout.
        """
        path = folder / METRICS
        if not path.is_file():
            raise ValueError(
                f"{folder}: no {METRICS} in it; give a folder that mois evaluate wrote (its --out), or that of a run "
                "which was tested (mois test)."
            )
        metrics = read_metrics(path, SCHEMA)
        refuse_links(folder, ("", "overlays", "overlays/worst"))
        subjects = read_rows(folder / "subjects.csv", ["subject"])
        names = sorted({row["subject"] for row in subjects}, key=len, reverse=True)
        overlays: dict[str, list[tuple[str, Path]]] = {}
        for picture in sorted((folder / "overlays").glob("*.png")):
            subject = next((name for name in names if picture.stem in (name, *_parts(name, picture.stem))), None)
            if subject is not None:
                overlays.setdefault(subject, []).append((picture.stem.removeprefix(subject).lstrip("_"), picture))
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
        """Return a figure of the summary, such as `estimate("unprompted", "dice")`; None if the summary lacks it."""
        part: Any = self.metrics["summary"]
        for name in path:
            part = part.get(name) if isinstance(part, Mapping) else None
        return Estimate.of(part) if is_estimate(part) else None

    def changes(self) -> dict[str, Any] | None:
        """Return the content of robustness.json; None without this file."""
        path = self.folder / "robustness.json"
        if not path.exists():
            return None
        content: dict[str, Any] = read_json(path, EVALUATE_AGAIN)
        as_record(content, ChangesRecord, str(path), EVALUATE_AGAIN)
        return content

    def captions(self) -> list[CaptionRecord]:
        """Return the pictures of single lesions with their captions; [] without any."""
        path = self.folder / "overlays" / "worst" / "captions.json"
        return read_record(path, list[CaptionRecord], EVALUATE_AGAIN) if path.exists() else []


def read_lesions(folder: Path) -> list[Row]:
    """Return the lines of lesions.csv."""
    needed = ["subject", "target_class", "lesion", "role", "found", "volume_ml", "dice"]
    return read_rows(folder / "lesions.csv", needed, ["volume_ml"])


def _parts(name: str, stem: str) -> tuple[str, ...]:
    """Return the stem of a file's name if it is a scan's name and a class."""
    return (stem,) if stem.startswith(f"{name}_class") else ()
