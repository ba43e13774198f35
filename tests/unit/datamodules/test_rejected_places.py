"""Places that a reader rejected: wrong exemplars and background of episodes, and no lesions anywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from datamodules import NiftiDataModule
from datamodules.episodes import EpisodeMix
from datamodules.subjects import REJECTED_KIND
from mois.scans.datasets import read_dataset
from tests.support.datasets import save_nifti
from tests.support.episode_stacks import ONE_CLASS, episodes, stack

# ids 17 to 24 were rejected: one place on every slice, with pixels of id / 100; lesions have 1 + id / 100
PLACES = [(i, REJECTED_KIND if i > 16 else kind, s, r, c, e) for i, kind, s, r, c, e in ONE_CLASS]


def test_they_are_wrong_exemplars_and_no_target() -> None:
    wrong = 0
    for episode in episodes(PLACES, EpisodeMix(1, 0, 0)):
        first = episode.support_images[0][episode.support_masks[0]]
        assert (first > 1).all()  # never the group to find
        assert not bool((episode.query_targets.any(0) & (episode.query_images < 0.45)).any())
        assert not bool((episode.query_lesions & (episode.query_images < 0.45)).any())
        assert not bool((episode.query_cores & (episode.query_images < 0.45)).any())
        assert (episode.track_images[episode.track_masks] > 1).all()
        second = episode.support_images[1][episode.support_masks[1]]
        if bool(((second > 0.16) & (second < 0.25)).any()):
            wrong += 1
            assert not bool(episode.group_is_lesion[1])
            assert not bool(episode.query_targets[1].any())
    assert 10 <= wrong <= 30  # half of 40 episodes


def test_queries_lie_around_them() -> None:
    background = EpisodeMix(1, 0, 0, lesion_free=0, background=1)
    with_them = [bool((episode.query_images < 0.25).any()) for episode in episodes(PLACES, background)]
    assert sum(with_them) >= 15


def test_a_scan_of_rejected_places_alone_has_no_lesion() -> None:
    prepared = stack([place for place in PLACES if place[1] == REJECTED_KIND])
    assert prepared.has_rejected
    assert not prepared.has_lesions


def test_a_class_called_rejected_is_read_for_a_training_alone(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(subjects=2)  # classes 1 and 2, six lesions each
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["labels"] = {"background": 0, "bright": 1, "rejected": 2}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    scan = read_dataset(root)[0]
    volume, whole = scan.read(), scan.read(rejected=True)
    assert (set(volume.classes.values()), volume.declared) == ({1}, (1,))
    assert set(whole.classes.values()) == {1, 2}
    label = torch.from_numpy(nib.load(root / "labelsTr" / "p0.nii.gz").get_fdata())  # type: ignore[attr-defined]
    assert torch.equal(volume.lesions > 0, label == 1)
    data = NiftiDataModule(root, pixel_mm=2, patch_px=32)
    data.setup("fit")
    kinds = [np.unique(prepared.table.kind).tolist() for prepared in data._prepared]
    assert kinds == [[REJECTED_KIND, 1], [REJECTED_KIND, 1]]
    save_nifti(root / "labelsTr" / "p1.nii.gz", np.where(label.numpy() == 1, 0, label.numpy()).astype(np.uint8))
    data = NiftiDataModule(root, pixel_mm=2, patch_px=32)  # p1 has rejected places alone
    data.setup("fit")
    assert [prepared.has_lesions for prepared in data._prepared] == [True, False]
