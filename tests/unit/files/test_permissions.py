"""Files and folders have the permissions that the user's umask leaves: a bundle is shared, a private one is private."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters import Frozen, Full
from mois.backbones import SAM2
from mois.files.atomic import whole_folder, write_bytes, write_text
from mois.files.csv_tables import csv_text
from mois.propagation import Similarity
from mois.propagation.weights import save_propagation
from mois.scans.image_files import write_volume
from mois.session import InteractiveSession
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO
from mois.training.feature_cache import FeatureCache
from tests.support.session_fakes import lps, make_model, three_lesions


def session(out: Path) -> None:
    scan = three_lesions()
    made = InteractiveSession(make_model(), scan, out / "session")
    made.click(lps(scan, 2, 20, 20))
    made.use_bank(made.bank)
    made.save()
    made.close()


def adapters(out: Path) -> None:
    backbone, propagation = SAM2(weights="random"), Similarity(blocks=1)
    propagation.build(backbone)
    for adapter in (Frozen(), Full()):
        adapter.attach(backbone, propagation)
        adapter.save(out / type(adapter).__name__)
    save_propagation(propagation, out / "propagation.safetensors", backbone.identity)


def plain(out: Path) -> None:
    write_text(out / "table.csv", csv_text(["a"], [{"a": 1}]))
    write_bytes(out / "deep" / "bytes", b"1")
    write_volume(torch.zeros(2, 2, 2), torch.eye(4, dtype=torch.float64), out / "map.nii.gz")
    with whole_folder(out / "whole", ()) as part:
        write_text(part / "in" / "it.txt", "1")
    FeatureCache(out / "cache", 1.0).write("ab12", (torch.ones(1, dtype=torch.float16),))
    io = SafeCheckpointIO(out)
    for _ in range(2):
        io.save_checkpoint({}, out / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("write", [session, adapters, plain])
def test_what_is_written_has_the_user_s_permissions(tmp_path: Path, write: Callable[[Path], None], umask: int) -> None:
    out = tmp_path / "out"
    before = os.umask(umask)
    try:
        write(out)
    finally:
        os.umask(before)
    written = list(out.rglob("*"))
    assert len(written) > 3
    wrong = {
        str(path.relative_to(out)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in written
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
