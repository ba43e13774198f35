"""A propagation, an adapter and a datamodule that lie in somebody's own folder train by class_path alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from mois.testing import check_adapter, check_datamodule, check_propagation
from tests.support.small_runs import BACKBONE, SMALL, failing, folder, last, losses, train, validations

PROPAGATION = '''
import torch
from torch import nn
from torch.nn import functional

from mois.records import Exemplars, SemanticPrediction
from mois.interfaces import Propagation


class MeanToken(Propagation):
    """Compares every cell with the exemplars' mean feature."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        if gain <= 0:
            raise ValueError(f"model.propagation.init_args.gain={gain} must be above 0.")
        self.gain = gain

    def build(self, backbone):
        self.bytes_per_exemplar = 4 * backbone.width
        self.key = nn.Linear(backbone.width, backbone.width)
        self.nothing = nn.Parameter(torch.zeros(backbone.width))

    def describe(self, features, masks, backbone):
        coarse = features.levels[-1]
        share = functional.adaptive_avg_pool2d(masks.unsqueeze(1), coarse.shape[-2:])
        mean = (coarse * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)
        there = masks.flatten(1).any(1, keepdim=True)
        return Exemplars({"mean": mean.unsqueeze(1)}, there, torch.zeros_like(there))

    def forward(self, features, exemplars, backbone):
        times = exemplars.valid.shape[0] // features.image.shape[0]
        coarse = features.levels[-1].repeat_interleave(times, 0)
        sign = exemplars.valid * exemplars.weight * (1 - 2 * exemplars.negative.float())
        wanted = (exemplars.tokens["mean"] * sign.unsqueeze(2)).sum(1) / sign.abs().sum(1, keepdim=True).clamp(min=1e-6)
        wanted = torch.where(exemplars.present.any(1, keepdim=True), wanted, self.nothing)
        score = self.gain * torch.einsum("bchw,bc->bhw", coarse, self.key(wanted))
        logits = functional.interpolate(score.unsqueeze(1), features.image.shape[-2:], mode="bilinear").squeeze(1)
        return SemanticPrediction(logits, logits.amax((1, 2)))
'''

ADAPTER = '''
from safetensors.torch import load_file, save_file

from mois.interfaces import Adapter


class OutputBiases(Adapter):
    """Trains the biases of the layers that enlarge the decoder's answer."""

    def attach(self, backbone, propagation):
        backbone.requires_grad_(False)
        named = backbone.parts()["decoder"].named_parameters()
        self.biases = {name: p for name, p in named if name.endswith("bias") and "output_upscaling" in name}
        if not self.biases:
            raise ValueError("model.adapter=OutputBiases matches nothing in this decoder.")
        for bias in self.biases.values():
            bias.requires_grad_(True)

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: bias.detach().clone() for name, bias in self.biases.items()}, folder / "biases.safetensors")

    def load(self, folder):
        for name, tensor in load_file(folder / "biases.safetensors").items():
            self.biases[name].data.copy_(tensor)
'''

DATA = '''
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mois.records import Episode, Volume
from mois.scans.volumes import normalise


class Discs(LightningDataModule):
    """Scans of bright (1) and dark (2) discs, written as NIfTI and read back."""

    def __init__(self, folder: Path, patch_px: int = 64, exemplars: int = 2) -> None:
        super().__init__()
        self.folder, self.patch_px, self.exemplars = Path(folder), patch_px, exemplars

    def prepare_data(self):
        rng = np.random.default_rng(0)
        image = rng.normal(100, 5, (self.patch_px, self.patch_px, 6)).astype(np.float32)
        kinds = np.zeros(image.shape, np.uint8)
        at = np.stack(np.indices(image.shape[:2]), -1)
        for depth in range(6):
            for number, centre in enumerate(((16, 16), (16, 46), (46, 16), (46, 46))):
                disc = ((at - centre) ** 2).sum(-1) < 40
                image[disc, depth] = 30 if number % 2 else 180
                kinds[disc, depth] = 1 + number % 2
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("image", image), ("kinds", kinds)):
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 6.0, 1.0])), self.folder / f"{name}.nii.gz")

    def setup(self, stage):
        image, kinds = (np.asarray(nib.load(self.folder / f"{name}.nii.gz").dataobj) for name in ("image", "kinds"))
        self.image = torch.from_numpy(image.astype(np.float32))
        self.kinds = torch.from_numpy(kinds.astype(np.int32))

    def episode(self, index):
        pictures = normalise(self.image).permute(2, 0, 1)
        kinds = self.kinds.permute(2, 0, 1)
        half = torch.arange(self.patch_px) < self.patch_px // 2  # one disc of each kind in each half
        masks = torch.stack([(kinds[:2] == kind) & half[:, None] for kind in (1, 2)])
        target = torch.stack([kinds[4] == 1, kinds[4] == 2])
        generator = torch.Generator().manual_seed(index)
        return Episode(
            pictures[:2].expand(2, -1, -1, -1), masks, torch.ones(2, 2, dtype=torch.bool), pictures[4], target,
            target.any(0), torch.ones(2, dtype=torch.bool), pictures[1:4], (kinds[1:4] == 1) & half[:, None],
            torch.rand(64, generator=generator),
        )

    def train_dataloader(self):
        def batch(episodes):
            return Episode(*(torch.stack(parts) for parts in zip(*episodes)))

        return DataLoader([self.episode(index) for index in range(4)], batch_size=2, collate_fn=batch)

    def val_dataloader(self):
        ids = torch.zeros_like(self.kinds)
        classes = {}
        for number, (x, y) in enumerate(((16, 16), (16, 46), (46, 16), (46, 46)), 1):
            part = self.kinds[x - 8 : x + 9, y - 8 : y + 9]
            ids[x - 8 : x + 9, y - 8 : y + 9][part > 0] = number
            classes[number] = int(part.max())
        affine = torch.diag(torch.tensor([2.0, 2.0, 6.0, 1.0], dtype=torch.float64))
        volume = Volume("disc", "nobody", self.image, affine, ids, classes)
        return DataLoader([volume], batch_size=None, collate_fn=lambda one: one)
'''


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that knows nothing of ours but the interfaces."""
    modules = {"their_propagation": PROPAGATION, "their_adapter": ADAPTER, "their_data": DATA}
    for name, source in modules.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def test_plug_ins_of_others_train_and_validate(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        "fit",
        "--model.backbone=mois.backbones.SAM2",
        f"{BACKBONE}weights=random",
        "--model.adapter=their_adapter.OutputBiases",
        "--model.propagation=their_propagation.MeanToken",
        "--data=their_data.Discs",
        f"--data.init_args.folder={elsewhere / 'scans'}",
        *SMALL,
    ]
    said = failing(capsys, *run, "--model.propagation.init_args.gian=2", folder(elsewhere / "run"))
    assert said.endswith("gian is no setting of their_propagation.MeanToken; did you mean gain?")
    said = failing(capsys, *run, "--model.propagation.init_args.gain=-1", folder(elsewhere / "run"))
    assert said == "model.propagation.init_args.gain=-1.0 must be above 0."

    cli = train(*run, "--trainer.max_epochs=1", "--model.propagation.init_args.gain=2", folder(elsewhere / "run"))
    assert list(losses(elsewhere / "run")) == [0, 1]
    (scored,) = validations(elsewhere / "run")
    assert {"val/right", "val/wrong", "val/swapped", "val/no_exemplars"} <= scored.keys()
    trained = last(elsewhere / "run")["state_dict"]
    ours = {name for name in trained if name.startswith("backbone.")}
    assert ours
    assert all(name.endswith("bias") and "output_upscaling" in name for name in ours)
    assert trained.keys() - ours == {"propagation.key.weight", "propagation.key.bias", "propagation.nothing"}

    cli.model.adapter.save(elsewhere / "adapter")
    assert (elsewhere / "adapter" / "biases.safetensors").is_file()
    on = [*run, "--trainer.max_epochs=2", "--ckpt_path=last", folder(elsewhere / "run")]
    assert "gain=2.0 (now 1.0); set it back" in failing(capsys, *on)
    train(*on, "--model.propagation.init_args.gain=2")
    assert list(losses(elsewhere / "run")) == [0, 1, 2, 3]


def test_plug_ins_of_others_can_be_checked(elsewhere: Path) -> None:
    check_propagation(import_module("their_propagation").MeanToken())
    check_adapter(import_module("their_adapter").OutputBiases())
    check_datamodule(import_module("their_data").Discs(elsewhere / "scans"))
