"""`mois serve` before a server starts."""

from __future__ import annotations

import pytest

from mois.cli import extras, main
from mois.cli import serve as command


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_its_environment_the_server_of_monai_label_says_how_to_make_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "VIEWERS_ENVIRONMENT", tmp_path / "none")
    assert "make viewers" in said(capsys, "monailabel", "--studies", tmp_path)


def test_another_viewer_is_refused(tmp_path, capsys):
    assert "monailabel" in said(capsys, "paint", "--studies", tmp_path)


@pytest.mark.parametrize("arguments", [("serve", "nninteractive"), ("serve", "monailabel"), ("view", "scan.nii.gz")])
def test_without_the_extra_the_line_says_how_to_install_it(capsys, monkeypatch, arguments):
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fastapi is not installed; install the extra: pip install 'mois[serve]'" in line


def test_an_earlier_scan_is_the_folder_of_a_session(capsys):
    with pytest.raises(SystemExit):
        main(["view", "scan.nii.gz", "--earlier", "lesions.nii.gz"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "lesions.nii.gz is no folder; give the folder of a saved session on the earlier scan" in line
