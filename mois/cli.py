"""`mois phantom | doctor | demo`: the composition root, which alone brings method, adapters and datamodules together.

Every import that costs time stands inside its command, so that `mois --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from jsonargparse import auto_cli

from mois.arguments import OneLineParser, command_line


def phantom(
    out: Path,
    subjects: int = 8,
    seed: int = 0,
    test_subjects: int = 0,
    sessions: int = 1,
    types: list[str] | None = None,
) -> None:
    """Write synthetic whole-body MRI with lesions as an nnU-Net raw dataset.

    Args:
        out: Folder to write; made if it is missing.
        subjects: Number of training scans.
        seed: Same seed, same bytes.
        test_subjects: Number of test scans.
        sessions: Scans of each patient over time.
        types: Named lesion types, one class each, such as [ring, dark]; all four by default.

    Raises:
        ValueError: If a lesion type is unknown.
    """
    from datamodules.phantom import NAMED_TYPES, write_dataset

    unknown = [name for name in types or [] if name not in NAMED_TYPES]
    if unknown:
        raise ValueError(f"types={', '.join(unknown)}: no such lesion type; there is {', '.join(NAMED_TYPES)}")
    chosen = None if types is None else [NAMED_TYPES[name] for name in types]
    write_dataset(out, subjects=subjects, seed=seed, types=chosen, test_subjects=test_subjects, sessions=sessions)
    _say(f"{subjects + test_subjects} scans in {out}")


def doctor(root: Path | None = None, runs: Path = Path("runs")) -> None:
    """Check packages, accelerator, disk, W&B and, if you name it, a dataset; one line each, with a cure.

    Args:
        root: nnU-Net raw dataset to check, file by file.
        runs: Where runs would be written.

    Raises:
        SystemExit: With 1 if anything needs a cure.
    """
    from mois.doctor import dataset, examine

    findings = chain(examine(runs), [] if root is None else dataset(root))
    good = True
    for finding in findings:
        _say(f"{'ok ' if finding.good else 'FIX'}  {finding.topic}: {finding.text}")
        good = good and finding.good
    if not good:
        raise SystemExit(1)


def demo(out: Path = Path("runs/demo"), seed: int = 0, training: Path = Path("configs/demo.yaml")) -> None:
    """Adapt the bundled nano backbone to a lesion type that it has never seen, and evaluate before and after.

    Args:
        out: Folder of the run; an interrupted demo goes on where it was.
        seed: Of phantoms, training and the simulated reader.
        training: Config of the training (`config` is a name that jsonargparse keeps to itself).
    """
    import numpy as np

    from datamodules.lesion_types import draw_lesion_types
    from datamodules.phantom import write_dataset
    from mois.demo import run_demo

    if not (out / "data" / "dataset.json").is_file():
        types = draw_lesion_types(np.random.default_rng(seed), 2, held_back=True)
        write_dataset(out / "data", subjects=12, test_subjects=12, seed=seed, types=types, lesions=(20, 60))
    run_demo(out, seed, training)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes end in one line (MOIS_TRACEBACK=1 shows where)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with command_line(given):
        auto_cli([phantom, doctor, demo], args=given, as_positional=False, parser_class=OneLineParser, prog="mois")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
