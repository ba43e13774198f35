"""The plan for a dataset in order; a dataset with faults ends in one line."""

from __future__ import annotations

from pathlib import Path

from mois.cli.arguments import as_options
from mois.cli.dataset_survey import survey
from mois.errors import DataError
from mois.planning.plan import Plan, make_plan


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
