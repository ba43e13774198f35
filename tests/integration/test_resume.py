"""What a training that is gone on with may change, and what its folder says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.small_runs import LORA, data, folder, last, losses, train

Make = Callable[..., Path]


@pytest.mark.ci
def test_a_training_that_reached_max_steps_at_the_end_of_an_epoch_goes_on_twice(
    make_dataset: Make, tmp_path: Path
) -> None:
    run = ["fit", *LORA, "--trainer.max_epochs=9", "--dry_step=false", folder(tmp_path / "run")]
    run += data(make_dataset(subjects=2), episodes_per_epoch=2, val_subjects="[]")
    train(*run, "--trainer.max_steps=2")
    train(*run, "--trainer.max_steps=4", "--ckpt_path=last")
    train(*run, "--trainer.max_steps=6", "--ckpt_path=last")
    assert list(losses(tmp_path / "run")) == [0, 1, 2, 3, 4, 5]
    assert last(tmp_path / "run")["global_step"] == 6
