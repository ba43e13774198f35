"""An evaluation of many scans that can be stopped and gone on with: one file per finished scan, then all results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mois.calibration import Calibration
from mois.evaluation.lesion_pictures import draw_worst_lesions
from mois.evaluation.report import write_report
from mois.evaluation.reports import SubjectReport
from mois.evaluation.results import read_rows, write_rows
from mois.evaluation.robustness import CHANGES, ChangedScan, changed, plain, summarise_changes, unprompted
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.tables import write_results
from mois.files import write_text
from mois.interfaces import Volume
from mois.io import DataError, SubjectFiles

Score = Callable[[Volume, ProtocolSettings, Path | None], SubjectReport]
"""Scores a scan, and writes its maps and pictures below a folder if there is one."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        score: Scores one scan.
        protocol: How scans are prompted and scored.
        identity: What, besides protocol and scans, decides the results, such as the model: plain names and values.
        provenance: What made the results, for metrics.json.
        calibration: Turns peaks into confidence; None where there is none.
        channel: The image to read of each scan.
        instances: Whether lesions come from maps of lesion ids where there are any.
        robustness: Whether the scans are scored once more in each of `CHANGES`.
        seed: Of the bootstrap and the changes.
        more_files: Returns what else is read for a scan, by its name: a scan is scored again where any has changed.
        title: Of the report.
    """

    score: Score
    protocol: ProtocolSettings
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    channel: int = 0
    instances: bool = True
    robustness: bool = False
    seed: int = 0
    more_files: Callable[[str], Sequence[Path]] = lambda _: ()
    title: str = ""


def evaluate_scans(
    evaluation: Evaluation, scans: Sequence[SubjectFiles], out: Path, console: Console | None = None
) -> dict[str, Any]:
    """Score scans one after the other and write all results; what `out` holds already is not done again.

    Args:
        evaluation: What is evaluated, and how.
        scans: Labelled scans.
        out: Folder of the results; gets metrics.json, tables, predictions, overlays and report.html, and `finished`,
            one JSON per scan.
        console: Where the progress is shown; None shows none.

    Returns:
        What stands in metrics.json.

    Raises:
        ValueError: If there is no scan, `out` holds the results of another evaluation, or a scan has no label map.
    """
    if not scans:
        raise ValueError("there is no scan to evaluate on; choose another split or other subjects.")
    for scan in scans:
        if scan.label is None and (scan.instances is None or not evaluation.instances):
            raise DataError(f"scan {scan.subject} has no label map to be scored by; add it, or leave the scan out.")
    _claim(evaluation, out)
    shown = console or Console(quiet=True)
    reports = [
        _scored(evaluation, scan, out)
        for scan in track(scans, f"evaluating {len(scans)} scans", console=shown, disable=console is None)
    ]
    provenance = {**evaluation.provenance, "data": _fingerprint(scans, evaluation)}
    metrics = write_results(out, reports, provenance, protocol=evaluation.protocol, seed=evaluation.seed)
    if evaluation.calibration is not None:
        _add_confidence(out / "candidates.csv", evaluation.calibration)
    if evaluation.robustness:
        changes = [
            _scored_changed(evaluation, scan, out)
            for scan in track(scans, "changing the scans", console=shown, disable=console is None)
        ]
        summary = summarise_changes(reports, changes, seed=evaluation.seed)
        write_text(out / "robustness.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    readers = {scan.subject: scan for scan in scans}
    draw_worst_lesions(out, lambda subject: _read(evaluation, readers[subject]))
    write_report(out, evaluation.title)
    return metrics


def _claim(evaluation: Evaluation, out: Path) -> None:
    """Write what decides the results, or refuse a folder that holds those of something else."""
    decides = {"protocol": asdict(evaluation.protocol), **evaluation.identity}
    mine: dict[str, Any] = json.loads(json.dumps(decides, default=str))
    path = out / "run.json"
    if not path.is_file():
        if (out / "metrics.json").is_file():
            raise ValueError(f"out={out} holds results of something else; choose another folder.")
        write_text(path, json.dumps(mine, indent=2) + "\n")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    if different == ["protocol"]:
        old, new = theirs["protocol"], mine["protocol"]
        different = [
            f"{name} ({old.get(name)} there, {new.get(name)} now)" for name in new if old.get(name) != new[name]
        ]
    if different:
        raise ValueError(
            f"out={out} holds results of another evaluation, which differs in {', '.join(different)}; choose another "
            "folder, or delete this one."
        )


def _scored(evaluation: Evaluation, scan: SubjectFiles, out: Path) -> SubjectReport:
    """Score a scan, or return what was stored of it."""
    path = out / "finished" / f"{scan.subject}.json"
    files = _sha256(scan, evaluation)
    stored = _stored(path, files)
    if stored is not None:
        return SubjectReport.from_json(stored["report"])
    report = evaluation.score(_read(evaluation, scan), evaluation.protocol, out)
    write_text(path, json.dumps({"files": files, "report": report.to_json()}) + "\n")
    return report


def _scored_changed(evaluation: Evaluation, scan: SubjectFiles, out: Path) -> ChangedScan:
    """Score a scan in each of its changes, or return what was stored of them."""
    path = out / "finished" / "robustness" / f"{scan.subject}.json"
    files = _sha256(scan, evaluation)
    stored = _stored(path, files) or {"figures": {}}
    figures: dict[str, dict[str, float | None]] = stored["figures"]
    volume: Volume | None = None
    for name in CHANGES:
        if name not in figures:
            volume = volume or _read(evaluation, scan)
            report = evaluation.score(changed(volume, name, evaluation.seed), plain(evaluation.protocol), None)
            figures[name] = unprompted(report)
            write_text(path, json.dumps({"files": files, "figures": figures}) + "\n")
    return ChangedScan(scan.subject, scan.patient, {name: figures[name] for name in CHANGES})


def _stored(path: Path, files: str) -> dict[str, Any] | None:
    """Return what was stored of a scan, None where there is nothing or its files are no longer the same."""
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored if stored["files"] == files else None


def _read(evaluation: Evaluation, scan: SubjectFiles) -> Volume:
    return scan.read(evaluation.channel, instances=evaluation.instances)


def _sha256(scan: SubjectFiles, evaluation: Evaluation) -> str:
    """Return a SHA-256 of the files that are read of a scan."""
    total = hashlib.sha256()
    wanted = [scan.images.get(evaluation.channel), scan.label, scan.instances if evaluation.instances else None]
    for file in [*wanted, *evaluation.more_files(scan.subject)]:
        if file is not None and file.is_file():
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _fingerprint(scans: Sequence[SubjectFiles], evaluation: Evaluation) -> str:
    """Return a SHA-256 of the names and contents of all scans."""
    lines = sorted(f"{scan.subject} {_sha256(scan, evaluation)}\n" for scan in scans)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _add_confidence(path: Path, calibration: Calibration) -> None:
    """Add the calibrated confidence to candidates.csv."""
    rows = read_rows(path)
    if rows:
        sure = calibration.confidence([float(row["peak"]) for row in rows])
        write_rows(path, [{**row, "confidence": f"{value:.6f}"} for row, value in zip(rows, sure, strict=True)])
