"""Another system's predictions are scored as ours are: by hand, and against our own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_model import BOXES, TYPE_A, FakeBackbone, FakePropagation, box, eight_lesions, make_scan

from mois.evaluation.predictions import score_predictions
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.settings import ProtocolSettings
from mois.inference import InferenceSettings, VolumeSegmenter
from mois.interfaces import Volume
from mois.io import read_image


@pytest.fixture
def scan() -> Volume:
    return eight_lesions()


def semantic(scan: Volume) -> torch.Tensor:
    table = torch.tensor([0, *(scan.classes[lesion] for lesion in sorted(scan.classes))])
    return table[scan.lesions.long()]


def test_a_perfect_semantic_map(scan: Volume) -> None:
    report = score_predictions(scan, semantic(scan), ProtocolSettings(prompted=1, counts=(0, 1, 5)))
    figures = report.figures
    assert figures.right == figures.no_exemplars == figures.unprompted_dice == figures.scan_dice == 1.0
    assert figures.lesion_f1 == figures.scan_lesion_f1 == figures.unprompted_surface_dice == 1.0
    assert figures.wrong is figures.swapped is figures.prompted_dice is None
    assert (figures.prompted_lesions, figures.prompted_clicks) == (0, 0)
    assert [point.right for point in report.curve()] == [1.0, 1.0, 1.0]
    assert [row.role for row in report.lesions].count("prompted") == 2  # taken out of `unprompted` for it too
    assert report.candidates == ()
    assert report.false_without_exemplars == 0


def test_the_same_answer_has_the_same_figures_as_ours(scan: Volume) -> None:
    settings = ProtocolSettings(prompted=2, counts=(1, 2))
    model = VolumeSegmenter(FakeBackbone(), FakePropagation(deaf=True), InferenceSettings(tile_px=32, batch_size=6))
    ours = evaluate_volume(model, scan, settings).figures
    theirs = score_predictions(scan, scan.lesions, settings, kind="instance").figures
    for name in ("right", "no_exemplars", "unprompted_dice", "lesion_f1", "lesion_precision", "false_lesions"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name)), name
    for name in ("unprompted_surface_dice", "unprompted_panoptic_quality", "unprompted_volume_error_ml", "scan_dice"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name)), name


def test_prompted_masks_of_another_run_are_merged_into_the_answer(scan: Volume, tmp_path: Path) -> None:
    settings = ProtocolSettings(prompted=1)
    model = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(tile_px=32, batch_size=6))
    ours = evaluate_volume(model, scan, settings, out=tmp_path).figures
    masks = {
        c: torch.from_numpy(read_image(tmp_path / "prompted" / f"scan_class{c}.nii.gz")[0].astype(np.int32))
        for c in (1, 2)
    }
    nothing = torch.zeros_like(scan.lesions)
    alone = score_predictions(scan, nothing, settings).figures
    given = score_predictions(scan, nothing, settings, masks).figures
    assert (alone.scan_dice, alone.prompted_dice, alone.scan_lesion_recall) == (0.0, None, 0.0)
    assert given.prompted_dice == ours.prompted_dice == pytest.approx(120 / 124)
    assert given.scan_dice == pytest.approx(2 * 60 / (60 + 256))
    assert given.scan_lesion_recall == 1 / 4
    assert alone.unprompted_dice == given.unprompted_dice == 0.0
    both = score_predictions(scan, semantic(scan), settings, masks).figures
    assert both.scan_dice == both.scan_lesion_f1 == 1.0


def test_a_class_of_its_own_map_and_a_map_for_each_class(scan: Volume) -> None:
    ours = semantic(scan)
    settings = ProtocolSettings(prompted=1, target_class=2)
    whole, single = (score_predictions(scan, given, settings) for given in (ours, {2: (ours == 2).int()}))
    assert whole.figures == single.figures
    assert single.figures.scan_dice == 1.0
    assert score_predictions(scan, {1: ours}, settings).figures.scan_dice == 0.0  # nothing was said about class 2
    scan_of_one = make_scan([(TYPE_A, where) for where in BOXES[:3]], shape=(7, 64, 48))
    anything = (scan_of_one.lesions > 0).int() * 7
    assert score_predictions(scan_of_one, anything, ProtocolSettings()).figures.scan_dice == 1.0


def test_touching_lesions_of_a_semantic_map_are_one_hit_and_of_an_instance_map_as_many_as_there_are() -> None:
    boxes = [box((2, 3), (16, 24), (8 + 8 * n, 16 + 8 * n)) for n in range(4)]
    scan = make_scan([(TYPE_A, where) for where in boxes])
    settings = ProtocolSettings(prompted=0)
    blob = score_predictions(scan, (scan.lesions > 0).int(), settings).figures
    assert (blob.scan_dice, blob.scan_lesion_recall) == (1.0, 1 / 4)
    apart = score_predictions(scan, scan.lesions, settings, kind="instance").figures
    assert (apart.scan_dice, apart.scan_lesion_recall) == (1.0, 1.0)


def test_an_empty_scan_counts_what_was_predicted_in_it() -> None:
    scan = make_scan([(TYPE_A, BOXES[0])], annotated=False)
    prediction = torch.zeros_like(scan.lesions)
    prediction[4, 4, 1] = prediction[8, 8, 4] = 1
    report = score_predictions(scan, prediction, ProtocolSettings())
    assert report.classes == ()
    assert report.false_without_exemplars == 2


def test_by_the_papers_rules(scan: Volume) -> None:
    report = score_predictions(scan, semantic(scan), ProtocolSettings(rules="paper"))
    assert report.paper is not None
    assert report.paper.scan_dice == 1.0


def test_a_map_of_another_grid_is_refused(scan: Volume) -> None:
    with pytest.raises(ValueError, match=r"scan: the prediction has shape \(3, 4, 5\), the scan \(48, 64, 17\); write"):
        score_predictions(scan, torch.zeros(3, 4, 5), ProtocolSettings())


def test_prompted_masks_of_another_reader_are_refused(scan: Volume) -> None:
    with pytest.raises(ValueError, match=r"scan: the prompted masks hold lesions .* which the reader would not prompt"):
        score_predictions(scan, semantic(scan), ProtocolSettings(prompted=1), scan.lesions)
