"""A training is compared with what it began with, and says so where it made things worse."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mois.cli.messages import one_line_errors
from mois.report.results import Results
from mois.sharing.bundle import Bundle
from mois.training.checkpoints.checkpoint_io import read_training
from mois.training.epoch_lines import duration_in_words
from mois.training.module import ExemplarSegmenter
from tests.support.datasets import write_dataset
from tests.support.small_runs import LORA, data, folder, last, losses, rows, train, validations

pytestmark = pytest.mark.usefixtures("same_process")
FIRST = "--validate_first=true"


class Trained(NamedTuple):
    """A training of two epochs of one step that spoils the clicks, and what it said."""

    run: Path
    arguments: list[str]
    warnings: list[str]
    lines: list[str]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("spoiled")
    scans = data(write_dataset(root / "data", subjects=3), val_subjects="[p1,p2]", episodes_per_epoch=1, num_workers=0)
    arguments = [*LORA, *scans, "--trainer.check_val_every_n_epoch=1", folder(root / "run")]
    figures = [{"right": 0.5, "no_exemplars": 0.4, "prompted_dice": 0.63, "unprompted_dice": 0.45}]
    figures += [{"right": 0.3, "no_exemplars": 0.4, "prompted_dice": 0.33, "unprompted_dice": 0.25}] * 2
    given = iter(figures)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said: list[str] = []
        patch.setattr("mois.training.epoch_lines.say", lambda trainer, line: said.append(line))
        patch.setattr("mois.cli.train.rank_zero_info", said.append)
        patch.setattr("mois.training.whole_scans.means", lambda reports: next(given))
        train("fit", *arguments, FIRST, "--trainer.max_epochs=2")
    ours = [str(one.message) for one in caught if "mois" in one.filename]
    return Trained(root / "run", arguments, ours, said)


def test_step_0_is_the_first_row_of_a_trainings_figures(spoiled: Trained) -> None:
    table = [(int(row["step"]), round(float(row["val/right"]), 6)) for row in rows(spoiled.run) if row.get("val/right")]
    assert table == [(0, 0.5), (0, 0.3), (1, 0.3)]
    step_0 = {"right": 0.5, "no_exemplars": 0.4, "prompted_dice": 0.63, "unprompted_dice": 0.45, "score": 0.45}
    assert last(spoiled.run)["mois"]["step_0"] == step_0
    assert [float(row["val/score"]) for row in rows(spoiled.run) if row.get("val/score")] == pytest.approx(
        [0.45, 0.25, 0.25]
    )


def test_a_training_that_makes_things_worse_delivers_the_start_to_the_bit(spoiled: Trained) -> None:
    start, best, last_one = (
        read_training(spoiled.run / "checkpoints" / f"{name}.ckpt") for name in ("start", "best", "last")
    )
    assert (start["global_step"], best["global_step"], last_one["global_step"]) == (0, 0, 2)
    bundle = Bundle.load(spoiled.run / "bundle")
    held = {
        **dict(bundle.backbone.named_parameters("backbone")),
        **dict(bundle.propagation.named_parameters("propagation")),
    }
    assert all(torch.equal(held[name], tensor) for name, tensor in start["state_dict"].items())
    assert not all(torch.equal(held[name], tensor) for name, tensor in last_one["state_dict"].items())
    assert bundle.figures["score"] == 0.45  # those of step 0
    assert bundle.calibration is None or best["mois"]["validation"][""]["peaks"]
    delivered = "best.ckpt and the bundle are the model before the training (val/score 0.45 at step 0): no later one "
    assert spoiled.lines[-1].startswith(delivered)


def test_what_got_worse_is_said_at_every_validation(spoiled: Trained) -> None:
    harm = [line for line in spoiled.warnings if "the exemplars do harm" in line]
    assert len(harm) == 2
    assert harm[0].startswith("val/right=0.300 is below val/no_exemplars=0.400: ")
    assert "so that this checkpoint does not become best.ckpt" in harm[0]
    clicks = [line for line in spoiled.warnings if "prompted_dice fell from 0.63 (step 0) to 0.33" in line]
    assert [line.split("prompted_dice")[0] for line in clicks] == ["val/"] * 2
    assert clicks[0].endswith(", so that this checkpoint does not become best.ckpt.")
    card = (spoiled.run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "prompted_dice fell" not in card  # the bundle is the start
    assert f"| delivered | {spoiled.lines[-1]} |" in card


def test_every_epoch_takes_a_line(spoiled: Trained) -> None:
    lines = [line for line in spoiled.lines if line.startswith(("validating", "step 0", "epoch"))]
    first, first_scan, step_0, *epochs = lines
    assert first.startswith("validating before the first step")
    assert re.fullmatch(r"step 0: the first scan took \d+ s, a validation takes about \d+ s", first_scan)
    start = "step 0: score 0.45, right 0.50, no_exemplars 0.40, prompted_dice 0.63, unprompted_dice 0.45; each "
    assert step_0.startswith(f"{start}validation of 2 scans takes ")
    assert len(epochs) == 2
    for number, (line, loss) in enumerate(zip(epochs, losses(spoiled.run).values(), strict=True), start=1):
        start = f"epoch {number} of 2, step {number}: loss {loss:.3f}; score 0.25, right 0.30, "
        assert line.startswith(start)
        assert line.endswith(" left")


def test_a_table_says_what_a_validation_costs(spoiled: Trained) -> None:
    file = spoiled.run / "tables" / "validation_cost_000000.csv"
    table = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    parts, seconds = [row["part"] for row in table], [float(row["seconds"]) for row in table]
    assert {"encode", "click", "propagate", "track"} <= {*parts}
    assert parts[-1] == "all"
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]))


def test_a_training_that_goes_on_compares_with_the_same_step_0(
    spoiled: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match=r"val/prompted_dice fell from 0\.63 \(step 0\) to "):
        made = train("fit", *spoiled.arguments, FIRST, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert made.trainer.num_sanity_val_steps == 0
    assert "before the first step" not in capsys.readouterr().err
    assert [int(row["step"]) for row in rows(spoiled.run) if row.get("val/right")] == [0, 0, 1, 2]
    tested = [*spoiled.arguments, "--data.init_args.split.test_subjects=[p1]", "--data.init_args.split.val_subjects=[]"]
    train("test", *tested, "--ckpt_path=last")
    said = capsys.readouterr().err
    assert "test: 1 scan\nscan 1 of 1, p1: right " in said
    assert said.endswith(f"report: {spoiled.run / 'test' / 'report.html'}\n")
    alarms = (spoiled.run / "test" / "report.html").read_text(encoding="utf-8")
    assert "prompted_dice fell from 0.63 (step 0)" in alarms
    estimate = Results.read(spoiled.run / "test").estimate
    gain, right, without = (estimate("conditioning", word) for word in ("exemplar_gain", "right", "no_exemplars"))
    assert gain is not None
    assert right is not None
    assert without is not None
    assert gain.mean == pytest.approx((right.mean or 0) - (without.mean or 0))
    assert "The model was trained on" not in alarms


def test_a_test_on_scans_that_were_trained_on_says_so(spoiled: Trained) -> None:
    tested = [*spoiled.arguments, "--data.init_args.split.test_subjects=[p0]", "--data.init_args.split.val_subjects=[]"]
    line = "The model was trained on 1 of these scans: p0."
    with pytest.warns(UserWarning, match=line):
        train("test", *tested, "--ckpt_path=best")
    assert line in (spoiled.run / "test" / "report.html").read_text(encoding="utf-8")
    assert Results.read(spoiled.run / "test").metrics["provenance"]["trained_on"] == ["p0"]


@pytest.mark.ci
def test_a_validation_before_the_first_step_changes_no_step(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=2, num_workers=0)
    run = [*LORA, *scans, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    train("fit", *run, FIRST, folder(tmp_path / "with"))
    train("fit", *run, folder(tmp_path / "without"))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert [len(validations(tmp_path / name)) for name in ("with", "without")] == [2, 1]
    train("fit", *run, FIRST, folder(tmp_path / "never"), "--trainer.check_val_every_n_epoch=2")
    assert validations(tmp_path / "never") == []  # it would be compared with nothing


def test_a_warning_of_ours_takes_a_line() -> None:
    ours = ExemplarSegmenter.__init__.__code__.co_filename
    with one_line_errors():
        assert warnings.formatwarning("sentence.", UserWarning, ours, 7) == "warning: sentence.\n"
        assert "UserWarning" in warnings.formatwarning("sentence.", UserWarning, str(Path(torch.__file__)), 7)
    assert "UserWarning" in warnings.formatwarning("sentence.", UserWarning, ours, 7)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (3901, "1 h 06 min")],
)
def test_time_left_is_told_as_a_reader_wants_it(seconds: float, told: str) -> None:
    assert duration_in_words(seconds) == told


@pytest.mark.parametrize("option", ["adapter_learning_rate=0.0", "adapter_share=0.0"])
def test_an_adapter_that_does_not_learn_changes_in_no_bit_and_the_propagation_does(
    option: str, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=2, num_workers=0)
    run = [*LORA, *scans, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", folder(tmp_path)]
    train("fit", *run, f"--model.optimisation.{option}")
    start, end = (read_training(tmp_path / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("start", "last"))
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, end[name])}
    assert changed
    assert all(name.startswith("propagation.") for name in changed)
