"""Gives the bundle and the best checkpoint of a training to loggers, with what they were made from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_only

from mois.sharing.bundle_record import DESCRIPTION
from mois.sharing.hidden_bundle import copy_with_pseudonyms
from mois.sharing.provenance import content_of
from mois.tracking.tracker import Tracker


@rank_zero_only
def record_model(tracker: Tracker, best: Path, model: LightningModule, parent: str | None) -> None:
    """Record the bundles of a run, and its best checkpoint if names are not hashed.

    A checkpoint holds all settings of its training, and so names of scans; these cannot be replaced in it.

    Args:
        tracker: Tracker of the run, with the bundles in its folder.
        best: The best checkpoint.
        model: The model, whose provenance names the data.
        parent: Folder of the bundle that the training began with; None if it began anew.
    """
    provenance: dict[str, Any] = getattr(model, "provenance", {})
    origins = {"dataset": f"data-{str(provenance.get('data', 'unknown'))[:12]}"}
    if parent is not None and (digest := content_of(parent)) is not None:
        origins["parent"] = artifact_name(digest)
    facts = {key: provenance.get(key) for key in ("code", "data", "seed", "delivered")}
    for folder in sorted(tracker.folder.glob("bundle*")):
        if not (folder / DESCRIPTION).is_file():
            continue
        name = artifact_name(str(content_of(str(folder))))
        with tempfile.TemporaryDirectory() as place:
            given = folder
            if tracker.names.hashed:
                given = Path(place) / "bundle"
                copy_with_pseudonyms(folder, given, tracker.names.text, tracker.names.settings)
            tracker.artifact(name, given, "model", origins, {**facts, "run": tracker.folder.name})
    if best.is_file() and not tracker.names.hashed:
        tracker.artifact(f"{tracker.folder.name}-best", best, "checkpoint", origins, facts)


def artifact_name(digest: str) -> str:
    """Return the name of a bundle's artifact, from the digest of its bundle.json: a child names its parent by it."""
    return f"bundle-{digest[:12]}"
