"""The sections of report.html, each made from a folder of results. A section is empty if its results are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mois.errors import counted
from mois.evaluation.result_files import Row
from mois.report import charts
from mois.report.charts import in_words
from mois.report.html_page import PageElement, Picture, Record, SideBySide, Table, interval_of, picture_uri, text_of
from mois.report.results import Estimate, Results, is_estimate, number

WORDS = {
    "right": "never-prompted lesions, exemplars of their own type",
    "wrong": "the same lesions, exemplars of another type",
    "swapped": "the other types' lesions, with their own exemplars",
    "no_exemplars": "the lesions of right, no exemplars",
}
MEANINGS = {
    "dice": "voxels in common; 1 is perfect",
    "f1": "of lesions, one to one at IoU of at least 0.1",
    "precision": "share of the found lesions that are true",
    "recall": "share of the true lesions that were found",
    "fp_per_scan": "found lesions that match no true one",
    "false_apart": "of these, those that touch no true lesion of any class",
    "fragments": "of these, those that touch one: further pieces of what was found",
    "panoptic_quality": "at IoU of at least 0.5",
    "volume_error_ml": "found minus true",
    "volume_error_percent": "found minus true, of the true volume",
    "volume_absolute_error_percent": "the same per scan, without sign",
}
APART = ("unprompted", "scan")
QUALITY = ("unprompted_dice", "scan_dice")
"""Columns of subjects.csv that rank scans: the first column that any scan has."""
SCAN_COLUMNS = (
    "subject",
    "patient",
    "classes",
    "lesions",
    "unprompted_dice",
    "unprompted_f1",
    "unprompted_precision",
    "unprompted_recall",
    "unprompted_fp_per_scan",
    "unprompted_false_apart",
    "unprompted_fragments",
    "prompted_dice",
    "scan_dice",
    "conditioning_right",
    "conditioning_wrong",
    "conditioning_no_exemplars",
)
FACTS = ("code", "data", "backbone", "bundle", "seed", "trainable_fraction", "device")
_UNITS = {"by_size": ", ml", "by_absolute_contrast": ", normalised intensity, brighter or darker than around"}
_WORST_LESIONS = 12
_MOST_CLASSES = 3
_MOST_SCANS = 200


def figures(results: Results) -> list[PageElement]:
    """Return tables of all figures that have no section of their own."""
    summary = results.metrics["summary"]
    parts = [summary.get(name, {}) for name in APART]
    names = list(dict.fromkeys(name for part in parts for name in part))
    scan = {"dice": summary.get("scan_dice"), **parts[1]}
    rows = [
        [in_words(name), *(_cell(_estimate(part.get(name)), results) for part in (parts[0], scan)), _meaning(name)]
        for name in names
    ]
    columns = ("", "unprompted lesions", "whole scan, as the reader ends up with it", "what it is")
    elements: list[PageElement] = [Table(columns, rows, words=(3,))] if rows else []
    prompted = [
        [in_words(name), _cell(_estimate(given), results)] for name, given in summary.get("prompted", {}).items()
    ]
    false = [
        [in_words(name), _cell(_estimate(given), results)]
        for name, given in summary.items()
        if name.startswith("false")
    ]
    paper = [[in_words(name), _cell(_estimate(given), results)] for name, given in summary.get("paper", {}).items()]
    small = [
        Table(("per scan", ""), rows, title=title, note=note)
        for title, rows, note in (
            ("Prompted lesions", prompted, "Dice in 3-D of what the clicks themselves gave."),
            ("Without exemplars", false, "Lesions found that touch no true one."),
            ("By the paper's rules", paper, "20 largest x 3 clicks, under 2 ml dropped, any overlap: these flatter."),
        )
        if rows
    ]
    return [*elements, SideBySide(small)] if small else elements


def _meaning(name: str) -> str:
    if tolerance := re.fullmatch(r"surface_dice_(.+)mm", name):
        return f"share of the surfaces within {tolerance[1]} mm of each other"
    return MEANINGS.get(name, "")


def conditioning(results: Results) -> list[PageElement]:
    """Return a chart and a table of right, wrong, swapped and no_exemplars."""
    found = {
        word: estimate
        for word in WORDS
        if (estimate := results.estimate("conditioning", word)) and estimate.mean is not None
    }
    if not found:
        return []
    rows = [
        [in_words(word), text_of(estimate.mean, 2), interval_of(estimate, 2), WORDS[word]]
        for word, estimate in found.items()
    ]
    gain = results.estimate("conditioning", "exemplar_gain")
    if gain is not None and gain.mean is not None:
        rows.append([in_words("exemplar_gain"), f"{gain.mean:+.2f}", interval_of(gain, 2), "right minus no exemplars"])
    table = Table(("exemplars", "Dice", "95 % interval", "what it is"), rows, words=(3,))
    return [SideBySide([Picture(charts.bars({"": found}, "Dice"), ""), table])]


def curves(results: Results) -> list[PageElement]:
    """Return curves over the number of prompted lesions, for each number of clicks, and their slopes."""
    curve = results.metrics.get("curve") or {}
    points = curve.get("points") or []
    if not points:
        return []
    dice, f1 = ({_series(name, clicks, points): _points(points, name, clicks) for name, clicks in chosen}
                for chosen in (_chosen(points, ("right", "wrong", "swapped")), _chosen(points, ("f1",))))  # fmt: skip
    pictures: list[PageElement] = [
        Picture(charts.curves(series, "prompted lesions of the class", label), caption)
        for series, label, caption in (
            (dice, "Dice", "Dice of never-prompted lesions."),
            (f1, "F1", "Lesion F1, one to one, on the same lesions."),
        )
        if any(estimate.mean is not None for series_points in series.values() for _, estimate in series_points)
    ]
    rows = [
        [f"{clicks}", *(_slope(_estimate(slopes.get(name))) for name in ("right", "f1"))]
        for clicks, slopes in (curve.get("slope") or {}).items()
    ]
    note = "Least squares over the doublings of the exemplars used, from one on. Above 0: more exemplars help."
    table = Table(("clicks", "Dice per doubling", "F1 per doubling"), rows, title="Slope", note=note)
    return [SideBySide(pictures), *([table] if rows else [])]


def _chosen(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, int]]:
    """Return the curves to draw: the first figure for every number of clicks, the others for the first number."""
    every = list(dict.fromkeys(int(point["clicks"]) for point in points))
    return [(names[0], clicks) for clicks in every] + [(name, every[0]) for name in names[1:]]


def _series(name: str, clicks: int, points: Sequence[Mapping[str, Any]]) -> str:
    several = len({point["clicks"] for point in points}) > 1
    return f"{name}, {counted(clicks, 'click')}" if several else name


def _points(points: Sequence[Mapping[str, Any]], name: str, clicks: int) -> list[tuple[float, Estimate]]:
    return [
        (point["count"], Estimate.of(point[name])) for point in points if point["clicks"] == clicks and name in point
    ]


def _slope(estimate: Estimate | None) -> str:
    if estimate is None or estimate.mean is None:
        return text_of(None)
    return f"{estimate.mean:+.3f}" + ("" if estimate.low is None else f" ({estimate.low:+.3f} to {estimate.high:+.3f})")


def bins(results: Results) -> list[PageElement]:
    """Return recall and Dice by size, by location and by contrast of lesions."""
    parts: list[PageElement] = []
    for name, groups in results.metrics["summary"].items():
        if not name.startswith("by_") or not any(group.get("lesions") for group in groups.values()):
            continue
        heading = in_words(name).capitalize() + _UNITS.get(name, "")
        keys = list(
            dict.fromkeys(key for group in groups.values() for key, entry in group.items() if is_estimate(entry))
        )
        rows = [
            [bin_name, str(group.get("lesions", "")), *(_cell(_estimate(group.get(key)), results) for key in keys)]
            for bin_name, group in groups.items()
        ]
        drawn = {
            bin_name: {key: Estimate.of(group[key]) for key in ("recall", "dice") if is_estimate(group.get(key))}
            for bin_name, group in groups.items()
        }
        table = Table(("", "lesions", *(in_words(key) for key in keys)), rows, title=heading)
        parts.append(SideBySide([Picture(charts.bars(drawn, "of unprompted lesions"), ""), table]))
    return parts


def ranked(rows: Sequence[Row]) -> tuple[str, list[tuple[float, Row]]]:
    """Return the column that ranks scans, and the scans from worst to best. Scans without the figure are left out."""
    column = next((name for name in QUALITY if any(number(row.get(name)) is not None for row in rows)), "")
    scored = [(value, row) for row in rows if (value := number(row.get(column))) is not None]
    return column, sorted(scored, key=lambda pair: (pair[0], pair[1]["subject"]))


def overlays(results: Results) -> list[PageElement]:
    """Return the pictures of the best, the median and the worst scan."""
    column, order = ranked(results.subjects)
    names = {1: ("Scan",), 2: ("Best", "Worst")}.get(len(order), ("Best", "Median", "Worst"))
    places = {"Best": len(order) - 1, "Median": len(order) // 2, "Worst": 0, "Scan": 0}
    chosen = {name: order[places[name]] for name in names} if order else {}
    return [
        Picture(
            picture_uri(path),
            f"{row['subject']}, {in_words(label)}, {in_words(column)} {score:.2f}",
            title=f"{name}:",
            style="overlay",
        )
        for name, (score, row) in chosen.items()
        for label, path in results.overlays.get(row["subject"], [])[:_MOST_CLASSES]
    ]


def worst_lesions(results: Results) -> list[PageElement]:
    """Return the worst unprompted lesions: missed lesions, largest first; then found lesions, lowest Dice first."""
    rows = [row for row in results.lesions if row["role"] != "prompted"]
    if not rows:
        return []
    missed = [row for row in rows if not _true(row["found"])]
    cells = [
        [
            row["subject"],
            row["target_class"],
            row["lesion"],
            f"{float(row['volume_ml']):.2f}",
            row.get("third", ""),
            text_of(number(row.get("contrast")), 2),
            "found" if _true(row["found"]) else "missed",
            text_of(number(row["dice"]), 2),
        ]
        for row in worst_first(rows)[:_WORST_LESIONS]
    ]
    cloud = charts.sizes(
        [float(row["volume_ml"]) for row in rows],
        [number(row["dice"]) or 0.0 for row in rows],
        [_true(row["found"]) for row in rows],
        "Dice with the lesion found there",
    )
    table = Table(("scan", "class", "lesion", "ml", "third", "contrast", "", "Dice"), cells)
    caption = f"{len(missed)} of {len(rows)} unprompted lesions were missed (Dice 0)."
    crops = [
        Picture(picture_uri(path), one.caption, style="crop")
        for one in results.captions()
        if (path := results.folder / "overlays" / "worst" / one.file).is_file()
    ]
    return [SideBySide([Picture(cloud, caption), table]), *([SideBySide(crops, style="crops")] if crops else [])]


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Return the unprompted lesions of lesions.csv: missed lesions by size, then found lesions by Dice."""
    kept = [row for row in rows if row["role"] != "prompted"]
    missed = sorted((row for row in kept if not _true(row["found"])), key=lambda row: -float(row["volume_ml"]))
    return missed + sorted((row for row in kept if _true(row["found"])), key=lambda row: number(row["dice"]) or 0.0)


def _true(cell: str) -> bool:
    return cell.strip().lower() == "true"


def confidence(results: Results) -> list[PageElement]:
    """Return a chart of the share of candidates that are lesions, over their confidence."""
    rows = results.candidates
    calibrated = bool(rows) and all(number(row.get("confidence")) is not None for row in rows)
    column = "confidence" if calibrated else "peak"
    kept = [(value, _true(row["hit"])) for row in rows if (value := number(row.get(column))) is not None]
    if not kept:
        return []
    values, hits = [value for value, _ in kept], [hit for _, hit in kept]
    error = expected_calibration_error(values, hits)
    if calibrated:
        before = expected_calibration_error([float(row["peak"]) for row in rows], hits)
        label = "calibrated confidence"
        error_text = (
            f"Expected calibration error {error:.3f}, before calibration {before:.3f}. The calibration was fitted on "
            "the scans that the training was validated on, and flatters where those are scored."
        )
    else:
        label = "highest probability in the lesion (not calibrated)"
        error_text = f"Expected calibration error of these probabilities, which are not calibrated: {error:.3f}."
    caption = (
        f"{len(kept)} candidates, whatever reached the threshold outside the prompted lesions, before the peak "
        f"threshold; small numbers: how many stand in a point; bars: 95 % intervals of the share. {error_text}"
    )
    return [Picture(charts.reliability(values, hits, label), caption)]


def expected_calibration_error(values: Sequence[float], hits: Sequence[bool], bins: int = 10) -> float:
    """Return the mean distance of confidence and share of hits over equal bins, weighed by the number in each bin."""
    sums: dict[int, list[float]] = {}
    for value, hit in zip(values, hits, strict=True):
        entry = sums.setdefault(min(int(value * bins), bins - 1), [0.0, 0.0])
        entry[0] += value
        entry[1] += hit
    return sum(abs(given - hit) for given, hit in sums.values()) / len(values)


def robustness(results: Results) -> list[PageElement]:
    """Return the changes of figures on changed scans, from robustness.json."""
    content = results.changes()
    if not content:
        return []
    changes: Mapping[str, Mapping[str, Any]] = content["changes"]
    names = ("dice", "f1")
    blank = dict.fromkeys(names, "")
    rows = [_changed_row("unchanged", content["unchanged"], blank, results)]
    for change, entries in changes.items():
        drop = {name: _slope(_estimate(entries[f"change_{name}"])) for name in names}
        rows.append(_changed_row(change, entries, drop, results))
    columns = ("scans", "unprompted Dice", "change", "unprompted F1", "change")
    pictures: list[PageElement] = []
    for name in names:
        rise = {change: Estimate.of(entries[f"change_{name}"]) for change, entries in changes.items()}
        pictures.append(Picture(charts.forest(rise, f"change of unprompted {in_words(name)}"), ""))
    return [Table(columns, rows), SideBySide(pictures)]


def _changed_row(change: str, entries: Mapping[str, Any], drop: Mapping[str, str], results: Results) -> list[str]:
    return [
        in_words(change),
        *(cell for name in drop for cell in (_cell(_estimate(entries[name]), results), drop[name])),
    ]


def timing(results: Results) -> list[PageElement]:
    """Return a chart of seconds per scan by step."""
    rows = results.subjects
    steps = list(dict.fromkeys(name for row in rows for name in row if name.startswith("seconds_")))
    seconds = {
        name.removeprefix("seconds_"): [value for row in rows if (value := number(row.get(name))) is not None]
        for name in steps
    }
    if not any(seconds.values()):
        return []
    total = sum(sum(values) for values in seconds.values()) / len(rows)
    return [Picture(charts.timing(seconds), f"{total:.1f} s per scan in all, scoring and writing included.")]


def scans(results: Results) -> list[PageElement]:
    """Return a table with a row for each scan, the worst first."""
    rows = results.subjects
    order = [row for _, row in ranked(rows)[1]]
    order += [row for row in rows if row not in order]
    columns = [name for name in SCAN_COLUMNS if any(row.get(name) for row in rows)]
    cells = [[_short(row.get(name) or "") for name in columns] for row in order[:_MOST_SCANS]]
    note = "Worst first; more columns in subjects.csv."
    return [Table([in_words(name.removeprefix("conditioning_")) for name in columns], cells, note=note)] if rows else []


def _short(cell: str) -> str:
    value = number(cell)
    return text_of(None) if not cell else f"{value:.2f}" if value is not None and "." in cell else cell


def provenance(results: Results) -> list[PageElement]:
    """Return tables and records of what made the results."""
    record = results.metrics.get("provenance") or {}
    rows = list(_facts(record))
    parts: list[PageElement] = [Table(("", ""), rows, words=(1,))] if rows else []
    parts.append(Record("Protocol", json.dumps(results.metrics["protocol"], indent=2)))
    return [*parts, Record("Full record", json.dumps(record, indent=2))] if record else parts


def _facts(record: Mapping[str, Any]) -> Iterator[list[str]]:
    for name in FACTS:
        given = record.get(name)
        if isinstance(given, Mapping):
            yield [in_words(name), ", ".join(f"{key} {part}" for key, part in given.items())]
        elif given is not None:
            yield [in_words(name), str(given)]


def _estimate(entry: object) -> Estimate | None:
    return Estimate.of(entry) if isinstance(entry, Mapping) and is_estimate(entry) else None


def _cell(estimate: Estimate | None, results: Results) -> str:
    """Return a figure as text, with its interval, and the number of scans if some lack it."""
    if estimate is None or estimate.mean is None:
        return text_of(None)
    interval = "" if estimate.low is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    count = f", n {estimate.n}" if estimate.n != results.scan_count else ""
    return f"{estimate.mean:.2f}{interval}{count}"
