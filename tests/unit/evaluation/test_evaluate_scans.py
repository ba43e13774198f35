"""An evaluation that is stopped goes on where it was, and never mixes two things in one folder."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mois.evaluation.evaluate_scans import Evaluation, evaluate_scans
from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_records import read_rows
from mois.evaluation.robustness import CHANGES, ChangedScan, change_scan, summarise_changes
from mois.evaluation.scored_systems import map_files, read_maps, score_maps
from mois.evaluation.settings import ProtocolSettings
from mois.machine.processes import Processes
from mois.records import Volume
from mois.scans.datasets import SubjectFiles, read_dataset
from mois.sharing.calibration import Calibration
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.example_results import example_report

Make = Callable[..., Path]


class Scorer:
    """Remembers what it was asked, and whether that was without a folder to write to."""

    def __init__(self, stop_at: str = "") -> None:
        self.asked: list[tuple[str, bool]] = []
        self.stop_at = stop_at

    def __call__(self, volume: Volume, settings: ProtocolSettings, out: Path | None) -> SubjectReport:
        if volume.subject == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((volume.subject, out is None))
        return example_report(volume.subject, volume.patient, 0.5, seed=int(volume.subject[1:]))


def evaluation(score: Scorer, **changes: object) -> Evaluation:
    return replace(Evaluation(score, ProtocolSettings(), {"model": "m"}), **changes)  # type: ignore[arg-type]


def test_a_stopped_evaluation_goes_on_and_ends_as_if_it_had_not_been(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=3))
    first, second, whole = Scorer(stop_at="p2"), Scorer(), Scorer()
    with pytest.raises(KeyboardInterrupt):
        evaluate_scans(evaluation(first), scans, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()
    evaluate_scans(evaluation(second), scans, tmp_path / "out")
    assert [name for name, _ in first.asked + second.asked] == ["p0", "p1", "p2"]
    log = io.StringIO()  # no terminal: a line for each scan
    evaluate_scans(evaluation(whole), scans, tmp_path / "whole", Console(file=log, force_terminal=False, width=20))
    assert re.match(r"(evaluating 3 of 3 scans: scan \d, after \d+ s\n){3}$", log.getvalue())
    for name in ("metrics.json", "subjects.csv", "lesions.csv", "candidates.csv", "curve.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_scan_whose_files_changed_is_scored_again(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset(subjects=2)
    more = tmp_path / "more.txt"
    more.write_text("1")
    score = Scorer()
    task = evaluation(score, more_files=lambda name: [more] if name == "p0" else [])
    evaluate_scans(task, read_dataset(root), tmp_path / "out")
    save_nifti(root / "imagesTr" / "p1_0000.nii.gz", scan_with_lesions(9)[0])
    evaluate_scans(task, read_dataset(root), tmp_path / "out")
    more.write_text("2")
    evaluate_scans(task, read_dataset(root), tmp_path / "out")
    assert [name for name, _ in score.asked] == ["p0", "p1", "p1", "p0"]


def test_a_folder_with_results_of_something_else_is_refused(make_dataset: Make, tmp_path: Path) -> None:
    scans, out = read_dataset(make_dataset(subjects=1)), tmp_path / "out"
    evaluate_scans(evaluation(Scorer()), scans, out)
    with pytest.raises(ValueError, match=r"differs in prompted \(5 there, 3 now\); choose another folder"):
        evaluate_scans(evaluation(Scorer(), protocol=ProtocolSettings(prompted=3)), scans, out)
    with pytest.raises(ValueError, match="differs in model; choose another folder"):
        evaluate_scans(evaluation(Scorer(), identity={"model": "n"}), scans, out)
    (out / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds metrics\.json, but no evaluation"):
        evaluate_scans(evaluation(Scorer()), scans, out)


def test_scans_that_cannot_be_scored_are_refused_before_any_work(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset(subjects=2)
    (root / "labelsTr" / "p1.nii.gz").unlink()
    score = Scorer()
    with pytest.raises(ValueError, match="scan p1 has no label map"):
        evaluate_scans(evaluation(score), read_dataset(root), tmp_path / "out")
    with pytest.raises(ValueError, match="there is no scan"):
        evaluate_scans(evaluation(score), [], tmp_path / "out")
    assert score.asked == []
    assert not (tmp_path / "out").exists()


def test_candidates_get_their_calibrated_confidence(make_dataset: Make, tmp_path: Path) -> None:
    calibration = Calibration((0.5, 0.9), (0.2, 0.6), 10, 5)
    evaluate_scans(evaluation(Scorer(), calibration=calibration), read_dataset(make_dataset(subjects=1)), tmp_path)
    rows = read_rows(tmp_path / "candidates.csv")
    assert len(rows) == 40
    for row in rows:
        expected = np.interp(float(row["peak"]), [0.5, 0.9], [0.2, 0.6])
        assert float(row["confidence"]) == pytest.approx(expected, abs=1e-6)
    assert "calibrated confidence" not in (tmp_path / "metrics.json").read_text(encoding="utf-8")


def test_robustness_scores_each_change_once(make_dataset: Make, tmp_path: Path) -> None:
    scans, score = read_dataset(make_dataset(subjects=1)), Scorer()
    evaluate_scans(evaluation(score, robustness=True), scans, tmp_path)
    assert score.asked == [("p0", False)] + [("p0", True)] * len(CHANGES)
    evaluate_scans(evaluation(score, robustness=True), scans, tmp_path)
    assert len(score.asked) == 1 + len(CHANGES)
    found = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert list(found["changes"]) == list(CHANGES)
    assert found["changes"]["noise"]["change_dice"] == {"mean": 0.0, "ci95": None, "n": 1}


def test_changes_are_paired_with_the_unchanged_scan() -> None:
    def report(name: str, dice: float) -> SubjectReport:
        whole = example_report(name, name, dice, seed=0)
        figures = replace(whole.classes[0].figures, unprompted_dice=dice, lesion_f1=None)
        return replace(whole, classes=(replace(whole.classes[0], figures=figures),))

    reports = [report("a", 0.8), report("b", 0.4)]
    scans = [ChangedScan(name, name, {"noise": {"dice": dice, "f1": 0.3}}) for name, dice in (("b", 0.3), ("a", 0.5))]
    found = summarise_changes(reports, scans)
    assert found["unchanged"]["dice"]["mean"] == pytest.approx(0.6)
    noise = found["changes"]["noise"]
    assert noise["dice"]["mean"] == pytest.approx(0.4)
    assert noise["change_dice"]["mean"] == pytest.approx((-0.3 - 0.1) / 2)
    assert noise["change_dice"]["ci95"] == pytest.approx([-0.3, -0.1])
    assert noise["change_f1"] == {"mean": None, "ci95": None, "n": 0}  # F1 was not measured before


def scan_volume(files: SubjectFiles) -> Volume:
    return files.read()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_scan_keeps_its_truth_and_its_air(make_dataset: Make, name: str) -> None:
    (files,) = read_dataset(make_dataset(subjects=1))
    volume = scan_volume(files)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = change_scan(volume, name), change_scan(volume, name), change_scan(volume, name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.image.shape == volume.image.shape
    assert one.image.dtype == torch.float32
    assert bool(torch.isfinite(one.image).all())
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.lesions, volume.lesions)
    assert bool((one.image[volume.image == 0] == 0).all())
    difference = (one.image - volume.image).abs().mean() / volume.image.mean()
    assert 0.002 < float(difference) < 0.5
    if name != "coarser_pixels":
        assert not torch.equal(one.image, other.image)


def test_coarser_pixels_blur_in_plane_alone(make_dataset: Make) -> None:
    (files,) = read_dataset(make_dataset(subjects=1))
    volume = scan_volume(files)  # slices along the second axis, 6 mm apart
    image = torch.full_like(volume.image, 100.0)
    image[:, 4] = 200.0  # a bright slice stays bright, its neighbours stay dark
    image[20, 2, 24] = 300.0  # a bright voxel does not
    new = change_scan(volume._replace(image=image), "coarser_pixels").image
    assert float(new[5:35, 4, 5:43].min()) == pytest.approx(200, abs=1)
    assert float(new[5:35, 6, 5:43].max()) == pytest.approx(100, abs=1)
    assert float(new[20, 2, 24]) < 250


def test_an_unknown_change_and_an_empty_scan(make_dataset: Make) -> None:
    (files,) = read_dataset(make_dataset(subjects=1))
    volume = scan_volume(files)
    with pytest.raises(ValueError, match=r"'fog' is unknown; choose from bias_field, noise"):
        change_scan(volume, "fog")
    empty = volume._replace(image=torch.zeros_like(volume.image))
    assert torch.equal(change_scan(empty, "noise").image, empty.image)


def test_perfect_maps_score_one_and_empty_ones_nothing(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset(subjects=1)
    (files,) = read_dataset(root)
    volume = scan_volume(files)
    classes = scan_with_lesions(0)[1]
    save_nifti(tmp_path / "semantic" / "p0.nii.gz", classes)
    save_nifti(tmp_path / "empty" / "p0.nii.gz", np.zeros_like(classes))
    for c in (1, 2):
        ids = np.where(classes == c, scan_with_lesions(0)[2], 0).astype(np.int32)
        save_nifti(tmp_path / "instances" / f"p0_class{c}.nii.gz", ids)
    settings = ProtocolSettings(prompted=2)
    for name, expected in (("semantic", 1.0), ("instances", 1.0), ("empty", 0.0)):
        report = score_maps(tmp_path / name, None, "semantic", volume, settings, tmp_path / "out" / name)
        assert report.figures.unprompted_dice == expected
        assert report.figures.lesion_recall == expected
        assert (tmp_path / "out" / name / "overlays" / "p0_class2.png").is_file()
        assert (tmp_path / "out" / name / "predictions" / "p0_class1.nii.gz").is_file()


def test_maps_that_are_missing_or_elsewhere_are_refused(make_dataset: Make, tmp_path: Path) -> None:
    (files,) = read_dataset(make_dataset(subjects=1))
    volume = scan_volume(files)
    with pytest.raises(ValueError, match=re.escape("no map of scan p0; write p0.nii.gz")):
        read_maps(tmp_path, volume)
    save_nifti(tmp_path / "a" / "p0.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=re.escape("shape (3, 3, 3) differs from (40, 8, 48) of scan p0")):
        read_maps(tmp_path / "a", volume)
    save_nifti(tmp_path / "b" / "p0.nii.gz", np.zeros((40, 8, 48), np.uint8), np.diag([2.0, 6.0, 2.1, 1.0]))
    with pytest.raises(ValueError, match=r"differs from that of scan p0 by 4\.8 mm"):
        read_maps(tmp_path / "b", volume)


def test_maps_of_a_scan_are_not_those_of_one_whose_name_begins_alike(tmp_path: Path) -> None:
    for name in ("p1.nii.gz", "p10.nii.gz", "p2_class1.nii.gz", "p2_class12.nii.gz", "p2_class1_old.nii.gz"):
        (tmp_path / name).touch()
    assert [path.name for path in map_files(tmp_path, "p1")] == ["p1.nii.gz"]
    assert [path.name for path in map_files(tmp_path, "p2")] == ["p2_class1.nii.gz", "p2_class12.nii.gz"]
    assert map_files(tmp_path, "p") == []


class Together(Processes):
    """One of several processes that run one after the other."""

    def wait(self) -> None:
        pass


def test_processes_share_the_scans_and_the_first_one_writes_the_results(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=3))
    sure = Calibration((0.1, 0.9), (0.2, 0.7), 4, 2)
    scorers = Scorer(), Scorer(), Scorer()

    def evaluate(scorer: Scorer, out: str, processes: Processes) -> None:
        wanted = evaluation(scorer, robustness=True, calibration=sure)
        evaluate_scans(wanted, scans, tmp_path / out, processes=processes)

    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):  # which it would have waited for
        evaluate(scorers[1], "two", Together(1, 2))
    evaluate(scorers[0], "two", Together(0, 2))
    evaluate(scorers[2], "one", Processes())
    assert {name for name, _ in scorers[0].asked} == {"p0", "p2"}
    assert {name for name, _ in scorers[1].asked} == {"p1"}
    for name in ("metrics.json", "lesions.csv", "candidates.csv", "robustness.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name


def test_processes_without_a_common_folder_are_told_so(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=2))
    with pytest.raises(
        ValueError, match="lacks the result of scan p1, which another process scored; choose a folder that all"
    ):
        evaluate_scans(evaluation(Scorer()), scans, tmp_path / "own", processes=Together(0, 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"subject": "p0"', '"subject": "p9"'),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "sha256"}),
        lambda text: "[]",
        lambda text: '{"files": 3, "report": {}}',
        lambda text: json.dumps({"files": json.loads(text)["files"], "report": {"subject": 3}}),
    ],
)
def test_a_damaged_file_of_a_finished_scan_has_it_scored_again(
    make_dataset: Make, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    scans, out, score = read_dataset(make_dataset(subjects=2)), tmp_path / "out", Scorer()
    evaluate_scans(evaluation(score), scans, out)
    whole = (out / "finished" / "p0.json").read_text(encoding="utf-8")
    (out / "finished" / "p0.json").write_text(damage(whole), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"p0\.json.*Scan p0 is scored again"):
        evaluate_scans(evaluation(score), scans, out)
    assert [name for name, _ in score.asked] == ["p0", "p1", "p0"]
    assert (out / "finished" / "p0.json").read_text(encoding="utf-8") == whole


def test_a_finished_scan_of_an_earlier_version_is_not_scored_again(make_dataset: Make, tmp_path: Path) -> None:
    scans, out, score = read_dataset(make_dataset(subjects=1)), tmp_path / "out", Scorer()
    evaluate_scans(evaluation(score), scans, out)
    content = json.loads((out / "finished" / "p0.json").read_text(encoding="utf-8"))
    first = {name: content[name] for name in ("files", "report")}
    (out / "finished" / "p0.json").write_text(json.dumps(first), encoding="utf-8")
    evaluate_scans(evaluation(score), scans, out)
    assert len(score.asked) == 1


@pytest.mark.parametrize("name", ["predictions/p0.nii.gz", "predictions/p0_class2.nii.gz", "overlays/p0_class1.png"])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_deleted_or_changed_of_a_scan_comes_back(
    make_dataset: Make, tmp_path: Path, name: str, damaged: bool
) -> None:
    class Writer(Scorer):
        def __call__(self, volume: Volume, settings: ProtocolSettings, out: Path | None) -> SubjectReport:
            assert out is not None
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(b"map")
            return super().__call__(volume, settings, out)

    scans, out, score = read_dataset(make_dataset(subjects=1)), tmp_path, Writer()
    evaluate_scans(evaluation(score), scans, out)
    evaluate_scans(evaluation(score), scans, out)
    assert len(score.asked) == 1
    if damaged:
        (out / name).write_bytes(b"m")
    else:
        (out / name).unlink()
    with pytest.warns(UserWarning, match="is missing or was changed; scan p0 is scored again"):
        evaluate_scans(evaluation(score), scans, out)
    assert (out / name).read_bytes() == b"map"
    assert len(score.asked) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"protocol": 3}', '{"protocol": '])
def test_a_damaged_description_of_an_evaluation_ends_in_one_line(
    make_dataset: Make, tmp_path: Path, content: str
) -> None:
    scans = read_dataset(make_dataset(subjects=1))
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json.*choose another folder"):
        evaluate_scans(evaluation(Scorer()), scans, tmp_path)


def test_a_scan_is_scored_again_once_the_dataset_says_something_else_of_it(make_dataset: Make, tmp_path: Path) -> None:
    scans, score = read_dataset(make_dataset(subjects=2)), Scorer()
    for changes in ({}, {"patient": "q"}, {"classes": {1: "a", 2: "b", 3: "c"}}, {"channels": {0: "CT"}}):
        now = [replace(scans[0], **changes), scans[1]]  # type: ignore[arg-type]
        evaluate_scans(evaluation(score), now, tmp_path)
        assert read_rows(tmp_path / "subjects.csv")[0]["patient"] == now[0].patient
    assert [name for name, _ in score.asked] == ["p0", "p1", "p0", "p0", "p0"]


def test_a_map_that_is_now_of_another_class_is_another_map(make_dataset: Make, tmp_path: Path) -> None:
    scans, score, maps = read_dataset(make_dataset(subjects=1)), Scorer(), tmp_path / "maps"
    maps.mkdir()
    (maps / "p0_class1.nii.gz").write_bytes(b"map")
    task = evaluation(score, more_files=lambda name: map_files(maps, name))
    evaluate_scans(task, scans, tmp_path / "out")
    (maps / "p0_class1.nii.gz").rename(maps / "p0_class2.nii.gz")
    evaluate_scans(task, scans, tmp_path / "out")
    assert len(score.asked) == 2


@pytest.mark.parametrize("part", ["predictions", "finished", "overlays/worst"])
def test_no_link_in_a_folder_of_results_is_written_through(make_dataset: Make, tmp_path: Path, part: str) -> None:
    scans, out, score = read_dataset(make_dataset(subjects=1)), tmp_path / "out", Scorer()
    (tmp_path / "away").mkdir()
    (out / part).parent.mkdir(parents=True)
    (out / part).symlink_to(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"{part} is a link that leads out of"):
        evaluate_scans(evaluation(score), scans, out)
    assert score.asked == []
    assert not any((tmp_path / "away").iterdir())


def test_maps_of_no_evaluation_are_not_overwritten(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=1))
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "p0.nii.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds predictions, but no evaluation; choose another folder"):
        evaluate_scans(evaluation(Scorer()), scans, tmp_path)


def test_a_folder_in_which_nothing_was_scored_takes_any_evaluation(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=1))
    with pytest.raises(KeyboardInterrupt):
        evaluate_scans(evaluation(Scorer(stop_at="p0")), scans, tmp_path)
    evaluate_scans(evaluation(Scorer(), identity={"model": "n"}), scans, tmp_path)
    with pytest.raises(ValueError, match="differs in model; choose another folder"):
        evaluate_scans(evaluation(Scorer()), scans, tmp_path)


def test_another_precision_is_another_evaluation(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=1))
    evaluate_scans(evaluation(Scorer(), identity={"inference": {"precision": "32", "tile_px": 8}}), scans, tmp_path)
    now = {"inference": {"precision": "bf16", "tile_px": 8}}
    with pytest.raises(ValueError, match=r"differs in precision \(32 there, bf16 now\); choose another folder"):
        evaluate_scans(evaluation(Scorer(), identity=now), scans, tmp_path)


def test_a_run_json_of_another_program_is_not_overwritten(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=1))
    (tmp_path / "run.json").write_text('{"minutes": 9}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"differs in minutes, model; choose another folder"):
        evaluate_scans(evaluation(Scorer()), scans, tmp_path)
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == '{"minutes": 9}'
