"""Several channels from a dataset through a training to its bundle, an evaluation and a session: by name everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from datamodules import NiftiDataModule
from datamodules.splits import SplitSettings
from mois.cli import main
from mois.cli.adaptation import Request, run_adaptation
from mois.machine.interrupts import HOW_TO_GO_ON
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle
from tests.support.datasets import save_nifti, write_dataset
from tests.support.example_bundles import EASY, random_bundle
from tests.support.small_runs import LORA, failing, folder, train


def two_sequences(root: Path, first: str = "T2", **counts: int) -> Path:
    """Write scans with a T2, and a T1 that is a T2 turned upside down; `first` is number 0."""
    write_dataset(root, **counts)
    for path in sorted(root.glob("images*/*_0000.nii.gz")):
        image = np.asarray(nib.load(path).dataobj)
        images = {"T2": image, "T1": np.where(image == 0, 0, 300 - image).astype(np.float32)}
        for number, name in enumerate([first, *({"T1", "T2"} - {first})]):
            save_nifti(path.with_name(path.name.replace("_0000", f"_{number:04d}")), images[name])
    names = dict(enumerate([first, *({"T1", "T2"} - {first})]))
    about = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").write_text(json.dumps({**about, "channel_names": names}), encoding="utf-8")
    return root


def figures(bundle: Path, root: Path, out: Path) -> dict[str, float]:
    base = ["evaluate", f"--bundle={bundle}", f"--data={root}", f"--out={out}", "--device=cpu"]
    main([*base, "--reader.prompted=2", "--protocol.counts=[]"])
    summary = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["summary"]
    return {part: summary[part]["dice"]["mean"] for part in ("prompted", "unprompted")}


def planned_from(
    bundle: Path | None, root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *channels: str
) -> dict[str, Any]:
    """Return what `mois adapt` plans for a dataset, from a bundle on if there is one; the training is left out."""

    class PlannedError(Exception):
        pass

    def training(arguments: list[str]) -> None:
        raise PlannedError

    monkeypatch.setattr("mois.cli.adaptation.MoisCLI", training)
    monkeypatch.setenv(HOW_TO_GO_ON, "")  # an adaptation leaves it to its process; other tests share this one
    with pytest.raises(PlannedError):
        run_adaptation(Request(root, out, None, bundle, 0, "cpu", (), channels))
    return dict(yaml.safe_load((out.with_name(f"{out.name}_training") / "plan.yaml").read_text(encoding="utf-8")))


def test_an_adaptation_of_a_bundle_of_several_channels_takes_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_sequences(tmp_path / "data", first="T1", subjects=2)
    seeing = replace(EASY, channels=("T2", "T2@-1", "T1"), tile_px=32)
    bundle = random_bundle(tmp_path / "bundle", inference=seeing)
    data = planned_from(bundle, root, tmp_path / "out", monkeypatch)["data"]["init_args"]
    assert data["channels"] == ["T2", "T2@-1", "T1"]
    assert "channel" not in data
    assert "channels T2, T2@-1, T1: those of the bundle that the training begins with\n" in capsys.readouterr().out
    assert NiftiDataModule(**{**data, "split": SplitSettings(**data["split"])}).channels == seeing.channels
    one = random_bundle(tmp_path / "one", inference=EASY)
    assert "channels" not in planned_from(one, root, tmp_path / "other", monkeypatch)["data"]["init_args"]


def test_an_adaptation_of_a_bundle_whose_channels_are_missing_is_refused_before_a_scan_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_sequences(tmp_path / "data", subjects=2)
    bundle = random_bundle(tmp_path / "bundle", inference=replace(EASY, channels=("T2", "FLAIR"), tile_px=32))
    monkeypatch.setattr("mois.cli.adaptation.plan_dataset", lambda *_: pytest.fail("the scans are read"))
    with pytest.raises(SystemExit):
        main(["adapt", f"--data={root}", f"--out={tmp_path / 'out'}", f"--start_from={bundle}", "--device=cpu"])
    assert capsys.readouterr().err == (
        f"error: --start_from={bundle} sees the channels T2, FLAIR: scan p0: channel FLAIR is needed, but dataset.json "
        "names T2, T1; take another dataset, or correct channel_names.\n"
    )


def test_an_adaptation_takes_the_channels_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_sequences(tmp_path / "data", subjects=2)
    data = planned_from(None, root, tmp_path / "out", monkeypatch, "T1", "T2")["data"]["init_args"]
    assert data["channels"] == ["T1", "T2"]
    assert "channel" not in data
    assert "channels T1, T2: as asked for\n" in capsys.readouterr().out
    main(["init", f"--root={root}", f"--out={tmp_path / 'config.yaml'}", "--channels=[T1,T2]"])
    planned = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert planned["channels"] == ["T1", "T2"]

    bundle = random_bundle(tmp_path / "bundle", inference=replace(EASY, channels=("T2", "T1"), tile_px=32))
    one = random_bundle(tmp_path / "one", inference=EASY)
    same = planned_from(bundle, root, tmp_path / "further", monkeypatch, "t2", "T1")["data"]["init_args"]
    assert same["channels"] == ["T2", "T1"]
    capsys.readouterr()
    monkeypatch.setattr("mois.cli.planned.survey", lambda *_, **__: pytest.fail("the scans are read"))
    words = ["adapt", f"--data={root}", f"--out={tmp_path / 'no'}", "--device=cpu"]
    for refused, line in (
        (["--channels=[T1,FLAIR]"], "--channels=[T1,FLAIR]: scan p0: channel FLAIR is needed, but dataset.json names"),
        (["--channels=[T1,T1]"], "--channels=['T1', 'T1'] names a channel twice; name each once."),
        (
            ["--channels=[T1,T2]", f"--start_from={bundle}"],
            f"--channels=[T1,T2]: the bundle of --start_from={bundle} sees ",
        ),
        (
            ["--channels=[T1]", f"--start_from={one}"],
            f"--channels=[T1]: the bundle of --start_from={one} sees one image; ",
        ),
    ):
        assert says(capsys, *words, *refused).startswith(line)
    assert says(capsys, "init", f"--root={root}", "--channels=[T1,CT]").startswith(
        "--channels=[T1,CT]: scan p0: channel CT "
    )


@pytest.mark.usefixtures("same_process", "same_handlers")
def test_two_channels_are_trained_evaluated_and_clicked_on_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_sequences(tmp_path / "data", subjects=2, held_out=1)
    once = ["--data.init_args.episodes_per_epoch=2", "--trainer.max_epochs=1", folder(tmp_path / "run")]
    train("fit", *LORA, f"--data.init_args.root={root}", "--data.init_args.channels=[T2,t1]", *once)
    bundle = tmp_path / "run" / "bundle"
    assert Bundle.load(bundle).inference.channels == ("T2", "t1")
    assert "It sees the channels T2, t1" in (bundle / "README.md").read_text(encoding="utf-8")

    other = two_sequences(tmp_path / "other", first="T1", subjects=2, held_out=1)
    assert figures(bundle, root, tmp_path / "out") == figures(bundle, other, tmp_path / "out2")
    about = json.loads((other / "dataset.json").read_text(encoding="utf-8"))
    (other / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": "T1"}}), encoding="utf-8")
    base = ["evaluate", f"--bundle={bundle}", f"--out={tmp_path / 'out3'}", "--device=cpu"]
    for words, line in (
        ([f"--data={other}"], "scan p2: channel T2 is needed, but dataset.json names T1; take another dataset"),
        ([f"--data={root}", "--channel=1"], "--channel=1: the model finds its channels by name (T2, t1)"),
    ):
        assert says(capsys, *base, *words).startswith(line)

    scan = root / "imagesTs" / "p2_0000.nii.gz"
    prompts = {"prompts": [{"click": {"voxel": [7, 1, 11]}}]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    words = ["segment", f"--bundle={bundle}", f"--prompts={tmp_path / 'prompts.json'}", "--device=cpu"]
    t1, t2 = f"--image=T1={scan.with_name('p2_0001.nii.gz')}", f"--image=T2={scan}"
    main([*words, f"--out={tmp_path / 'session'}", t1, t2])
    main([*words, f"--out={tmp_path / 'session'}", t2, t1])  # goes on: the order plays no part
    assert "going on after" in capsys.readouterr().out
    assert "channel t1 is missing" in says(capsys, *words, f"--out={tmp_path / 'session'}", t2)
    again = InteractiveSession.load(tmp_path / "session", Bundle.load(bundle, "cpu").model())
    assert [one.name for one in again.volume.further] == ["t1"]


def test_nnunet_gets_the_channels_in_the_order_of_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_sequences(tmp_path / "data", subjects=2)
    words = ["export_nnunet", f"--data={root}", f"--out={tmp_path / 'raw'}"]
    main([*words, "--channels=[T1,T2]"])
    (made,) = (tmp_path / "raw").iterdir()
    names = json.loads((made / "dataset.json").read_text(encoding="utf-8"))["channel_names"]
    assert names == {"0": "T1", "1": "T2"}
    first, second = (nib.load(made / "imagesTr" / f"p0_{number:04d}.nii.gz").get_fdata() for number in (0, 1))
    assert np.array_equal(second, nib.load(root / "imagesTr" / "p0_0000.nii.gz").get_fdata())
    assert not np.array_equal(first, second)
    assert "channel PD is needed, but dataset.json names T2, T1" in says(capsys, *words, "--channels=[PD]")


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the last line of a command that ends with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.usefixtures("same_process", "same_handlers")
def test_three_slices_train_under_a_cache_and_whole_volumes_see_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data", subjects=2)
    arguments = [*LORA, f"--data.init_args.root={root}", "--data.init_args.channels=[T2,T2@-1,T2@+1]"]
    cached = [f"--model.cache.folder={tmp_path / 'cache'}", "--data.init_args.views=1", "--trainer.max_epochs=2"]
    made = train("fit", *arguments, *cached, "--data.init_args.episodes_per_epoch=2", folder(tmp_path / "run"))
    assert made.model.inference.channels == ("T2", "T2@-1", "T2@+1")
    line = failing(capsys, "fit", *arguments, "--model.inference.channels=[T2]", folder(tmp_path / "run2"))
    assert line.endswith("differ; set both to the same")
    line = failing(capsys, "fit", *arguments, "--data.init_args.channel=1", folder(tmp_path / "run2"))
    assert "both say which image is used; leave one out" in line
