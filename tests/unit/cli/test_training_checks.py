"""What a machine offers is used, refused or explained before anything else is done."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules.loading import WORKERS, EpisodeLoader, workers_of
from mois.cli.training_checks import STRATEGIES, check_accelerator, check_precision, check_strategy
from mois.inference import execution
from mois.inference.execution import chosen_device, unused_gpu
from tests.support.example_episodes import example_episode

LIGHTNING = "lightning.pytorch.strategies."


class OwnStrategy(DDPStrategy):
    """Of somebody else."""


@pytest.mark.parametrize(
    "given",
    [*STRATEGIES, {"class_path": f"{LIGHTNING}DDPStrategy", "init_args": {"timeout": "0:30:00"}},
     {"class_path": f"{LIGHTNING}ddp.DDPStrategy"}, f"{__name__}.OwnStrategy"],
)  # fmt: skip
def test_strategies_that_work_are_taken(given: Any) -> None:
    check_strategy(given)


@pytest.mark.parametrize(
    "given",
    ["fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_3", "ddp_spawn", "ddp_fork", "ddp_notebook", "xla",
     "DDP", "nonsense", f"{LIGHTNING}FSDPStrategy", {"class_path": f"{LIGHTNING}DeepSpeedStrategy", "init_args": {}},
     f"{LIGHTNING}ModelParallelStrategy", f"{LIGHTNING}NoStrategy", "no_such_module.Strategy", "pathlib.Path"],
)  # fmt: skip
def test_strategies_that_cannot_work_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.strategy=\S+ is not supported: .*; choose one of auto, ddp,"):
        check_strategy(given)


def test_ranks_that_are_not_processes_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DDPStrategy with start_method=spawn is not supported"):
        check_strategy({"class_path": f"{LIGHTNING}DDPStrategy", "init_args": {"start_method": "spawn"}})


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the machine have an NVIDIA driver, and torch no CUDA device."""
    file = tmp_path / "version"
    file.write_text("NVRM version: 470")
    monkeypatch.setattr(execution, "DRIVER_FILE", file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


def test_a_gpu_that_torch_cannot_use_is_named_when_a_training_starts(driver: Path) -> None:
    with pytest.warns(UserWarning, match=r"accelerator=auto trains on the CPU: .* older than CUDA 13\.0 asks for"):
        check_accelerator("auto")
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu: .*update the driver, or set trainer.accelerator"):
        check_accelerator("gpu")
    with pytest.raises(ValueError, match=r"device=cuda: torch finds 0 CUDA devices here; there is an NVIDIA driver"):
        chosen_device("cuda")
    with warnings.catch_warnings(action="error"):
        check_accelerator("cpu")


def test_a_torch_without_cuda_beside_a_driver_is_told_from_an_old_driver(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in str(unused_gpu())


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_on_purpose_is_not_missed(
    driver: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unused_gpu() is None


def test_no_gpu_is_missed_where_there_is_none(driver: Path) -> None:
    driver.unlink()
    assert unused_gpu() is None


def test_accelerators_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.accelerator=tpu is not supported; choose one of auto, cpu, gpu"):
        check_accelerator("tpu")


def test_auto_is_an_accelerator_of_its_own_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [chosen_device("auto", rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert [chosen_device("cuda", rank).index for rank in range(4)] == [None, 1, 0, 1]  # None: torch's present one
    assert chosen_device("cuda:1", 2) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device=cuda:2: torch finds 2 CUDA devices here; choose auto or cpu"):
        chosen_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "meta", "xpu:0", "vulkan", "cuda:-1", ""])
def test_a_name_without_a_device_behind_it_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device={name} is unknown; choose auto, cpu, cuda"):
        chosen_device(name)


def test_an_apple_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device=mps: this machine, or this torch, has no Apple GPU; choose auto"):
        chosen_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device("mps").type == "mps"


def on(device: str) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, accumulate_grad_batches=1, global_rank=0, world_size=1)


def test_episodes_are_drawn_beside_a_gpu_and_within_a_training_on_a_cpu() -> None:
    cores = len(os.sched_getaffinity(0))
    assert (workers_of(on("cuda")), workers_of(on("cpu")), workers_of(None)) == (min(WORKERS, cores), 0, 0)
    example = example_episode(1)
    for given, beside in ((None, min(WORKERS, cores)), (0, 0), (3, 3)):
        loader = EpisodeLoader([example], batch_size=1, episodes_per_epoch=1, trainer=on("cuda"), num_workers=given)  # type: ignore[arg-type]
        assert (loader.num_workers, loader.pin_memory, loader.persistent_workers) == (beside, True, beside > 0)
    assert not EpisodeLoader([example], batch_size=1, episodes_per_epoch=1, trainer=on("cpu")).pin_memory  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["16-mixed", "16"])
def test_float16_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    for gpu in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(gpu, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ValueError, match=rf"trainer\.precision={given} needs a GPU.*use 32-true or bf16-mixed$"):
            check_precision(given, accelerator)
        check_precision("bf16-mixed", accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_precision(given, "auto")


@pytest.mark.parametrize("devices", [2, "2", -1, [0, 1]])
def test_one_device_is_not_taken_for_several(devices: Any) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.strategy=single_device takes one device, trainer\.devices="):
        check_strategy("single_device", devices)
    check_strategy("ddp", devices)
    for one in (1, "1", "auto", [1]):
        check_strategy("single_device", one)
