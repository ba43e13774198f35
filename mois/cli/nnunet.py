"""`python -m mois.cli.nnunet`: the reduced nnU-Net on the same scans."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from mois.baselines.nnunet import ReducedSettings, run_nnunet
from mois.baselines.reduced_nnunet import ReportProgress
from mois.cli.arguments import OneLineParser, command_line


def nnunet(
    raw: Path,
    out: Path,
    minutes: float,
    patch: tuple[int, int, int] | None = None,
    features: tuple[int, ...] | None = None,
    fold: int | None = None,
    seed: int = 0,
    mirroring: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Train a reduced nnU-Net on an exported dataset and predict its test scans into OUT/predictions.

    An interrupted run goes on: a finished training is not repeated, a prediction that is there is not made again. A
    training that was cut off starts anew, so that the budget means the same in every run.

    Args:
        raw: Folder of the dataset, as `mois export nnunet` wrote it.
        out: Folder of the run.
        minutes: Minutes of training: CPU minutes of all threads on a CPU, wall minutes on an accelerator.
        patch: Edges of a patch, coarsest axis first; 16 x 64 x 64 for thick slices, else 48 x 64 x 64, if None.
        features: Channels of each stage; 8, 16, 32, 64 for thick slices, else 12, 24, 48, 96, if None.
        fold: Fold of splits_final.json. None takes the first fold, or all scans without this file.
        seed: Seed of initial weights and draws.
        mirroring: Average predictions over mirrored versions, like nnU-Net; this takes eight times as long.
        device: cpu or cuda.

    Raises:
        ValueError: If nnunetv2 is missing, `raw` was not exported, or `out` holds another run.
    """
    settings = ReducedSettings(minutes, patch, features, fold, seed, mirroring, device)
    run_nnunet(raw, out, settings, _teller(sys.stdout))


def _teller(stream: Any) -> ReportProgress:
    def tell(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return tell


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with command_line(given):
        auto_cli(nnunet, args=given, as_positional=False, parser_class=OneLineParser, prog="python -m mois.cli.nnunet")


if __name__ == "__main__":
    main()
