"""Compares results on the same scans: paired differences per patient, with intervals and tests; writes compare.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from mois.evaluation.settings import BINS_ML, surface_key
from mois.evaluation.statistics import estimate, holm, paired_test
from mois.files.atomic import write_text
from mois.metrics.surface import SURFACE_MM
from mois.report import charts
from mois.report.charts import in_words
from mois.report.html_page import Page, PageElement, Picture, Record, Section, SideBySide, Table, text_of, write_page
from mois.report.results import METRICS, Estimate, Results
from mois.sharing.remarks import MIN_FALL, exemplars_harm

FIGURES: dict[str, tuple[str, ...]] = {
    "unprompted_dice": ("unprompted", "dice"),
    "unprompted_f1": ("unprompted", "f1"),
    "unprompted_fp_per_scan": ("unprompted", "fp_per_scan"),
    "scan_dice": ("scan_dice",),
}
"""Figures that are compared and tested: name to path in an entry of `subjects`. The first is the primary figure."""
SHOWN: dict[str, tuple[str, ...]] = {
    **FIGURES,
    "unprompted_precision": ("unprompted", "precision"),
    "unprompted_recall": ("unprompted", "recall"),
    "unprompted_false_apart": ("unprompted", "false_apart"),
    "unprompted_fragments": ("unprompted", "fragments"),
    "prompted_dice": ("prompted", "dice"),
    "scan_f1": ("scan", "f1"),
    "right": ("conditioning", "right"),
    "wrong": ("conditioning", "wrong"),
    "swapped": ("conditioning", "swapped"),
    "no_exemplars": ("conditioning", "no_exemplars"),
    "exemplar_gain": ("conditioning", "exemplar_gain"),
}
DEFAULTS_OF_OLD_RESULTS = {"surface_mm": SURFACE_MM, "bins_ml": list(BINS_ML)}
"""Settings that older results lack, with the values that they used."""
PROTOCOL = ("prompted", "clicks", "masks", "reader", "target_class", "margin_px", *DEFAULTS_OF_OLD_RESULTS)
"""Settings in which compared results should agree."""


def compare(results: Mapping[str, Results], *, seed: int = 0) -> dict[str, Any]:
    """Compare results, each with each, on the scans that all of them have.

    Args:
        results: Results by name; two or more.
        seed: Seed of the bootstrap.

    Returns:
        The content of compare.json. `scans`: scans that all results have. `left_out`: other scans, by result.
        `truth_differs`: scans with different numbers of true lesions in the results.
        `protocol_differences`: each setting that differs, with its value in each result. `runs`: the figures of each,
        as estimates over the common scans. `remarks`: sentences on faults of a result, or on figures that are worse
        than in the result before it. `comparisons`: for each pair and each of `FIGURES` the estimate of second minus
        first, `patients`, the two-sided Wilcoxon `p` over patients, and `p_holm`, corrected for all tests in the list.

    Raises:
        ValueError: If there are fewer than two results, or no scan is in all of them.
    """
    if len(results) < 2:
        raise ValueError(
            f"compare needs two or more results, got {len(results)}; give the folders of their metrics.json."
        )
    tables = {
        name: {entry["subject"]: entry for entry in result.metrics["subjects"]} for name, result in results.items()
    }
    first = next(iter(tables.values()))
    scans = [subject for subject in first if all(subject in table for table in tables.values())]
    if not scans:
        raise ValueError(f"no scan is in all of {', '.join(results)}; evaluate them on the same --data and --split.")
    patients = {subject: first[subject]["patient"] for subject in scans}

    def values(name: str, path: tuple[str, ...]) -> list[tuple[str, float | None]]:
        return [(patients[subject], _at(tables[name][subject], path)) for subject in scans]

    shown = _shown(results)
    comparisons: list[dict[str, Any]] = []
    for figure, path in FIGURES.items():
        for one, other in combinations(results, 2):
            pairs = zip(values(one, path), values(other, path), strict=True)
            test = paired_test([(patient, old, new) for (patient, old), (_, new) in pairs], seed=seed)
            if test["n"]:
                comparisons.append({"figure": figure, "first": one, "second": other, **test})
    for entry, corrected in zip(comparisons, holm([entry["p"] for entry in comparisons]), strict=True):
        entry["p_holm"] = corrected
    runs = {
        name: {
            "folder": str(result.folder),
            **{figure: estimate(values(name, path), seed=seed) for figure, path in shown.items()},
        }
        for name, result in results.items()
    }
    return {
        "scans": scans,
        "patients": len(set(patients.values())),
        "left_out": {name: sorted(set(table) - set(scans)) for name, table in tables.items()},
        "truth_differs": [scan for scan in scans if len({table[scan]["lesions"] for table in tables.values()}) > 1],
        "protocol_differences": _differences({name: result.metrics["protocol"] for name, result in results.items()}),
        "runs": runs,
        "remarks": _remarks(runs),
        "comparisons": comparisons,
    }


def named_results(folders: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Results]:
    """Read folders of results under names.

    Args:
        folders: Folders with metrics.json, or folders of tested trainings, whose results lie in `test`.
        names: A name for each folder; None takes the parts of the paths that differ.

    Raises:
        ValueError: If there are not as many different names as folders, or a folder holds no results.
    """
    folders = [_tested(folder) for folder in folders]
    if names is not None and (len(names) != len(folders) or len(set(names)) != len(folders)):
        raise ValueError(f"names={list(names)}: give a different one for each of {len(folders)} folders.")
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ValueError("the same folder is given twice; a result is not compared with itself.")
    chosen = list(names) if names is not None else short_names(folders)
    return {name: Results.read(folder) for name, folder in zip(chosen, folders, strict=True)}


def write_comparison(out: Path, results: Mapping[str, Results], *, seed: int = 0) -> dict[str, Any]:
    """Write compare.json and compare.html, and return the content of compare.json.

    Raises:
        ValueError: If there are fewer than two results, or no scan is in all of them.
    """
    comparison = compare(results, seed=seed)
    write_text(out / "compare.json", json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    sections = [
        Section(
            "Figures", _figures(comparison), "Means over the scans that all results have; 95 % intervals over patients."
        ),
        Section(
            "Differences",
            _comparisons(comparison),
            "Second minus first, scan by scan, with the 95 % interval of a bootstrap over patients; Wilcoxon's signed-"
            "rank test on the patients' mean differences, p corrected by Holm for all tests in the table.",
        ),
        Section("Prompted lesions", _curves(results), "Scored on lesions that are never prompted; 0 is no exemplars."),
        Section("By size of lesion", _sizes(results)),
        Section("What was compared", [Record("compare.json", json.dumps(comparison, indent=2))]),
    ]
    lead = f"{len(comparison['scans'])} scans of {comparison['patients']} patients: {', '.join(results)}."
    page = Page("Comparison", lead, [part for part in sections if part.parts], (), _alarms(comparison))
    write_page(out / "compare.html", page)
    return comparison


def _at(entry: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    part: Any = entry
    for name in path:
        part = part.get(name) if isinstance(part, Mapping) else None
    return None if part is None else float(part)


def _shown(results: Mapping[str, Results]) -> dict[str, tuple[str, ...]]:
    """Return `SHOWN`, with the surface Dice if all results have the same tolerance."""
    tolerances = {result.metrics["protocol"].get("surface_mm", SURFACE_MM) for result in results.values()}
    keys = [surface_key(tolerance) for tolerance in tolerances]
    return SHOWN | ({f"unprompted_{keys[0]}": ("unprompted", keys[0])} if len(keys) == 1 else {})


def _remarks(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return sentences on exemplars that do harm, and on clicks with worse masks than in the result before."""
    means = {name: {figure: run[figure]["mean"] for figure in SHOWN} for name, run in runs.items()}
    sentences = [
        f"In {name} the exemplars do harm: right is {of['right']:.3f}, no_exemplars {of['no_exemplars']:.3f}."
        for name, of in means.items()
        if exemplars_harm(of["right"], of["no_exemplars"])
    ]
    for (one, old), (other, new) in pairwise(means.items()):
        clicks = old["prompted_dice"], new["prompted_dice"]
        if None not in clicks and clicks[1] < clicks[0] - MIN_FALL:
            sentences.append(
                f"Clicks are answered worse in {other} than in {one}: {clicks[1]:.2f}, not {clicks[0]:.2f}."
            )
    return sentences


def _differences(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    settings = {
        key: {name: protocol.get(key, DEFAULTS_OF_OLD_RESULTS.get(key)) for name, protocol in protocols.items()}
        for key in PROTOCOL
    }
    return {
        key: values
        for key, values in settings.items()
        if any(value != next(iter(values.values())) for value in values.values())
    }


def _tested(folder: Path) -> Path:
    """Return the folder of the results. For a training it is the folder `test` in it."""
    within = folder / "test"
    return within if not (folder / METRICS).is_file() and (within / METRICS).is_file() else folder


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each path: the last parts that differ; the last part of a single path."""
    parts = [list(folder.resolve().parts) for folder in folders]
    while len(parts) > 1 and len({one[-1] for one in parts}) == 1 and min(len(one) for one in parts) > 1:
        parts = [one[:-1] for one in parts]
    length = 1
    while len({tuple(one[-length:]) for one in parts}) < len(parts):
        length += 1
    return ["/".join(one[-length:]) for one in parts]


def _figures(comparison: Mapping[str, Any]) -> list[PageElement]:
    runs: Mapping[str, Mapping[str, Any]] = comparison["runs"]
    names = [name for name in next(iter(runs.values())) if name != "folder"]
    kept = [name for name in names if any(run[name]["mean"] is not None for run in runs.values())]
    rows = [[in_words(name), *(_cell(Estimate.of(run[name])) for run in runs.values())] for name in kept]
    drawn = {
        name: {run: Estimate.of(entry[name]) for run, entry in runs.items()}
        for name in ("unprompted_dice", "unprompted_f1", "scan_dice")
    }
    return [Table(("", *runs), rows), Picture(charts.bars(drawn, "mean over scans"), "")]


def _cell(estimated: Estimate) -> str:
    if estimated.mean is None:
        return text_of(None)
    return f"{estimated.mean:.2f}" + (
        "" if estimated.low is None else f" ({estimated.low:.2f} to {estimated.high:.2f})"
    )


def _comparisons(comparison: Mapping[str, Any]) -> list[PageElement]:
    entries: Sequence[Mapping[str, Any]] = comparison["comparisons"]
    rows: list[list[str]] = []
    for figure in FIGURES:
        tests = [entry for entry in entries if entry["figure"] == figure]
        rows += [[in_words(figure)]] if tests else []
        rows += [
            [pair(e), signed(Estimate.of(e)), str(e["n"]), str(e["patients"]), p_text(e["p"]), p_text(e["p_holm"])]
            for e in tests
        ]
    if not rows:
        return []
    patients = comparison["patients"]
    note = f"With {patients} patients p cannot be below {min(1.0, 2 / 2**patients):.2g}." if patients < 10 else ""
    table = Table(("", "difference", "scans", "patients", "p", "p, Holm"), rows, note=note)
    primary = {pair(entry): Estimate.of(entry) for entry in entries if entry["figure"] == next(iter(FIGURES))}
    return [Picture(charts.forest(primary, "difference of unprompted Dice"), ""), table]


def pair(entry: Mapping[str, Any]) -> str:
    """Return the heading of a difference: "second minus first"."""
    return f"{entry['second']} minus {entry['first']}"


def signed(difference: Estimate) -> str:
    """Return a difference as text, with its sign and interval."""
    if difference.mean is None:
        return text_of(None)
    return f"{difference.mean:+.3f}" + (
        "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
    )


def p_text(p: float | None) -> str:
    """Return a p value as text."""
    return text_of(None) if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _curves(results: Mapping[str, Results]) -> list[PageElement]:
    pictures: list[PageElement] = []
    for figure, label in (("right", "Dice"), ("f1", "F1")):
        series: dict[str, list[tuple[float, Estimate]]] = {}
        for name, result in results.items():
            points = (result.metrics.get("curve") or {}).get("points") or []
            clicks = min((point["clicks"] for point in points), default=0)
            chosen = [(float(p["count"]), Estimate.of(p[figure])) for p in points if p["clicks"] == clicks]
            if any(given.mean is not None for _, given in chosen):
                series[name] = chosen
        if series:
            pictures.append(Picture(charts.curves(series, "prompted lesions of the class", label), ""))
    return [SideBySide(pictures)] if pictures else []


def _sizes(results: Mapping[str, Results]) -> list[PageElement]:
    bins = list(
        dict.fromkeys(size for result in results.values() for size in result.metrics["summary"].get("by_size", {}))
    )
    drawn = {
        f"{size} ml": {
            name: Estimate.of(result.metrics["summary"]["by_size"][size]["recall"])
            for name, result in results.items()
            if size in result.metrics["summary"].get("by_size", {})
        }
        for size in bins
    }
    caption = "Share of the unprompted lesions of a size that were found, over all scans of each result."
    return [Picture(charts.bars(drawn, "recall"), caption)] if drawn else []


def _alarms(comparison: Mapping[str, Any]) -> list[str]:
    alarms = list(comparison["remarks"])
    if comparison["protocol_differences"]:
        differences = "; ".join(
            f"{key}: " + ", ".join(f"{name} {value}" for name, value in given.items())
            for key, given in comparison["protocol_differences"].items()
        )
        alarms.append(f"The protocols differ ({differences}), so the models alone do not explain the differences.")
    if comparison["truth_differs"]:
        alarms.append(
            f"The runs count different lesions in {', '.join(comparison['truth_differs'][:10])}: not the same data."
        )
    left = {name: scans for name, scans in comparison["left_out"].items() if scans}
    if left:
        left_out = ", ".join(f"{len(scans)} of {name}" for name, scans in left.items())
        alarms.append(f"Scans that are not in all results are left out of figures and differences: {left_out}.")
    return alarms
