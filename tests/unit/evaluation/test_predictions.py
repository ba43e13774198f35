"""Another system's predictions are scored as ours are: by hand, and against our own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mois.evaluation.predictions import score_predictions
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.settings import ProtocolSettings
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.records import Volume
from mois.scans.image_files import read_image
from tests.support.fake_model import BOXES, TYPE_A, TYPE_B, FakeBackbone, FakePropagation, box, eight_lesions, make_scan


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint16, torch.int64])
def test_predictions_are_tensors_or_arrays_of_any_type(scan: Volume, dtype: torch.dtype) -> None:
    given = semantic(scan).to(dtype)
    arrays = [] if dtype == torch.bfloat16 else [given.numpy(), {2: given.numpy() == 2}]
    for one in (given, given.unsqueeze(0)[0], {1: given == 1, 2: given == 2}, *arrays):
        assert score_predictions(scan, one, ProtocolSettings(target_class=2)).figures.scan_dice == 1.0
    assert score_predictions(scan, given, ProtocolSettings(), given * 0).figures.scan_dice == 1.0


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


@pytest.mark.parametrize("declared", [(), (1, 2)])
def test_lesions_that_are_called_another_class_are_not_found(declared: tuple[int, ...]) -> None:
    scan = make_scan([(TYPE_A, where) for where in BOXES[:3]], shape=(7, 64, 48))._replace(declared=declared)
    second = (scan.lesions > 0).int() * 2
    for given in (second, {2: scan.lesions}):
        figures = score_predictions(scan, given, ProtocolSettings()).figures
        assert (figures.scan_dice, figures.scan_lesion_f1, figures.scan_lesion_precision) == (0.0, 0.0, None)
    assert score_predictions(scan, (scan.lesions > 0).int(), ProtocolSettings()).figures.scan_dice == 1.0


def test_a_class_that_the_dataset_does_not_declare_is_refused(scan: Volume) -> None:
    scan = scan._replace(declared=(1, 2))
    strange = semantic(scan)
    strange[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"scan: the prediction: holds label 7, dataset.json declares \[1, 2\]; add"):
        score_predictions(scan, strange, ProtocolSettings())
    with pytest.raises(ValueError, match=r"scan: the prediction: there is a map of class 7, dataset.json declares \[1"):
        score_predictions(scan, {1: scan.lesions, 7: scan.lesions}, ProtocolSettings())
    assert score_predictions(scan, strange * 0 + scan.lesions * 7, ProtocolSettings(), kind="instance").classes


@pytest.mark.parametrize(
    ("of_one", "dice"), [(0.9999999, 1.0), (1.0004, 1.0), (0.98, None), (float("nan"), None), (-1.0, None)]
)
@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_numbers_of_a_map_are_whole_or_refused(of_one: float, dice: float | None, kind: str) -> None:
    scan = make_scan([(TYPE_A, where) for where in BOXES[:3]], shape=(7, 64, 48))
    given = (scan.lesions > 0).double() * of_one
    if dice is None:
        with pytest.raises(ValueError, match="scan: the prediction: "):
            score_predictions(scan, given, ProtocolSettings(), kind=kind)
    else:
        assert score_predictions(scan, given, ProtocolSettings(), kind=kind).figures.scan_dice == dice


def test_ids_may_be_as_large_as_they_like(scan: Volume) -> None:
    last = 2**31 - 1
    mirrored = torch.where(scan.lesions > 0, last - scan.lesions, 0)
    figures = score_predictions(scan, mirrored, ProtocolSettings(prompted=1), kind="instance").figures
    assert figures.scan_lesion_f1 is not None
    assert figures.scan_dice is not None
    found = mirrored.long()
    found[0, 0, 0] = last + 1
    with pytest.raises(ValueError, match="the prediction: label values must lie between 0 and 2147483647"):
        score_predictions(scan, found, ProtocolSettings(), kind="instance")


def test_false_lesions_are_apart_or_fragments() -> None:
    scan = make_scan([(TYPE_A, BOXES[0]), (TYPE_B, BOXES[1]), (TYPE_A, BOXES[3])], shape=(17, 64, 48))
    ids = scan.lesions
    found = torch.zeros_like(ids)
    first, second = (torch.nonzero(ids == lesion) for lesion in (1, 2))
    for place, (at, number) in enumerate([(first, 40), (first, 16), (first, 4), (second, 64)]):
        start = [0, 44, 60, 0][place]  # three pieces of lesion 1, and all of lesion 2, which is of another class
        found[tuple(at[start : start + number].T)] = place + 1
    found[20:22, 20, 15] = 9
    report = score_predictions(scan, found, ProtocolSettings(prompted=0, target_class=1), kind="instance")
    figures = report.figures
    assert (figures.false_lesions, figures.false_apart, figures.fragments) == (4, 1, 3)
    assert (figures.scan_false_lesions, figures.scan_false_apart, figures.scan_fragments) == (4, 1, 3)
    assert {row.lesion: (row.found, row.fragments) for row in report.lesions} == {1: (True, 2), 3: (False, 0)}


def test_prompted_masks_of_lesions_that_the_scan_does_not_have_are_refused(scan: Volume) -> None:
    strange = torch.zeros_like(scan.lesions)
    strange[0, 0, 0] = 99
    with pytest.raises(ValueError, match="scan: the map of prompted masks: holds lesion 99, which the scan does not"):
        score_predictions(scan, semantic(scan), ProtocolSettings(prompted=1), strange)


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


def test_the_class_to_score_is_one_that_the_dataset_declares(scan: Volume) -> None:
    scan, settings = scan._replace(declared=(1, 2)), ProtocolSettings(target_class=7)
    model = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(tile_px=32))
    for score in (
        lambda: score_predictions(scan, semantic(scan), settings),
        lambda: evaluate_volume(model, scan, settings),
    ):
        with pytest.raises(
            ValueError, match=r"protocol\.target_class=7 is not declared, dataset.json declares \[1, 2\]"
        ):
            score()
