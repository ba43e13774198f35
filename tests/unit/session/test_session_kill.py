"""A session whose process is killed loses no more than the action that was under way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.ci
def test_kill_9_at_20_random_moments_loses_at_most_the_action_in_flight(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_session", str(tmp_path), "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert len(report) == 20
    for one in report:
        assert one["same"], one  # the state after the last whole action, and its replay, voxel by voxel
        assert one["goes_on"], one  # and the rest of the script ends where it always ends
        # what the reader was told is kept; at most the action in flight is there besides
        assert one["kept"] == -1 or 0 <= one["kept"] - one["told"] <= 1, one
    assert len({one["kept"] for one in report}) >= 4  # the moments are spread over the script
