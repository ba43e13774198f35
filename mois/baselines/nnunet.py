"""Trains a reduced nnU-Net for a fixed time, and predicts the test scans with it."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mois.baselines import reduced_nnunet as reduced
from mois.baselines.reduced_nnunet import ReportProgress, Size
from mois.errors import DataError
from mois.files.atomic import whole_file, write_text
from mois.files.json_records import read_record
from mois.sharing.provenance import code_version

PLANNED, TRAINED = "plans.json", "model.safetensors"


_START_AGAIN = "begin in another folder"
_EXPORT = "export the dataset again"


@dataclass(frozen=True)
class ReducedSettings:
    """Settings that decide a run, together with the data.

    Attributes:
        minutes: Minutes of training: CPU minutes of all threads on a CPU, wall minutes on an accelerator.
        patch: Edges of a patch, coarsest axis first; None: 16 x 64 x 64 for thick slices, else 48 x 64 x 64.
        features: Channels of each stage; None: 8, 16, 32, 64 for thick slices, else 12, 24, 48, 96.
        fold: Fold of splits_final.json; None takes the first fold, or all scans without this file.
        seed: Seed of initial weights and draws. The number of steps in the budget still depends on the machine.
        mirroring: Average predictions over mirrored versions, as nnU-Net does; eight times the work.
        device: cpu or cuda.
    """

    minutes: float
    patch: tuple[int, int, int] | None = None
    features: tuple[int, ...] | None = None
    fold: int | None = None
    seed: int = 0
    mirroring: bool = False
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes} must be above 0.")
        if (self.patch is None) != (self.features is None):
            raise ValueError("patch and features belong together; set both or neither.")

    @property
    def size(self) -> Size | None:
        """Size of patch and network; None if the spacing decides."""
        return None if self.patch is None or self.features is None else Size(self.patch, self.features)


def run_nnunet(raw: Path, out: Path, settings: ReducedSettings, report: ReportProgress) -> None:
    """Plan, train and predict. A step that is finished is not repeated."""
    raw = raw.resolve()
    if importlib.util.find_spec("nnunetv2") is None:
        raise ValueError("nnunetv2 is not installed; install the extra: pip install 'mois[nnunet]'.")
    about, folds = _read_raw(raw)
    chosen = _choose_fold(settings.fold, folds)
    _check_same_run(out, {"settings": asdict(settings), "data_sha256": about["mois"]["sha256"]})
    _set_environment(raw, out)
    with (out / "nnunet.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
        plans = _once(out / PLANNED, lambda: _plan(raw, out, settings, report))
        if settings.device == "cpu":  # no workers, because their CPU time is counted too late
            os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
        _seed(settings.seed)
        trainer = reduced.make_trainer(plans["plans"], about, chosen, settings.device)
        figures = _train_or_load(trainer, out, settings, report)
        seconds = _predict_all(trainer, raw, out, about["mois"]["values"], settings.mirroring, report)
    record = {
        "system": "reduced nnU-Net",
        "nnunetv2": version("nnunetv2"),
        "code": code_version(),
        "settings": asdict(settings),
        "fold": chosen,
        "data_sha256": about["mois"]["sha256"],
        "configuration": plans["plans"]["configurations"][reduced.CONFIGURATION],
        "parameters": sum(tensor.numel() for tensor in trainer.network.parameters()),
        "planning_cpu_seconds": plans["cpu_seconds"],
        "training": figures,
        "prediction_cpu_seconds_now": seconds,
    }
    _write_json(out / "run.json", record)
    report(f"predictions in {out / 'predictions'}; score them: mois evaluate --predictions {out / 'predictions'}")


def _plan(raw: Path, out: Path, settings: ReducedSettings, report: ReportProgress) -> dict[str, Any]:
    """Plan and preprocess; return the plans and the CPU seconds."""
    report("planning and preprocessing")
    start = cpu_seconds()
    number = int(raw.name[len("Dataset") :][:3])
    plans = reduced.plan_and_preprocess(number, raw, out / "preprocessed" / raw.name, settings.size)
    return {"cpu_seconds": round(cpu_seconds() - start, 1), "plans": plans}


def _train_or_load(trainer: Any, out: Path, settings: ReducedSettings, report: ReportProgress) -> dict[str, Any]:
    """Give the trainer trained weights, and return the record of the training."""
    from safetensors.torch import load_model, save_model

    if (out / TRAINED).exists():
        report("the training is finished; its weights are read")
        trainer.initialize()
        load_model(trainer.network, out / TRAINED)
    else:
        clock = cpu_seconds if settings.device == "cpu" else time.perf_counter
        log = reduced.train(trainer, 60 * settings.minutes, clock, report)
        _write_json(out / "training.json", log._asdict() | {"budget_seconds": 60 * settings.minutes})
        with whole_file(out / TRAINED) as part:
            save_model(trainer.network, str(part))
    return read_record(out / "training.json", dict[str, Any], _START_AGAIN)


def _predict_all(
    trainer: Any, raw: Path, out: Path, values: Sequence[int], mirroring: bool, report: ReportProgress
) -> float:
    """Predict the scans of imagesTs that have no prediction yet; return the CPU seconds."""
    start = cpu_seconds()
    cases: dict[str, list[Path]] = {}
    for image in sorted((raw / "imagesTs").glob("*.nii.gz")):
        cases.setdefault(image.name[: -len("_0000.nii.gz")], []).append(image)
    for number, (case, images) in enumerate(cases.items()):
        target = out / "predictions" / f"{case}.nii.gz"
        if not target.exists():
            reduced.predict(trainer, images, values, target, mirroring)
            report(f"predicted {case} ({number + 1} of {len(cases)})")
    return round(cpu_seconds() - start, 1)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, of all its threads, and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _read_raw(raw: Path) -> tuple[dict[str, Any], list[dict[str, list[str]]]]:
    """Return dataset.json and the folds of an exported dataset."""
    path = raw / "dataset.json"
    about = read_record(path, dict[str, Any], _EXPORT) if path.exists() else {}
    if "mois" not in about:
        raise DataError(f"raw={raw}: no dataset that `mois export nnunet` wrote; export one, and name its folder.")
    splits = raw / "splits_final.json"
    return about, read_record(splits, list[dict[str, list[str]]], _EXPORT) if splits.exists() else []


def _choose_fold(fold: int | None, folds: Sequence[dict[str, list[str]]]) -> int | Literal["all"]:
    if not folds and fold is None:
        return "all"
    if not 0 <= (fold or 0) < len(folds):
        raise ValueError(f"fold={fold}: splits_final.json holds {len(folds)} folds, counted from 0; leave it out.")
    return fold or 0


def _check_same_run(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings of this run in its folder, or check that they are the recorded ones."""
    note = out / "settings.json"
    wanted = json.loads(json.dumps(settings))
    if not note.exists():
        _write_json(note, wanted)
    elif read_record(note, dict[str, Any], _START_AGAIN) != wanted:
        raise ValueError(f"out={out} holds a run with other settings or data ({note}); choose another folder.")


def _set_environment(raw: Path, out: Path) -> None:
    """Set the folders of nnU-Net, and make it work in this process, so that its CPU time is counted."""
    os.environ["nnUNet_raw"] = str(raw.parent)  # noqa: SIM112 - nnU-Net's spelling
    os.environ["nnUNet_preprocessed"] = str((out / "preprocessed").resolve())  # noqa: SIM112
    os.environ["nnUNet_results"] = str((out / "results").resolve())  # noqa: SIM112
    os.environ["nnUNet_def_n_proc"] = "1"  # noqa: SIM112
    os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112
    os.environ.setdefault("nnUNet_compile", "f")
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - the planner cannot do with 0


def _seed(seed: int) -> None:
    """Seed the global random states that nnU-Net uses."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a JSON file; make the file first if it is missing."""
    if not path.exists():
        _write_json(path, make())
    return read_record(path, dict[str, Any], _START_AGAIN)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
