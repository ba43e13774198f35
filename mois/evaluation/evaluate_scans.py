"""Scores many scans, then writes all results. Each finished scan is stored, so a stopped evaluation can go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mois.errors import DataError
from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_files import add_confidence, write_result_files
from mois.evaluation.robustness import (
    CHANGES,
    ChangedScan,
    change_scan,
    protocol_of_changes,
    robustness_figures,
    summarise_changes,
)
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.stored_scans import PARTS, store_scan, stored_scan
from mois.files.atomic import file_sha256, refuse_links, write_text
from mois.files.json_records import read_record
from mois.machine.processes import Processes
from mois.machine.worker_pool import WorkerPool, free_cores
from mois.records import Volume
from mois.scans.datasets import SubjectFiles
from mois.sharing.calibration import Calibration
from mois.sharing.provenance import plain_settings

ONE_PROCESS = Processes()
Score = Callable[[Volume, ProtocolSettings, Path | None], SubjectReport | Callable[[], SubjectReport]]
"""Scores a scan. Writes its maps and pictures into the folder, unless the folder is None.

The result is the report, or what is left to do for it: a picklable function, which another process may call.
"""

LARGE_VOXELS = 4_000_000
"""Scans of so many voxels are scored by other processes. For smaller scans, starting a process takes longer."""
MOST_SCORERS = 4
"""Most processes that score, if nobody says how many: a scorer holds the maps of a scan."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        score: Scores one scan.
        protocol: How scans are prompted and scored.
        identity: What else decides the results besides protocol and scans, as plain values: the model, for example.
        provenance: Record of what made the results, for metrics.json.
        calibration: Turns peaks into confidence; None for no confidence.
        channel: The image to read of each scan, if no channels are named.
        channels: Names of the channels to read.
        instances: Whether lesions come from maps of lesion ids, if the dataset has them.
        robustness: Whether the scans are scored once more in each of `CHANGES`.
        seed: Seed of the bootstrap and the changes.
        more_files: Returns further files of a scan by its name. The scan is scored again if one changed.
        title: Title of the report.
    """

    score: Score
    protocol: ProtocolSettings
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    channel: int = 0
    channels: tuple[str, ...] = ()
    instances: bool = True
    robustness: bool = False
    seed: int = 0
    more_files: Callable[[str], Sequence[Path]] = lambda _: ()
    title: str = ""

    def read(self, scan: SubjectFiles) -> Volume:
        """Return the scan with the lesions that it is scored by."""
        return scan.read(self.channel, instances=self.instances, channels=self.channels)


def evaluate_scans(
    evaluation: Evaluation,
    scans: Sequence[SubjectFiles],
    out: Path,
    console: Console | None = None,
    processes: Processes = ONE_PROCESS,
    scorers: int | None = 0,
) -> dict[str, Any]:
    """Score scans one after the other and write all results. Scans that `out` already holds are not scored again.

    Args:
        evaluation: What is evaluated, and how.
        scans: Labelled scans.
        out: Folder of the results, the same for all processes; gets metrics.json, tables, predictions, overlays, and
            `finished`, one JSON per scan.
        console: Where the progress is shown; None shows no progress.
        processes: Processes that share the scans; the first process writes the results of all scans.
        scorers: Processes that score finished scans while the model goes on with the next scan. With 0, each scan is
            scored before the next. None takes the cores that this process can spare, for large scans.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: If there is no scan, `out` holds the results of another evaluation, or a scan has no label map.
    """
    if not scans:
        raise ValueError("there is no scan to evaluate on; choose another split or other subjects.")
    for scan in scans:
        if scan.label is None and (scan.instances is None or not evaluation.instances):
            raise DataError(f"scan {scan.subject} has no label map to be scored by; add it, or leave the scan out.")
    _refuse_another_evaluation(evaluation, out)
    mine = processes.share(scans)
    least_voxels = LARGE_VOXELS if scorers is None else 0
    with WorkerPool(min(free_cores(), MOST_SCORERS, len(mine) - 1) if scorers is None else scorers) as pool:
        for scan in _with_progress(mine, f"evaluating {len(mine)} of {len(scans)} scans", console):
            _score(evaluation, scan, out, pool, least_voxels)
        if evaluation.robustness:
            pool.finish()
            for scan in _with_progress(mine, "changing the scans", console):
                _score_changed(evaluation, scan, out)
    processes.wait()
    if processes.first:
        _write_all(evaluation, scans, out)
    processes.wait()
    return read_record(out / "metrics.json", dict[str, Any])


def _with_progress(scans: Sequence[SubjectFiles], what: str, console: Console | None) -> Iterable[SubjectFiles]:
    """Yield the scans, with a bar on a terminal, and with a line for each scan in a log."""
    if console is None or console.is_terminal:
        yield from track(scans, what, console=console or Console(quiet=True), disable=console is None)
        return
    begin = time.monotonic()
    for number, scan in enumerate(scans, 1):
        console.print(f"{what}: scan {number}, after {time.monotonic() - begin:.0f} s", soft_wrap=True)
        yield scan


def _write_all(evaluation: Evaluation, scans: Sequence[SubjectFiles], out: Path) -> None:
    """Write the results of all scans, from the stored result of each scan."""
    reports = stored_reports(evaluation, scans, out)
    lines = sorted(f"{scan.subject} {_files_digest(scan, evaluation)}\n" for scan in scans)
    provenance = {**evaluation.provenance, "data": hashlib.sha256("".join(lines).encode()).hexdigest()}
    write_result_files(out, reports, provenance, protocol=evaluation.protocol, seed=evaluation.seed)
    if evaluation.calibration is not None:
        add_confidence(out / "candidates.csv", evaluation.calibration)
    if evaluation.robustness:
        changes = [
            ChangedScan(
                scan.subject,
                scan.patient,
                _stored_result(out, scan.subject, _scan_digest(scan, evaluation), "robustness")["figures"],
            )
            for scan in scans
        ]
        summary = summarise_changes(reports, changes, seed=evaluation.seed)
        write_text(out / "robustness.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def stored_reports(evaluation: Evaluation, scans: Sequence[SubjectFiles], out: Path) -> list[SubjectReport]:
    """Return the reports on scans that an evaluation has scored.

    Raises:
        ValueError: If the folder lacks one.
    """
    stored = [_stored_result(out, scan.subject, _scan_digest(scan, evaluation)) for scan in scans]
    return [SubjectReport.from_json(result["report"]) for result in stored]


def _refuse_another_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Record in the folder what decides the results, or refuse a folder with the results of another evaluation.

    Raises:
        ValueError: If the folder holds another evaluation or other files, or a link leads out of it.
    """
    refuse_links(out, ("", *PARTS, "overlays/worst", "finished", "finished/robustness"))
    these_settings = plain_settings({"protocol": asdict(evaluation.protocol), **evaluation.identity})
    path = out / "run.json"
    if not path.is_file():
        for name in ("metrics.json", "finished", *PARTS):
            if (out / name).exists():
                raise ValueError(f"out={out} holds {name}, but no evaluation; choose another folder.")
        write_text(path, json.dumps(these_settings, indent=2) + "\n")
        return
    stored_settings = read_record(path, dict[str, Any], "choose another folder, or delete this one")
    if not isinstance(stored_settings.get("protocol", {}), dict):
        raise ValueError(f"{path} says nothing of a protocol; choose another folder, or delete this one.")
    scored = (out / "metrics.json").exists() or any((out / "finished").glob("**/*.json"))
    if "protocol" in stored_settings and not scored:  # the folder holds no results yet
        write_text(path, json.dumps(these_settings, indent=2) + "\n")
        return
    usual = plain_settings(asdict(ProtocolSettings()))  # an earlier version may not have written all settings
    stored_settings["protocol"] = {**usual, **stored_settings.get("protocol", {})}
    different = [
        name for name in {**stored_settings, **these_settings} if stored_settings.get(name) != these_settings.get(name)
    ]
    if different in (["protocol"], ["inference"]) and isinstance(old := stored_settings.get(different[0]), dict):
        new = these_settings[different[0]]
        different = [
            f"{name} ({old.get(name)} there, {new.get(name)} now)"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    if different:
        raise ValueError(
            f"out={out} holds results of another evaluation, which differs in {', '.join(different)}; choose another "
            "folder, or delete this one."
        )


def _score(evaluation: Evaluation, scan: SubjectFiles, out: Path, pool: WorkerPool, least_voxels: int) -> None:
    """Score a scan and store its result, unless it is stored already."""
    files = _scan_digest(scan, evaluation)
    if stored_scan(out, scan.subject, files) is not None:
        return

    def store(report: SubjectReport) -> None:
        store_scan(out, scan.subject, files, {"report": report.to_json()})

    volume = evaluation.read(scan)
    work = evaluation.score(volume, evaluation.protocol, out)
    if isinstance(work, SubjectReport):
        store(work)
    else:
        pool.submit(f"scan {scan.subject}", work, store, here=volume.image.numel() < least_voxels)


def _score_changed(evaluation: Evaluation, scan: SubjectFiles, out: Path) -> None:
    """Score a scan under each change and store the results, unless they are stored already."""
    files = _scan_digest(scan, evaluation)
    known = stored_scan(out, scan.subject, files, "robustness") or {"figures": {}}
    figures: dict[str, dict[str, float | None]] = known["figures"]
    volume: Volume | None = None
    for name in CHANGES:
        if name not in figures:
            volume = volume or evaluation.read(scan)
            changed = change_scan(volume, name, evaluation.seed)
            work = evaluation.score(changed, protocol_of_changes(evaluation.protocol), None)
            figures[name] = robustness_figures(work if isinstance(work, SubjectReport) else work())
            store_scan(out, scan.subject, files, {"figures": figures}, "robustness")


def _stored_result(out: Path, subject: str, files: str, part: str = "") -> dict[str, Any]:
    """Return the stored result of a scan, which this or another process scored."""
    result = stored_scan(out, subject, files, part)
    if result is None:
        raise ValueError(
            f"out={out} lacks the result of scan {subject}, which another process scored; choose a folder "
            "that all processes share."
        )
    return result


def _scan_digest(scan: SubjectFiles, evaluation: Evaluation) -> str:
    """Return a SHA-256 of a scan: its files, and its entries in dataset.json and subjects.csv."""
    file_names = [
        None if file is None else file.name for file in _files(scan, evaluation)
    ]  # the name of a map may hold its class
    names = [scan.channels.get(number) for number in _numbers(scan, evaluation)]
    entries = [scan.patient, sorted(scan.classes.items()), *names, file_names]
    return hashlib.sha256(f"{_files_digest(scan, evaluation)} {json.dumps(entries)}".encode()).hexdigest()


def _files_digest(scan: SubjectFiles, evaluation: Evaluation) -> str:
    """Return a SHA-256 of the content of the files of a scan."""
    total = hashlib.sha256()
    for file in _files(scan, evaluation):
        if file is not None and file.is_file():
            total.update(file_sha256(file).encode())
    return total.hexdigest()


def _files(scan: SubjectFiles, evaluation: Evaluation) -> list[Path | None]:
    """Return the files of a scan: image, label map and lesion ids (None if missing), then `more_files`."""
    ids = scan.instances if evaluation.instances else None
    images = [scan.images.get(number) for number in _numbers(scan, evaluation)]
    return [*images, scan.label, ids, *evaluation.more_files(scan.subject)]


def _numbers(scan: SubjectFiles, evaluation: Evaluation) -> list[int]:
    return scan.numbers(evaluation.channel, evaluation.channels)
