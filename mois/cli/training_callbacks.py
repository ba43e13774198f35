"""The callbacks of every training, without those of its checkpoints, in their order."""

from __future__ import annotations

from lightning.pytorch import Callback

from mois.training.callbacks import (
    AllLearn,
    CacheAdvice,
    CostTable,
    DataShares,
    SeedEachStep,
    SeldomReadBar,
    StartToBeat,
    StopAtNaN,
)
from mois.training.epoch_lines import EpochLines
from mois.training.records.steps import StepRecord
from mois.training.records.validations import ValidationTables
from mois.training.signals import StopAtSignal


def training_callbacks(dry_step: bool, seed: int, pictured_scans: int) -> list[Callback]:
    """Return the callbacks of a run.

    Args:
        dry_step: Whether the cost of a step is measured before the training.
        seed: Seed of the run.
        pictured_scans: Number of validation scans that loggers get pictures of.
    """
    callbacks: list[Callback] = [AllLearn(), StopAtNaN(), StartToBeat()]
    callbacks += [CostTable(dry_step), CacheAdvice(), DataShares(), SeldomReadBar()]
    callbacks += [StepRecord(), ValidationTables(pictured_scans)]
    return [*callbacks, SeedEachStep(seed), StopAtSignal(), EpochLines()]
