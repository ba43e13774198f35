"""The tutorial "Adapt to your lesion type in 15 minutes" runs as it stands, with less time to train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mois.sharing.bundle import Bundle
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "tutorials" / "adapt_in_15_minutes.md"


@pytest.mark.ci
def test_the_commands_of_the_page_run_from_top_to_bottom(tmp_path: Path) -> None:
    shim = tmp_path / "bin" / "mois"  # the command of this checkout, whatever is installed
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mois.cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    commands = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S))
    assert commands.count("mois ") == 5
    work = tmp_path / "work"
    work.mkdir()
    path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "PYTHONPATH": str(ROOT), "MINUTES": "0.3", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["bash", "-euc", commands], cwd=work, env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for name in ("before/try.png", "after/try.csv", "plan.yaml", "my_model_training/adaptation.html"):
        assert (work / name).is_file()
    assert Bundle.load(work / "my_model").figures["prompted_dice"] is not None
    assert "Dice of lesions that nobody clicked, with exemplars: " in run.stdout
