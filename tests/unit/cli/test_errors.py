"""Which errors end in one line, what it says, and which keep their traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from safetensors.torch import save_file

from mois.cli import messages as errors
from mois.cli.commands import run
from mois.cli.memory_advice import what_frees_memory
from mois.cli.messages import explain, one_line_errors
from mois.files.atomic import whole_file, write_text
from mois.machine.full_memory import memory_cure
from tests.support.paths import ROOT


def raised(action: Callable[[], object]) -> Exception:
    """Return what an action raises."""
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def line(number: int, path: str | None = "/data/run/a.csv") -> str | None:
    return explain(OSError(number, os.strerror(number), path))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "/data/run/a.csv: Read-only file system; choose a folder that can be written to"),
        (errno.ENOSPC, "/data/run/a.csv: No space left on device; make room, or choose another disk"),
        (errno.EDQUOT, "/data/run/a.csv: Disk quota exceeded; make room, or choose another disk"),
        (errno.EACCES, "/data/run/a.csv: Permission denied; ask for the right to it, or choose another place"),
        (errno.EPERM, "/data/run/a.csv: Operation not permitted; ask for the right to it, or choose another place"),
        (errno.EIO, "/data/run/a.csv: Input/output error; the disk or its network fails; copy it elsewhere, try again"),
        (errno.ESTALE, "/data/run/a.csv: Stale file handle; the network's disk was lost; mount it again"),
        (errno.ENXIO, "/data/run/a.csv: No such device or address"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_with_its_path(number: int, said: str) -> None:
    assert line(number) == said


def test_what_the_system_refuses_is_said_with_its_path_by_the_system_itself(tmp_path: Path) -> None:
    file, loop, long, deep = (tmp_path / name for name in ("file", "loop", "x" * 300, "a/b"))
    file.write_text("")
    loop.symlink_to(loop)
    refused: list[tuple[Callable[[], object], str]] = [
        (file.mkdir, f"{file}: File exists; choose another name"),
        ((file / "x").mkdir, f"{file / 'x'}: Not a directory; a part of the path is a file; choose another folder"),
        (long.mkdir, f"{long}: File name too long; choose a shorter name"),
        (
            loop.read_bytes,
            f"{loop}: Too many levels of symbolic links; its links lead in a circle; give the file itself",
        ),
        (deep.read_bytes, f"{deep}: No such file or directory; check the path"),
        (tmp_path.read_bytes, f"{tmp_path}: Is a directory; give a file"),
        (lambda: file.rename(deep), f"{file} (to {deep}): No such file or directory; check the path"),
    ]
    for action, said in refused:
        assert explain(raised(action)) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device; make room, or choose another disk"),
        (errno.EROFS, "Read-only file system; choose a folder that can be written to"),
        (errno.EMFILE, "Too many open files; raise the limit (ulimit -n 65536)"),
    ],
)
def test_a_refusal_without_a_path_is_said_as_well(number: int, said: str) -> None:
    assert line(number, None) == said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.EINVAL, "Invalid argument", "a.csv"),
        OSError("a library's own words"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TypeError("'NoneType' object is not subscriptable"),
        KeyError("a"),
        IndexError("list index out of range"),
        ZeroDivisionError("integer modulo by zero"),
        RuntimeError("CUDA error: device-side assert triggered"),
        SafetensorError("Error while deserializing header: header too large"),
    ],
    ids=repr,
)
def test_a_fault_of_the_program_is_no_line(error: Exception) -> None:
    assert explain(error) is None


def test_a_file_that_cannot_be_written_whole_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"

    def write(how: Callable[[Path], object]) -> Callable[[], None]:
        def action() -> None:
            with whole_file(path) as part:
                how(part)

        return action

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_safetensors(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    said = f"{path}: No space left on device; make room, or choose another disk"
    assert explain(raised(write(full))) == said
    assert explain(raised(write(full_for_safetensors))) == said
    missing = tmp_path / "other" / "b.txt"
    assert (
        explain(raised(write(lambda _: missing.read_text()))) == f"{missing}: No such file or directory; check the path"
    )
    assert explain(SafetensorError("I/O error: No space left on device (os error 28)")) == (
        "No space left on device; make room, or choose another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_safetensors_of_a_full_disk_are_recognised_by_what_it_says_itself(tmp_path: Path) -> None:
    error = raised(lambda: save_file({"a": torch.zeros(1)}, tmp_path / "none" / "a.safetensors"))
    assert explain(error) == f"{tmp_path / 'none'}: No such file or directory; check the path"


GPU, CPU, SHARED = (f"the {whose} memory is full" for whose in ("accelerator's", "machine's", "machine's shared"))
OUT_OF_BUS = "Bus error. It is possible that dataloader's workers are out of shared memory."
ALLOCATOR = "err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "full", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), GPU, "2.00 GiB"),
        (torch.OutOfMemoryError("XPU out of memory."), GPU, ""),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), GPU, ""),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 9.00 MB on"), GPU, "9.00 MB"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), GPU, ""),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), GPU, ""),
        (RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"), GPU, "20.00 MiB"),
        (RuntimeError(ALLOCATOR), CPU, "8000000 bytes"),
        (MemoryError(), CPU, ""),
        (raised(lambda: np.empty(1 << 60, np.uint8)), CPU, "1.00 EiB"),
        (raised(lambda: torch.empty(1 << 60, dtype=torch.uint8)), CPU, "1152921504606846976 bytes"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), CPU, ""),
        (RuntimeError("unable to write to file </torch_5_1_0>: No space left on device (28)"), SHARED, ""),
        (RuntimeError(f"DataLoader worker (pid 5) is killed by signal: {OUT_OF_BUS}"), SHARED, ""),
    ],
    ids=lambda each: str(each)[:40],
)
def test_full_memory_is_told_from_other_errors(error: Exception, full: str, asked: str) -> None:
    asked = f" ({asked} more were asked for)" if asked else ""
    assert explain(error) == f"{full}{asked}; end other programs that use it, or compute where there is more of it"


FULL, WORKER = torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("unable to write to file </torch_5_1_0>")


def configured(
    precision: str = "bf16-mixed", trunk: bool = True, tiles: tuple[int, int] = (1, 64), **data: object
) -> Any:
    """Return a config with some settings of the data, and all others at their least."""
    inference = {"batch_size": tiles[0], "tile_px": tiles[1]}
    model = {"backbone": {"init_args": {"checkpoint_trunk": trunk}}, "inference": inference}
    return {"trainer": {"precision": precision}, "model": model, "data": {"init_args": {"batch_size": 1, **data}}}


NOTHING = "end other programs that use it, or take a smaller backbone"


@pytest.mark.parametrize(
    ("error", "command", "given", "ways"),
    [
        (
            FULL,
            "fit",
            configured(batch_size=4),
            ["lower data.init_args.batch_size (4) and accumulate (trainer.accumulate_grad_batches)"],
        ),
        (FULL, "fit", configured(trunk=False), ["set model.backbone.init_args.checkpoint_trunk=true"]),
        (
            FULL,
            "fit",
            configured(exemplars=3, clip=5, patch_px=512),
            [f"lower data.init_args.{what}" for what in ("exemplars (3)", "clip (5)", "patch_px (512)")],
        ),
        (FULL, "fit", configured("32-true"), ["set trainer.precision=bf16-mixed"]),
        (FULL, "fit", configured(exemplars=1, clip=1, patch_px=64), [NOTHING]),
        (
            FULL,
            "test",
            configured(tiles=(32, 1024), batch_size=4),
            [
                "lower model.inference.batch_size (32)",
                "lower model.inference.tile_px (1024)",
                "compute on the CPU (trainer.accelerator=cpu)",
            ],
        ),
        (FULL, "predict", configured(), ["compute on the CPU (trainer.accelerator=cpu)"]),
        (
            MemoryError(),
            "fit",
            configured(num_workers=8, prepared=None),
            [
                "lower data.init_args.num_workers (8)",
                "set data.init_args.prepared to a folder, which scans are mapped from",
            ],
        ),
        (MemoryError(), "test", configured(num_workers=0), [NOTHING]),
        (
            WORKER,
            "fit",
            configured(num_workers=8),
            ["lower data.init_args.num_workers (8)", "give the container more (--shm-size)"],
        ),
    ],
)
def test_what_frees_memory_depends_on_what_is_set(error: Exception, command: str, given: Any, ways: list[str]) -> None:
    assert what_frees_memory(error, given, command) == ", or ".join(ways)


def test_several_processes_map_their_scans_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    ways = what_frees_memory(MemoryError(), configured(num_workers=8, prepared=None), "fit")
    assert ways == "lower data.init_args.num_workers (8)"


def test_a_validation_within_a_training_is_freed_like_a_test() -> None:
    def validation_step() -> None:
        raise FULL

    error = raised(validation_step)
    assert what_frees_memory(error, configured(tiles=(8, 64), batch_size=4), "fit").startswith(
        "lower model.inference.batch_size (8)"
    )


def test_the_cure_travels_with_the_error() -> None:
    def action() -> None:
        with memory_cure(lambda _: "outer"), memory_cure(lambda _: "inner"):
            raise MemoryError

    assert explain(raised(action)) == f"{CPU}; inner"


def test_the_commands_know_what_frees_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr("mois.cli.commands.auto_cli", full)
    for command, cure in [("segment", "compute on the CPU (--device cpu), or end other"), ("phantom", "end other")]:
        FULL.__notes__ = []
        with pytest.raises(SystemExit):
            run([command])
        assert capsys.readouterr().err == f"error: {GPU}; {cure} programs that use it, or take a machine with more\n"


@pytest.mark.parametrize(
    "settings", [{"accelerator": "banana"}, {"strategy": "banana"}, {"devices": 0, "accelerator": "cpu"}]
)
def test_settings_that_lightning_refuses_are_no_fault_of_the_program(settings: dict[str, str]) -> None:
    assert explain(raised(lambda: Trainer(**settings))) is not None


def test_warnings_of_ours_take_one_line() -> None:
    plainly = warnings.formatwarning
    with one_line_errors():
        ours = warnings.formatwarning(UserWarning("a scan\n  is empty"), UserWarning, errors.__file__, 1)
        theirs = warnings.formatwarning(UserWarning("theirs"), UserWarning, torch.__file__, 1)
    assert ours == "warning: a scan is empty\n"
    assert theirs.startswith(f"{torch.__file__}:1: UserWarning: theirs\n")
    assert warnings.formatwarning is plainly


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [errors.OTHERS_S])])
def test_of_several_processes_the_first_one_speaks_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, waits: list[float]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        raise ValueError("wrong")
    assert waited == waits
    assert capsys.readouterr().err == "error: wrong\n"


def test_processes_of_torchrun_write_a_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # as if the first process took longer than the wait
    for rank, line in (("1", "wrong"), ("0", "wrong"), ("0", "also wrong")):
        monkeypatch.setenv("RANK", rank)
        (tmp_path / rank).mkdir(exist_ok=True)
        monkeypatch.setenv(errors.ERROR_FILE, str(tmp_path / rank / "error.json"))
        with pytest.raises(SystemExit, match="2"), one_line_errors():
            raise ValueError(line)
    assert capsys.readouterr().err == "error: wrong\nerror: also wrong\n"
    monkeypatch.setenv(errors.ERROR_FILE, str(tmp_path / "gone" / "0" / "error.json"))
    for _ in range(2):  # nowhere to note it: twice is better than not at all
        with pytest.raises(SystemExit), one_line_errors():
            raise ValueError("wrong")
    assert capsys.readouterr().err == "error: wrong\nerror: wrong\n"


def test_a_reader_that_left_is_no_error() -> None:
    code = (
        "import sys\nfrom mois.cli.messages import one_line_errors\n"
        "with one_line_errors():\n    for _ in range(100_000):\n        print('x' * 100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_text_is_written_under_its_name_where_nothing_is_wrong(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "b"
