"""Kept features: what cannot be kept is said, never handed out wrong."""

import gc
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from mois.inference.feature_store import FeatureStore
from mois.records import Features

CPU = torch.device("cpu")
IMAGES = torch.ones(2, 8, 8)


def store(scale: float, dtype: torch.dtype, budget_gib: float = 1.0) -> FeatureStore:
    def encode(images: Tensor) -> Features:
        level = scale * images.unsqueeze(1)
        return Features((level,), level, images.unsqueeze(1))

    return FeatureStore(encode, CPU, dtype, budget_gib)


@pytest.mark.parametrize(
    ("scale", "dtype", "reason"),
    [(1e5, torch.float16, "1e\\+05, which float16 cannot hold"), (torch.nan, torch.float32, "nan, which float32")],
)
def test_features_that_cannot_be_kept_are_refused(scale: float, dtype: torch.dtype, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"features reach {reason}.*model\.backbone\.init_args\.weights"):
        store(scale, dtype).put(np.arange(2), IMAGES)


def test_large_features_are_kept_as_float32() -> None:
    kept = store(1e5, torch.float32)
    assert kept.select(np.array([1, 0]), IMAGES).levels[0].eq(1e5).all()


def test_a_full_disk_names_the_folder_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"written there \(No space left on device\).*TMPDIR.*inference\.memory_gib=0"):
        store(1.0, torch.float16, budget_gib=0.0).put(np.arange(2), IMAGES)


def test_the_file_of_a_store_is_closed_when_the_store_goes() -> None:
    spilt = store(1.0, torch.float16, budget_gib=0.0)
    spilt.put(np.arange(2), IMAGES)
    file = spilt._file._file
    spilt.around = spilt  # type: ignore[attr-defined]  # a cycle, as an error's traceback makes one
    del spilt
    gc.collect()
    assert file.closed


@pytest.mark.parametrize("budget_gib", [1.0, 0.0])
def test_kept_features_hold_no_graph_of_a_model_that_was_trained(budget_gib: float) -> None:
    weight = torch.tensor(2.0, requires_grad=True)

    def encode(images: Tensor) -> Features:
        level = weight * images.unsqueeze(1)
        return Features((level,), level, images.unsqueeze(1))

    kept = FeatureStore(encode, CPU, torch.float16, budget_gib)
    chosen = kept.select(np.array([0]), IMAGES[:1])  # as a server prepares a scan: with gradients switched on
    assert chosen.levels[0].eq(2).all()
    assert not chosen.levels[0].requires_grad
    assert not chosen.position.requires_grad
