"""A training on CT: patches, validation, bundle and what uses it share one rule for intensities."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mois.intensities import CT_WINDOW_HU, Normalisation
from mois.sharing.bundle import Bundle
from tests.support.datasets import save_nifti, write_dataset
from tests.support.small_runs import LORA, folder, train

CT = Normalisation("window", CT_WINDOW_HU)


def ct_dataset(root: Path) -> Path:
    """Write scans whose air is -1024 and whose tissue is about 20 HU, as a dataset of CT."""
    write_dataset(root, subjects=2)
    for path in sorted((root / "imagesTr").glob("*.nii.gz")):
        image = np.asarray(nib.load(path).dataobj)
        save_nifti(path, np.where(image == 0, -1024, np.round(image - 80)).astype(np.int16))
    about = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": "CT"}}), encoding="utf-8")
    return root


@pytest.mark.usefixtures("same_process", "same_handlers")
def test_a_bundle_of_ct_records_its_window(tmp_path: Path) -> None:
    root = ct_dataset(tmp_path / "data")
    arguments = [*LORA, f"--data.init_args.root={root}", folder(tmp_path / "run")]
    train("fit", *arguments, "--data.init_args.episodes_per_epoch=2", "--trainer.max_epochs=1")
    described = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert described["inference"]["normalisation"] == {"rule": "window", "window": list(CT_WINDOW_HU)}
    assert Bundle.load(tmp_path / "run" / "bundle").inference.normalisation == CT


@pytest.mark.usefixtures("same_process", "same_handlers")
def test_patches_and_whole_volumes_have_one_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_dataset(tmp_path / "data")
    with pytest.raises(SystemExit):
        train("fit", *LORA, f"--data.init_args.root={root}", "--data.init_args.normalisation.rule=nonzero")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "data.init_args.normalisation=" in line
    assert line.endswith("differ; set both to the same")
