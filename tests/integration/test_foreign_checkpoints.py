"""A checkpoint from elsewhere sets weights and counters; it removes, overwrites and names no file."""

from __future__ import annotations

import copy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mois.cli.train import MoisCLI
from mois.training.checkpoints.checkpoint_content import check_progress, checked_training
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO
from tests.support.paths import FIXTURES
from tests.support.small_runs import failing, train

FIRST = FIXTURES / "format_1"
CKPT = Path("run/checkpoints/last.ckpt")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training that was interrupted, as the working folder."""
    for name in ("run", "data"):
        shutil.copytree(FIRST / name, tmp_path / "copy" / name)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def forge(edit: Callable[[dict[str, Any]], object]) -> None:
    """Write a checkpoint that says something else."""
    content = torch.load(CKPT, weights_only=True)
    edit(content)
    torch.save(content, CKPT)


def resume(*more: str) -> list[str]:
    return ["fit", "--config=run/config.yaml", "--trainer.default_root_dir=run", "--ckpt_path=last", *more]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


NAMED = ["local://{victim}", "{checkpoints}/../../../victim", "{checkpoints}/kept", "{checkpoints}/link.ckpt"]


@pytest.mark.usefixtures("same_process", "same_handlers")
@pytest.mark.parametrize("forms", [NAMED[:2], pytest.param(NAMED[2:], marks=pytest.mark.ci)])
def test_no_folder_that_a_checkpoint_names_is_removed(copied: Path, tmp_path: Path, forms: list[str]) -> None:
    victim = tmp_path / "victim"
    (victim / "years").mkdir(parents=True)
    (victim / "years" / "scan.nii.gz").write_bytes(b"scan")
    checkpoints = (copied / CKPT).parent
    (checkpoints / "kept").mkdir()
    (checkpoints / "kept" / "scan.nii.gz").write_bytes(b"scan")
    (checkpoints / "link.ckpt").symlink_to(victim)

    def edit(content: dict[str, Any]) -> None:
        for form, state in zip(forms, content["callbacks"].values(), strict=True):
            path, score = form.format(victim=victim, checkpoints=checkpoints), torch.tensor(-1.0)
            state.update(
                dirpath=str(checkpoints), best_model_path=path, last_model_path=path, kth_best_model_path=path,
                best_k_models={path: score}, kth_value=score, best_model_score=score, current_score=score,
            )  # fmt: skip

    forge(edit)
    train(*resume("--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1"))
    assert everything(victim) == {"years/scan.nii.gz": b"scan"}
    assert (checkpoints / "kept" / "scan.nii.gz").read_bytes() == b"scan"
    assert (checkpoints / "link.ckpt").is_symlink()


def test_nothing_but_a_checkpoint_of_the_run_is_removed(tmp_path: Path) -> None:
    own, other = tmp_path / "run" / "checkpoints", tmp_path / "other"
    for folder in (own / "folder.ckpt", other):
        folder.mkdir(parents=True)
    for path in (own / "old.ckpt", own / "notes.txt", other / "theirs.ckpt"):
        path.write_bytes(b"kept")
    (own / "link.ckpt").symlink_to(other / "theirs.ckpt")
    io = SafeCheckpointIO(own)
    named = [own / "folder.ckpt", own / "notes.txt", own / "link.ckpt", other / "theirs.ckpt", own / "gone.ckpt", own]
    paths: list[Path | str] = [
        *named,
        own / ".." / ".." / "other" / "theirs.ckpt",
        f"local://{other}",
        "memory://x",
        "",
    ]
    for given in paths:
        with pytest.warns(UserWarning, match="is no checkpoint of this run and is not removed"):
            io.remove_checkpoint(given)
    assert {*everything(own)} == {"link.ckpt", "notes.txt", "old.ckpt"}
    assert {*everything(other)} == {"theirs.ckpt"}
    io.remove_checkpoint(own / "old.ckpt")
    io.save_checkpoint({}, other / "mine.ckpt")  # of a callback that the user adds, with a folder of its own
    io.remove_checkpoint(str(other / "mine.ckpt"))
    assert not (own / "old.ckpt").exists()
    assert not (other / "mine.ckpt").exists()


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"in": made}
    return made


def in_optimiser(content: dict[str, Any], key: str, value: object) -> None:
    content["optimizer_states"][0]["param_groups"][0][key] = value


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.update(global_step=-1), "global_step is -1, no number of 0 or more"),
    (lambda c: c.update(epoch="0"), "epoch is '0', no number"),
    (lambda c: c.pop("pytorch-lightning_version"), "pytorch-lightning_version is None, no version"),
    (lambda c: c.update({"pytorch-lightning_version": "../../x"}), "is '../../x', no version"),
    (lambda c: c.update(state_dict=[1]), "state_dict is no table of tensors"),
    (lambda c: c["mois"].update(run_id="../../../somewhere"), "mois: run_id|a run_id has letters"),
    (lambda c: c["mois"].update(validation={"": {"peaks": [2.0], "hits": [True], "scans": 1, "figures": {}}}), "peaks"),
    (lambda c: c["mois"].update(validation={"": {"peaks": 1}}), "validation"),
    (lambda c: c.update(mois=[]), "mois"),
    (lambda c: c.update(callbacks=[1]), "callbacks is no table"),
    (lambda c: c.update(more=deep(200)), "more than 80 tables and lists"),
    (lambda c: c.update(more={(1, 2): 3}), "a key that is no text"),
    (lambda c: c.update(more=1 << 70), "more is a int"),
    (lambda c: c.update(more=torch.zeros(1).expand(10**6, 10**6)), "claims more values than the file holds"),
    (lambda c: c.update(more=torch.eye(3).to_sparse()), "a tensor of a kind that no training writes"),
    (lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan), "values that are not finite"),
    (lambda c: c.update(state_dict={k: v.double() for k, v in c["state_dict"].items()}), "is torch.float64 there"),
    (lambda c: c.update(backbone="nano"), "the checkpoint's backbone"),
    (lambda c: c.pop("backbone"), "does not say which backbone it belongs to"),
    (lambda c: c.pop("loops"), "lacks loops.fit_loop"),
    (lambda c: c["loops"]["fit_loop"].pop("epoch_progress"), "has other keys than this training (epoch_progress"),
    (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="1"),
        "epoch_progress.total.ready is '1'",
    ),
    (lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-5), "epoch_progress.total.ready is -5"),
    (lambda c: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=1), "combined_loader is 1"),
    (lambda c: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=[1]), "combined_loader.0 is 1"),
    (lambda c: c.pop("optimizer_states"), "lacks optimizer_states"),
    (lambda c: c["optimizer_states"][0].update(param_groups=[]), "param_groups are not those of this training"),
    (lambda c: in_optimiser(c, "lr", "fast"), "param_groups.0.lr is 'fast'"),
    (lambda c: in_optimiser(c, "betas", (0.9, float("nan"))), "param_groups.0.betas.1 is nan"),
    (lambda c: in_optimiser(c, "params", [0]), "params are not those of this training"),
    (lambda c: in_optimiser(c, "more", 1), "has other keys than this training (more"),
    (lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)), "does not fit its parameter"),
    (lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=3), "does not fit its parameter"),
    (lambda c: c["optimizer_states"][0]["state"].update({99999: {}}), "state is not of the parameters"),
    (lambda c: c["lr_schedulers"][0].update(optimizer=1), "lr_schedulers.0 has other keys than this training"),
    (lambda c: c["lr_schedulers"][0].update(last_epoch=None), "lr_schedulers.0.last_epoch is None"),
    (lambda c: c.update(lr_schedulers={}), "lacks lr_schedulers"),
]


def take_over(checkpoint: dict[str, Any], run: MoisCLI) -> None:
    """Do what a training does before it goes on."""
    content = checked_training(checkpoint, "it")
    run.model.on_load_checkpoint(content)
    check_progress(content, run.trainer)


@pytest.mark.usefixtures("copied", "same_process", "same_handlers")
def test_a_checkpoint_that_no_training_wrote_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    good = torch.load(CKPT, weights_only=True)
    run = train(*resume())
    for edit, message in WRONG:
        content = copy.deepcopy(good)
        edit(content)
        with pytest.raises(ValueError, match=r"\S") as error:
            take_over(content, run)
        assert any(part in str(error.value) for part in message.split("|")), (message, error.value)
    forge(lambda c: c.update(lr_schedulers={}))
    assert "it lacks lr_schedulers" in failing(capsys, *resume())


@pytest.mark.usefixtures("copied")
def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(CKPT, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    assert "it is packed, which a training never does" in failing(capsys, *resume())
