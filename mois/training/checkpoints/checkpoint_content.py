"""Checks what a checkpoint contains, before a training goes on from it.

A checkpoint sets weights, optimiser, schedule, counters and scores. Paths in it are left out: they belong to another
run, or an attacker wants our run to remove or overwrite these files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mois.errors import DataError
from mois.evaluation.figures import SubjectReport
from mois.files.json_records import DEEPEST_NESTING, as_record
from mois.interfaces import Backbone
from mois.sharing.identity import rules_apart

RECORD = "mois"
"""Key of the record that we add to a checkpoint (`RunFacts`)."""

LARGEST_COUNT = 2**40
"""Limit of a counter of steps, batches or epochs."""
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath", "best_k_models")
"""Keys of paths by which `ModelCheckpoint` of Lightning removes files."""
_VERSION = "pytorch-lightning_version"
_CURE = "give a checkpoint that a training wrote"
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Form of a run's id at W&B, which makes a folder of that name."""


@dataclass(frozen=True)
class ValidationRecord:
    """Result of a validation, stored in the checkpoint. Confidences are fitted on it.

    Attributes:
        peaks: Highest probability of each candidate, 0 to 1.
        hits: Whether the candidate is a lesion.
        scans: Number of searches: one for each class that is scored in a scan.
        figures: Mean of each figure over the scans.

    Raises:
        ValueError: If a peak is no probability, or the numbers of peaks and hits differ.
    """

    peaks: list[float]
    hits: list[bool]
    scans: int
    figures: dict[str, float]

    def __post_init__(self) -> None:
        if len(self.peaks) != len(self.hits) or self.scans < 0 or not all(0 <= peak <= 1 for peak in self.peaks):
            raise ValueError("peaks are probabilities, one for each of the hits, of 0 or more scans.")

    @classmethod
    def of(cls, reports: Sequence[SubjectReport], logged: Mapping[str, Tensor], prefix: str = "") -> ValidationRecord:
        """Return the record of a propagation, from its reports and its logged figures `val/PREFIX...`."""
        rows = [row for report in reports for row in report.candidates]
        start = f"val/{prefix}"
        figures = {name.removeprefix(start): float(value) for name, value in logged.items() if name.startswith(start)}
        return cls(
            [row.peak for row in rows],
            [bool(row.hit) for row in rows],
            sum(max(1, len(report.classes)) for report in reports),
            {name: value for name, value in figures.items() if "/" not in name and math.isfinite(value)},
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as checkpoints hold them."""
        return asdict(self)


@dataclass(frozen=True)
class BackboneFacts:
    """The backbone that a checkpoint belongs to.

    Attributes:
        name: Name of its weights (`WeightsIdentity`).
        source: Source of its weights (`WeightsIdentity`).
        sha256: SHA-256 of its weights (`WeightsIdentity`).
        behaviour: Its rules (`Backbone.behaviour`); None in checkpoints of earlier versions.
    """

    name: str
    source: str
    sha256: str
    behaviour: dict[str, Any] | None = None

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneFacts:
        """Return the facts of a backbone."""
        identity = backbone.identity
        return cls(identity.name, identity.source, identity.sha256, backbone.behaviour())


def check_fit(checkpoint: Mapping[str, Any], trained: Mapping[str, Tensor], backbone: Backbone) -> BackboneFacts:
    """Return the facts of a checkpoint's backbone, if the checkpoint fits a model.

    Args:
        checkpoint: Content of the checkpoint.
        trained: Trained tensors of the model by name.
        backbone: Backbone of the model.

    Raises:
        ValueError: If trained tensors are missing, unknown or of another shape, or the backbone differs.
    """
    given = checkpoint["state_dict"]
    if given.keys() != trained.keys():
        missing, unknown = sorted(trained.keys() - given.keys()), sorted(given.keys() - trained.keys())
        raise ValueError(
            f"the checkpoint does not fit the model: {len(missing)} of {len(trained)} trained tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])}); use the config it "
            "was trained with."
        )
    for name, tensor in trained.items():
        if given[name].dtype != tensor.dtype:
            raise ValueError(
                f"the checkpoint does not fit the model: {name} is {given[name].dtype} there and {tensor.dtype} "
                "here; give a checkpoint that a training wrote."
            )
        if given[name].shape != tensor.shape:
            raise ValueError(
                f"the checkpoint does not fit the model: {name} has shape {tuple(given[name].shape)} there and "
                f"{tuple(tensor.shape)} here; use the config it was trained with."
            )
    if "backbone" not in checkpoint:
        raise ValueError("the checkpoint does not say which backbone it belongs to; give one that a training wrote.")
    theirs = as_record(checkpoint["backbone"], BackboneFacts, "the checkpoint's backbone", later=("behaviour",))
    _check_same_backbone(theirs, BackboneFacts.of(backbone))
    return theirs


def _check_same_backbone(theirs: BackboneFacts, ours: BackboneFacts) -> None:
    """Refuse a checkpoint of other weights or rules. A checkpoint without rules is accepted."""
    if theirs.sha256 != ours.sha256:
        raise ValueError(
            f"the checkpoint belongs to backbone {theirs.name} ({theirs.source}, sha256 {theirs.sha256[:12]}), "
            f"this one is {ours.name} ({ours.source}, sha256 {ours.sha256[:12]}); set model.backbone.weights "
            "accordingly."
        )
    if theirs.behaviour is None or ours.behaviour is None or theirs.behaviour == ours.behaviour:
        return
    raise ValueError(
        f"the checkpoint was trained with other rules of its backbone ({rules_apart(theirs.behaviour, ours.behaviour)} "
        f"instead of {rules_apart(ours.behaviour, theirs.behaviour)}); set model.backbone.init_args.rules accordingly."
    )


@dataclass(frozen=True)
class RunFacts:
    """The record that we add to a checkpoint, under `RECORD`.

    Attributes:
        provenance: Code, data and settings of the training.
        run_id: Id of the run at W&B.
        validation: Result of the validation, by the prefix of a propagation.
        step_0: Figures of the validation before the first step.

    Raises:
        ValueError: If the id has other characters than letters, digits, - and _.
    """

    provenance: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    validation: dict[str, ValidationRecord] = field(default_factory=dict)
    step_0: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.run_id is not None and not _RUN_ID.fullmatch(self.run_id):
            raise ValueError("a run_id has letters, digits, - and _ alone")


def checked_training(content: Any, name: str) -> dict[str, Any]:
    """Check every value of a checkpoint, and return the checkpoint without paths.

    Args:
        content: Result of `torch.load(..., weights_only=True)`.
        name: Name of the file, for messages.

    Raises:
        DataError: If it is no checkpoint of a training, or holds values that no training writes.
    """
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        raise DataError(
            f"{name}: it is no checkpoint of a training; give one that a training wrote (backbone weights go to "
            "model.backbone.init_args.weights)"
        )
    for place, value in _leaves(content, name):
        _check_leaf(value, place, name)
    for key in ("global_step", "epoch"):
        value = content.get(key, 0)
        if type(value) is not int or value < 0:
            raise DataError(f"{name}: {key} is {value!r}, no number of 0 or more; {_CURE}")
    if not re.fullmatch(r"\d+(\.\d+){1,3}\S{0,20}", str(content.get(_VERSION))):
        raise DataError(f"{name}: {_VERSION} is {content.get(_VERSION)!r:.60}, no version; {_CURE}")
    state = content["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{name}: state_dict is no table of tensors; {_CURE}")
    record = content.get(RECORD, {})
    as_record(record, RunFacts, f"{name}: {RECORD}", _CURE, later=tuple(one.name for one in fields(RunFacts)))
    callbacks = content.get("callbacks", {})
    if not isinstance(callbacks, Mapping):
        raise DataError(f"{name}: callbacks is no table; {_CURE}")
    return {**content, "callbacks": {key: _without_paths(value) for key, value in callbacks.items()}}


def check_progress(content: Mapping[str, Any], trainer: Trainer) -> None:
    """Check counters, optimiser and schedule of a checkpoint against those of this training.

    Raises:
        DataError: If keys, types or shapes differ.
    """
    name = f"ckpt_path={trainer.ckpt_path}"
    ours = {"fit_loop": trainer.fit_loop.state_dict()}
    loops = content.get("loops")
    if not isinstance(loops, Mapping) or "fit_loop" not in loops:
        raise DataError(f"{name}: it lacks loops.fit_loop; {_CURE}")
    _check_alike(loops["fit_loop"], ours["fit_loop"], "loops.fit_loop", name)
    for number, state in enumerate(_loaders(loops["fit_loop"], name)):
        if not isinstance(state, Mapping):
            raise DataError(f"{name}: loops.fit_loop.state_dict.combined_loader.{number} is no table; {_CURE}")
    states, optimisers = content.get("optimizer_states"), trainer.optimizers
    if not isinstance(states, list) or len(states) != len(optimisers):
        raise DataError(f"{name}: it lacks optimizer_states, one for each of {len(optimisers)}; {_CURE}")
    for number, (state, optimiser) in enumerate(zip(states, optimisers, strict=True)):
        _check_optimiser(state, optimiser, f"optimizer_states.{number}", name)
    schedules, configs = content.get("lr_schedulers"), trainer.lr_scheduler_configs
    if not isinstance(schedules, list) or len(schedules) != len(configs):
        raise DataError(f"{name}: it lacks lr_schedulers, one for each of {len(configs)}; {_CURE}")
    for number, (schedule, config) in enumerate(zip(schedules, configs, strict=True)):
        _check_alike(schedule, config.scheduler.state_dict(), f"lr_schedulers.{number}", name)


class CheckProgress(Callback):
    """Checks counters, optimiser and schedule of a checkpoint before Lightning loads them (`check_progress`)."""

    def __init__(self) -> None:
        self._given: Mapping[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint until the optimiser exists. With some strategies it exists already."""
        self._given = checkpoint if trainer.state.fn == "fit" else None
        if trainer.optimizers:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the checkpoint."""
        given, self._given = self._given, None
        if given is not None:
            check_progress(given, trainer)


def score_of(state: Mapping[str, Any], monitor: str | None) -> Tensor | None:
    """Return the best score in the state of a callback; None if the callback watched another figure."""
    score = state.get("best_model_score")
    if state.get("monitor") != monitor or not isinstance(score, Tensor | float) or isinstance(score, bool):
        return None
    value = float(score) if not isinstance(score, Tensor) or score.numel() == 1 else math.nan
    return None if math.isnan(value) else torch.tensor(value)


def _loaders(fit_loop: Mapping[str, Any], name: str) -> list[Any]:
    """Return the states of the data loaders. Each loader checks its own state."""
    states = fit_loop["state_dict"].get("combined_loader", [])
    if not isinstance(states, list):
        raise DataError(f"{name}: loops.fit_loop.state_dict.combined_loader is no list; {_CURE}")
    return states


def _without_paths(state: Any) -> Any:
    """Return the state of a callback without paths."""
    if not isinstance(state, Mapping):
        return state
    empty: dict[str, Any] = {"best_k_models": {}}
    return {key: empty.get(key, "") if key in _PATHS else value for key, value in state.items()}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each value that is no dict, list or tuple.

    Raises:
        DataError: If the nesting is too deep, or a key is neither a text nor a number.
    """
    level: list[tuple[str, Any]] = [("", value)]
    for _ in range(2 * DEEPEST_NESTING):
        inner: list[tuple[str, Any]] = []
        for place, one in level:
            if isinstance(one, Mapping):
                if not all(isinstance(key, str | int) for key in one):
                    raise DataError(f"{name}: {place or 'it'} has a key that is no text; {_CURE}")
                inner += [(f"{place}.{key}".lstrip("."), each) for key, each in one.items()]
            elif isinstance(one, list | tuple):
                inner += [(f"{place}.{number}", each) for number, each in enumerate(one)]
            else:
                yield place, one
        level = inner
        if not level:
            return
    raise DataError(f"{name}: more than {2 * DEEPEST_NESTING} tables and lists stand inside each other; {_CURE}")


def _check_leaf(value: Any, place: str, name: str) -> None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise DataError(f"{name}: {place} is a tensor of a kind that no training writes; {_CURE}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise DataError(f"{name}: {place} claims more values than the file holds; {_CURE}")
        if place.startswith(("state_dict.", "optimizer_states.")) and not bool(value.isfinite().all()):
            raise DataError(f"{name}: {place} holds values that are not finite; go on from an earlier checkpoint")
    elif not (value is None or isinstance(value, bool | float | str) or (type(value) is int and abs(value) < 2**63)):
        raise DataError(f"{name}: {place} is a {type(value).__name__}; {_CURE}")


def _check_alike(given: Any, ours: Any, place: str, name: str) -> None:
    """Refuse values that differ from ours in keys or types. Lists may have another length.

    Raises:
        DataError: With the first place that differs.
    """
    if isinstance(ours, Mapping) and ours and isinstance(given, Mapping):
        if different := sorted(map(str, given.keys() ^ ours.keys())):
            raise DataError(f"{name}: {place} has other keys than this training ({different[0]}); {_CURE}")
        for key, value in ours.items():
            _check_alike(given[key], value, f"{place}.{key}", name)
        return
    if isinstance(ours, Mapping | list | tuple):
        alike = isinstance(given, Mapping) == isinstance(ours, Mapping) and isinstance(given, Mapping | list | tuple)
        for number, value in enumerate(given if alike and ours and not isinstance(ours, Mapping) else ()):
            _check_alike(value, ours[0], f"{place}.{number}", name)
    else:
        alike = type(given) is type(ours) or {type(given), type(ours)} == {int, float}
        if alike and type(given) in (int, float):
            score = type(ours) is float and math.isinf(ours)  # ReduceLROnPlateau's best begins there
            alike = given == ours or -LARGEST_COUNT < given < LARGEST_COUNT if score else 0 <= given < LARGEST_COUNT
    if not alike:
        raise DataError(f"{name}: {place} is {given!r:.60}, this training has {ours!r:.60} there; {_CURE}")


def _check_optimiser(given: Any, optimiser: torch.optim.Optimizer, place: str, name: str) -> None:
    ours = optimiser.state_dict()
    if not isinstance(given, Mapping) or {*given} != {"state", "param_groups"}:
        raise DataError(f"{name}: {place} is no state of an optimiser; {_CURE}")
    groups = given["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(ours["param_groups"]):
        raise DataError(f"{name}: {place}.param_groups are not those of this training; {_CURE}")
    for number, (theirs, wanted) in enumerate(zip(groups, ours["param_groups"], strict=True)):
        _check_alike(theirs, wanted, f"{place}.param_groups.{number}", name)
        if theirs["params"] != wanted["params"]:
            raise DataError(f"{name}: {place}.param_groups.{number}.params are not those of this training; {_CURE}")
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    states = given["state"]
    if not isinstance(states, Mapping) or not {*states} <= {*range(len(parameters))}:
        raise DataError(f"{name}: {place}.state is not of the parameters of this training; {_CURE}")
    for number, state in states.items():
        for key, value in state.items() if isinstance(state, Mapping) else [("", None)]:
            if not isinstance(value, Tensor) or (value.ndim and value.shape != parameters[number].shape):
                raise DataError(f"{name}: {place}.state.{number}.{key} does not fit its parameter; {_CURE}")
