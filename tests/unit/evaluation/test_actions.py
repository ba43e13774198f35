"""Readers who work in a session: what they click, accept and reject, and the curves of it, computed by hand.

Eight lesions of one class and 64 voxels each: four of the look P, four of the look Q; two of each are never prompted.
Two healthy places look nearly like P. The model is sure of what differs by less than 0.05 from an exemplar, and unsure
(0.6) of what differs by less than 0.15. What is more like a negative exemplar is not found.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mois.cli.evaluate import evaluate
from mois.cli.evaluate_options import ProtocolOptions, ReaderOptions, protocol_settings
from mois.evaluation.actions.curves import ReadersAtWork
from mois.evaluation.actions.statistics import summarise_actions
from mois.evaluation.figures import SubjectReport
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ScanPlan
from mois.geometry import SliceGrid
from mois.inference.segmenter import VolumeSegmenter
from mois.interfaces import Backbone
from mois.records import Exemplars, Features, SemanticPrediction, Volume
from mois.report.evaluation_page import write_report
from mois.report.results import Results
from mois.session.advice import inner_voxel
from mois.session.prompts.refusals import NothingLeft
from mois.session.state import State
from mois.session.workbench import Workbench
from mois.sharing.lesion_model import LesionModel
from tests.support.fake_model import CERTAIN, TYPE_A, FakePropagation, box, make_scan
from tests.support.paths import ROOT
from tests.support.session_fakes import SETTINGS, Clickable

LOOK_P, LOOK_Q, HEALTHY = 60.0, 70.0, 64.0  # normalised: 0.5, 0.6, 0.54
LOOKS = [HEALTHY] * 2 + [LOOK_P] * 4 + [LOOK_Q] * 4
ACTIONS = (0, 1, 2, 3, 4, 5)
SEED = 4
"""The random order of this seed begins with two lesions of the look P."""


class Nearest(FakePropagation):
    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        times = exemplars.valid.shape[0] // features.image.shape[0]
        image = features.image.repeat_interleave(times, 0)  # (B, 1, P, P)
        far = (image - exemplars.tokens["value"].unsqueeze(3)).abs()  # (B, K, P, P)

        def nearest(which: Tensor) -> Tensor:
            away = torch.where(which[:, :, None, None], far, torch.ones_like(far))
            return torch.cat([away, torch.ones_like(image)], 1).amin(1)

        positive = nearest(exemplars.valid & ~exemplars.negative)
        allowed = positive < nearest(exemplars.valid & exemplars.negative)
        probability = torch.where(positive < 0.05, 0.999, torch.where(positive < 0.15, 0.6, 0.0001)) * allowed
        return SemanticPrediction(probability.clamp(min=1e-4).logit(), torch.full((len(probability),), CERTAIN))


@pytest.fixture(scope="module")
def scan() -> Volume:
    places = [box((1 + 2 * n, 2 + 2 * n), (16, 24), (16, 24)) for n in range(len(LOOKS))]
    volume = make_scan(list(zip(LOOKS, places, strict=True)), shape=(21, 64, 48))
    return volume._replace(lesions=(volume.lesions - 2).clamp(min=0), classes=dict.fromkeys(range(1, 9), 1))


def model() -> VolumeSegmenter:
    return VolumeSegmenter(Clickable(), Nearest(), SETTINGS)


@pytest.fixture(scope="module")
def report(scan: Volume) -> SubjectReport:
    return evaluate_volume(model(), scan, ProtocolSettings(prompted=1, actions=ACTIONS, reader=Reader(seed=SEED)))


def curve(report: SubjectReport, strategy: str, name: str = "right") -> list[float]:
    return [getattr(point, name) for point in report.classes[0].actions if point.strategy == strategy]


def test_the_curves_can_be_computed_by_hand(report: SubjectReport) -> None:
    order = Reader(seed=SEED).choose_lesions(
        dict.fromkeys(Reader(seed=SEED).hold_out(dict.fromkeys(range(1, 9), 1.0))[0], 1.0), 4
    )
    assert [lesion <= 4 for lesion in order] == [True, True, False, False]
    # 4 lesions of 64 voxels are scored. With P alone, 2 of them and the 2 healthy places are found: 2 * 2 / (4 + 4).
    # With Q as well, all 4 and the healthy places: 2 * 4 / (6 + 4).
    assert curve(report, "random") == pytest.approx([0, 0.5, 0.5, 0.8, 0.8, 0.8])
    # The other P is most surely a lesion, and is accepted. Then come the healthy places: 2 * 2 / (2 + 4) once one is
    # rejected. Q was not found, and comes last.
    assert curve(report, "suggested") == pytest.approx([0, 0.5, 0.5, 2 / 3, 1, 1])
    assert curve(report, "suggested", "accepted") == [0, 0, 1, 1, 1, 2]
    # The list shows the healthy places first: 2 * 2 / (2 + 4) once one is rejected. Then P is accepted, and Q clicked.
    assert curve(report, "corrects") == pytest.approx([0, 0.5, 2 / 3, 2 / 3, 2 / 3, 1])
    assert curve(report, "corrects", "lesion_f1") == pytest.approx([0, 0.5, 2 / 3, 2 / 3, 2 / 3, 1])
    assert curve(report, "corrects", "rejected") == [0, 0, 1, 2, 2, 2]
    assert curve(report, "corrects", "accepted") == [0, 0, 0, 0, 1, 1]
    assert curve(report, "random", "used") == [0, 1, 2, 3, 4, 4]  # four may be prompted


def test_a_click_that_shows_nothing_new_is_passed_over(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, clicks = Workbench.apply, []

    def without_second_click(bench: Workbench, name: str, state: State, arguments: dict[str, object]) -> object:
        clicks.extend([name] if name == "click" else [])
        if len(clicks) == 2 and name == "click":
            raise NothingLeft("lesion 2: all its voxels would belong to locked or prompted lesions")
        return apply(bench, name, state, arguments)

    monkeypatch.setattr(Workbench, "apply", without_second_click)
    settings = ProtocolSettings(prompted=1, actions=(5,), reader=Reader(seed=SEED))
    assert curve(evaluate_volume(model(), scan, settings), "random", "used") == [4]  # it is tried again later


def test_a_reader_in_a_session_clicks_on_the_slice_of_its_choice() -> None:
    scan = make_scan([(TYPE_A, box((3, 6), (12, 20), (12, 20)))], shape=(9, 64, 48))  # as large on slices 3, 4 and 5
    clicked = set()
    for seed in range(12):
        settings = ProtocolSettings(prompted=1, reader=Reader(seed=seed, slices="any"))
        plan = ScanPlan.of(scan, SliceGrid.of(scan.shape, scan.affine), settings)
        reader = ReadersAtWork(LesionModel.of(model()), scan, plan, settings).reader(1)
        place = inner_voxel(reader._on_its_slice(1))
        assert place[0] == plan.lesions.clicked_slice(1, settings.reader)
        assert plan.lesions.only([1])[place] == 1
        clicked.add(place[0])
    assert clicked == {3, 4, 5}


def test_a_click_that_falls_on_a_found_lesion_rejects_that_lesion(scan: Volume) -> None:
    settings = ProtocolSettings(prompted=1, reader=Reader(seed=SEED))
    plan = ScanPlan.of(scan, SliceGrid.of(scan.shape, scan.affine), settings)
    reader = ReadersAtWork(LesionModel.of(model()), scan, plan, settings).reader(1)
    first = next(done for done in reader.work("random") if done.actions == 1)
    state, _ = reader._bench.apply("propagate", first.state, {})
    healthy = next(n for n, each in state.lesions.items() if not each.owns and reader._is_false(each.mask))
    latest = max(state.lesions)
    assert healthy != latest
    state = replace(state, lesions={n: each for n, each in state.lesions.items() if n != latest})
    done = reader._click_and_reject(replace(first, state=state), inner_voxel(state.lesions[healthy].mask))
    assert done is not None
    assert healthy not in done.state.lesions
    assert len(done.state.rejected) == 1


def test_one_negative_exemplar_is_measured_away_from_its_own_place(report: SubjectReport) -> None:
    first = report.classes[0].negatives[0]
    # The other healthy place counts: 2 * 2 / (3 + 4), and it is gone afterwards: 2 * 2 / (2 + 4).
    assert (first.exemplars, first.right, first.right_after) == (1, pytest.approx(4 / 7), pytest.approx(2 / 3))  # type: ignore[comparison-overlap]
    assert (first.false_lesions, first.false_after) == (1, 0)


def test_without_curves_over_actions_nothing_changes(scan: Volume, report: SubjectReport) -> None:
    plain = evaluate_volume(model(), scan, ProtocolSettings(prompted=1, reader=Reader(seed=SEED)))
    assert plain.classes[0] == replace(report.classes[0], actions=(), negatives=())
    assert "actions" not in plain.seconds


@pytest.mark.parametrize("strategy", ["suggested", "corrects"])
def test_a_strategy_of_the_session_decides_which_lesions_are_prompted(scan: Volume, strategy: str) -> None:
    settings = ProtocolSettings(prompted=2, reader=Reader(strategy, seed=SEED))  # type: ignore[arg-type]
    rows = evaluate_volume(model(), scan, settings).lesions
    prompted = sorted(row.lesion for row in rows if row.role == "prompted")
    looks = ["P" if lesion <= 4 else "Q" for lesion in prompted]
    assert looks == ["P", "P"]


def test_the_files_and_the_report_show_the_curves(report: SubjectReport, tmp_path: Path) -> None:
    stored = SubjectReport.from_json(json.loads(json.dumps(report.to_json())))
    assert stored == report
    settings = ProtocolSettings(prompted=1, actions=ACTIONS)
    metrics = write_result_files(tmp_path, [report, replace(report, subject="b", patient="b")], protocol=settings)
    points = {(p["strategy"], p["actions"]): p for p in metrics["actions"]["points"]}
    assert len(points) == 3 * len(ACTIONS)
    assert points["suggested", 2]["right"] == {"mean": pytest.approx(0.5), "ci95": [pytest.approx(0.5)] * 2, "n": 2}
    assert metrics["actions"]["negatives"][0]["change_right"]["mean"] == pytest.approx(2 / 3 - 4 / 7)
    assert len((tmp_path / "actions.csv").read_text().splitlines()) == 1 + 2 * len(points)
    assert Results.read(tmp_path).metrics == metrics
    page = write_report(tmp_path).read_text()
    assert "What helps a reader" in page
    assert "One negative exemplar" in page


@pytest.mark.parametrize(
    ("reader", "protocol", "option"),
    [
        (ReaderOptions("corrects"), ProtocolOptions(), "--reader.strategy=corrects"),
        (ReaderOptions(), ProtocolOptions(actions=(0, 1)), "--protocol.actions"),
    ],
)
def test_maps_of_another_system_have_no_session(
    reader: ReaderOptions, protocol: ProtocolOptions, option: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{option} needs a model to work with; give --bundle"):
        evaluate(tmp_path, tmp_path / "out", predictions=tmp_path, reader=reader, protocol=protocol)


def test_a_number_of_actions_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--protocol.actions=\(-1,\) must be 0 or more"):
        protocol_settings(ReaderOptions(), ProtocolOptions(actions=(-1,)), 0)


def test_the_keys_of_the_curves_are_documented(report: SubjectReport) -> None:
    told = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    content = summarise_actions([report])["actions"]
    assert all(f'"{key}"' in told for key in {*content, *content["points"][0], *content["negatives"][0]})


def test_any_other_fault_of_a_click_ends_the_evaluation(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Workbench, name: str, state: State, arguments: dict[str, object]) -> object:
        raise ValueError("the features are gone")

    monkeypatch.setattr(Workbench, "apply", broken)
    with pytest.raises(ValueError, match="the features are gone"):
        evaluate_volume(model(), scan, ProtocolSettings(prompted=1, actions=(5,), reader=Reader(seed=SEED)))
