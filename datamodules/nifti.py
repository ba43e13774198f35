"""Scans in nnU-Net's raw layout: episodes to train on, whole volumes to validate, test and predict."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings
from datamodules.loading import EpisodeLoader, VolumeLoader, check_counts, errors_of_all_ranks, rank_and_world
from datamodules.prepared import Entry, PreparedScans, key_of
from datamodules.replay import WithReplay
from datamodules.slabs import cut_slab, slab_slices, usable_slices
from datamodules.splits import Splits, SplitSettings, divide
from datamodules.subjects import PreparedSubject, prepare_volume
from datamodules.transforms import Augmentation
from mois.errors import DataError
from mois.files.atomic import file_sha256
from mois.geometry import SliceAxis
from mois.intensities import Normalisation, doubt
from mois.records import Volume
from mois.scans.channels import channels_of, rule_of_channels, sequence_of_each, wanted_channels
from mois.scans.datasets import SubjectFiles, read_dataset
from mois.scans.image_files import parts_of
from mois.sharing.old_settings import SPLIT, accepts_old_arguments

_MANY = 10
log = logging.getLogger(__name__)


class NiftiDataModule(LightningDataModule):
    """Any dataset in nnU-Net's raw layout.

    Every file that a run needs is read and checked before the run starts. Each rank checks its own whole volumes.

    Args:
        root: Folder with dataset.json, imagesTr, labelsTr; maybe instancesTr, imagesTs, labelsTs, subjects.csv.
        channel: Number of the image to use, as in its file's name, if no channels are named.
        channels: Names of 1 to 3 sequences to use together, as in channel_names of dataset.json, such as
            ["FLAIR", "T2"]. "T2@-1" and "T2@+1" are the slices before and after. The first is drawn in reports.
        split: Which scans train, validate and test.
        instances: Take lesions from maps of lesion ids in instancesTr, if the dataset has them.
        slice_axis: Direction across the slices.
        normalisation: Rule of the intensities that the model sees, as in model.inference.normalisation.
        pixel_mm: Edge of the pixels in the training, in millimetres.
        patch_px: Edge of the training patches in pixels, a multiple of 32.
        exemplars: Number of exemplars in a group.
        clip: Number of slices to track a lesion over, odd.
        batch_size: Number of episodes in a batch, on each process.
        episodes_per_epoch: Number of episodes in an epoch, on all processes together.
        num_workers: Processes that draw episodes, for each training process. 0 draws in the training process; None
            takes 4 for each GPU, and 0 on a CPU.
        seed: Seed of the episodes and the folds.
        mix: The sources of episodes.
        augmentation: How training patches are varied.
        views: Number of epochs after which the same patches come again, for `model.cache`; 0 draws new patches always.
        prepared: Folder for prepared training scans. They are made once, and all ranks, workers and runs map them into
            memory. None takes `prepared` in the run's folder for several processes, and the memory for one process.
        replay: Share of the episodes that show new lesion types, as in the pretraining, instead of these scans.
    """

    @accepts_old_arguments(SPLIT)
    def __init__(
        self,
        root: Path,
        channel: int = 0,
        split: SplitSettings = SplitSettings(),  # noqa: B008 (frozen)
        instances: bool = True,
        slice_axis: SliceAxis = "auto",
        pixel_mm: float = 1.5,
        patch_px: int = 128,
        exemplars: int = 3,
        clip: int = 3,
        batch_size: int = 4,
        episodes_per_epoch: int = 400,
        num_workers: int | None = None,
        seed: int = 0,
        mix: EpisodeMix = EpisodeMix(),  # noqa: B008 (frozen)
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        views: int = 0,
        prepared: Path | None = None,
        normalisation: Normalisation = Normalisation(),  # noqa: B008
        channels: Sequence[str] = (),
        replay: float = 0.0,
    ) -> None:
        super().__init__()
        _check_channels(channel, channels)
        check_counts(batch_size, episodes_per_epoch, num_workers)
        if not 0 <= replay <= 1:
            raise ValueError(f"data.init_args.replay={replay} is a share of the episodes; choose 0 to 1.")
        if not pixel_mm > 0:
            raise ValueError(f"data.init_args.pixel_mm={pixel_mm} must be above 0.")
        self.root = Path(root)
        self.channel = channel
        self.channels = tuple(channels)
        self.split = split
        self.instances = instances
        self.slice_axis = slice_axis
        self.pixel_mm = pixel_mm
        self.batch_size = batch_size
        self.episodes_per_epoch = episodes_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.views = views
        self.prepared = prepared
        self.normalisation = normalisation
        self.replay = replay
        self.settings = EpisodeSettings(patch_px, exemplars, clip, mix, augmentation, sequence_of_each(channels))
        self._splits: Splits | None = None
        self._prepared: list[PreparedSubject] = []
        self._slabs: dict[str, range] = {}  # slab of each scan by its name
        self._checked: set[str] = set()

    @property
    def splits(self) -> Splits:
        """Scans of each split.

        Raises:
            DataError: If the folder holds no dataset, or a patient stands in two splits.
        """
        if self._splits is None:
            self._splits = divide(read_dataset(self.root), self.split, self.root, self.seed)
        return self._splits

    @property
    def validates_on_trained_scans(self) -> bool:
        """Whether slices of the scans that train validate: a training knows these patients."""
        return bool(self.split.val_slab)

    def setup(self, stage: str) -> None:
        """Read and check the files that this rank needs in this stage; prepare the training scans.

        Raises:
            DataError: If a file cannot be used.
        """
        if stage == "fit" and not self._prepared:
            self._prepare_training()
        if stage in ("fit", "validate"):
            self._check(self.splits.train if self.split.val_slab else self.splits.val, "validate on")
        if stage in ("test", "predict"):
            if not self.splits.test:
                what = "test" if stage == "test" else "predict"  # Lightning's enum prints its name
                raise DataError(
                    f"{self.root}: nothing to {what} on; set data.init_args.split.test_subjects, or add imagesTs."
                )
            self._check(self.splits.test, "test on" if stage == "test" else "")

    def train_dataloader(self) -> EpisodeLoader:
        """Return this process's share of the episodes, in batches."""
        if rank_and_world(self.trainer)[1] > 1 and getattr(
            getattr(self.trainer, "_accelerator_connector", None), "use_distributed_sampler", False
        ):
            raise ValueError(
                "trainer.use_distributed_sampler=true would share the episodes out twice; set it to false."
            )
        episodes = EpisodeDataset(self._prepared, self.settings, self.seed, views=self.views)
        replayed = WithReplay(episodes, self.settings, self.replay, self.seed, self.views, len(self.channels) or 1)
        return EpisodeLoader(
            replayed if self.replay else episodes,
            batch_size=self.batch_size,
            episodes_per_epoch=self.episodes_per_epoch,
            trainer=self.trainer,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> VolumeLoader:
        """Return this process's scans or slabs to validate on, one at a time."""
        if self.split.val_slab:
            readers = [partial(self._read_slab, subject) for subject in self.splits.train]
            return VolumeLoader(readers, *rank_and_world(self.trainer))
        return self._volumes(self.splits.val)

    def test_dataloader(self) -> VolumeLoader:
        """Return this process's scans to test on, one at a time."""
        return self._volumes(self.splits.test)

    def predict_dataloader(self) -> VolumeLoader:
        """Return this process's scans to predict, one at a time."""
        return self._volumes(self.splits.test)

    def normalisation_of_images(self) -> Normalisation:
        """Return the normalisation of this dataset's images, which a model trained on them records."""
        return self._rule(self.splits.train[0] if self.splits.train else self.splits.test[0])

    def trained_on(self, given: Mapping[str, Any], stage: str) -> list[str]:
        """Return the names of the scans of a stage on which a training was trained.

        Args:
            given: data.init_args of the training.
            stage: `test` or `validate`.
        """
        if stage == "validate" and self.split.val_slab and _split_of(given).val_slab == self.split.val_slab:
            return []  # the training left out the slices of the validation
        scored = self.splits.test if stage == "test" else self.splits.train if self.split.val_slab else self.splits.val
        return sorted(trained_subjects(self.root, given) & {subject.subject for subject in scored})

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names, splits and contents of all files in use."""
        total = hashlib.sha256()
        for split, subjects in self.splits._asdict().items():
            for subject in subjects:
                for file in self._files(subject):
                    for part in [] if file is None else parts_of(file):
                        total.update(f"{split} {os.path.relpath(part, self.root)} {file_sha256(part)}\n".encode())
        return total.hexdigest()

    def scan_names(self) -> list[str]:
        """Return the names of all scans and patients of the splits, which `tracking.names=hashed` hides."""
        subjects = [subject for split in self.splits for subject in split]
        return sorted({name for subject in subjects for name in (subject.subject, subject.patient)})

    def class_names(self) -> dict[int, str]:
        """Return the names of the lesion types by class, as dataset.json has them."""
        return {number: name for split in self.splits for subject in split for number, name in subject.classes.items()}

    def _prepare_training(self) -> None:
        subjects = self.splits.train
        if not subjects:
            raise DataError(
                f"{self.root}: no scan is left to train on; name some in data.init_args.split.train_subjects."
            )
        entries = self._entries(subjects)
        self._prepared = [entry.subject for entry in entries]
        self._checked |= {subject.subject for subject in subjects}
        self._slabs = {entry.subject.name: entry.slab for entry in entries if entry.slab is not None}
        empty = [prepared.name for prepared in self._prepared if not prepared.has_lesions]
        if len(empty) == len(self._prepared):
            raise DataError(
                f"{subjects[0].label}: none of the {len(subjects)} training scans has a lesion (voxels above 0); "
                "annotate some, or choose other data.init_args.split.train_subjects."
            )
        if empty:
            log.info("%d training scans have no lesion and give no episodes: %s", len(empty), ", ".join(empty))

    def _entries(self, subjects: Sequence[SubjectFiles]) -> list[Entry]:
        """Return prepared scans. Each rank prepares its share first; then it maps the shares of the other ranks."""
        rank, world = rank_and_world(self.trainer)
        kept = self.prepared
        if kept is None and self.trainer is not None and world > 1:
            kept = Path(self.trainer.default_root_dir) / "prepared"
            rank_zero_info(f"{world} processes share their training scans in {kept} (data.init_args.prepared)")
        if kept is None:
            return [self._prepare(subject) for subject in _progress(subjects, "reading training scans")]
        folder = PreparedScans(Path(kept))
        numbers = sorted(range(len(subjects)), key=lambda number: (number - rank) % world)
        own = len(range(rank, len(subjects), world))
        entries, keys = {}, {}
        with errors_of_all_ranks():
            for number in _progress(numbers[:own], "preparing training scans"):
                keys[number] = self._key(subjects[number])
                entries[number] = self._find(folder, keys[number], subjects[number], check=True)
        if self.trainer is not None:
            self.trainer.strategy.barrier("prepared scans")
        if torch.distributed.is_initialized():  # only one rank reads a file for its key
            parts: list[dict[int, str]] = [{} for _ in range(world)]
            torch.distributed.all_gather_object(parts, keys)
            keys = {number: key for part in parts for number, key in part.items()}
        for number in numbers[own:]:
            key = keys.get(number) or self._key(subjects[number])
            entries[number] = self._find(folder, key, subjects[number], check=False)
        return [entries[number] for number in range(len(subjects))]

    def _find(self, folder: PreparedScans, key: str, subject: SubjectFiles, *, check: bool) -> Entry:
        return folder.get(key, subject.subject, subject.patient, partial(self._prepare, subject), check=check)

    def _key(self, subject: SubjectFiles) -> str:
        self._check_annotated(subject, "train on")
        shaped_by = (
            self.pixel_mm,
            self.settings.patch_px,
            self.slice_axis,
            self.channel,
            self.instances,
            self.split.val_slab,
        )
        more = ((self.channels,) if self.channels else ()) + (("rejected",) if subject.rejected_class else ())
        return key_of(self._files(subject), (*shaped_by, sorted(subject.classes), str(self._rule(subject)), *more))

    def _rule(self, subject: SubjectFiles) -> Normalisation:
        return rule_of_channels(self.normalisation, self.channels, subject.channels.get(self.channel, ""))

    def _prepare(self, subject: SubjectFiles) -> Entry:
        volume = self._read(subject, "train on", rejected=True)
        for channel, _ in channels_of(volume, self.channels):
            if said := doubt(channel.image, self.normalisation.for_channel(channel.name)):
                warnings.warn(f"scan {volume.subject}: {said}", stacklevel=1)
        slab = self._slab(volume) if self.split.val_slab else None
        prepared = prepare_volume(
            volume,
            pixel_mm=self.pixel_mm,
            patch_px=self.settings.patch_px,
            slice_axis=self.slice_axis,
            usable=None if slab is None else usable_slices(volume, slab, self.slice_axis),
            normalisation=self.normalisation,
            channels=self.channels,
            rejected_class=subject.rejected_class,
        )
        return Entry(prepared, slab)

    def _check(self, subjects: Sequence[SubjectFiles], to: str) -> None:
        """Read and check the scans that `VolumeLoader` gives to this rank."""
        rank, world = rank_and_world(self.trainer)
        fresh = [subject for subject in subjects[rank::world] if subject.subject not in self._checked]
        with errors_of_all_ranks():
            for subject in _progress(fresh, "checking scans"):
                self._read(subject, to)
                self._checked.add(subject.subject)

    def _check_annotated(self, subject: SubjectFiles, to: str) -> None:
        if subject.label is None and (subject.instances is None or not self.instances):
            raise DataError(
                f"{self.root}: scan {subject.subject} has no label map to {to}; add it, or leave the scan out."
            )

    def _files(self, subject: SubjectFiles) -> list[Path | None]:
        """Return images, label map and map of lesion ids; None if missing or not used."""
        images = [subject.images.get(number) for number in subject.numbers(self.channel, self.channels)]
        return [*images, subject.label, subject.instances if self.instances else None]

    def _read(self, subject: SubjectFiles, to: str = "", *, rejected: bool = False) -> Volume:
        if to:
            self._check_annotated(subject, to)
        return subject.read(self.channel, instances=self.instances, channels=self.channels, rejected=rejected)

    def _slab(self, volume: Volume) -> range:
        return slab_slices(volume, self.split.val_slab, self.slice_axis)

    def _read_slab(self, subject: SubjectFiles) -> Volume:
        volume = self._read(subject)
        slab = self._slabs.get(subject.subject) or self._slab(volume)
        return cut_slab(volume, slab, self.slice_axis, self.normalisation)

    def _volumes(self, subjects: Sequence[SubjectFiles]) -> VolumeLoader:
        return VolumeLoader([partial(self._read, subject) for subject in subjects], *rank_and_world(self.trainer))


def _check_channels(channel: int, channels: Sequence[str]) -> None:
    wanted_channels(channels, "data.init_args.channels")
    if channels and channel:
        raise ValueError(
            f"data.init_args.channel={channel} and channels={list(channels)} both say which image is used; leave one "
            "out."
        )


def trained_subjects(root: Path, given: Mapping[str, Any]) -> set[str]:
    """Return the names of the scans on which a training was trained.

    Args:
        root: Folder of the dataset.
        given: data.init_args of the training.

    Returns:
        The names; empty if the training used another dataset, or its split can no longer be made.
    """
    if not given.get("root") or Path(given["root"]).resolve() != Path(root).resolve():
        return set()
    try:
        return {subject.subject for subject in NiftiDataModule(root, **split_options(given)).splits.train}
    except (DataError, ValueError):
        return set()


def split_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `NiftiDataModule` that say which scans train, validate and test.

    Args:
        given: A training's data.init_args, under old or current names.
    """
    options: dict[str, Any] = {"split": _split_of(given)}
    return options | {"seed": given["seed"]} if "seed" in given else options


def _split_of(given: Mapping[str, Any]) -> SplitSettings:
    split = SPLIT.with_group(given).get("split") or {}
    return SplitSettings(**split | {"file": Path(split["file"]) if split.get("file") else None})


def _progress(scans: Sequence[Any], what: str) -> Any:
    return track(scans, what, disable=len(scans) <= _MANY)
