"""`mois dataset from-sessions`: what a reader judged becomes a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mois.cli import main as mois_main
from mois.errors import DataError
from mois.records import Volume
from mois.scans.datasets import read_dataset
from mois.scans.image_files import write_volume
from mois.session import InteractiveSession
from mois.session.dataset_export import read_judged, write_judged
from tests.support.session_fakes import lps, make_model, three_lesions


def judged(folder: Path, name: str = "a", brighter: float = 0, type: str = "", patient: str = "") -> Volume:
    """Write a scan and a session: A1 clicked, A2 found and rejected, B1 found later, if at all."""
    folder.mkdir()
    scan = three_lesions()
    scan = scan._replace(image=scan.image + brighter * (scan.image > 0))
    file = folder / f"{name}.nii.gz"
    write_volume(scan.image, scan.affine, file)
    scan = scan._replace(path=str(file), subject=name, patient=patient or f"patient_{name}")
    session = InteractiveSession(make_model(), scan, folder / "session", type=type)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.reject(2)
    session.close()
    return scan


def test_judged_lesions_become_instances_and_rejected_ones_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [judged(tmp_path / name, name, number / 1000) for number, name in enumerate("ab")]
    out = tmp_path / "raw"
    folders = [str(tmp_path / name / "session") for name in ("a", "b")]
    mois_main(["dataset", "from-sessions", *folders, "--out", str(out)])
    said = capsys.readouterr().out
    assert said == f"2 scans in {out}: 2 lesion, 2 rejected; adapt with: mois adapt --data {out} --out BUNDLE\n"
    first, second = read_dataset(out)
    assert (first.subject, first.patient, second.patient) == ("a", "patient_a", "patient_b")
    assert first.classes == {1: "lesion", 2: "rejected"}
    volume, whole = first.read(), first.read(rejected=True)
    np.testing.assert_array_equal(volume.image, scans[0].image)
    assert volume.classes == {1: 1}
    assert whole.classes == {1: 1, 2: 2}
    true = scans[0].lesions.numpy()
    assert set(np.unique(true[volume.lesions.numpy() == 1])) == {1}  # A1 is lesion 1 of the scan
    assert set(np.unique(true[whole.lesions.numpy() == 2])) <= {0, 2}

    with pytest.raises(SystemExit):
        mois_main(["dataset", "from-sessions", folders[0], "--out", str(out)])
    assert capsys.readouterr().err == f"error: out={out} is there already; choose another folder, or remove it.\n"
    with pytest.raises(SystemExit):
        mois_main(["dataset", "from-sessions", folders[0], folders[0], "--out", str(tmp_path / "twice")])
    assert "are both on scan a; leave one out." in capsys.readouterr().err


def test_an_undone_verdict_is_none(tmp_path: Path) -> None:
    scan = judged(tmp_path / "a")
    session = InteractiveSession.load(tmp_path / "a" / "session", make_model(), scan)
    session.undo()
    session.close()
    read = read_judged(tmp_path / "a" / "session")
    assert read.types == {1: "lesion"}
    assert read.open == 1  # found, and not judged: background


def test_a_scan_that_changed_is_refused(tmp_path: Path) -> None:
    scan = judged(tmp_path / "a")
    write_volume(scan.image + 1, scan.affine, Path(scan.path))
    with pytest.raises(DataError, match="is not the scan of session"):
        read_judged(tmp_path / "a" / "session")


def test_a_session_on_a_file_that_was_named_from_its_folder_is_read_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    scan = judged(Path("a"))
    assert not Path(scan.path).is_absolute()
    monkeypatch.chdir(tmp_path)
    session = tmp_path / "there" / "a" / "session"
    assert read_judged(session).types == {1: "lesion", 2: "rejected"}
    (tmp_path / "there" / "a" / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a\.nii\.gz: the scan of the session of a is missing; put it back there"):
        read_judged(session)


def test_a_full_disk_leaves_no_part_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(tmp_path / "a")
    scan = read_judged(tmp_path / "a" / "session")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mois.session.dataset_export.json.dumps", full)  # once all scans are written
        with pytest.raises(OSError, match="No space left"):
            write_judged(tmp_path / "raw", [scan])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert write_judged(tmp_path / "raw", [scan]) == ["a"]


def test_a_session_without_a_file_says_so(tmp_path: Path) -> None:
    session = InteractiveSession(make_model(), three_lesions()._replace(path=""), tmp_path / "session")
    session.click(lps(three_lesions(), 2, 20, 20))
    session.close()
    with pytest.raises(DataError, match="does not say the file of its scan; give the scan"):
        read_judged(tmp_path / "session")


def test_scans_of_one_name_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("FLAIR", "FLAIR", "Müller 1", "Möller 1", "患者", "flair")
    for number, name in enumerate(names):
        judged(tmp_path / str(number), name, number / 1000, patient="" if name != "flair" else "another")
    out = tmp_path / "raw"
    folders = [str(tmp_path / str(number) / "session") for number in range(len(names))]
    mois_main(["dataset", "from-sessions", *folders, "--out", str(out)])
    scans = read_dataset(out)
    assert {scan.subject: scan.patient for scan in scans} == {
        "FLAIR": "patient_FLAIR",
        "FLAIR-2": "patient_FLAIR",
        "Möller-1": "patient_Möller 1",
        "Müller-1": "patient_Müller 1",
        "flair-3": "another",
        "患者": "patient_患者",
    }
    said = capsys.readouterr().out
    assert "FLAIR, FLAIR-2 have patient patient_FLAIR; correct subjects.csv if they are of several patients\n" in said


def test_a_type_called_as_a_reserved_class_stays_a_lesion(tmp_path: Path) -> None:
    judged(tmp_path / "a", type="rejected")
    judged(tmp_path / "b", "b", 1 / 1000, type="background")
    scans = [read_judged(tmp_path / name / "session") for name in ("a", "b")]
    assert write_judged(tmp_path / "raw", scans) == ["a", "b"]
    first, second = read_dataset(tmp_path / "raw")
    assert first.classes == {1: "background-lesion", 2: "rejected-lesion", 3: "rejected"}
    assert first.read().classes == {1: 2}
    assert second.read().classes == {1: 1}


def test_the_session_whose_scan_is_missing_is_named(tmp_path: Path) -> None:
    scan = judged(tmp_path / "a")
    Path(scan.path).unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path / 'a' / 'session'}: {scan.path}"):
        read_judged(tmp_path / "a" / "session")
