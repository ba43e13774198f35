"""report.html: complete, self-contained, and honest where something was not measured."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mois.cli.evaluate import show_figures
from mois.evaluation.figures import ClassReport, Figures, SubjectReport
from mois.evaluation.result_files import write_result_files, write_rows
from mois.evaluation.settings import ProtocolSettings
from mois.report.charts import in_words, legend_above, sizes
from mois.report.evaluation_page import write_report
from mois.report.results import Estimate, Results
from mois.report.sections import expected_calibration_error, ranked, worst_first
from tests.support.example_results import example_report, write_example

SECTIONS = (
    "Figures",
    "What the exemplars decide",
    "Prompted lesions and clicks",
    "By kind of lesion",
    "Best, median and worst scan",
    "Worst lesions",
    "Confidence",
    "Time",
    "Scans",
    "How this was made",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_example(tmp_path_factory.mktemp("results") / "run")
    write_report(out)
    return out


def headings(page: str) -> tuple[str, ...]:
    return tuple(re.findall(r"<h2>(.*?)</h2>", page))


def test_the_report_has_every_section_and_loads_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert headings(page) == SECTIONS
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [source[:11] for source in sources if not source.startswith("#s")] == ["data:image/"] * page.count("<img")
    assert page.count("<img") == 12  # 3 overlays, 3 bins, 2 curves, bars, lesions, reliability, time
    assert "<script" not in page
    assert "8 scans of 7 patients" in page


def test_its_figures_are_those_of_metrics_json(folder: Path) -> None:
    dice = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["summary"]["unprompted"]["dice"]
    low, high = dice["ci95"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<b>{dice['mean']:.2f}</b>\n<em>{low:.2f} to {high:.2f}</em>" in page
    assert f"<td>{dice['mean']:.2f} ({low:.2f} to {high:.2f})</td>" in page


def test_best_median_and_worst_scan_are_shown_in_this_order(folder: Path) -> None:
    column, order = ranked(Results.read(folder).subjects)
    assert column == "unprompted_dice"
    shown = re.findall(
        r"<b>(Best|Median|Worst):</b> (p\d), class1", (folder / "report.html").read_text(encoding="utf-8")
    )
    names = [row["subject"] for _, row in order]
    assert shown == [("Best", names[7]), ("Median", names[4]), ("Worst", names[0])]


def test_what_was_not_measured_has_no_section_and_no_zero(tmp_path: Path) -> None:
    write_result_files(tmp_path, [], None, protocol=ProtocolSettings())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert headings(page) == ("Figures", "How this was made")
    assert "0.00" not in page


def test_exemplars_that_do_not_decide_are_an_alarm(tmp_path: Path, folder: Path) -> None:
    write_example(tmp_path / "run", 3)
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    assert "hardly decide" not in (folder / "report.html").read_text(encoding="utf-8")
    metrics["summary"]["conditioning"]["wrong"]["mean"] = metrics["summary"]["conditioning"]["right"]["mean"]
    path.write_text(json.dumps(metrics))
    assert "The exemplars hardly decide" in write_report(tmp_path / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(("right", "wrong", "harm"), [(0.2, 0.1, True), (0.4, None, False)])
def test_what_right_and_no_exemplars_say_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], right: float, wrong: float | None, harm: bool
) -> None:
    figures = Figures(right=right, wrong=wrong, no_exemplars=0.3, unprompted_dice=right)
    reports = [SubjectReport("p0", "p0", (ClassReport(1, figures, (), ()),), 0, {})]
    metrics = write_result_files(tmp_path, reports, None, protocol=ProtocolSettings())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    show_figures(metrics, tmp_path)
    for said in (page, capsys.readouterr().out):
        assert ("The exemplars do harm here" in said) == harm
        assert ("wrong: not measured, there is one lesion class" in said) == (wrong is None)


def test_training_scans_and_a_single_patient_are_alarms(tmp_path: Path) -> None:
    write_result_files(
        tmp_path, [example_report("p0", "p0", 0.5, 0)], {"trained_on": ["p0"]}, protocol=ProtocolSettings()
    )
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The model was trained on 1 of these scans: p0." in page
    assert "One patient: there are no intervals" in page


def test_faint_lesions_are_apart_from_clear_ones_dark_or_bright(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "By absolute contrast, normalised intensity, brighter or darker than around" in page


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    write_result_files(tmp_path, [example_report("<b>p0</b>", "p&0", 0.5, 0)], None, protocol=ProtocolSettings())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;p0&lt;/b&gt;" in page
    assert "<b>p0" not in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no metrics.json in it; give a folder that mois evaluate wrote"),
        ("{", "is cut short or no JSON"),
        ('{"figures": {}}', "schema None is not the one that is read here (1); evaluate again."),
    ],
)
def test_a_folder_without_results_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(tmp_path)


def test_a_robustness_sweep_has_its_section(tmp_path: Path) -> None:
    write_example(tmp_path / "run")
    estimate = {"mean": 0.6, "ci95": [0.5, 0.7], "n": 8}
    drop = {"mean": -0.125, "ci95": [-0.2, -0.05], "n": 8}
    of = {"dice": estimate, "f1": estimate, "change_dice": drop, "change_f1": drop}
    content = {"unchanged": {"dice": estimate, "f1": estimate}, "changes": {"bias_field": of}}
    (tmp_path / "run" / "robustness.json").write_text(json.dumps(content))
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Other scanners" in headings(page)
    assert "<td>bias field</td><td>0.60 (0.50 to 0.70)</td><td>-0.125 (-0.200 to -0.050)</td>" in page


def test_calibration_error_is_the_mean_distance_of_confidence_and_hits() -> None:
    # bin 0.2-0.3: mean 0.25, 1 of 2 hit: 0.25 off; bin 0.9-1: mean 0.95, 2 of 2 hit: 0.05 off
    assert expected_calibration_error([0.2, 0.3 - 1e-9, 0.9, 1.0], [True, False, True, True]) == pytest.approx(0.15)


def test_a_calibration_error_says_what_it_is_of(tmp_path: Path) -> None:
    folder = write_example(tmp_path / "run", 3)
    rows = [{"peak": "0.9", "hit": str(hit), "volume_ml": "1"} for hit in (True, False)]  # one of two hit, 0.4 less
    write_rows(folder / "candidates.csv", rows)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "2 candidates, whatever reached the threshold outside the prompted lesions" in page
    assert "Expected calibration error of these probabilities, which are not calibrated: 0.400." in page
    write_rows(folder / "candidates.csv", [{**row, "confidence": "0.6"} for row in rows])
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Expected calibration error 0.100, before calibration 0.400." in page
    assert "fitted on the scans that the training was validated on, and flatters where those are scored" in page


def test_the_worst_lesions_are_the_largest_missed_ones_then_the_poorest_found() -> None:
    def row(lesion: str, ml: float, role: str, dice: float) -> dict[str, str]:
        return {"lesion": lesion, "volume_ml": str(ml), "role": role, "found": str(dice > 0), "dice": str(dice)}

    rows = [row("a", 1, "never", 0.9), row("b", 2, "never", 0), row("c", 9, "promptable", 0.3)]
    rows += [row("d", 5, "never", 0), row("e", 99, "prompted", 0)]
    assert [one["lesion"] for one in worst_first(rows)] == ["d", "b", "c", "a"]


def test_a_leaf_without_interval_is_read() -> None:
    assert Estimate.of({"mean": None, "ci95": None, "n": 0}) == Estimate(None, None, None, 0)
    assert Estimate.of({"mean": 0.5, "ci95": [0.4, 0.6], "n": 3}) == Estimate(0.5, 0.4, 0.6, 3)


def test_keys_are_spoken() -> None:
    assert in_words("unprompted_fp_per_scan") == "unprompted false lesions per scan"
    assert in_words("f1, 3 clicks") == "F1, 3 clicks"
    assert in_words("volume_absolute_error_percent") == "absolute volume error, %"


def test_the_same_results_give_the_same_file(folder: Path) -> None:
    before = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == before


def browser() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.mark.skipif(browser() is None, reason="no Chromium is installed")
def test_a_browser_shows_every_picture_and_nothing_is_wider_than_the_page(folder: Path, tmp_path: Path) -> None:
    probe = (
        "<script>onload = () => { const all = [...document.images];"
        "const shown = all.filter(one => one.complete && one.naturalWidth > 0 && one.clientWidth > 40);"
        "const main = document.querySelector('main');"
        "document.title = `${shown.length} of ${all.length}, ${main.scrollWidth <= main.clientWidth}`; }</script>"
    )
    page = (folder / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(browser()), *options, "--window-size=1180,900", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, encoding="utf-8", timeout=300
    )
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title is not None, run.stderr[-500:]
    count = page.count("<img")
    assert title.group(1) == f"{count} of {count}, true"


@pytest.mark.parametrize(("volumes", "tick"), [((0.6, 30.0), "10"), ((2.0, 6.0), "3"), ((0.004, 0.5), "0.01")])
def test_volumes_are_written_as_plain_numbers(volumes: tuple[float, float], tick: str) -> None:
    picture = sizes(volumes, (0.5, 0.0), (True, False), "Dice")
    written = re.findall(r"<!-- (.+?) -->", base64.b64decode(picture.partition(",")[2]).decode())
    assert tick in written
    assert not [text for text in written if "$" in text]


def test_a_legend_is_never_wider_than_its_figure() -> None:
    figure = Figure(figsize=(3.8, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in ("right", "wrong, 5 clicks", "swapped", "no exemplars, whatever the clicks"):
        axes.bar(0, 1, label=name)
    legend_above(figure, 4)
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert len(legend.get_texts()) == 4
