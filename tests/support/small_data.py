"""A datamodule so small that it is read in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from datamodules.nifti import NiftiDataModule
from datamodules.splits import SplitSettings


def module_of(root: Path, **options: Any) -> NiftiDataModule:
    """Return a datamodule of patches of 32 pixels of 2 mm, 8 episodes an epoch.

    Args:
        root: The dataset.
        options: Arguments of the datamodule, or fields of its split; they overrule.
    """
    small = {"patch_px": 32, "pixel_mm": 2.0, "batch_size": 2, "episodes_per_epoch": 8, "exemplars": 2}
    fields = {field.name for field in dataclasses.fields(SplitSettings)}
    split = SplitSettings(**{name: options.pop(name) for name in fields & options.keys()})
    return NiftiDataModule(root, **{**small, "split": split, **options})
