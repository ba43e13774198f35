"""Scans of bright and dark discs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mois.interfaces import Episode, Volume
from mois.scans.volumes import normalise


class Discs(LightningDataModule):
    """A scan of bright (1) and dark (2) discs, written as NIfTI and read back.

    Args:
        folder: Folder for the scan.
        patch_px: Edge of the scan and of its patches in pixels.
        exemplars: Number of exemplars; two.
    """

    def __init__(self, folder: Path, patch_px: int = 64, exemplars: int = 2) -> None:
        super().__init__()
        self.folder, self.patch_px, self.exemplars = Path(folder), patch_px, exemplars

    def prepare_data(self) -> None:
        """Write the scan."""
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

    def setup(self, stage: str) -> None:
        """Read the scan."""
        del stage
        image, kinds = (np.asarray(nib.load(self.folder / f"{name}.nii.gz").dataobj) for name in ("image", "kinds"))
        self.image = torch.from_numpy(image.astype(np.float32))
        self.kinds = torch.from_numpy(kinds.astype(np.int32))

    def episode(self, index: int) -> Episode:
        """Return an episode: discs of both kinds as exemplars, a further slice as query."""
        pictures = normalise(self.image).permute(2, 0, 1)
        kinds = self.kinds.permute(2, 0, 1)
        half = torch.arange(self.patch_px) < self.patch_px // 2  # one disc of each kind in each half
        masks = torch.stack([(kinds[:2] == kind) & half[:, None] for kind in (1, 2)])
        target = torch.stack([kinds[4] == 1, kinds[4] == 2])
        generator = torch.Generator().manual_seed(index)
        return Episode(
            pictures[:2].expand(2, -1, -1, -1),
            masks,
            torch.ones(2, 2, dtype=torch.bool),
            pictures[4],
            target,
            target.any(0),
            torch.ones(2, dtype=torch.bool),
            pictures[1:4],
            (kinds[1:4] == 1) & half[:, None],
            torch.rand(64, generator=generator),
        )

    def train_dataloader(self) -> DataLoader[Episode]:
        """Yield batches of two episodes."""

        def batch(episodes: list[Episode]) -> Episode:
            return Episode(*(torch.stack(parts) for parts in zip(*episodes, strict=True)))

        return DataLoader([self.episode(index) for index in range(4)], batch_size=2, collate_fn=batch)

    def val_dataloader(self) -> DataLoader[Volume]:
        """Yield the whole scan."""
        ids = torch.zeros_like(self.kinds)
        classes = {}
        for number, (x, y) in enumerate(((16, 16), (16, 46), (46, 16), (46, 46)), 1):
            part = self.kinds[x - 8 : x + 9, y - 8 : y + 9]
            ids[x - 8 : x + 9, y - 8 : y + 9][part > 0] = number
            classes[number] = int(part.max())
        affine = torch.diag(torch.tensor([2.0, 2.0, 6.0, 1.0], dtype=torch.float64))
        volume = Volume("disc", "nobody", self.image, affine, ids, classes)
        return DataLoader([volume], batch_size=None, collate_fn=lambda one: one)
