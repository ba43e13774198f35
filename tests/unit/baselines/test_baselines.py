from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.baselines.nnunet import ReducedSettings, _choose_fold, cpu_seconds, run_nnunet
from mois.baselines.raw_dataset import RawExport, semantic_map, write_raw
from mois.baselines.reduced_nnunet import Size, default_size, reduce_plan
from mois.cli import main
from mois.errors import DataError
from mois.records import Volume
from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image
from tests.support.datasets import SHAPE, SPACING_MM, save_nifti, scan_with_lesions, write_bids


def export(data: Path, out: Path, *options: str) -> Path:
    main(["export_nnunet", "--data", str(data), "--out", str(out), *options])
    return next(out.glob("Dataset*"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_nnunet_reads_is_what_we_read(make_dataset, tmp_path):
    data = make_dataset(subjects=3, held_out=1)
    raw = export(data, tmp_path / "raw", "--dataset=7")
    assert raw.name == "Dataset007_Cubes"
    assert files(raw) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs", "splits_final.json"]
    assert files(raw / "imagesTr") == ["p0_0000.nii.gz", "p1_0000.nii.gz", "p2_0000.nii.gz"]
    assert files(raw / "imagesTs") == ["p3_0000.nii.gz"]
    for place, name in (("imagesTr", "p1_0000"), ("labelsTr", "p1"), ("imagesTs", "p3_0000"), ("labelsTs", "p3")):
        (ours, grid), (theirs, their_grid) = (read_image(root / place / f"{name}.nii.gz") for root in (data, raw))
        assert np.array_equal(ours, theirs)
        assert np.array_equal(grid, their_grid)
    about = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    assert about["labels"] == {"background": 0, "bright": 1, "dark": 2}
    assert about["channel_names"] == {"0": "T2"}
    assert about["numTraining"] == 3


def test_lesion_ids_become_classes_and_gaps_between_classes_close():
    lesions = torch.tensor([[[0, 5, 9, 300_000]]], dtype=torch.int32)
    volume = Volume("p", "p", torch.zeros(1, 1, 4), torch.eye(4), lesions, {5: 7, 9: 3, 300_000: 7})
    assert semantic_map(volume, [3, 7]).tolist() == [[[0, 2, 1, 2]]]


def test_a_dataset_that_has_lesion_ids_only(tmp_path):
    image, _, ids = scan_with_lesions()
    save_nifti(tmp_path / "data/imagesTr/a_0000.nii.gz", image)
    save_nifti(tmp_path / "data/instancesTr/a.nii.gz", ids)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 4}, "file_ending": ".nii.gz"}
    (tmp_path / "data/dataset.json").write_text(json.dumps(about))
    raw = export(tmp_path / "data", tmp_path / "raw")
    classes, _ = read_image(raw / "labelsTr/a.nii.gz")
    assert np.array_equal(classes, ids > 0)
    about = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    assert about["labels"] == {"background": 0, "lesion": 1}
    assert about["mois"]["values"] == [4]
    assert about["channel_names"] == {"0": "CT"}  # or nnU-Net would not normalise it as CT


def test_a_bids_dataset_is_exported_with_the_names_of_its_sequences(tmp_path):
    root = write_bids(tmp_path / "bids")
    folder = export(root, tmp_path / "raw", "--channels=[T1w,FLAIR]")
    about = json.loads((folder / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "T1w", "1": "FLAIR"}
    assert about["labels"] == {"background": 0, "lesion": 1}
    splits = json.loads((folder / "splits_final.json").read_text())
    assert sorted(split["val"] for split in splits) == [[f"sub-0{one}_ses-1", f"sub-0{one}_ses-2"] for one in (1, 2)]


def test_rejected_places_are_no_class_of_nnunet(make_dataset, tmp_path):
    root = make_dataset(subjects=1)
    about = json.loads((root / "dataset.json").read_text())
    about["labels"] = {"background": 0, "rejected": 1, "dark": 2}
    (root / "dataset.json").write_text(json.dumps(about))
    folder = export(root, tmp_path / "raw")
    about = json.loads((folder / "dataset.json").read_text())
    assert (about["labels"], about["mois"]["values"]) == ({"background": 0, "dark": 1}, [2])
    given, _ = read_image(root / "labelsTr" / "p0.nii.gz")
    written, _ = read_image(folder / "labelsTr" / "p0.nii.gz")
    np.testing.assert_array_equal(written, given == 2)


@pytest.mark.parametrize("subjects", [2, 3, 4, 6])
def test_folds_never_part_a_patient_also_for_few_scans(make_dataset, tmp_path, subjects):
    data = make_dataset(subjects)
    rows = [f"p{number},patient{number // 2 if subjects > 2 else number}" for number in range(subjects)]
    (data / "subjects.csv").write_text("\n".join(["subject,patient", *rows]) + "\n")
    patient = dict(row.split(",") for row in rows)
    folds = json.loads((export(data, tmp_path / "raw") / "splits_final.json").read_text(encoding="utf-8"))
    assert len(folds) == min(5, len(set(patient.values())))
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(patient)
    for fold in folds:
        assert not {patient[name] for name in fold["train"]} & {patient[name] for name in fold["val"]}


def test_the_same_scans_train_as_in_our_training(make_dataset, tmp_path):
    raw = export(make_dataset(4), tmp_path / "raw", "--train=[p2]", "--val=[p0]", "--test=[p1]")
    assert files(raw / "labelsTr") == ["p0.nii.gz", "p2.nii.gz"]  # p3 has no part in it
    assert files(raw / "imagesTs") == ["p1_0000.nii.gz"]
    assert json.loads((raw / "splits_final.json").read_text(encoding="utf-8")) == [{"train": ["p2"], "val": ["p0"]}]


def test_without_validation_there_is_no_split_and_everything_trains(make_dataset, tmp_path):
    raw = export(make_dataset(2), tmp_path / "raw", "--train=[p1]", "--test=[p0]")
    assert not (raw / "splits_final.json").exists()
    assert _choose_fold(None, []) == "all"


def test_mistakes_end_in_one_line_and_leave_nothing(make_dataset, tmp_path, capsys):
    data, out = make_dataset(2), tmp_path / "raw"
    for options, says in (
        (["--dataset=0"], "dataset=0 must lie between 1 and 999"),
        (["--name=a-b"], "name='a-b' must consist of letters"),
        (["--train=[p7]"], "no scan is called 'p7'"),
        (["--channels=[1]"], "p0 has no image of channel 1"),
        (["--train=[p0]", "--test=[p0]"], "scan p0 is named in train and in test; leave it in one of them"),
    ):
        with pytest.raises(SystemExit):
            export(data, out, *options)
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())
    export(data, out)
    with pytest.raises(SystemExit):
        export(data, out, "--name=other")
    assert "Dataset701_Cubes exists already" in capsys.readouterr().err


def test_a_training_scan_needs_labels(make_dataset):
    data = make_dataset(2)
    (data / "labelsTr/p1.nii.gz").unlink()
    with pytest.raises(DataError, match="scan p1 has no label map"):
        RawExport(read_dataset(data), [], [], 1, "x")


def test_a_cut_off_scan_stops_the_export(make_dataset, tmp_path):
    data = make_dataset(2)
    image = data / "imagesTr/p1_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut off"):
        write_raw(RawExport(read_dataset(data), [], [], 1, "x"), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_settings_say_what_they_refuse():
    with pytest.raises(ValueError, match=r"minutes=0\.0 must be above 0"):
        ReducedSettings(0.0)
    with pytest.raises(ValueError, match="patch and features belong together"):
        ReducedSettings(1.0, patch=(16, 64, 64))
    with pytest.raises(ValueError, match=r"fold=5: splits_final\.json holds 1 folds"):
        _choose_fold(5, [{"train": ["a"], "val": ["b"]}])


def test_without_nnunet_it_says_what_to_install(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the extra: pip install"):
        run_nnunet(make_dataset(1), tmp_path / "run", ReducedSettings(1.0), lambda line: None)


@pytest.mark.ci
def test_a_dataset_that_we_did_not_export_is_refused(make_dataset, tmp_path):
    pytest.importorskip("nnunetv2", reason="the extra nnunet is not installed")
    with pytest.raises(DataError, match="no dataset that `mois export nnunet` wrote"):
        run_nnunet(make_dataset(1), tmp_path / "run", ReducedSettings(1.0), lambda line: None)


def test_thick_slices_get_flat_patches():
    assert default_size((7.8, 3.0, 3.0)) == Size((16, 64, 64), (8, 16, 32, 64))
    assert default_size((1.0, 1.0, 1.0)) == Size((48, 64, 64), (12, 24, 48, 96))


@pytest.mark.ci
def test_the_reduced_plan_inherits_and_pools_by_nnunets_rule():
    pytest.importorskip("nnunetv2", reason="the extra nnunet is not installed")
    full = {"spacing": [7.8, 3.0, 3.0], "batch_size": 9, "architecture": {"arch_kwargs": {"conv_bias": True}}}
    plans = reduce_plan(
        {"plans_name": "P", "configurations": {"3d_fullres": full}}, Size((16, 60, 64), (8, 16, 32, 64))
    )
    reduced = plans["configurations"]["3d_reduced"]
    assert reduced["inherits_from"] == "3d_fullres"
    assert reduced["patch_size"] == [16, 64, 64]  # 60 is no multiple of 8
    kwargs = reduced["architecture"]["arch_kwargs"]
    # 7.8 mm is pooled only when the others have come within a factor of 2: 3 -> 6 -> 12
    assert kwargs["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert kwargs["kernel_sizes"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert kwargs["conv_bias"] is True
    assert "n_stages" not in full["architecture"]["arch_kwargs"]  # the full plan stays as it was
    with pytest.raises(ValueError, match="planned no 3d_fullres"):
        reduce_plan({"plans_name": "P", "configurations": {}}, Size((16, 64, 64), (8, 16)))


@pytest.mark.ci
def test_two_stages_are_refused():
    pytest.importorskip("nnunetv2", reason="the extra nnunet is not installed")
    plans = {"plans_name": "P", "configurations": {"3d_fullres": {"spacing": [1.0, 1.0, 1.0]}}}
    with pytest.raises(ValueError, match=r"patch=\[8, 8, 8\] and features=\[4, 8, 8\] make 2 stages of the 3"):
        reduce_plan(plans, Size((8, 8, 8), (4, 8, 8)))


def test_cpu_seconds_count_work_and_not_waiting():
    before = cpu_seconds()
    while cpu_seconds() < before + 0.05:
        sum(range(1000))
    assert cpu_seconds() - before < 0.5


@pytest.mark.ci
def test_it_trains_for_its_budget_predicts_on_the_scans_grid_and_goes_on(make_dataset, tmp_path):
    pytest.importorskip("nnunetv2", reason="the extra nnunet is not installed")
    data = make_dataset(subjects=2, held_out=2)
    about = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    for path in data.glob("labels*/*"):  # classes 3 and 8 instead of 1 and 2
        classes, affine = read_image(path)
        save_nifti(path, np.array([0, 3, 8], np.uint8)[classes], affine)
    (data / "dataset.json").write_text(json.dumps(about | {"labels": {"background": 0, "bright": 3, "dark": 8}}))
    raw, out, told = export(data, tmp_path / "raw"), tmp_path / "run", []
    settings = ReducedSettings(0.05, patch=(8, 16, 16), features=(4, 8, 8))
    run_nnunet(raw, out, settings, told.append)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert 3.0 <= record["training"]["seconds"] < 6.0  # CPU seconds: 0.05 minutes and at most one slow step
    assert record["training"]["iterations"] > 3
    for name in ("p2", "p3"):
        classes, affine = read_image(out / "predictions" / f"{name}.nii.gz")
        assert classes.shape == SHAPE
        assert np.array_equal(affine, np.diag([*SPACING_MM, 1.0]))
        assert set(np.unique(classes)) <= {0, 3, 8}

    first, _ = read_image(out / "predictions/p3.nii.gz")
    (out / "predictions/p3.nii.gz").unlink()
    run_nnunet(raw, out, settings, told.append)
    assert told.count("the training is finished; its weights are read") == 1
    assert [line for line in told if line.startswith("predicted p3")] == ["predicted p3 (2 of 2)"] * 2
    assert np.array_equal(read_image(out / "predictions/p3.nii.gz")[0], first)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_nnunet(raw, out, ReducedSettings(0.06, patch=(8, 16, 16), features=(4, 8, 8)), told.append)
