"""Which checkpoint is best: sequences of figures that a reader can check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mois.training.callbacks import StartToBeat
from mois.training.checkpoints.best_checkpoint import (
    BestCheckpoint,
    check_mode,
    does_harm,
    is_better,
    what_is_delivered,
)
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO, read_checkpoint
from mois.training.checkpoints.last_checkpoint import LastCheckpoint
from mois.training.checkpoints.resume_point import ResumePoint
from mois.training.whole_scans import HARM_ON_TRAINED_SCANS, validation_warnings

Figures = dict[str, float]
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Scored(LightningModule):
    """Its weight is the number of its steps. Its validations have the figures of a list, one after another."""

    def __init__(self, step_0: Figures, figures: Sequence[Figures]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.step_0, self.figures = step_0, figures

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        figures = self.figures[self.current_epoch]
        self.log_dict({f"val/{name}": value for name, value in figures.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Scans(LightningDataModule):
    """One batch. Slices of the scans that train may validate."""

    def __init__(self, slabs: bool) -> None:
        super().__init__()
        self.validates_on_trained_scans = slabs

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader([0])  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def fit(
    run: Path,
    step_0: Figures,
    figures: Sequence[Figures],
    monitor: str = "val/score",
    ckpt: str | None = None,
    callbacks: Sequence[Callback] = (),
    slabs: bool = False,
) -> BestCheckpoint:
    """Train with an epoch of one step for each validation."""
    best = BestCheckpoint(run, monitor)
    trainer = Trainer(
        default_root_dir=run,
        max_epochs=len(figures),
        callbacks=[ResumePoint(), *callbacks, best, LastCheckpoint(run, 1)],
        plugins=[SafeCheckpointIO(run)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    path = None if ckpt is None else str(run / f"{ckpt}.ckpt")
    trainer.fit(Scored(step_0, figures), datamodule=Scans(slabs), ckpt_path=path)
    return best


def best_step(run: Path) -> int | None:
    """Return the step of best.ckpt, which its weight has to equal; None without best.ckpt."""
    if not (run / "best.ckpt").exists():
        return None
    best = read_checkpoint(run / "best.ckpt")
    assert int(best["state_dict"]["weight"]) == best["global_step"]
    return int(best["global_step"])


def scores(*values: float) -> list[Figures]:
    return [{"score": value} for value in values]


START: Figures = {"score": 0.5, "right": 0.5, "no_exemplars": 0.3, "prompted_dice": 0.6}
SEQUENCES: dict[str, tuple[Figures, list[Figures], int | None]] = {
    "the best of those above the start": (START, scores(0.55, 0.7, 0.65), 2),
    "all below the start": (START, scores(0.3, 0.4, 0.2), 0),
    "a tie goes to the start": (START, scores(0.509, 0.51, 0.505), 0),
    "just above a tie": (START, scores(0.509, 0.511, 0.505), 2),
    "worse first, better later": (START, scores(0.3, 0.6, 0.59), 2),
    "a score of nan": (START, scores(float("nan"), 0.4, 0.6), 3),
    "exemplars that do harm": (
        START,
        [{"score": 0.9, "right": 0.5, "no_exemplars": 0.501}, {"score": 0.6, "right": 0.5, "no_exemplars": 0.5}],
        2,
    ),
    "all exemplars do harm": (START, [{"score": 0.9, "right": 0.5, "no_exemplars": 0.6}] * 2, 0),
    "clicks spoilt by more than .02": (
        START,
        [{"score": 0.9, "prompted_dice": 0.579}, {"score": 0.7, "prompted_dice": 0.58}],
        2,
    ),
    "step 0 not validated": ({}, scores(0.2, 0.1), 1),
    "step 0 not validated, all exemplars do harm": ({}, [{"score": 0.9, "right": 0.5, "no_exemplars": 0.6}] * 2, None),
    "step 0 of an earlier version": ({"unprompted_dice": 0.5}, scores(0.509, 0.4), 0),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_best_checkpoint_of_a_sequence_of_figures(name: str, tmp_path: Path) -> None:
    step_0, figures, wanted = SEQUENCES[name]
    fit(tmp_path, step_0, figures)
    assert best_step(tmp_path) == wanted
    assert int(read_checkpoint(tmp_path / "start.ckpt")["state_dict"]["weight"]) == 0


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_training_that_is_cut_has_the_same_best_checkpoint(name: str, cut: int, tmp_path: Path) -> None:
    step_0, figures, wanted = SEQUENCES[name]
    whole = fit(tmp_path / "whole", step_0, figures)
    fit(tmp_path / "cut", step_0, figures[:cut])
    on = fit(tmp_path / "cut", step_0, figures, ckpt="last")
    assert best_step(tmp_path / "cut") == wanted
    assert on.best_model_score == whole.best_model_score or (on.best_model_score is whole.best_model_score is None)


@pytest.mark.parametrize("folder", ["runs", "link", "~/runs"])
@pytest.mark.parametrize("cut", [False, True])
def test_the_folder_may_be_relative_or_a_link(
    folder: str, cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to("runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    figures = scores(0.3, 0.6)  # best.ckpt is the start, then the later model
    if cut:
        fit(Path(folder).expanduser(), START, figures[:1])
    fit(Path(folder).expanduser(), START, figures, ckpt="last" if cut else None)
    assert best_step(tmp_path / "runs") == 2


def test_a_training_goes_on_from_its_start(tmp_path: Path) -> None:
    fit(tmp_path, START, scores(0.3))
    fit(tmp_path, START, scores(0.3, 0.4, 0.6), ckpt="best")  # best.ckpt is the start
    assert best_step(tmp_path) == 3


def test_a_best_checkpoint_that_is_gone_becomes_the_start_again(tmp_path: Path) -> None:
    fit(tmp_path, START, scores(0.3))
    (tmp_path / "best.ckpt").unlink()
    fit(tmp_path, START, scores(0.3, 0.4), ckpt="last")
    assert best_step(tmp_path) == 0


def test_a_figure_that_step_0_does_not_have_is_said_before_the_training(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"checkpoints\.monitor=score is none of the figures of step 0 \(val/no_exem"),
        pytest.raises(ValueError, match=r"checkpoints\.monitor=score is no figure"),
    ):
        fit(tmp_path, START, scores(0.6), monitor="score")


@pytest.mark.parametrize(("step_0", "stops"), [(START, 2), ({}, 4)])
def test_early_stopping_waits_for_what_is_better_than_the_start(step_0: Figures, stops: int, tmp_path: Path) -> None:
    early = EarlyStopping("val/score", patience=2, mode="max")
    rising = scores(0.2, 0.3, 0.25, 0.26, 0.27)  # better than before at epoch 2, never better than the start
    fit(tmp_path, step_0, rising, callbacks=[StartToBeat(), early])
    assert early.stopped_epoch == stops - 1
    before = EarlyStopping("val/score", patience=2, mode="max")
    fit(tmp_path, step_0, scores(*[0.1] * 6), ckpt="last", callbacks=[StartToBeat(), before])
    assert before.best_score == early.best_score  # from the checkpoint


def test_a_smaller_figure_may_be_the_better_one() -> None:
    assert is_better(0.3, best=0.4, start=0.5, mode="min")
    assert not is_better(0.495, best=0.5, start=0.5, mode="min")


def test_harm_is_told_by_three_digits() -> None:
    assert not does_harm({"right": 0.5, "no_exemplars": 0.5004}, {})
    assert does_harm({"right": 0.5, "no_exemplars": 0.501}, {})
    assert not does_harm({"prompted_dice": 0.58}, {"prompted_dice": 0.6})
    assert does_harm({"prompted_dice": 0.579}, {"prompted_dice": 0.6})
    assert not does_harm({"prompted_dice": 0.1}, {})


def test_on_slices_of_trained_scans_exemplars_are_not_judged(tmp_path: Path) -> None:
    """A training knows these scans without exemplars, so less with them says nothing of another scan."""
    harm = {"right": 0.6, "no_exemplars": 0.7}
    figures = [{"score": 0.6, **harm}, {"score": 0.9, "prompted_dice": 0.5, **harm}]  # the second spoils clicks
    fit(tmp_path / "scans", START, figures)
    assert best_step(tmp_path / "scans") == 0
    fit(tmp_path / "slabs", START, figures, slabs=True)
    assert best_step(tmp_path / "slabs") == 1
    fit(tmp_path / "tie", START, [{"score": 0.51, **harm}], slabs=True)
    assert best_step(tmp_path / "tie") == 0


def test_a_warning_says_what_exemplars_that_do_harm_mean() -> None:
    figures = {"right": 0.3, "no_exemplars": 0.4}
    (elsewhere,) = validation_warnings(figures, {}, "")
    assert elsewhere.startswith(
        "val/right=0.300 is below val/no_exemplars=0.400: the exemplars do harm, so that this ch"
    )
    (on_slices,) = validation_warnings(figures, {}, "", on_trained_scans=True)
    assert on_slices.startswith(
        "val/right=0.300 is below val/no_exemplars=0.400: the exemplars do harm on these slices."
    )
    assert "become best.ckpt" not in on_slices


def test_a_training_may_be_decided_by_another_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, START, [{"right": 0.6, "score": 0.6}, {"right": 0.55, "score": 0.9}], monitor="val/right")
    assert best_step(tmp_path) == 1
    assert any("val/right decides here which checkpoint is best.ckpt" in line for line in caplog.messages)


def test_a_score_that_was_not_measured_is_said_and_nothing_is_compared(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="val/score was not measured, so that this checkpoint cannot become best"):
        fit(tmp_path, {}, [{"right": 0.5}])
    assert not (tmp_path / "best.ckpt").exists()


def test_the_end_of_a_training_says_what_is_delivered() -> None:
    validation = {"": {"figures": {"score": 0.621}}}
    record = {"validation": validation, "step_0": {"score": 0.5}}
    assert what_is_delivered({"global_step": 7, "mois": record}, True) == (
        "best.ckpt and the bundle are the model after step 7: val/score 0.62 (0.50 at step 0)"
    )
    assert what_is_delivered({"global_step": 7}, True) == "best.ckpt and the bundle are the model after step 7"
    assert what_is_delivered({"global_step": 0, "mois": record}, True) == (
        "best.ckpt and the bundle are the model before the training (val/score 0.50 at step 0): no later one was "
        "better by more than 0.01 without harm; the last weights are in last.ckpt"
    )
    on_slices = {"validation": {"": {"figures": {"score": 0.6, "right": 0.6, "no_exemplars": 0.7}}}}
    assert what_is_delivered({"global_step": 7, "mois": on_slices}, True) == (
        f"best.ckpt and the bundle are the model after step 7: val/score 0.60; {HARM_ON_TRAINED_SCANS}"
    )
    harmed = {"step_0": {"score": 0.5, "right": 0.5, "no_exemplars": 0.6}}
    assert what_is_delivered({"global_step": 0, "mois": harmed}, True).endswith(
        "; the exemplars do harm before the training as well"
    )
    assert "never validated: there is no best.ckpt" in what_is_delivered(None, False)
    assert what_is_delivered(None, True, kept=False).startswith("trainer.enable_checkpointing=false: nothing was comp")
    assert what_is_delivered(None, True) == (
        "there is no best.ckpt, and the bundle has the last weights: every validation showed harm, had no score or was "
        "no better than the start, which was not validated here; test with --ckpt_path last or start"
    )


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/score", "max"), ("val/wrong", "min"), ("val/loss", "min"), ("val/of_mine", "max"), ("val/of_mine", "min")],
)
def test_a_mode_as_the_figure_means_it_is_taken(monitor: str, mode: str) -> None:
    check_mode(monitor, mode)


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/score", "min"), ("val/unprompted_dice", "min"), ("val/false_lesions", "max")]
)
def test_the_worst_checkpoint_is_never_kept_as_the_best(monitor: str, mode: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoints.mode={mode} would keep the worst checkpoint by {monitor}"):
        check_mode(monitor, mode)
