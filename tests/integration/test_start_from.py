"""A new training may begin with the adapter and propagation of another one's bundle."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mois.cli import main as mois_main
from mois.files.atomic import file_sha256
from mois.sharing.bundle import Bundle
from tests.support.example_bundles import PLAIN, random_bundle
from tests.support.small_runs import LORA, data, failing, folder, train

ONE_STEP = "--trainer.max_steps=1"
AT_REST = "--model.optimisation.learning_rate=0"


def test_an_adaptation_imports_no_class_of_a_bundle_that_is_not_trusted(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = tmp_path / "imported"
    (tmp_path / "of_others.py").write_text(
        f"import pathlib, adapters\npathlib.Path({str(told)!r}).touch()\nclass Frozen(adapters.Frozen): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bundle = random_bundle(tmp_path / "bundle", spec={**PLAIN, "adapter": {"class_path": "of_others.Frozen"}})
    told.unlink()
    del sys.modules["of_others"]
    command = ["adapt", f"--data={make_dataset(subjects=1)}", f"--out={tmp_path / 'out'}", f"--start_from={bundle}"]
    with pytest.raises(SystemExit):
        mois_main(command)
    said = capsys.readouterr().err.rstrip()
    assert said.startswith(
        f"error: bundle={bundle} names of_others.Frozen for its adapter, which is no class of this project"
    )
    assert said.endswith("--trust of_others, or trust=['of_others'] in Python.")
    assert not told.exists()
    assert not (tmp_path / "out_training").exists()
    monkeypatch.setattr("mois.cli.adaptation.MoisCLI", lambda words: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception, match="trained"):
        mois_main([*command, "--trust", "of_others"])


@pytest.mark.ci
def test_a_new_training_begins_with_what_a_bundle_holds(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = data(make_dataset(subjects=1), val_subjects="[]")
    first, second, moved = tmp_path / "first", tmp_path / "second", tmp_path / "moved"
    train("fit", *LORA, *scans, "--model.optimisation.learning_rate=0.1", ONE_STEP, folder(first))
    start = f"--start_from={first / 'bundle'}"

    train("fit", *LORA, *scans, start, AT_REST, ONE_STEP, "--seed_everything=5", folder(second))
    before, after = (Bundle.load(run / "bundle") for run in (first, second))
    for one, other in ((before.backbone, after.backbone), (before.propagation, after.propagation)):
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, one.state_dict()[name]), name
    assert after.provenance["config"]["start_from"] == str(first / "bundle")
    assert after.provenance["files"]["start_from"] == file_sha256(first / "bundle" / "bundle.json")

    shutil.copytree(first / "bundle", moved)
    longer = ("--seed_everything=5", AT_REST, "--trainer.max_steps=2", "--ckpt_path=last", folder(second))
    assert train("fit", *LORA, *scans, f"--start_from={moved}", *longer).trainer.global_step == 2
    assert "start_from=" in failing(capsys, "fit", *LORA, *scans, f"--start_from={second / 'bundle'}", *longer)

    new = folder(tmp_path / "third")
    said = failing(capsys, "fit", *LORA, *scans, start, "--model.adapter.init_args.rank=2", ONE_STEP, new)
    assert "is of another adapter" in said
    said = failing(capsys, "fit", *LORA, *scans, start, "--model.propagation=mois.propagation.Attention", ONE_STEP, new)
    assert "set model.propagation=mois.propagation.Similarity" in said
    said = failing(capsys, "fit", *LORA, *scans, f"--start_from={first}", ONE_STEP, new)
    assert "give the folder `bundle` of a training" in said
    assert "names nothing" in failing(capsys, "fit", *LORA, *scans, "--start_from=", ONE_STEP, new)
