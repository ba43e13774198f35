"""The plan for a dataset in order; a dataset with faults ends in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mois.cli.arguments import as_options
from mois.cli.dataset_survey import survey
from mois.errors import DataError
from mois.planning.plan import Plan, make_plan
from mois.scans.channels import wanted_channels
from mois.scans.datasets import list_scans

AS_ASKED = "as asked for"
"""Why a plan has the channels of `--channels`."""


def asked_channels(channels: Sequence[str]) -> str:
    """Return `--channels` as it was given, for messages."""
    return f"--channels=[{','.join(channels)}]"


def check_channels(root: Path, option: str, channels: Sequence[str], given: str) -> None:
    """Refuse names that are no channels, and a dataset of which a scan to train on lacks one; no image is read.

    Args:
        root: Folder of the dataset.
        option: Option that named the folder, for messages.
        channels: The names; none are always good.
        given: What asks for these channels, for messages.

    Raises:
        ValueError: If names are no channels.
        DataError: If a scan lacks a channel.
    """
    wanted_channels(channels, "--channels")
    try:
        for scan in list_scans(root) if channels else ():
            if not scan.held_out:
                scan.numbers(0, channels)
    except DataError as error:
        raise DataError(f"{given}: {as_options(str(error), root=option)}") from error


def plan_dataset(root: Path, option: str) -> Plan:
    """Read every scan of a dataset, and plan a training on it.

    Args:
        root: Folder of the dataset.
        option: Option that named the folder, for messages.

    Raises:
        DataError: If the folder holds no dataset, or a file has a fault; the message names the first of them.
    """
    try:
        found = survey(root, contrasts=True)
        if faults := [*found.faults, *found.uneven_channels(root)]:
            first, *others = faults
            more = f" ({len(others)} more: mois doctor {root})" if others else ""
            raise DataError(f"{first.rstrip('.')}{more}")
        return make_plan(found.for_plan(root))
    except DataError as error:
        raise DataError(as_options(str(error), root=option)) from error
