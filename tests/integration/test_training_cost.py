"""What makes a training cheaper or cuts its steps up does not make it another one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mois.training.feature_cache import FeatureCache
from tests.support.small_runs import LORA, data, failing, folder, last, losses, rows, train

FROZEN = ["--model.adapter=adapters.Frozen"]
LATE = ["--model.adapter.init_args.placement={parts: [trunk, decoder], stages: [4]}"]


def hits(run: Path) -> list[float]:
    return [float(row["train/cache_hits"]) for row in rows(run) if row.get("train/cache_hits")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = last(run)["state_dict"]
    return kept


@pytest.mark.parametrize(
    "adapter", [pytest.param(FROZEN, id="frozen"), pytest.param(LATE, id="late", marks=pytest.mark.ci)]
)
def test_a_cache_changes_nothing_but_the_time(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: list[str]
) -> None:
    root = make_dataset(subjects=2)
    run = ["fit", *LORA, *adapter, *data(root, episodes_per_epoch=3, views=1), "--trainer.max_epochs=2"]
    cached = [*run, f"--model.cache.folder={tmp_path / 'features'}"]
    train(*run, folder(tmp_path / "plain"))
    assert not re.search(r"│ .*cache", capsys.readouterr().err)
    train(*cached, folder(tmp_path / "cold"))
    assert re.search(r"│ .*cache", capsys.readouterr().err)  # the table's line of what it takes of a step
    with pytest.MonkeyPatch.context() as patch:  # a second run finds everything that the first has written
        patch.setattr(FeatureCache, "write", lambda *_: pytest.fail("the encoder ran"))
        train(*cached, "--dry_step=false", folder(tmp_path / "warm"))
    cold = hits(tmp_path / "cold")
    assert cold[3:] == [1, 1, 1]
    assert cold[0] < 1
    assert hits(tmp_path / "warm") == [1] * 6
    assert losses(tmp_path / "warm") == losses(tmp_path / "cold")
    assert losses(tmp_path / "cold") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)  # half precision
    ours, theirs = weights(tmp_path / "warm"), weights(tmp_path / "cold")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("views", "gib", "said"),
    [
        (0, 1, r"^model.cache.folder=.*: with data.init_args.views=0 no patch comes again; set it"),
        (
            2,
            1,
            r"^model.cache.folder=.*: with data.init_args.views=2 none comes again within trainer.max_epochs=2;",
        ),
        (1, 1, None),
        (1, 0.0001, r"gib=0\.0001 holds 13 % .*: 0\.041 MB an episode x 20 episodes = 0\.000763 GiB"),
    ],
)
def test_a_cache_that_serves_for_nothing_or_not_for_all_is_warned_of(
    make_dataset: Callable[..., Path], tmp_path: Path, views: int, gib: float, said: str | None
) -> None:
    run = ["fit", *LORA, *FROZEN, *data(make_dataset(subjects=2), views=views), "--trainer.max_epochs=2"]
    run += [f"--model.cache.gib={gib}", "--data.init_args.episodes_per_epoch=20"]
    run += ["--trainer.limit_train_batches=1", "--dry_step=false", f"--model.cache.folder={tmp_path / 'features'}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*run, folder(tmp_path / "run"))
    heard = [str(warning.message) for warning in caught if str(warning.message).startswith("model.cache")]
    assert len(heard) == (said is not None)
    assert [line for line in heard if not re.search(str(said), line)] == []


def test_the_dry_step_changes_nothing_and_the_wait_for_data_is_logged(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=2)
    run = ["fit", *LORA, *data(root, episodes_per_epoch=2), "--trainer.max_epochs=1"]
    train(*run, "--dry_step=false", folder(tmp_path / "without"))
    assert "optimiser" not in capsys.readouterr().err
    train(*run, folder(tmp_path / "with"))
    said = capsys.readouterr().err
    assert all(part in said for part in ("trunk", "neck", "click", "track", "semantic", "optimiser"))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    ours, theirs = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    waiting = [float(row["train/waiting"]) for row in rows(tmp_path / "with") if row.get("train/waiting")]
    assert len(waiting) == 2
    assert all(0 < share < 1 for share in waiting)


def test_two_small_batches_accumulated_are_one_large_one(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mois.training.callbacks.step_seed", lambda *numbers: 7)  # an episode brings its own chance
    root = make_dataset(subjects=2)
    run = ["fit", *LORA, *data(root, episodes_per_epoch=8), "--trainer.max_epochs=1", "--dry_step=false"]
    train(*run, *data(root, batch_size=2), folder(tmp_path / "large"))
    train(*run, *data(root, batch_size=1), "--trainer.accumulate_grad_batches=2", folder(tmp_path / "small"))
    large, small = last(tmp_path / "large"), last(tmp_path / "small")
    assert large["global_step"] == small["global_step"] == 4
    ours, theirs = large["state_dict"], small["state_dict"]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_a_cache_of_what_is_trained_is_refused(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["fit", *LORA, "--model.adapter=adapters.Full", *data(make_dataset(subjects=2))]
    said = failing(capsys, *run, f"--model.cache.folder={tmp_path / 'features'}", folder(tmp_path / "run"))
    assert said.startswith(f"model.cache.folder={tmp_path / 'features'} keeps what a frozen encoder sees")
