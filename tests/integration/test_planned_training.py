"""`mois init`: the config that it writes trains as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mois.cli import main as mois_main
from tests.support.small_runs import folder, losses, train

QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.log_every_n_steps=1",
    "--tracking.wandb=disabled",
    "--validate_first=false",
]
pytestmark = pytest.mark.usefixtures("same_process")


def test_the_config_of_a_plan_trains_as_it_is(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_dataset(subjects=3), tmp_path / "config.yaml"
    mois_main(["init", str(root), "--out", str(out)])
    said = capsys.readouterr().out
    assert said.endswith(f"config: {out}; train with: mois fit --config {out}\n")
    train("fit", f"--config={out}", *QUICK, "--data.init_args.batch_size=1", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0]
    data = yaml.safe_load(out.read_text(encoding="utf-8"))["data"]["init_args"]
    assert data["pixel_mm"] == 0.6  # cubes of 3 x 3 voxels of 2 mm: circles of 6.77 mm, 11 pixels across
    assert data["split"] == {"val_subjects": ["p1"]}  # eight slices are too few for a slab
    assert data["clip"] == 3
    capsys.readouterr()
    with pytest.raises(SystemExit):
        mois_main(["init", str(root), "--out", str(out)])
    assert capsys.readouterr().err == f"error: out={out} is there already; choose another name, or remove it.\n"
