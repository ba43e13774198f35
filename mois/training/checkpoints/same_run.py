"""Compares every setting of a training that goes on with the settings of its checkpoint.

A setting that changes what is learned must stay. For example, the optimiser takes its learning rate from the
checkpoint: another value in the config would be recorded but not used. Settings of place, speed, length and logging may
change. Each change is printed and recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mois.sharing.old_settings import current_name, with_current_names
from mois.sharing.provenance import Provenance, content_of, plain_settings

MAY_CHANGE = (
    "config",
    "ckpt_path",
    "dry_step",
    "minutes",
    "validate_first",
    "tracking",
    "checkpoints",
    "bundle",
    "trainer.default_root_dir",
    # where and how fast
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.benchmark",
    "trainer.plugins",
    "trainer.accumulate_grad_batches",  # the loader keeps the size of a step
    "data.init_args.root",  # the fingerprint compares the files
    "data.init_args.num_workers",
    "data.init_args.pin_memory",
    "data.init_args.prepared",
    "model.cache",
    "model.backbone.init_args.weights",  # their digest is compared
    "model.backbone.init_args.checkpoint_trunk",
    "model.inference.batch_size",
    "model.inference.compile",
    "model.inference.memory_gib",
    # how long
    "trainer.max_epochs",
    "trainer.min_epochs",
    "trainer.max_steps",
    "trainer.min_steps",
    "trainer.max_time",
    # what is watched
    "trainer.logger",
    "trainer.callbacks",
    "trainer.profiler",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.num_sanity_val_steps",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
    "trainer.log_every_n_steps",
    "trainer.enable_checkpointing",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_autolog_hparams",
    "trainer.model_registry",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.inference_mode",
    "trainer.barebones",
)
"""Settings, and groups of settings, that may differ from the checkpoint."""
_COUNT_OR_SHARE = ("trainer.limit_train_batches", "trainer.overfit_batches")
"""Settings in which 1 and 1.0 differ: 1 is one batch, 1.0 is all batches."""
_OF_OUR_DATA = ("data.init_args.batch_size", "data.init_args.split.file")
"""Settings that may differ with our datamodules: the loaders compare the size of a step, the fingerprint the split."""
_OURS = ("mois.", "adapters.", "datamodules.", "lightning.", "torch.")
_SHOWN = 4


@dataclass(frozen=True)
class Resumed:
    """The checkpoint from which a training goes on.

    Attributes:
        name: Name of the checkpoint, for messages.
        step: Step at which it was written.
        provenance: Provenance in it; empty in checkpoints of earlier versions.
        changed: Settings that differ, with their values before and now.
    """

    name: str
    step: int
    provenance: dict[str, Any]
    changed: dict[str, list[Any]]

    def record(self, now: Provenance) -> list[dict[str, Any]]:
        """Return the parts of the training so far: where each part began, and what changed."""
        then = {"code": self.provenance.get("code"), **self.provenance.get("packages", {})}
        made = {"code": now.code, **now.packages}
        other = {key: [then[key], made[key]] for key in made if then.get(key) not in (None, made[key])}
        before: list[dict[str, Any]] = list(self.provenance.get("resumed", []))
        return [*before, {"step": self.step, "from": self.name, "changed": {**self.changed, **other}}]


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], name: str, files: Mapping[str, str] | None = None
) -> dict[str, list[Any]]:
    """Return the settings that differ from the checkpoint: the values before and now.

    - Only one side has the setting -> no change: it came or went with a version of this program.
    - A value on one side, a group of settings on the other -> a change.
    - A setting under its old name -> the same setting.
    - A key in a table that a class of others takes as one argument -> a change if only one side has it.
    - A file -> compared by its content, not by its path.

    Args:
        before: All settings in the checkpoint.
        now: All settings now.
        name: Name of the checkpoint, for the message.
        files: SHA-256 of files that settings named before, by setting, if known.

    Raises:
        ValueError: If a setting or a file differs that changes what is learned.
    """
    old, new = _leaves_of(with_current_names(plain_settings(before)), with_current_names(plain_settings(now)))
    differ = {key: [old[key], new[key]] for key in new if key in old and not _same(key, old[key], new[key])}
    classes = {
        "data": (before.get("data") or {}).get("class_path"),
        "model.adapter": ((before.get("model") or {}).get("adapter") or {}).get("class_path"),
    }
    known = {current_name(key, classes): sha256 for key, sha256 in (files or {}).items()}
    other = {
        key: f"{key}={old[key]} (now {new[key]})"
        for key in differ
        if not (_may_change(key, now) or _same_file(old[key], new[key], known.get(key)))
    }
    for key in known.keys() & old.keys() & new.keys() - differ.keys():
        if not _may_change(key, now) and (holds := content_of(new[key])) and holds != known[key]:
            other[key] = f"{key}={old[key]} (now with other content)"
    refused = list(other)
    if refused:
        listed = ", ".join(other[key] for key in refused[:_SHOWN])
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise ValueError(
            f"{name} is of a training with {listed}{more}; set it back to go on, or start a new training in another "
            "folder (--trainer.default_root_dir)"
        )
    return differ


def check_same_data(before: Mapping[str, Any], now: str, name: str) -> None:
    """Refuse data that differ from the data of the checkpoint.

    Args:
        before: Provenance in the checkpoint.
        now: Fingerprint of the present data.
        name: Name of the checkpoint, for the message.

    Raises:
        ValueError: If both fingerprints are known and differ.
    """
    then = before.get("data", "unknown")
    if "unknown" not in (then, now) and then != now:
        raise ValueError(
            f"{name} is of a training on other data: files, or their split, have changed since (data.init_args.root); "
            "bring them back to go on, or start a new training in another folder"
        )


def _may_change(key: str, now: Mapping[str, Any]) -> bool:
    if key in _OF_OUR_DATA:
        return str((now.get("data") or {}).get("class_path", "")).startswith("datamodules.")
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _same(key: str, one: Any, other: Any) -> bool:
    if key == "model.inference.track_memory" and None in (one, other):  # null takes the rule of the backbone
        return True
    if {type(one), type(other)} == {int, float}:
        return bool(one == other) and key not in _COUNT_OR_SHARE
    return type(one) is type(other) and bool(one == other)


def _same_file(before: Any, now: Any, known: str | None) -> bool:
    """Return whether two settings name files with the same content; `known` is the SHA-256 of the first file."""
    holds = content_of(now)
    return holds is not None and holds == (known or content_of(before))


def _leaves_of(before: Any, now: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of both sides by name. A group counts as one value if the other side has a value there."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    for leaves, groups, whole in ((old, new, now), (new, old, before)):
        for place in [key for key in leaves if any(one.startswith(f"{key}.") for one in groups)]:
            group = whole
            for part in place.split("."):
                group = group[part]
            for key in [key for key in groups if key.startswith(f"{place}.")]:
                del groups[key]
            groups[place] = group
    return old, new


def _leaves(settings: Any, place: str = "", *, argument: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the settings by name. Lists, empty tables, and tables as an argument of a foreign class stay whole."""
    if isinstance(settings, Mapping) and settings and not (argument and "class_path" not in settings):
        foreign = not str(settings.get("class_path", _OURS[0])).startswith(_OURS)
        for key, value in settings.items():
            where = f"{place}.{key}" if place else str(key)
            if key == "init_args" and foreign and isinstance(value, Mapping) and value:
                for name, one in value.items():
                    yield from _leaves(one, f"{where}.{name}", argument=True)
            else:
                yield from _leaves(value, where)
    else:
        yield place, [*settings] if isinstance(settings, list | tuple) else settings
