"""What is wrong with files, settings and checkpoints is said in one line, and the program ends with code 2."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.testing import nano_backbone
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.small_runs import BACKBONE, LORA, data, failing, folder, last, losses, train

Damage = Callable[[Path], object]


def truncate(root: Path) -> None:
    file = root / "imagesTr" / "p1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-500])


def put_nan(root: Path) -> None:
    image = scan_with_lesions(1)[0]
    image[5, 5, 5:8] = np.nan
    save_nifti(root / "imagesTr" / "p1_0000.nii.gz", image)


def blank(root: Path) -> None:
    save_nifti(root / "imagesTr" / "p1_0000.nii.gz", np.zeros((40, 8, 48), np.int16))


def write_label(classes: np.ndarray, affine: np.ndarray | None = None) -> Damage:
    return lambda root: save_nifti(root / "labelsTr" / "p1.nii.gz", classes.astype(np.uint8), affine)


def erase_lesions(root: Path) -> None:
    for label in (root / "labelsTr").glob("*.nii.gz"):
        save_nifti(label, np.zeros((40, 8, 48), np.uint8))


def share_patient(root: Path) -> None:
    (root / "subjects.csv").write_text("subject,patient\np0,anna\np1,berta\np2,anna\n")


def nothing(root: Path) -> None:
    del root


LABEL = scan_with_lesions(1)[1]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_second_scale_is_refused_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    said = failing(capsys, command, *LORA, *data(tmp_path), "--model.inference.pixel_mm=3", folder(tmp_path / "run"))
    assert said == "data.init_args.pixel_mm=2.0 and model.inference.pixel_mm=3.0 differ; set both to the same"


@pytest.mark.parametrize(
    ("damage", "arguments", "line"),
    [
        pytest.param(truncate, [], "ROOT/imagesTr/p1_0000.nii.gz: cut off", id="truncated"),
        pytest.param(put_nan, [], "ROOT/imagesTr/p1_0000.nii.gz: 3 voxels are NaN or infinite; replace them", id="NaN"),
        pytest.param(blank, [], "ROOT/imagesTr/p1_0000.nii.gz: every voxel is 0; export it", id="constant image"),
        pytest.param(
            write_label(LABEL[:, :, :40]),
            [],
            "ROOT/labelsTr/p1.nii.gz: shape (40, 8, 40) differs from (40, 8, 48) of p1_0000.nii.gz; resample the label",
            id="shape",
        ),
        pytest.param(
            write_label(LABEL, np.diag([2.0, 6.0, 2.1, 1.0])),
            [],
            "ROOT/labelsTr/p1.nii.gz: its affine differs from that of p1_0000.nii.gz by 4.8 mm (0.01 mm allowed)",
            id="affine",
        ),
        pytest.param(
            write_label(5 * LABEL),
            [],
            "ROOT/labelsTr/p1.nii.gz: holds label 5, dataset.json declares [1, 2]; add it to labels there",
            id="undeclared label",
        ),
        pytest.param(
            erase_lesions,
            [],
            "ROOT/labelsTr/p0.nii.gz: none of the 2 training scans has a lesion (voxels above 0); annotate some",
            id="no lesions at all",
        ),
        pytest.param(
            share_patient,
            [],
            "patient anna stands in train (p0) and in val (p2); move all scans of a patient into one split",
            id="patient in two splits",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.patch_px=416", "--model.inference.tile_px=416"],
            "data.init_args.patch_px=416 at pixel_mm=2.0 is 832 mm, more than 4 times subject p0 (96 mm); choose",
            id="patch that cannot fit",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.pixel_mm=1.5", "--model.inference.pixel_mm=0.25"],
            "data.init_args.pixel_mm=1.5 and model.inference.pixel_mm=0.25 differ; set both to the same",
            id="two scales",
        ),
        pytest.param(
            nothing,
            ["--trainer.precision=bf16-true"],
            "trainer.precision=bf16-true is not supported; use 32-true, 32, bf16-mixed, bf16, 16-mixed, 16",
            id="weights in half precision",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.patch_px=96"],
            "data.init_args.patch_px=96 (what the model learns on) and model.inference.tile_px=64 (what it sees of",
            id="patches smaller than tiles",
        ),
        pytest.param(
            nothing,
            ["--model.inference.tile_px=null", "--model.backbone.init_args.size=tiny", "--data.init_args.patch_px=128"],
            "data.init_args.patch_px=128 (what the model learns on) and model.backbone.init_args.patch_px=1024 (what",
            id="patches of the nano, tiles of SAM 2.1",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.patch_px=100"],
            "data.init_args.patch_px=100 must be a multiple of 32, such as 128.",
            id="what the data's constructor refuses",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.patch=64"],
            "data.init_args.patch is no setting of datamodules.NiftiDataModule; did you mean patch_px?",
            id="misspelt key",
        ),
        pytest.param(
            nothing,
            ["--model.learning.corection=2"],
            "model.learning.corection is no setting; did you mean model.learning.corrections?",
            id="misspelt nested key",
        ),
        pytest.param(
            nothing,
            ["--model.optimisation.lr=2"],
            "model.optimisation.lr is no setting; did you mean model.optimisation.learning_rate?",
            id="another program's word for a nested key",
        ),
        pytest.param(
            nothing,
            ["--data.init_args.batch_size=four"],
            "data.init_args.batch_size=four is not allowed; give int",
            id="wrong type",
        ),
        pytest.param(
            nothing,
            ["--model.adapter.init_args.rank=high"],
            "model.adapter.init_args.rank=high is not allowed; give int",
            id="wrong type of a plug-in",
        ),
        pytest.param(
            nothing,
            ["--model.adapter=adapters.Frozen", "--model.propagation=mois.propagation.Prototype"],
            "nothing to train: Frozen trains nothing of the backbone and Prototype has no weights; choose another",
            id="nothing to train",
        ),
        pytest.param(
            nothing,
            ["--trainer.max_epochs=-1"],
            "trainer.max_epochs=-1 without trainer.max_steps has no end, which the learning rate needs; set one.",
            id="no end",
        ),
    ],
)
def test_bad_input_ends_in_one_line(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    arguments: list[str],
    line: str,
) -> None:
    root = make_dataset(subjects=3)
    damage(root)
    run = [*LORA, *data(root, val_subjects="[p2]"), folder(tmp_path / "run"), *arguments]
    said = failing(capsys, "fit", *run)
    assert said.startswith(line.replace("ROOT", str(root)))
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    ("damage", "argument"),
    [
        pytest.param(nothing, "--data.init_args.root=nowhere", id="wrong root"),
        pytest.param(nothing, "--data.init_args.split.train_subjects=[p9]", id="unknown scan"),
        pytest.param(share_patient, "--data.init_args.split.fold=null", id="patient in two splits"),
        pytest.param(truncate, "--data.init_args.split.fold=null", id="broken file"),
    ],
)
@pytest.mark.parametrize(
    "logger", ["--tracking.wandb=offline", "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: run}}"]
)
def test_data_that_are_refused_leave_no_run_behind(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Damage,
    argument: str,
    logger: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    root = make_dataset(subjects=3)
    damage(root)
    failing(capsys, "fit", *LORA, *data(root, val_subjects="[p2]"), folder(Path("run")), argument, logger)
    assert list(tmp_path.iterdir()) == [root]


def test_a_misspelt_key_of_a_config_is_found_in_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {class_path: datamodules.NiftiDataModule, init_args: {root: d, pixel_m: 1.5}}\n")
    assert failing(capsys, "fit", f"--config={file}") == (
        f"data.init_args.pixel_m is no setting of datamodules.NiftiDataModule ({file}); did you mean pixel_mm?"
    )


def test_a_broken_scan_is_found_before_a_worker_reads_it(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1, held_out=1)
    (root / "imagesTs" / "p1_0000.nii.gz").write_bytes(b"no gzip")
    said = failing(capsys, "test", *LORA, *data(root), folder(tmp_path / "run"))
    assert said.startswith(f"{root}/imagesTs/p1_0000.nii.gz: ")


def test_one_scan_without_lesions_trains(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = make_dataset(subjects=2)
    save_nifti(root / "labelsTr" / "p0.nii.gz", np.zeros((40, 8, 48), np.uint8))
    train("fit", *LORA, *data(root, episodes_per_epoch=2), "--trainer.max_steps=2", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]


class Shell:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pickle_was_executed",)


def test_backbone_weights_that_do_not_fit_or_run_code_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = nano_backbone().weights()
    torch.save({"model": {name: tensor for name, tensor in state.items() if "neck.convs.0" not in name}}, "part.pt")
    torch.save({"model": Shell()}, "hostile.pt")
    run = ["fit", *LORA, *data(tmp_path / "none"), folder(tmp_path / "run")]
    missing = sum("neck.convs.0" in name for name in state)
    assert failing(capsys, *run, f"{BACKBONE}weights=part.pt").startswith(
        f"backbone.weights=part.pt does not fit the model ({len(state)} tensors): {missing} missing: "
        "image_encoder.neck.convs.0"
    )
    assert failing(capsys, *run, f"{BACKBONE}weights=hostile.pt").startswith(
        "backbone.weights=hostile.pt is refused: it does not load as plain tensors (weights_only=True), since it names "
    )
    assert not Path("pickle_was_executed").exists()


def test_checkpoints_of_something_else_are_refused(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_dataset(subjects=1, held_out=1)
    model = [*LORA, *data(root, episodes_per_epoch=1)]
    train("fit", *model, "--trainer.max_steps=1", folder(tmp_path / "run"))
    good = last(tmp_path / "run")
    trained = len(good["state_dict"])

    def refused(name: str, content: object, *arguments: str) -> str:
        torch.save(content, name)
        return failing(capsys, "test", *model, f"--ckpt_path={name}", folder(tmp_path / "run"), *arguments)

    key, *rest = good["state_dict"]
    assert refused("part.ckpt", {**good, "state_dict": {name: good["state_dict"][name] for name in rest}}) == (
        f"the checkpoint does not fit the model: 1 of {trained} trained tensors are missing ({key}), 0 are unknown (); "
        "use the config it was trained with."
    )
    shorter = {**good["state_dict"], key: good["state_dict"][key][:1]}
    assert refused("reshaped.ckpt", {**good, "state_dict": shorter}).startswith(
        f"the checkpoint does not fit the model: {key} has shape "
    )
    assert refused("good.ckpt", good, f"{BACKBONE}seed=1").startswith("the checkpoint belongs to backbone nano (random")
    foreign = {name: value for name, value in good.items() if name != "backbone"}
    assert refused("foreign.ckpt", foreign) == (
        "the checkpoint does not say which backbone it belongs to; give one that a training wrote."
    )
    not_ours = "it is no checkpoint of a training; give one that a training wrote"
    assert refused("weights.ckpt", {"model": good["state_dict"]}) == (
        f"ckpt_path=weights.ckpt: {not_ours} (backbone weights go to model.backbone.init_args.weights)"
    )
    assert refused("tensor.ckpt", torch.zeros(2)).startswith(f"ckpt_path=tensor.ckpt: {not_ours}")
    assert refused("hostile.ckpt", {**good, "extra": Shell()}).startswith(
        "ckpt_path=hostile.ckpt: it holds more than tensors and plain values, and loading it could run foreign code"
    )
    assert not Path("pickle_was_executed").exists()


def test_wandb_that_cannot_be_reached_costs_one_warning(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # discard: nobody listens there
    monkeypatch.delenv("WANDB_MODE", raising=False)
    root = make_dataset(subjects=1)
    run = [*LORA, *data(root, episodes_per_epoch=1), "--trainer.max_steps=1", "--tracking.wandb=auto"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train("fit", *run, folder(tmp_path / "run"))
    (line,) = [str(warning.message) for warning in caught if "W&B" in str(warning.message)]
    assert line.startswith("W&B is recorded offline, because http://127.0.0.1:9 cannot be reached")
    assert "\n" not in line
    assert list(losses(tmp_path / "run")) == [0]
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
