from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mois.tracking.loggers import hashes_names
from mois.tracking.names import Names, user_key
from mois.tracking.settings import TrackingSettings

KEY = b"k" * 32


def test_plain_names_stay() -> None:
    names = Names()
    names.add(["anna"], ["/data/clinic"])
    settings = {"root": "/data/clinic", "val_subjects": ["anna"]}
    assert names.text("anna in /data/clinic") == "anna in /data/clinic"
    assert names.settings(settings) is settings


def test_names_and_paths_are_replaced_as_whole_words_longest_first() -> None:
    names = Names(True, KEY)
    names.add(["anna", "anna_2019"], ["/data/clinic"])
    anna, later, clinic = names.name("anna"), names.name("anna_2019"), names.text("/data/clinic")
    assert anna.startswith("id-")
    assert clinic.startswith("path-")
    assert names.text("anna_2019, anna: /data/clinic/x, Hannah, annas") == f"{later}, {anna}: {clinic}/x, Hannah, annas"
    assert names.text(names.text("anna")) == anna


def test_a_scan_that_is_called_by_a_short_number_leaves_versions_and_figures_alone() -> None:
    names = Names(True, KEY)
    names.add(["7", "19560412"])
    seven, long = names.name("7"), names.name("19560412")
    kept = "python 3.11.7, rate 0.7, 7.5 mm, 17 scans"
    assert names.text(kept) == kept
    assert names.text("scan 7: 7_0000.nii.gz, 7.nii.gz.") == f"scan {seven}: {seven}_0000.nii.gz, {seven}.nii.gz."
    assert names.text("1.2.19560412.3") == f"1.2.{long}.3"  # a patient's number in a UID


def test_settings_lose_every_path_and_every_list_of_scans() -> None:
    names = Names(True, KEY)
    names.add(paths=["scans"])
    given = {
        "root": "scans",
        "weights": "/home/anna/w.pt",
        "out": Path("runs/anna"),
        "split": {"val_subjects": ["unknown_scan"], "fold": 2},
        "monitor": "val/attention/score",
        "class_path": "mois.backbones.SAM2",
        "delivered": "best.ckpt is of step 4 (val/score 0.50)",
        "rate": 0.5,
        "trained_on": ["b"],
    }
    told = names.settings(given)
    hidden = [told["root"], told["weights"], told["out"], *told["split"]["val_subjects"], *told["trained_on"]]
    assert all(word.startswith(("id-", "path-")) for word in hidden)
    kept = ("monitor", "class_path", "delivered", "rate")
    assert {name: told[name] for name in kept} == {name: given[name] for name in kept}
    assert told["split"]["fold"] == 2
    assert names.settings(told) == told


def test_a_user_has_one_key_and_another_user_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = user_key()
    assert user_key() == first
    assert stat.S_IMODE((tmp_path / "mois" / "names.key").stat().st_mode) == 0o600
    assert Names(True).name("anna") == Names(True).name("anna") != Names(True, KEY).name("anna")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    assert user_key() != user_key()  # nowhere to keep it


def test_the_run_folder_says_what_each_pseudonym_stands_for(tmp_path: Path) -> None:
    names = Names(True, KEY)
    names.write(tmp_path / "names.csv")
    assert not (tmp_path / "names.csv").exists()
    names.add(["anna"])
    names.write(tmp_path / "names.csv")
    assert (tmp_path / "names.csv").read_text(encoding="utf-8") == f"pseudonym,name\n{names.name('anna')},anna\n"


@pytest.mark.parametrize(
    ("names", "key", "hashed"),
    [(None, "", False), (None, "k", True), ("plain", "k", False), ("hashed", "", True)],
)
def test_names_are_hashed_by_default_where_the_run_is_online(
    monkeypatch: pytest.MonkeyPatch, names: None, key: str, hashed: bool
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert hashes_names(TrackingSettings(names=names)) == hashed
