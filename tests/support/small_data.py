"""A datamodule so small that it is read in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.nifti import NiftiDataModule


def module_of(root: Path, **options: Any) -> NiftiDataModule:
    """Return a datamodule of patches of 32 pixels of 2 mm, 8 episodes an epoch; `options` overrule."""
    return NiftiDataModule(
        root, **{"patch_px": 32, "pixel_mm": 2.0, "batch_size": 2, "episodes_per_epoch": 8, "exemplars": 2, **options}
    )
