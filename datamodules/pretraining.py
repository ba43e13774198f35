"""Episodes with new lesion types in each episode. The bundled nano learned from them."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.chance import torch_seeded_by
from datamodules.episodes import EpisodeMix, EpisodeSettings, draw_episode
from datamodules.loading import EpisodeLoader, VolumeLoader, check_counts, rank_and_world
from datamodules.phantoms.lesion_types import HELD_BACK, draw_lesion_types
from datamodules.phantoms.phantom import Phantom, make_phantom, make_slab
from datamodules.pictures.scene import BODY, GAINS, Scene, draw_scene
from datamodules.subjects import PreparedSubject, prepare_stack
from datamodules.transforms import Augmentation
from mois.intensities import normalise
from mois.records import Episode, Volume

GAP_MM = 7.8
BRIGHT = 0.62
"""99.5th percentile of a whole phantom, relative to its gain. `mois.intensities` sets this percentile to 1."""
PICTURE_SHAPE = (12, 256, 256)
"""Slices, rows and columns of a whole picture to validate on."""
_TRIES = 20
_PICTURES = 2  # part of the seed of pictures, where phantoms have 0 or 1
_VALIDATION = 3  # the same for pictures to validate on
_SEVERAL = 4  # the same for the episodes of a piece that gives several


class NewTypeEpisodes(Dataset[Episode]):
    """Episodes of new lesion types, in pieces of phantoms or in pictures. Item (epoch, index) never changes.

    A piece of a phantom has two types, a picture one to six. A model cannot learn these types by heart: it has to look
    at the exemplars.

    Args:
        settings: How episodes are drawn from a piece.
        seed: Seed of the episodes.
        held_back: Whether the types of phantoms come from the combinations that pretraining never sees, for validation.
        slices: Number of slices of a piece or picture.
        piece_px: Edge of the slices in pixels.
        pixel_mm: Edge of a pixel in millimetres.
        lesions_per_type: Smallest and largest number of lesions of each type in a piece.
        pictures: Share of the episodes that show pictures (`datamodules.pictures`) instead of phantoms.
        episodes_per_piece: Number of episodes in a row from the same piece or picture.

    Source: Butoi et al., UniverSeg, arXiv 2304.06131 (in-context segmentation from a diversity of synthetic tasks).
    """

    def __init__(
        self,
        settings: EpisodeSettings,
        seed: int = 0,
        held_back: bool = False,
        slices: int = 7,
        piece_px: int = 224,
        pixel_mm: float = 1.5,
        lesions_per_type: tuple[int, int] = (4, 9),
        pictures: float = 0.0,
        episodes_per_piece: int = 1,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.held_back = held_back
        self.slices = slices
        self.piece_px = piece_px
        self.pixel_mm = pixel_mm
        self.lesions_per_type = lesions_per_type
        self.pictures = pictures
        self.episodes_per_piece = episodes_per_piece
        self._latest: tuple[tuple[int, int], PreparedSubject] | None = None  # the piece of several episodes

    def __getitem__(self, key: tuple[int, int]) -> Episode:
        epoch, index = key
        number = (epoch, index // self.episodes_per_piece)
        if self._latest is not None and self._latest[0] == number:
            subject = self._latest[1]
        else:
            subject, rng = self._draw(number)
        if self.episodes_per_piece > 1:
            self._latest = (number, subject)
            rng = np.random.default_rng([self.seed, _SEVERAL, *key])
        with torch_seeded_by(rng):
            return draw_episode(subject, self.settings, rng, painter=None)

    def _draw(self, key: tuple[int, int]) -> tuple[PreparedSubject, np.random.Generator]:
        """Return a picture or a piece of a phantom, and its generator."""
        rng = np.random.default_rng([self.seed, _PICTURES, *key])
        if rng.random() < self.pictures:
            return self._picture(rng, key), rng
        return self._piece(key)

    def _picture(self, rng: np.random.Generator, key: tuple[int, int]) -> PreparedSubject:
        """Return a picture, normalised as a scan of its own."""
        scene = draw_scene(rng, (self.slices, self.piece_px, self.piece_px), self.pixel_mm)
        image = normalise(torch.from_numpy(scene.image), BODY, known=scene.levels)
        if rng.random() < 0.5:  # a piece of a scan has the levels of the whole scan
            image = (image * float(rng.uniform(*GAINS))).clamp(0, 2)
        return self._subject(image, scene, key)

    def _piece(self, key: tuple[int, int]) -> tuple[PreparedSubject, np.random.Generator]:
        """Return a piece of a phantom, and its generator."""
        epoch, index = key
        for attempt in range(_TRIES):
            rng = np.random.default_rng([self.seed, int(self.held_back), epoch, index, attempt])
            types = draw_lesion_types(rng, 2, held_back=self.held_back)
            piece = make_slab(
                rng,
                types,
                slices=self.slices,
                height_px=self.piece_px,
                width_px=self.piece_px,
                pixel_mm=self.pixel_mm,
                gap_mm=GAP_MM,
                lesions_per_type=self.lesions_per_type,
            )
            if set(piece.classes.values()) != {1, 2}:
                continue  # a piece at the edge of the body may have no room for both types
            image = torch.from_numpy(piece.image) / (BRIGHT * piece.gain * float(rng.uniform(0.85, 1.2)))
            return self._subject(image.clamp(0, 2), piece, key), rng
        raise RuntimeError(f"{_TRIES} pieces of body had no room for two lesion types (seed {self.seed}, {key})")

    def _subject(self, image: Tensor, piece: Phantom | Scene, key: tuple[int, int]) -> PreparedSubject:
        lesions = torch.from_numpy(piece.instances)
        names = (f"piece {key[0]}/{key[1]}", f"piece {key[0]}/{key[1]}")
        spacing_mm = (self.pixel_mm, piece.spacing_mm[0])
        return prepare_stack(image, lesions, piece.classes, None, names, spacing_mm, self.settings.patch_px)


class PretrainDataModule(LightningDataModule):
    """Episodes of new lesion types for training; whole phantoms of held-back types for validation and test.

    Args:
        episodes_per_epoch: Number of episodes in an epoch, over all processes.
        batch_size: Number of episodes in a batch, on each process.
        num_workers: Number of processes that draw episodes, for each training process. None takes 4 for each GPU, and
            0 on a CPU.
        val_subjects: Number of whole phantoms to validate on.
        test_subjects: Number of other whole phantoms to test on.
        lesions: Smallest and largest number of lesions in a whole phantom, of both types together.
        patch_px: Edge P of a patch in pixels, a multiple of 32.
        exemplars: Number K of exemplars in a group.
        clip: Number T of slices to track a lesion over, odd.
        mix: The sources of episodes.
        augmentation: How patches are varied.
        seed: Seed of phantoms and episodes.
        pictures: Share of the episodes that show pictures of anything (`datamodules.pictures`) instead of phantoms.
        val_pictures: Number of whole pictures to validate on, after the phantoms. No episode shows them.
        episodes_per_piece: Number of episodes in a row from the same piece of a phantom or the same picture. To draw
            a piece takes three times as long as to draw an episode from it.
    """

    def __init__(
        self,
        episodes_per_epoch: int = 2000,
        batch_size: int = 4,
        num_workers: int | None = 1,
        val_subjects: int = 4,
        test_subjects: int = 12,
        lesions: tuple[int, int] = (20, 60),
        patch_px: int = 128,
        exemplars: int = 3,
        clip: int = 3,
        mix: EpisodeMix = EpisodeMix(1.0, 0.0, 0.15, lesion_free=0.05, background=0.1, together=0.8),  # noqa: B008
        augmentation: Augmentation = Augmentation(bias=0.0, noise=0.1, ghosting=0.0, motion=0.0, affine=0.3),  # noqa: B008
        seed: int = 0,
        pictures: float = 0.0,
        val_pictures: int = 0,
        episodes_per_piece: int = 1,
    ) -> None:
        super().__init__()
        check_counts(batch_size, episodes_per_epoch, num_workers)
        if not 0 <= pictures <= 1:
            raise ValueError(f"data.init_args.pictures={pictures} is a share of the episodes; choose 0 to 1.")
        if val_pictures < 0:
            raise ValueError(f"data.init_args.val_pictures={val_pictures} must be 0 or more.")
        if episodes_per_piece < 1:
            raise ValueError(f"data.init_args.episodes_per_piece={episodes_per_piece} must be 1 or more.")
        self.episodes_per_epoch = episodes_per_epoch
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_subjects = val_subjects
        self.test_subjects = test_subjects
        self.lesions = lesions
        self.seed = seed
        self.pictures = pictures
        self.val_pictures = val_pictures
        self.episodes_per_piece = episodes_per_piece
        self.settings = EpisodeSettings(patch_px, exemplars, clip, mix, augmentation)

    def train_dataloader(self) -> DataLoader[Episode]:
        """Return the batches of this rank."""
        return EpisodeLoader(
            NewTypeEpisodes(
                self.settings, self.seed, pictures=self.pictures, episodes_per_piece=self.episodes_per_piece
            ),
            batch_size=self.batch_size,
            episodes_per_epoch=self.episodes_per_epoch,
            trainer=self.trainer,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> VolumeLoader:
        """Return the whole phantoms of this rank, each with two held-back types, and whole pictures."""
        return self._held_back(range(self.val_subjects), range(self.val_pictures))

    def test_dataloader(self) -> VolumeLoader:
        """Return the whole phantoms of this rank, each with two held-back types."""
        return self._held_back(range(self.val_subjects, self.val_subjects + self.test_subjects))

    def fingerprint(self) -> str:
        """Return a SHA-256 of seed, settings and held-back types."""
        said = f"{self.seed} {self.settings} {self.lesions} {sorted(HELD_BACK)}"
        if self.pictures or self.val_pictures:  # without, the digest is the one of records that know no pictures
            said += f" {self.pictures} {self.val_pictures}"
        if self.episodes_per_piece > 1:
            said += f" {self.episodes_per_piece}"
        return hashlib.sha256(said.encode()).hexdigest()

    def _held_back(self, numbers: range, pictures: range = range(0)) -> VolumeLoader:
        readers = [partial(held_back_volume, self.seed, number, self.lesions) for number in numbers]
        readers += [partial(picture_volume, self.seed, number) for number in pictures]
        return VolumeLoader(readers, *rank_and_world(self.trainer))


def held_back_volume(seed: int, number: int, lesions: tuple[int, int] = (20, 60)) -> Volume:
    """Return a whole phantom with two held-back lesion types. Seed and number decide the phantom."""
    rng = np.random.default_rng([seed, 1, number])
    phantom = make_phantom(rng, draw_lesion_types(rng, 2, held_back=True), lesions=lesions)
    return as_volume(phantom, f"held_back_{number:02d}")


def picture_volume(seed: int, number: int) -> Volume:
    """Return a whole picture with two types or more. Seed and number decide the picture; no episode shows it."""
    rng = np.random.default_rng([seed, _VALIDATION, number])
    return as_volume(draw_scene(rng, PICTURE_SHAPE, least_types=2, least_gap_px=1.5), f"picture_{number:02d}")


def as_volume(phantom: Phantom | Scene, name: str) -> Volume:
    """Return a phantom or picture as a scan: slices run to the back, rows to the feet, columns to the left."""
    gap_mm, row_mm, column_mm = phantom.spacing_mm
    affine = torch.tensor(
        [[0, 0, -column_mm, 0], [-gap_mm, 0, 0, 0], [0, -row_mm, 0, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    lesions = torch.from_numpy(phantom.instances.astype(np.int32))
    return Volume(name, name, torch.from_numpy(phantom.image), affine, lesions, dict(phantom.classes))
