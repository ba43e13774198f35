"""Reads what an offline run of W&B has recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def read_back(folder: Path) -> list[dict[str, dict[str, object]]]:
    """Return the records of the offline run in a run's folder, as W&B's own reader gives them."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    lines = subprocess.run(
        [wandb, "leet", "inspect", "--json", run],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return [json.loads(line) for line in lines.stdout.splitlines()]
