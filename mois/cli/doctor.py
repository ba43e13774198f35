"""`mois doctor`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from mois.cli.messages import say


def doctor(root: Path | None = None, runs: Path = Path("runs")) -> None:
    """Check this machine and, if you name it, a dataset; propose its settings.

    Args:
        root: nnU-Net raw dataset to check, file by file; its lesions are measured, and sizes proposed.
        runs: Folder for runs.

    Raises:
        SystemExit: With 1 if anything needs a cure.
    """
    from mois.cli.doctor_checks import dataset, examine

    findings = chain(examine(runs), [] if root is None else dataset(root))
    good = True
    for finding in findings:
        say(f"{'ok ' if finding.good else 'FIX'}  {finding.topic}: {finding.text}")
        good = good and finding.good
    if not good:
        raise SystemExit(1)
