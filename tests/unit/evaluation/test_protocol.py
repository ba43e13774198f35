"""Sweeps, imperfect readers, candidates and the paper's rules, with a model that can be computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mois.clicks import correct, first_click
from mois.evaluation import protocol
from mois.evaluation.figures import PaperFigures
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.scoring import score_by_paper
from mois.evaluation.settings import ProtocolSettings
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.inference.shared_work import SharedWork
from mois.interfaces import Backbone
from mois.records import Exemplars, Features, SemanticPrediction, Volume
from mois.scans.image_files import read_image
from tests.support.fake_model import (
    BOXES,
    TYPE_A,
    TYPE_B,
    FakeBackbone,
    FakePropagation,
    Undecided,
    box,
    eight_lesions,
    make_scan,
)

VOXEL_ML = 1.5 * 1.5 * 5 / 1000


@pytest.fixture
def scan() -> Volume:
    return eight_lesions()


class Doubtful(FakePropagation):
    """As sure as it has exemplars, up to two of them; without any it hardly believes what it sees."""

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        plain = super().forward(features, exemplars, backbone)
        sure = torch.tensor([0.4, 0.6, 0.9]).logit()[exemplars.valid.sum(1).clamp(max=2)]
        return plain._replace(logits=torch.where(plain.logits > 0, sure[:, None, None], plain.logits))


def segmenter(propagation: FakePropagation | None = None) -> VolumeSegmenter:
    settings = InferenceSettings(tile_px=32, batch_size=6)
    return VolumeSegmenter(FakeBackbone(), propagation or FakePropagation(), settings)


def test_a_sweep_over_exemplars_and_clicks(scan: Volume) -> None:
    settings = ProtocolSettings(prompted=1, counts=(0, 1, 2, 20), curve_clicks=(1, 3))
    model = segmenter()
    points = evaluate_volume(model, scan, settings).curve()
    assert [(p.clicks, p.count, p.used) for p in points] == [
        (clicks, count, used) for clicks in (1, 3) for count, used in [(0, 0), (1, 1), (2, 2), (20, 2)]
    ]
    for p in points:
        # K = 0 finds both types, of which 2 lesions each are never prompted: 2 * 128 / (128 + 256); 2 of 4 are true.
        assert p.right == pytest.approx(1.0 if p.count else 2 / 3)
        assert p.wrong == pytest.approx(0.0 if p.count else 2 / 3)
        assert p.lesion_precision == (1.0 if p.count else 0.5)
        assert p.lesion_recall == 1.0
        assert p.false_lesions == (0 if p.count else 2)
    assert model.backbone.encoded == len(model.encode(scan).places)


def test_propagations_that_are_compared_share_what_their_backbone_does(
    scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProtocolSettings(prompted=2, counts=(0, 2), curve_clicks=(1, 2), rules="paper")
    alone = [evaluate_volume(segmenter(propagation()), scan, settings) for propagation in (FakePropagation, Doubtful)]
    first, shared, answer, clicked = segmenter(), SharedWork(), VolumeSegmenter.answer, []
    monkeypatch.setattr(VolumeSegmenter, "answer", lambda *asked: (clicked.append(asked[2]), answer(*asked))[1])
    second = VolumeSegmenter(first.backbone, Doubtful(), first.settings)
    reports, done = [], []
    for model in (first, second):
        reports.append(evaluate_volume(model, scan, settings, shared=shared))
        done.append((model.backbone.encoded, len(clicked), len(model.backbone.attended)))
    assert done[0] == done[1]
    assert min(done[0]) > 0
    assert [report.classes for report in reports] == [report.classes for report in alone]
    assert [report.candidates for report in reports] == [report.candidates for report in alone]
    assert reports[0].classes != reports[1].classes
    assert reports[0].seconds.keys() == reports[1].seconds.keys()
    assert [reports[0].seconds[step] == reports[1].seconds[step] for step in ("encode", "click", "propagate")] == [
        True, True, False,
    ]  # fmt: skip


def test_questions_asked_in_turn_have_the_same_answers(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ProtocolSettings(prompted=1, counts=(0, 1, 2), curve_clicks=(1, 2))
    at_once = evaluate_volume(segmenter(), scan, settings)
    monkeypatch.setattr(protocol, "ANSWER_BYTES", 1)
    in_turn = evaluate_volume(segmenter(), scan, settings)
    assert in_turn.classes == at_once.classes
    assert in_turn.false_without_exemplars == at_once.false_without_exemplars


def test_a_reader_who_prompts_nothing_has_what_is_found_without_exemplars(scan: Volume) -> None:
    report = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=0))
    figures = report.figures
    assert figures.right == figures.wrong == figures.no_exemplars == pytest.approx(2 / 3)
    assert figures.unprompted_dice == figures.scan_dice == pytest.approx(2 * 4 / (4 + 8))
    assert (figures.prompted_dice, figures.prompted_lesions, figures.prompted_clicks) == (None, 0, 0)
    assert {row.role for row in report.lesions} == {"promptable", "never"}


def test_further_figures_of_a_perfect_and_of_a_deaf_model(scan: Volume) -> None:
    figures = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=1)).figures
    assert figures.unprompted_panoptic_quality == figures.unprompted_surface_dice == 1.0
    assert figures.unprompted_volume_error_ml == figures.scan_volume_error_percent == 0.0
    assert (figures.prompted_lesions, figures.prompted_clicks) == (1, 1)
    deaf = evaluate_volume(segmenter(FakePropagation(deaf=True)), scan, ProtocolSettings(prompted=1)).figures
    # beside 3 true lesions of 64 voxels, 4 of the other type
    assert deaf.unprompted_volume_error_ml == pytest.approx(4 * 64 * VOXEL_ML)
    assert deaf.unprompted_volume_error_percent == pytest.approx(100 * 4 / 3)
    assert deaf.unprompted_volume_absolute_error_percent == pytest.approx(100 * 4 / 3)
    assert deaf.unprompted_panoptic_quality == pytest.approx(3 / (3 + 4 / 2))
    # The surfaces of the true ones agree; the others lie a slice or more away: 2 * 3 / (3 + 7) of equal areas.
    assert deaf.unprompted_surface_dice == pytest.approx(0.6)
    wide = ProtocolSettings(prompted=1, surface_mm=1000.0)
    assert evaluate_volume(segmenter(FakePropagation(deaf=True)), scan, wide).figures.unprompted_surface_dice == 1.0
    assert deaf.scan_false_lesions == 4


def test_corrections_are_counted_only_where_something_is_wrong(scan: Volume) -> None:
    figures = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=1, clicks=3)).figures
    assert figures.prompted_clicks == 3  # the corners of the box are missing after each click
    perfect = torch.ones(1, 8, 8, dtype=torch.bool)
    click = first_click(perfect)
    again = correct(click, torch.full((1, 2, 2), 9.0), perfect, torch.zeros(1))
    assert (protocol._clicks_made(click).tolist(), protocol._clicks_made(again).tolist()) == ([1], [1])


def test_a_hand_far_off_clicks_something_else(scan: Volume) -> None:
    perfect = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=2)).figures
    noisy = ProtocolSettings(prompted=2, reader=Reader(noise_mm=30.0, seed=1))
    figures = evaluate_volume(segmenter(), scan, noisy).figures
    assert figures.prompted_dice < perfect.prompted_dice
    assert figures.no_exemplars == perfect.no_exemplars
    assert evaluate_volume(segmenter(), scan, noisy).figures == figures


def test_a_reader_who_overlooks_lesions_prompts_fewer(scan: Volume) -> None:
    report = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=2, reader=Reader(miss=0.5)))
    assert [row.role for row in report.lesions].count("prompted") == 2  # one of two promptable, of two classes
    assert [row.role for row in report.lesions].count("never") == 4
    assert report.figures.prompted_lesions == 1


@pytest.mark.parametrize(("slices", "expected"), [("largest", {3}), ("any", {3, 4, 5})])
def test_a_reader_clicks_on_the_slices_that_it_is_asked_for(
    slices: str, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    row = VolumeSegmenter.row

    def noted(self: VolumeSegmenter, encoded: EncodedVolume, slice_index: int, tile: int) -> int:
        asked.append(slice_index)
        return row(self, encoded, slice_index, tile)

    monkeypatch.setattr(VolumeSegmenter, "row", noted)
    one = make_scan([(TYPE_A, box((3, 6), (12, 20), (12, 20)))], shape=(9, 64, 48))  # as large on slices 3, 4 and 5
    for seed in range(12):
        reader = Reader(seed=seed, slices=slices)  # type: ignore[arg-type]
        evaluate_volume(segmenter(), one, ProtocolSettings(prompted=1, reader=reader))
    assert set(asked) == expected


def test_candidates_are_all_that_was_found_before_the_peak_counts(scan: Volume) -> None:
    report = evaluate_volume(segmenter(Doubtful()), scan, ProtocolSettings(prompted=1, counts=(2,)))
    # One exemplar: 0.6 is above the threshold and below the peak threshold. Three unprompted lesions of either type.
    assert report.figures.lesion_recall == 0.0
    assert report.figures.unprompted_dice == 0.0
    assert len(report.candidates) == 6
    for row in report.candidates:
        assert row.hit
        assert row.peak == pytest.approx(0.6, abs=1e-5)
        assert row.volume_ml == pytest.approx(64 * VOXEL_ML)
    assert report.curve()[0].right == 1.0  # two exemplars: 0.9
    without = evaluate_volume(segmenter(Doubtful()), scan, ProtocolSettings(prompted=0))
    assert [row.hit for row in without.candidates].count(False) == 8  # of either type, the other one's four
    assert len(without.candidates) == 16


def test_a_scan_without_lesions_has_no_candidates() -> None:
    scan = make_scan([(TYPE_A, BOXES[0]), (TYPE_B, BOXES[1])], annotated=False)
    report = evaluate_volume(segmenter(), scan, ProtocolSettings(counts=(1,), rules="paper"))
    assert report.candidates == report.classes == report.curve() == ()
    assert report.paper is None
    assert report.false_without_exemplars == 2


def test_false_lesions_carry_their_volume_and_lesions_their_place() -> None:
    # 64 rows of 1.5 mm, anterior to posterior; slices 5 mm apart from feet to head
    scan = make_scan([(TYPE_A, BOXES[0]), (TYPE_A, BOXES[3]), (TYPE_B, BOXES[7])], shape=(18, 64, 48))
    deaf = evaluate_volume(segmenter(FakePropagation(deaf=True)), scan, ProtocolSettings(prompted=1, target_class=1))
    assert deaf.classes[0].false_volumes_ml == pytest.approx([64 * VOXEL_ML])
    rows = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=1)).lesions
    assert [row.third for row in rows] == ["lower", "middle", "upper"]  # slices 1, 7 and 15 of 18
    # centres of rows 12..19 and columns 12..19: 15.5 pixels; LPS, as the affine runs to -R and -A
    assert (rows[0].x_mm, rows[0].y_mm, rows[0].z_mm) == pytest.approx((15.5 * 1.5, 15.5 * 1.5, 5.0))
    # normalised: type A 0.7, body 0.2
    assert rows[0].contrast == pytest.approx(0.5, abs=1e-3)


def test_the_contrast_of_touching_lesions_is_to_what_is_around_both() -> None:
    boxes = [box((2, 3), (16, 24), (8, 16)), box((2, 3), (16, 24), (16, 24))]
    rows = evaluate_volume(segmenter(), make_scan([(TYPE_A, boxes[0]), (TYPE_B, boxes[1])]), ProtocolSettings()).lesions
    assert [row.contrast for row in rows] == pytest.approx([0.5, 0.7], abs=1e-3)


def test_prompted_lesions_are_written_with_their_true_ids(scan: Volume, tmp_path: Path) -> None:
    report = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=2, target_class=1), out=tmp_path)
    voxels, _ = read_image(tmp_path / "prompted" / "scan_class1.nii.gz")
    prompted = [row.lesion for row in report.lesions if row.role == "prompted"]
    assert sorted(np.unique(voxels).tolist()) == [0, *prompted]
    for lesion in prompted:
        assert (voxels == lesion)[scan.lesions.numpy() == lesion].mean() == pytest.approx(60 / 64)


def stack(*rows: list[int]) -> np.ndarray:
    return np.array([rows], dtype=bool)


NOTHING = stack([0] * 12)


def test_by_the_papers_rules_a_blob_over_many_lesions_is_perfect() -> None:
    truth = stack([1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0])  # two lesions of 2 ml each
    figures = score_by_paper(truth, stack([1] * 12), NOTHING, voxel_ml=0.5)
    assert (figures.f1, figures.precision, figures.recall) == (1.0, 1.0, 1.0)
    assert figures.scan_dice == pytest.approx(2 * 8 / (8 + 12))


def test_by_the_papers_rules_lesions_under_2_ml_do_not_exist() -> None:
    truth = stack([1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0])  # 2 ml and 1.5 ml
    found = stack([1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1])  # the small one missed, and a false one of 1.5 ml
    assert score_by_paper(truth, found, NOTHING, voxel_ml=0.5) == PaperFigures(1.0, 1.0, 1.0, 1.0, 0.0, 0.0)


def test_by_the_papers_rules_nothing_is_propagated_where_there_are_fewer_than_20_lesions() -> None:
    truth = stack([1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0])
    prompted, found = stack([1, 1, 1, 1] + [0] * 8), stack([0] * 8 + [1] * 4)
    figures = score_by_paper(truth, found, prompted, voxel_ml=0.5)
    assert figures.scan_dice == pytest.approx(2 * 5 / (8 + 8))
    assert figures.f1 == 1.0
    assert figures.gated_scan_dice == pytest.approx(2 * 4 / (8 + 4))
    assert figures.gated_f1 == pytest.approx(2 / (2 + 1))
    many = np.zeros((20, 2, 4), dtype=bool)
    many[:, 0] = True
    many[1::2] = False  # 10 lesions on every other slice ...
    many = np.concatenate([many, np.zeros((1, 2, 4), dtype=bool), many])  # ... twice
    figures = score_by_paper(many, many, np.zeros_like(many), voxel_ml=0.5)
    assert (figures.scan_dice, figures.gated_scan_dice, figures.gated_f1) == (1.0, 1.0, 1.0)


def test_by_the_papers_rules_two_empty_masks_agree() -> None:
    assert score_by_paper(NOTHING, NOTHING, NOTHING, 0.5) == PaperFigures(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    false = score_by_paper(NOTHING, stack([1] * 12), NOTHING, 0.5)
    assert (false.scan_dice, false.f1, false.recall) == (0.0, 0.0, None)


def test_the_papers_rules_stand_beside_ours(scan: Volume) -> None:
    ours = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=1))
    both = evaluate_volume(segmenter(), scan, ProtocolSettings(prompted=1, rules="paper"))
    assert ours.figures == both.figures
    assert ours.paper is None
    # each lesion is of 64 voxels, 0.72 ml: by the paper's rules there are none
    assert both.paper == PaperFigures(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    large = make_scan([(TYPE_A, box((1, 2), (10, 24), (10, 24))), (TYPE_A, box((3, 4), (30, 44), (10, 24)))])
    figures = evaluate_volume(segmenter(), large, ProtocolSettings(prompted=1, rules="paper")).paper
    assert figures is not None
    assert (figures.f1, figures.scan_dice, figures.gated_f1) == (1.0, 1.0, 1.0)  # 196 voxels, 2.2 ml
    assert figures.gated_scan_dice < 1  # as clicked, without corners


def test_touching_lesions_are_parted_as_the_settings_say() -> None:
    touching = [box((2, 3), (12, 28), (8, 24)), box((2, 3), (28, 44), (20, 36))]  # along 4 of 16 pixels
    scan = make_scan([(TYPE_A, where) for where in touching])
    recalls = []
    for prominence_mm in (0.0, 1.0):  # 5 mm from slice to slice, 3 mm from the waist to its edge
        settings = InferenceSettings(tile_px=32, split_prominence_mm=prominence_mm)
        model = VolumeSegmenter(FakeBackbone(), FakePropagation(), settings)
        recalls.append(evaluate_volume(model, scan, ProtocolSettings(prompted=0)).figures.scan_lesion_recall)
    assert recalls == [0.5, 1.0]


def test_the_plain_answer_counts_in_an_evaluation_as_in_a_session() -> None:
    found = []
    for level in ("exemplars", "mixed", "pooled", "known", "cautious", "selective", "moderate"):
        settings = InferenceSettings(tile_px=32, level=level)  # type: ignore[arg-type]
        model = VolumeSegmenter(FakeBackbone(), Undecided(), settings)
        found.append(evaluate_volume(model, eight_lesions(), ProtocolSettings(prompted=2)).figures.right)
    assert found[0] is not None
    assert found[0] < 0.5
    assert found[1:] == [1] * 6
