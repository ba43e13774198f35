"""Other people's machines: names in other alphabets and encodings, no home, a working folder that is gone."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.splits import pick
from mois.backbones.weights import load_weights
from mois.cli.messages import explain
from mois.errors import as_text
from mois.evaluation.scored_systems import map_files
from mois.scans.datasets import read_dataset
from mois.scans.image_files import write_volume
from mois.scans.volumes import read_volume
from mois.session import InteractiveSession
from mois.session.prompts.prompt_file import read_prompts
from mois.tracking.wandb_server import logged_in_key
from tests.support.session_fakes import lps, make_model, three_lesions

Make = Callable[..., Path]
COMPOSED, APART = (unicodedata.normalize(form, "m\xfcller") for form in ("NFC", "NFD"))


@pytest.fixture
def dataset(make_dataset: Make) -> Path:
    """Images called in one way, their label maps, table, splits and predictions in the other."""
    root = make_dataset(subjects=1)
    (root / "imagesTr" / "p0_0000.nii.gz").rename(root / "imagesTr" / f"{APART}_0000.nii.gz")
    (root / "labelsTr" / "p0.nii.gz").rename(root / "labelsTr" / f"{COMPOSED}.nii.gz")
    (root / "subjects.csv").write_text(f"subject,patient\n{COMPOSED},anna\n", encoding="utf-8")
    return root


def test_a_name_is_the_same_in_both_forms_of_its_letters(dataset: Path, tmp_path: Path) -> None:
    (scan,) = read_dataset(dataset)
    assert (scan.patient, scan.label) == ("anna", dataset / "labelsTr" / f"{COMPOSED}.nii.gz")
    assert pick([scan], [COMPOSED], "splits") == pick([scan], [APART], "splits") == [scan]
    for name in (f"{COMPOSED}.nii.gz", f"{COMPOSED}_class1.nii.gz"):
        folder = tmp_path / name.removesuffix(".nii.gz")
        folder.mkdir()
        (folder / name).touch()
        assert map_files(folder, scan.subject) == [folder / name]
    (tmp_path / f"{APART}.nii.gz").touch()
    (tmp_path / "prompts.json").write_text(json.dumps([{"mask": f"{COMPOSED}.nii.gz"}]), encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.json")[0].given == tmp_path / f"{APART}.nii.gz"


def test_two_scans_whose_names_look_alike_are_refused(dataset: Path) -> None:
    images = dataset / "imagesTr"
    shutil.copyfile(images / f"{APART}_0000.nii.gz", images / f"{COMPOSED}_0000.nii.gz")
    with pytest.raises(ValueError, match=r"two scans are called .*, whose letters are stored in two ways; rename one"):
        read_dataset(dataset)


def test_a_dataset_with_a_name_that_is_no_utf8_is_refused(dataset: Path) -> None:
    (dataset / "subjects.csv").unlink()
    image = dataset / "imagesTr" / f"{APART}_0000.nii.gz"
    image.rename(dataset / "imagesTr" / os.fsdecode(b"m\xfcller_0000.nii.gz"))
    with pytest.raises(ValueError, match="its name is no UTF-8; rename it"):
        read_dataset(dataset)


def test_a_session_on_a_file_whose_name_is_no_utf8_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    scan, path = three_lesions(), tmp_path / os.fsdecode(b"m\xfcller.nii.gz")
    write_volume(scan.image, scan.affine, tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").rename(path)
    name = path.name.split(".")[0]
    volume = read_volume(path, None, subject=name, patient=name, classes={})
    assert volume.subject == as_text(name) == "m\N{REPLACEMENT CHARACTER}ller"
    session = InteractiveSession(make_model(), volume, tmp_path / "out")
    session.click(lps(scan, 2, 20, 20))
    session.save()
    session.close()
    again = InteractiveSession.load(tmp_path / "out", make_model(), volume)
    assert len(again.actions) == 1
    again.close()
    with (tmp_path / "out" / "lesions.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["exemplar"].startswith(volume.subject)


def test_a_user_without_a_home_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", none)
    assert logged_in_key() == ""
    with pytest.raises(ValueError, match=r"backbone\.weights=~/tiny\.pt is no file"):
        load_weights(torch.nn.Identity(), "tiny", "~/tiny.pt")


def test_a_working_folder_that_was_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for attempt in (Path("runs").mkdir, Path("x").read_bytes, Path("x").resolve):
        with pytest.raises(FileNotFoundError) as lost:
            attempt()
        assert lost.value.errno == errno.ENOENT
        assert explain(lost.value) == (
            "the folder that this command runs in was deleted; change to another one (cd), and start again"
        )
