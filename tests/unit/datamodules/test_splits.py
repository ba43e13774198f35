import json

import pytest

from datamodules.splits import Fold, check_leak, patient_folds, pick, read_splits
from mois.errors import DataError
from mois.scans.datasets import SubjectFiles


def scan(subject, patient):
    return SubjectFiles(subject, patient, {}, None, None)


SCANS = [scan("a1", "anna"), scan("a2", "anna"), scan("b1", "berta"), scan("c1", "carl"), scan("c2", "carl")]


def test_folds_keep_patients_together_and_validate_each_scan_once():
    folds = patient_folds(SCANS, folds=2, seed=3)
    patient_of = {subject.subject: subject.patient for subject in SCANS}
    for fold in folds:
        train, val = ({patient_of[name] for name in part} for part in fold)
        assert train | val == {"anna", "berta", "carl"}
        assert not train & val
    assert sorted(name for fold in folds for name in fold.val) == ["a1", "a2", "b1", "c1", "c2"]
    assert folds == patient_folds(SCANS, folds=2, seed=3)


def test_there_are_no_more_folds_than_patients():
    assert len(patient_folds(SCANS, folds=5)) == 3
    with pytest.raises(DataError, match="val_slab"):
        patient_folds(SCANS[:2])


def test_a_patient_in_two_splits_is_named_with_both():
    check_leak({"train": SCANS[:2], "val": SCANS[2:3], "test": SCANS[3:]})
    with pytest.raises(DataError, match=r"patient carl stands in train \(c1\) and in test \(c2\)"):
        check_leak({"train": SCANS[:4], "val": [], "test": SCANS[4:]})


def test_nnunets_file_is_written_and_read(tmp_path):
    folds = [Fold(["a1", "a2"], ["b1"]), Fold(["b1"], ["a1", "a2"])]
    text = json.dumps([{"train": fold.train, "val": fold.val} for fold in folds])
    (tmp_path / "splits_final.json").write_text(text)
    assert json.loads((tmp_path / "splits_final.json").read_text(encoding="utf-8"))[0] == {
        "train": ["a1", "a2"],
        "val": ["b1"],
    }
    assert read_splits(tmp_path / "splits_final.json") == folds


@pytest.mark.parametrize("content", ["{", '[{"train": []}]', '{"train": 1}', "[1]"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(DataError, match=r"no JSON|as nnU-Net writes it"):
        read_splits(tmp_path / "splits_final.json")


def test_a_misspelt_scan_is_named():
    assert pick(SCANS, ["c1", "a2"], "x") == [SCANS[3], SCANS[1]]
    with pytest.raises(DataError, match="val_subjects: no scan is called 'c9'; choose from a1, a2, b1, c1, c2"):
        pick(SCANS, ["c9"], "val_subjects")
    with pytest.raises(DataError, match=r"val_subjects: scan a2 is named twice; name it once\."):
        pick(SCANS, ["a2", "c1", "a2"], "val_subjects")


def test_a_scan_that_trains_and_validates_is_named():
    with pytest.raises(DataError, match=r"scan a1 is named in train and in val; leave it in one of them\."):
        check_leak({"train": SCANS[:1], "val": SCANS[:1]})
