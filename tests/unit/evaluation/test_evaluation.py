"""The protocol's figures, computed by hand with a model that finds every pixel of its exemplars' intensity."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.evaluation.figures import KEYS, ClassReport, Figures, SubjectReport
from mois.evaluation.overlays import STYLES, draw_overlay, lesion_kinds, telling_slices
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import means, paired_gain, summarise
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.metrics.overlap import join_tracked_and_found
from mois.records import Volume
from mois.scans.image_files import read_image
from tests.support.fake_model import (
    BOXES,
    PLACES,
    TYPE_A,
    TYPE_B,
    FakeBackbone,
    FakePropagation,
    box,
    eight_lesions,
    make_scan,
)


@pytest.fixture
def scan() -> Volume:
    return eight_lesions()


def make_segmenter(*, deaf: bool = False) -> VolumeSegmenter:
    return VolumeSegmenter(FakeBackbone(), FakePropagation(deaf=deaf), InferenceSettings(tile_px=32, batch_size=6))


def test_a_perfect_model(scan: Volume) -> None:
    report = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1))
    assert [one.target_class for one in report.classes] == [1, 2]
    figures = report.figures
    assert (figures.right, figures.wrong, figures.swapped) == (1.0, 0.0, 1.0)
    # K = 0 finds both types. Two lesions of each type are never prompted: 2 * 128 / (128 + 256).
    assert figures.no_exemplars == pytest.approx(2 / 3)
    assert figures.unprompted_dice == figures.lesion_f1 == figures.scan_dice == figures.scan_lesion_f1 == 1.0
    assert figures.false_lesions == 0
    # A clicked box lacks its four corner pixels (see test_inference): 2 * 60 / (60 + 64).
    assert figures.prompted_dice == pytest.approx(120 / 124)
    assert report.false_without_exemplars == 0


def test_a_model_that_ignores_its_exemplars_shows_right_equal_to_wrong(scan: Volume) -> None:
    figures = evaluate_volume(make_segmenter(deaf=True), scan, ProtocolSettings(prompted=1)).figures
    assert figures.right == figures.wrong == figures.no_exemplars == pytest.approx(2 / 3)
    assert figures.swapped == pytest.approx(2 / 3)
    # One of four is prompted. Found outside it: 3 true lesions and 4 of the other type.
    assert figures.unprompted_dice == pytest.approx(2 * 3 / (3 + 7))
    assert figures.lesion_f1 == pytest.approx(6 / (6 + 4))
    assert figures.lesion_precision == pytest.approx(3 / 7)
    assert figures.lesion_recall == 1.0
    assert figures.false_lesions == 4
    assert figures.scan_dice == pytest.approx(2 * 4 / (4 + 8))
    assert figures.scan_lesion_f1 == pytest.approx(8 / (8 + 4))


def test_a_target_class_is_scored_alone_against_the_others(scan: Volume) -> None:
    report = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1, target_class=2))
    assert [one.target_class for one in report.classes] == [2]
    assert (report.figures.right, report.figures.wrong, report.figures.swapped) == (1.0, 0.0, 1.0)
    absent = evaluate_volume(make_segmenter(), scan, ProtocolSettings(target_class=3))
    assert absent.classes == ()
    assert absent.figures == Figures()


def test_the_never_prompted_lesions_do_not_depend_on_the_number_of_prompts(scan: Volume) -> None:
    roles = []
    for prompted in (1, 2, 5):
        report = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=prompted))
        roles.append({row.lesion: row.role for one in report.classes for row in one.lesions})
    never = [{lesion for lesion, role in one.items() if role == "never"} for one in roles]
    assert never[0] == never[1] == never[2]
    assert len(never[0]) == 4
    assert [list(one.values()).count("prompted") for one in roles] == [2, 4, 4]  # of two classes, two promptable each


def test_a_curve_over_exemplars_encodes_nothing_again(scan: Volume) -> None:
    segmenter = make_segmenter()
    report = evaluate_volume(segmenter, scan, ProtocolSettings(prompted=2, counts=(1, 2, 10)))
    points = report.curve()
    assert [(point.count, point.used) for point in points] == [(1, 1), (2, 2), (10, 2)]
    assert all((p.right, p.wrong, p.swapped, p.lesion_f1) == (1.0, 0.0, 1.0, 1.0) for p in points)
    assert segmenter.backbone.encoded == len(segmenter.encode(scan).places)


def test_one_class_alone_has_no_wrong_exemplars() -> None:
    scan = make_scan([(TYPE_A, where) for where in BOXES[:3]], shape=(7, 64, 48))
    figures = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1)).figures
    assert figures.right == figures.no_exemplars == 1.0
    assert figures.wrong is None
    assert figures.swapped is None


def test_a_single_lesion_is_prompted_and_leaves_nothing_to_find() -> None:
    figures = evaluate_volume(make_segmenter(), make_scan([(TYPE_A, BOXES[0])]), ProtocolSettings()).figures
    assert figures.right is None
    assert figures.unprompted_dice is None
    assert figures.lesion_f1 is None
    assert figures.false_lesions == 0
    assert figures.scan_dice == 1.0
    assert figures.prompted_dice == pytest.approx(120 / 124)


def test_an_empty_scan_counts_what_is_found_in_it() -> None:
    scan = make_scan([(TYPE_A, BOXES[0]), (TYPE_B, BOXES[1])], annotated=False)
    report = evaluate_volume(make_segmenter(), scan, ProtocolSettings())
    assert report.classes == ()
    assert report.figures.scan_dice is None
    assert report.false_without_exemplars == 2


def test_one_blob_over_touching_lesions_is_one_hit() -> None:
    boxes = [box((2, 3), (16, 24), (8 + 8 * n, 16 + 8 * n)) for n in range(4)]  # a row of four, no gap
    scan = make_scan([(TYPE_A, where) for where in boxes])
    figures = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1)).figures
    assert figures.unprompted_dice == 1.0  # voxels are all right
    assert figures.lesion_recall == pytest.approx(1 / 3)  # 256 px of blob, IoU with a lesion of 64 px above 0.1
    assert figures.lesion_f1 == pytest.approx(2 / (2 + 2))
    assert figures.scan_lesion_recall is not None
    assert figures.scan_lesion_recall < 1


def test_a_prompted_lesion_is_taken_out_with_its_margin() -> None:
    scan = make_scan([(TYPE_A, BOXES[0]), (TYPE_A, BOXES[1])])
    # Two pixels beyond each lesion look like it, too: the image has 12 x 12, the truth 8 x 8.
    stack = scan.image.permute(2, 1, 0).clone()
    for s, y, x in PLACES[:2]:
        stack[s, y - 2 : y + 10, x - 2 : x + 10] = TYPE_A
    scan = scan._replace(image=stack.permute(2, 1, 0).contiguous())
    for margin_px, extra in [(2, 0), (0, 144 - 64)]:
        settings = ProtocolSettings(prompted=1, margin_px=margin_px)
        figures = evaluate_volume(make_segmenter(), scan, settings).figures
        assert figures.right == pytest.approx(2 * 64 / (64 + 144 + extra))


def test_true_masks_and_more_clicks(scan: Volume) -> None:
    settings = ProtocolSettings(prompted=2, clicks=3, masks="true", reader=Reader("largest", seed=4))
    assert evaluate_volume(make_segmenter(), scan, settings).figures.right == 1.0


def test_the_same_seed_gives_the_same_report(scan: Volume) -> None:
    settings = ProtocolSettings(clicks=2, reader=Reader(seed=7))
    one, other = (evaluate_volume(make_segmenter(), scan, settings) for _ in range(2))
    assert one.classes == other.classes


def test_found_and_tracked_lesions_merge() -> None:
    tracked = np.array([[[1, 1, 0, 0, 0, 0, 0, 0]]], dtype=np.int32)
    found = np.array([[[0, 3, 3, 0, 0, 5, 5, 0]]], dtype=np.int32)
    assert join_tracked_and_found(tracked, found).tolist() == [
        [[1, 1, 1, 0, 0, 3, 3, 0]]
    ]  # half of 3 lies in 1: the same lesion
    blob = np.array([[[0, 3, 3, 3, 3, 3, 3, 0]]], dtype=np.int32)
    assert join_tracked_and_found(tracked, blob).tolist() == [[[1, 1, 2, 2, 2, 2, 2, 0]]]
    assert join_tracked_and_found(tracked, np.zeros_like(found)).tolist() == tracked.tolist()
    assert join_tracked_and_found(np.zeros_like(found), found).tolist() == [[[0, 1, 1, 0, 0, 2, 2, 0]]]


def test_results_are_files_on_the_scanners_grid(scan: Volume, tmp_path: Path) -> None:
    settings = ProtocolSettings(prompted=1, counts=(1, 2))
    report = evaluate_volume(make_segmenter(), scan, settings, out=tmp_path)
    voxels, affine = read_image(tmp_path / "predictions" / "scan_class1.nii.gz")
    of_class = torch.isin(scan.lesions, torch.tensor([lesion for lesion, c in scan.classes.items() if c == 1]))
    assert np.array_equal(voxels > 0, of_class.numpy())
    assert len(np.unique(voxels)) == 1 + 4
    assert np.allclose(affine, scan.affine.numpy())
    assert (tmp_path / "overlays" / "scan_class2.png").read_bytes().startswith(b"\x89PNG")
    summary = write_result_files(tmp_path, [report], {"weights": "fake"}, protocol=settings)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == summary
    assert summary["schema"] == 1
    assert summary["summary"]["conditioning"]["right"] == {"mean": 1.0, "ci95": None, "n": 1}
    assert [(point["clicks"], point["count"]) for point in summary["curve"]["points"]] == [(1, 1), (1, 2)]
    assert summary["curve"]["points"][1]["right"]["mean"] == 1.0
    assert summary["curve"]["slope"]["1"]["right"]["mean"] == 0.0
    assert summary["protocol"]["counts"] == [1, 2]
    assert summary["subjects"][0]["unprompted"]["dice"] == 1.0
    assert summary["provenance"] == {"weights": "fake"}
    with (tmp_path / "subjects.csv").open() as file:
        subjects = list(csv.DictReader(file))
    assert [(row["subject"], row["lesions"], row["conditioning_right"]) for row in subjects] == [("scan", "8", "1.0")]
    with (tmp_path / "lesions.csv").open() as file:
        lesions = list(csv.DictReader(file))
    assert len(lesions) == 8
    assert {row["role"] for row in lesions} == {"prompted", "promptable", "never"}
    assert all(row["found"] == "True" for row in lesions)
    assert (tmp_path / "curve.csv").read_text(encoding="utf-8").count("\n") == 1 + 2 * 2
    assert not list(tmp_path.rglob("*.unfinished"))


def test_nothing_measured_is_null_in_every_file(tmp_path: Path) -> None:
    report = evaluate_volume(make_segmenter(), make_scan([], annotated=False), ProtocolSettings(), out=tmp_path)
    write_result_files(tmp_path, [report])
    summary = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["summary"]
    for place in KEYS.values():
        estimate = summary
        for part in place:
            estimate = estimate[part]
        assert estimate == {"mean": None, "ci95": None, "n": 0}
    assert summary["by_size"]["<0.5"]["recall"]["n"] == 0
    assert summary["false_in_empty_scans"] == {"mean": 0.0, "ci95": None, "n": 1}
    assert (tmp_path / "lesions.csv").is_file()


def report_of(subject: str, dice: float | None, patient: str | None = None) -> SubjectReport:
    one = ClassReport(1, Figures(unprompted_dice=dice), (), ())
    return SubjectReport(subject, patient or subject, (one,), 0, {})


def test_summaries_are_over_scans_with_an_interval_over_patients() -> None:
    reports = [report_of("a", 0.2), report_of("b", 0.4), report_of("c", None)]
    assert means(reports)["unprompted_dice"] == pytest.approx(0.3)
    summary = summarise(reports)["summary"]["unprompted"]["dice"]
    assert summary["n"] == 2
    assert summary["ci95"] == pytest.approx([0.2, 0.4])
    same_patient = [report_of("a", 0.2, "p"), report_of("b", 0.4, "p")]
    assert summarise(same_patient)["summary"]["unprompted"]["dice"]["ci95"] is None


def test_a_gain_is_paired_and_leaves_out_what_was_not_measured() -> None:
    rise = paired_gain([("a", 0.2, 0.4), ("b", 0.4, 0.7), ("c", None, 0.9)])
    assert rise["n"] == 2
    assert rise["mean"] == pytest.approx(0.25)  # 0.2 and 0.3
    assert rise["ci95"] == pytest.approx([0.2, 0.3])


def test_overlays_tell_prompted_found_missed_and_false_apart(scan: Volume) -> None:
    report = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1, target_class=1)).classes[0]
    truth = np.zeros((3, 4, 4), dtype=np.int32)
    rows = {row.role: row.lesion for row in report.lesions}
    truth[0, 0, 0], truth[0, 3, 3] = rows["prompted"], rows["never"]
    result = np.zeros_like(truth)
    result[0, 0, 0], result[2, 1, 1] = 1, 9
    missed = tuple(replace(row, found=row.role == "prompted") for row in report.lesions)
    kinds = lesion_kinds(truth, result, replace(report, lesions=missed))
    assert list(kinds) == list(STYLES)
    assert {kind: int(mask.sum()) for kind, mask in kinds.items()} == {
        "prompted": 1,
        "found": 0,
        "missed": 1,
        "false": 1,
        "model's outline": 1,
    }
    assert telling_slices(truth, result) == [0, 2]


def test_an_outline_is_drawn_where_the_lesion_is_from_no_more_than_the_lesion(scan: Volume) -> None:
    report = evaluate_volume(make_segmenter(), scan, ProtocolSettings(prompted=1, target_class=1)).classes[0]
    result = np.zeros((1, 40, 50), dtype=np.int32)
    result[0, 30:33, 45:50] = 1  # at the right border
    figure = draw_overlay(np.ones((1, 40, 50), dtype=np.float32), np.zeros_like(result), result, report, (1.0, 1.0))
    (outline,) = [part for part in figure.axes[0].collections if part.get_paths()]
    corners = np.concatenate([path.vertices for path in outline.get_paths()])
    assert corners.min(0).tolist() == [44.5, 29.5]
    assert corners.max(0).tolist() == [49.5, 32.5]  # voxels 45..49 and 30..32, and half of one around them
    assert "10 mm" in [text.get_text() for text in figure.axes[0].texts]  # the slice is 50 mm wide


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompted": -1}, r"protocol.prompted=-1"),
        ({"counts": (-1, 1)}, r"protocol.counts=\(-1, 1\)"),
        ({"clicks": 0}, r"protocol.clicks=0"),
        ({"curve_clicks": (0,)}, r"protocol.curve_clicks=\(0,\)"),
        ({"margin_px": -1}, r"protocol.margin_px=-1"),
        ({"rules": "theirs"}, r"protocol.rules='theirs' is unknown; choose ours or paper"),
        ({"masks": "soft"}, r"protocol.masks='soft' is unknown; choose predicted or true"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolSettings(**change)  # type: ignore[arg-type]


def test_a_lesion_without_class_is_refused(scan: Volume) -> None:
    with pytest.raises(ValueError, match=r"scan: lesions \[8\] have no class"):
        evaluate_volume(make_segmenter(), scan._replace(classes=dict.fromkeys(range(1, 8), 1)), ProtocolSettings())
