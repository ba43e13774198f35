"""Intervals, slopes and tests that can be computed by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mois.evaluation.figures import (
    CandidateRow,
    ClassReport,
    CountPoint,
    Figures,
    PaperFigures,
    SubjectReport,
    TrueLesionRow,
)
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import BINS_ML, ProtocolSettings, size_bins
from mois.evaluation.statistics import bin_of, holm, paired_test, slope_per_doubling, summarise
from mois.report.evaluation_page import write_report
from tests.support.paths import ROOT


def point(count: int, used: float, right: float | None, clicks: int = 1) -> CountPoint:
    return CountPoint(count, used, right, None, None, right, clicks)


def row(lesion: int, **change: object) -> TrueLesionRow:
    return replace(TrueLesionRow(lesion, 1.0, "never", found=True, iou=0.5, dice=0.5), **change)


def report(subject: str, *classes: ClassReport, false: int = 0, seconds: float = 1.0) -> SubjectReport:
    return SubjectReport(subject, subject, classes, false, {"encode": seconds})


def test_a_slope_is_per_doubling_and_leaves_out_zero_exemplars() -> None:
    assert slope_per_doubling([(0, 0.0), (1, 0.3), (2, 0.4), (4, 0.5), (8, 0.6)]) == pytest.approx(0.1)
    # log2: 0, 1, 3; mean 4 / 3. (-4/3 * 0 - 1/3 * .3 + 5/3 * .3) / (16/9 + 1/9 + 25/9)
    assert slope_per_doubling([(1, 0.0), (2, 0.3), (8, 0.3)]) == pytest.approx(0.4 / (42 / 9))
    assert slope_per_doubling([(1, 0.3), (1, 0.3)]) is None  # fewer lesions than asked for: one number of exemplars
    assert slope_per_doubling([(1, 0.3), (2, None)]) is None


def test_the_slope_of_a_result_is_over_scans_with_an_interval_over_patients() -> None:
    steep = ClassReport(1, Figures(), (point(0, 0, 0.9), point(1, 1, 0.2), point(4, 4, 0.8)), ())
    flat = ClassReport(1, Figures(), (point(0, 0, 0.9), point(1, 1, 0.2), point(4, 4, 0.2)), ())
    short = ClassReport(1, Figures(), (point(0, 0, 0.9), point(1, 1, 0.2), point(4, 1, 0.2)), ())
    curve = summarise([report("a", steep), report("b", flat), report("c", short)])["curve"]
    assert curve["slope"]["1"]["right"]["mean"] == pytest.approx((0.3 + 0.0) / 2)
    assert curve["slope"]["1"]["right"]["ci95"] == pytest.approx([0.0, 0.3])
    assert curve["slope"]["1"]["right"]["n"] == 2
    assert [(p["clicks"], p["count"], p["used"]["mean"]) for p in curve["points"]] == [(1, 0, 0), (1, 1, 1), (1, 4, 3)]


def test_curves_of_several_clicks_stand_apart() -> None:
    one = ClassReport(1, Figures(), (point(1, 1, 0.2), point(2, 2, 0.3), point(1, 1, 0.4, 3), point(2, 2, 0.8, 3)), ())
    curve = summarise([report("a", one)])["curve"]
    assert [(p["clicks"], p["count"], p["right"]["mean"]) for p in curve["points"]] == [
        (1, 1, 0.2),
        (1, 2, 0.3),
        (3, 1, 0.4),
        (3, 2, 0.8),
    ]
    assert curve["slope"]["1"]["right"]["mean"] == pytest.approx(0.1)
    assert curve["slope"]["3"]["right"]["mean"] == pytest.approx(0.4)


def test_bins_hold_what_was_not_prompted_and_average_scans_not_lesions() -> None:
    many = [row(n, volume_ml=1.0, found=n == 1, dice=0.8 if n == 1 else 0.0) for n in range(1, 5)]
    prompted = row(9, volume_ml=1.0, role="prompted", found=False, dice=0.0)
    small = row(10, volume_ml=0.49, third="upper", contrast=0.3)
    first = ClassReport(1, Figures(), (), (*many, prompted, small), false_volumes_ml=(0.1, 0.2, 3.0))
    second = ClassReport(1, Figures(), (), (row(1, volume_ml=0.5, dice=0.6),))
    summary = summarise([report("a", first), report("b", second)])["summary"]
    medium = summary["by_size"]["0.5-2"]
    assert medium["lesions"] == 5
    assert medium["recall"]["mean"] == pytest.approx((1 / 4 + 1) / 2)
    assert medium["dice"]["mean"] == pytest.approx((0.8 / 4 + 0.6) / 2)
    assert summary["by_size"]["<0.5"]["lesions"] == 1
    assert summary["by_size"]["<0.5"]["fp_per_scan"]["mean"] == pytest.approx((2 + 0) / 2)
    assert summary["by_size"]["2-10"]["fp_per_scan"]["mean"] == pytest.approx((1 + 0) / 2)
    assert summary["by_size"][">10"]["recall"] == {"mean": None, "ci95": None, "n": 0}
    assert summary["by_location"]["upper"]["lesions"] == 1
    contrasts = [entry["lesions"] for entry in summary["by_absolute_contrast"].values()]
    assert contrasts == [0, 0, 1]  # 0.3 belongs to the upper one


def test_dark_and_bright_lesions_of_one_contrast_share_a_bin() -> None:
    rows = [row(n, contrast=contrast) for n, contrast in enumerate((-0.42, 0.5, -0.2, -0.05, 0.05, None), start=1)]
    bins = summarise([report("a", ClassReport(1, Figures(), (), tuple(rows)))])["summary"]["by_absolute_contrast"]
    assert {name: entry["lesions"] for name, entry in bins.items()} == {"<0.1": 2, "0.1-0.3": 1, ">0.3": 2}


@pytest.mark.parametrize(("volume_ml", "name"), [(0.0, "<0.5"), (0.5, "0.5-2"), (2, "2-10"), (10, ">10"), (99, ">10")])
def test_the_lower_end_belongs_to_a_bin(volume_ml: float, name: str) -> None:
    assert bin_of(volume_ml, size_bins(BINS_ML)) == name


def test_scans_without_lesions_are_counted_apart() -> None:
    found = ClassReport(1, Figures(scan_dice=0.5), (), ())
    summary = summarise([report("a", found, false=4), report("b", false=2)])["summary"]
    assert summary["scan_dice"] == {"mean": 0.5, "ci95": None, "n": 1}
    assert summary["false_without_exemplars"]["mean"] == 3
    assert summary["false_in_empty_scans"] == {"mean": 2.0, "ci95": None, "n": 1}
    assert summary["seconds"]["encode"]["mean"] == 1.0
    assert "paper" not in summary


def test_a_report_survives_json() -> None:
    one = ClassReport(1, Figures(right=0.5), (point(1, 1, 0.2),), (row(3, contrast=0.2),), (0.5,), PaperFigures(f1=1.0))
    whole = replace(report("a", one), candidates=(CandidateRow(0.75, hit=True, volume_ml=0.5),))
    assert SubjectReport.from_json(whole.to_json()) == whole


def test_wilcoxon_of_five_patients_cannot_be_below_a_sixteenth() -> None:
    pairs = [(f"p{n}", 0.1, 0.2 + n / 100) for n in range(5)]
    tested = paired_test(pairs)
    assert tested["p"] == pytest.approx(2 / 2**5)
    assert tested["mean"] == pytest.approx(0.12)
    assert (tested["n"], tested["patients"]) == (5, 5)


def test_scans_of_one_patient_are_one_piece_of_evidence() -> None:
    pairs = [("a", 0.0, 0.1), ("a", 0.0, 0.3), ("b", 0.0, 0.4), ("c", None, 0.4), ("c", 0.1, None)]
    tested = paired_test(pairs)
    assert (tested["n"], tested["patients"]) == (3, 2)
    assert tested["mean"] == pytest.approx(0.8 / 3)
    assert tested["p"] == pytest.approx(0.5)
    assert paired_test(pairs[:2])["p"] is None
    assert paired_test(pairs[:2])["ci95"] is None


def test_equal_results_do_not_differ() -> None:
    tested = paired_test([(name, 0.5, 0.5) for name in "abc"])
    assert (tested["mean"], tested["p"], tested["ci95"]) == (0.0, 1.0, [0.0, 0.0])


def test_holm_multiplies_the_smallest_most_and_never_turns_the_order_round() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_bins_and_the_surface_dice_are_named_by_their_settings(tmp_path: Path) -> None:
    one = ClassReport(1, Figures(unprompted_surface_dice=0.7), (), (row(1, volume_ml=0.02), row(2, volume_ml=0.003)))
    protocol = ProtocolSettings(surface_mm=0.25, bins_ml=(0.005, 0.015))
    written = write_result_files(tmp_path, [report("a", one)], protocol=protocol)
    summary = written["summary"]
    assert {name: of["lesions"] for name, of in summary["by_size"].items()} == {
        "<0.005": 1,
        "0.005-0.015": 0,
        ">0.015": 1,
    }
    assert summary["unprompted"]["surface_dice_0.25mm"]["mean"] == 0.7
    assert written["subjects"][0]["scan"].keys() == summary["scan"].keys()
    assert "surface_dice_2mm" not in json.dumps(written)
    assert written["protocol"]["surface_mm"] == 0.25
    assert written["protocol"]["bins_ml"] == [0.005, 0.015]
    assert "unprompted_surface_dice_0.25mm" in (tmp_path / "subjects.csv").read_text(encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "surface Dice at 0.25 mm" in page
    assert "share of the surfaces within 0.25 mm of each other" in page


@pytest.mark.parametrize(
    "edges", [(), (0.0, 1.0), (-1.0,), (2.0, 1.0), (1.0, 1.0), (1.0, float("inf")), (1.0, 1.0000001)]
)
def test_bins_that_hold_nothing_are_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"protocol\.bins_ml=\["):
        ProtocolSettings(bins_ml=edges)


@pytest.mark.parametrize("surface_mm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(surface_mm: float) -> None:
    with pytest.raises(ValueError, match=r"protocol\.surface_mm="):
        ProtocolSettings(surface_mm=surface_mm)


def test_every_key_of_metrics_json_is_documented() -> None:
    one = ClassReport(1, Figures(), (point(1, 1, 0.2),), (row(3),), paper=PaperFigures())
    written = summarise([report("a", one)], protocol=asdict(ProtocolSettings()))
    told = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    def keys(tree: object) -> set[str]:
        if isinstance(tree, list):
            return set().union(*map(keys, tree))
        return set(tree).union(*map(keys, tree.values())) if isinstance(tree, dict) else set()

    assert {key for key in keys(written) if f'"{key}"' not in told} == set()
