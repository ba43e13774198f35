"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_warn

from mois.backbones.checkpoint_files import cut_short
from mois.errors import DataError
from mois.files.atomic import whole_file
from mois.training.checkpoints.checkpoint_content import checked_training

NAMED = ("best", "last", "previous", "start")
"""Names that `--ckpt_path` accepts.

previous.ckpt is the last.ckpt before the present file. start.ckpt is the model before the first step.
"""


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint. No code in the file runs.

    Raises:
        ValueError: If the file does not exist, is damaged, or holds other objects than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path={path}: there is no such file; {_others(path)}")
    previous = path.with_name("previous.ckpt")
    cure = "go on from the one before it with --ckpt_path previous"
    cure = cure if path.name == "last.ckpt" and previous.is_file() else "give another one"
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):  # torch never compresses them
                raise DataError(f"ckpt_path={path}: it is packed, which a training never does; {cure}")
            damaged = archive.testzip()  # torch.load does not check the check sums
        if damaged is not None:
            raise DataError(f"ckpt_path={path}: it is damaged (the check sum of {damaged} is wrong); {cure}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = "holds more than tensors and plain values, and loading it could run foreign code"
        raise DataError(f"ckpt_path={path}: it {reason}; give a checkpoint that a training wrote") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # any error of a damaged pickle; none of its code ran
        how = "cut short" if cut_short(path) else "damaged or no checkpoint"
        raise DataError(f"ckpt_path={path}: it is {how}; {cure}") from error


def read_training(path: Path) -> dict[str, Any]:
    """Return the checked content of a training's checkpoint (`checked_training`).

    Raises:
        ValueError: See `read_checkpoint`.
        DataError: If it is no checkpoint of a training.
    """
    return checked_training(read_checkpoint(path), f"ckpt_path={path}")


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and always reads them with `weights_only=True`.

    A checkpoint is written under a temporary name in the same folder, and then renamed.

    Args:
        folder: Folder of the run's checkpoints. Only files in it, and files that this object wrote, are removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. If the process is killed, the file at `path` is the old or the new checkpoint.

        The old last.ckpt is kept as previous.ckpt.

        Raises:
            OSError: If it cannot be written, for example on a full disk. The old checkpoint stays.
        """
        del storage_options  # Lightning passes None
        target = Path(path)
        try:
            with whole_file(target) as part:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == "last.ckpt" and target.is_file():
                    give_second_name(target, target.with_name("previous.ckpt"))
            self._written.add(_place(target))
        except (OSError, RuntimeError) as error:
            if (cause := _write_error(error)) is None:
                raise
            stands = "the one before it stands" if target.is_file() else "there is none yet"
            reason = f"{cause.strerror}, so that no checkpoint was written; {stands}"
            raise OSError(cause.errno, f"{reason}; make room, then go on with --ckpt_path last", str(target)) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Return the checkpoint of a training (`read_training`), on the CPU."""
        del map_location, weights_only
        return read_training(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint of this run, and warn for any other path. Lightning would also remove folders."""
        place = _place(Path(path))
        own = place in self._written or (self._folder is not None and place.parent == _place(self._folder / "_").parent)
        if own and place.suffix == ".ckpt" and place.is_file() and not place.is_symlink():
            place.unlink()
        else:
            rank_zero_warn(f"{path} is no checkpoint of this run and is not removed")


def _place(path: Path) -> Path:
    """Return the path of a file with the links of its folders resolved. A link in the place of the file stays."""
    return path.parent.resolve() / path.name


def _others(path: Path) -> str:
    """Return the end of a message on a missing checkpoint: which checkpoints exist."""
    if str(path) == path.stem:  # a word is meant as one of our names
        names = f"{', '.join(NAMED[:-1])} or {NAMED[-1]}"
        return f"give {names} (of trainer.default_root_dir/checkpoints), or the path of a checkpoint"
    there = sorted(file.stem for file in path.parent.glob("*.ckpt"))
    if not there:
        return f"{path.parent} holds no checkpoint, train first (fit)"
    taken = [f"--ckpt_path {name if name in NAMED else path.with_name(f'{name}.ckpt')}" for name in there]
    return f"there is {', '.join(taken)}"


def give_second_name(file: Path, name: Path) -> None:
    """Give a file a second name. The file keeps its first name at every moment."""
    with whole_file(name) as part:
        part.unlink()
        try:
            part.hardlink_to(file)
        except OSError:  # the file system may have no links
            shutil.copyfile(file, part)


def _write_error(error: BaseException | None) -> OSError | None:
    """Return the system's error behind an error of `torch.save`; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
