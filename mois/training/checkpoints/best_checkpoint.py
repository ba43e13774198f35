"""Which checkpoint is `best.ckpt`: a later one only if it is better than the start, and does no harm.

One figure decides, `val/score`. The start is the model before the first step. It is kept as `start.ckpt`. Where no
later checkpoint may replace it, `best.ckpt` and the bundle are the start, if the start was validated. A start that was
not validated is never the best: it may be random. Then there is no `best.ckpt`, and the bundle has the last weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from mois.evaluation.figures import FIGURES
from mois.sharing.remarks import clicks_spoilt, exemplars_harm
from mois.training.checkpoints.checkpoint_content import RECORD, score_of
from mois.training.checkpoints.checkpoint_io import give_second_name
from mois.training.whole_scans import HARM_ON_TRAINED_SCANS, validates_on_trained_scans, with_score

SCORE = "val/score"
"""The figure that decides: mean unprompted Dice with exemplars, over the validation scans and their classes."""

OLD_SCORE = "val/right"
"""The figure that decided in trainings of earlier versions."""

SMALLER_IS_BETTER = ("wrong", *(name for name in FIGURES if re.search("false|fragments|absolute_error", name)))
"""Figures of a validation that are better when they are smaller."""

TIE = 0.01
"""A later checkpoint that is better than the start by no more than this is not taken."""


def check_mode(monitor: str, mode: str) -> None:
    """Refuse to keep the worst checkpoint as the best one.

    Args:
        monitor: Name of the figure that decides, such as "val/score".
        mode: "max" if a larger figure is better, or "min".

    Raises:
        ValueError: If the mode is the opposite of what a figure of ours means.
    """
    name = monitor.rpartition("/")[2]
    smaller = name in SMALLER_IS_BETTER or "loss" in name
    wanted = "min" if smaller else "max" if name in (*FIGURES, "score") else mode
    if mode != wanted:
        raise ValueError(
            f"checkpoints.mode={mode} would keep the worst checkpoint by {monitor}; set checkpoints.mode={wanted}."
        )


def is_better(score: float, best: float | None, start: float | None, mode: str = "max") -> bool:
    """Return whether a checkpoint becomes the best one, if it does no harm.

    Args:
        score: Its score.
        best: Score of the best checkpoint so far; None if there is no score.
        start: Score before the first step; None if it was not measured.
        mode: "max" if a larger score is better, or "min".

    Example:
        >>> is_better(0.511, best=0.5, start=0.5), is_better(0.51, best=0.5, start=0.5)
        (True, False)
    """
    sign = 1 if mode == "max" else -1
    gains = [(sign * (score - other), least) for other, least in ((best, 0.0), (start, TIE)) if other is not None]
    return math.isfinite(score) and all(round(gain - least, 6) > 0 for gain, least in gains)


def does_harm(figures: Mapping[str, float], step_0: Mapping[str, float], on_trained_scans: bool = False) -> bool:
    """Return whether a checkpoint may never be the best one: its exemplars do harm, or its clicks are spoilt.

    On slices of scans whose other slices trained, exemplars are not judged: the model knows these patients without any.

    Args:
        figures: Figures of its validation.
        step_0: Figures of the validation before the first step; empty if there was none.
        on_trained_scans: Whether the validation is on slices of the scans that train.
    """
    harm = not on_trained_scans and exemplars_harm(figures.get("right"), figures.get("no_exemplars"))
    return harm or clicks_spoilt(step_0, figures)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the best model so far, and `start.ckpt`, the model before the first step.

    - A validation with a better score than before, and better than the start by more than `TIE` -> best.ckpt.
    - Its exemplars do harm on scans that did not train, or its clicks are spoilt (`does_harm`) -> never best.ckpt.
    - No validation so far may be the best -> best.ckpt is start.ckpt, if the start was validated.
    - The score was not measured -> nothing is compared, and a warning says so.

    All ranks hold the same figures, so they decide alike.

    Args:
        folder: Folder of the run's checkpoints.
        monitor: Validation figure that decides, such as "val/right".
        mode: "max" if a larger figure is better, or "min".
    """

    def __init__(self, folder: Path, monitor: str = SCORE, mode: str = "max") -> None:
        super().__init__(
            dirpath=str(folder),
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def file(self) -> Path:
        """best.ckpt, by the path that Lightning has for it: it removes a best checkpoint that has another path."""
        return Path(self.dirpath or "") / "best.ckpt"

    @property
    def start(self) -> Path:
        """start.ckpt, beside it."""
        return self.file.with_name("start.ckpt")

    @property
    def state_key(self) -> str:
        """The same for all settings, because a run has one such callback."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far. Paths are left out: they mean nothing in another folder."""
        return {"monitor": self.monitor, "best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score for the best.ckpt of this folder. Without this file, begin without a best score."""
        score = score_of(state_dict, self.monitor)
        if self.file.is_file():
            self._take(score)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare saving. Without validation there is no best.ckpt, only last.ckpt."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.enable_validation:
            self.save_top_k = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write start.ckpt, with the validation before the first step. Say so if an old figure decides."""
        super().on_train_start(trainer, pl_module)
        if not self.save_top_k or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.monitor == OLD_SCORE:
            rank_zero_info(f"{OLD_SCORE} decides here which checkpoint is best.ckpt; in new configs it is {SCORE}")
        known = [f"val/{name}" for name in with_score(getattr(pl_module, "step_0", {}))]
        if known and self.monitor != SCORE and self.monitor not in known:
            rank_zero_warn(
                f"checkpoints.monitor={self.monitor} is none of the figures of step 0 ({', '.join(sorted(known))}); "
                "the training ends at its first validation if it is unknown then as well"
            )
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.start)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Write best.ckpt, if the present model is the best; see the class."""
        if not self.save_top_k:
            return
        logged = {name.removeprefix("val/"): value for name, value in monitor_candidates.items() if "val/" in name}
        if self.monitor not in monitor_candidates:
            self._refuse_unknown(logged)
            return
        figures = {name: float(value) for name, value in logged.items()}
        step_0: dict[str, float] = getattr(trainer.lightning_module, "step_0", {})
        start = with_score(step_0).get(str(self.monitor).removeprefix("val/"))
        current = monitor_candidates[self.monitor]
        best = None if self.best_model_score is None else float(self.best_model_score)
        better = is_better(float(current), best, start, self.mode)
        better = better and not does_harm(figures, step_0, validates_on_trained_scans(trainer))
        if trainer.strategy.reduce_boolean_decision(better):
            self._update_best_and_save(current, trainer, monitor_candidates)
        elif start is not None and trainer.strategy.broadcast(not self.best_model_path):
            self._take_start(trainer, start)

    def _refuse_unknown(self, logged: Mapping[str, Tensor]) -> None:
        """Warn that the score was not measured.

        Raises:
            ValueError: If the config names another figure, which no validation logs.
        """
        if self.monitor == SCORE:
            rank_zero_warn(
                f"{SCORE} was not measured, so that this checkpoint cannot become best.ckpt: no validation scan has a "
                "lesion that is not prompted; lower model.protocol.prompted, or validate on scans with more lesions."
            )
            return
        there = ", ".join(sorted(f"val/{name}" for name in logged)) or "nothing"
        raise ValueError(f"checkpoints.monitor={self.monitor} is no figure of the validation; it logged {there}")

    def _take_start(self, trainer: Trainer, score: float) -> None:
        """Let best.ckpt be start.ckpt, if that exists. A training that goes on in another folder lacks it."""
        there = self.start.is_file()
        if there and trainer.is_global_zero:
            give_second_name(self.start, self.file)
        if trainer.strategy.broadcast(there):
            self._take(torch.tensor(score))

    def _take(self, score: Tensor | None) -> None:
        """Take best.ckpt of this folder as the best checkpoint so far, with its score."""
        path = str(self.file)
        self.best_model_path = self.kth_best_model_path = path
        if score is not None:
            self.best_k_models = {path: score}
            self.best_model_score = self.kth_value = self.current_score = score


def what_is_delivered(best: Mapping[str, Any] | None, validated: bool, kept: bool = True) -> str:
    """Return the line at the end of a training: which of its models is in the bundle, and why.

    Args:
        best: Content of best.ckpt; None if there is none.
        validated: Whether the training was validated.
        kept: Whether the training kept checkpoints.
    """
    if best is None and not kept:
        return "trainer.enable_checkpointing=false: nothing was compared, and the bundle has the last weights"
    if best is None and not validated:
        return (
            "this training was never validated: there is no best.ckpt (test with --ckpt_path last), nothing was "
            "compared and the bundle has the last weights; lower trainer.check_val_every_n_epoch, and leave some scans "
            "to validate on"
        )
    if best is None:
        return (
            "there is no best.ckpt, and the bundle has the last weights: every validation showed harm, had no score or "
            "was no better than the start, which was not validated here; test with --ckpt_path last or start"
        )
    record = best.get(RECORD, {})
    step_0 = with_score(record.get("step_0", {}))
    before = step_0.get("score")
    if best["global_step"] > 0:
        figures = record.get("validation", {}).get("", {}).get("figures", {})
        now = figures.get("score")
        scores = "" if now is None else f": {SCORE} {now:.2f}"
        than = "" if now is None or before is None else f" ({before:.2f} at step 0)"
        harm = f"; {HARM_ON_TRAINED_SCANS}" if exemplars_harm(figures.get("right"), figures.get("no_exemplars")) else ""
        return f"best.ckpt and the bundle are the model after step {best['global_step']}{scores}{than}{harm}"
    scored = "" if before is None else f" ({SCORE} {before:.2f} at step 0)"
    harms = exemplars_harm(step_0.get("right"), step_0.get("no_exemplars"))
    harm = "; the exemplars do harm before the training as well" if harms else ""
    return (
        f"best.ckpt and the bundle are the model before the training{scored}: no later one was better by more than "
        f"{TIE} without harm; the last weights are in last.ckpt{harm}"
    )
