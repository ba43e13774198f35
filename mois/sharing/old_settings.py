"""Settings of a training that have another name now; files of earlier versions hold the old names.

Read here are the settings in a config, a checkpoint or a bundle, and the arguments of a class in Python. The command
line reads its options in `mois.cli.old_training_options`, with the same tables.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])


@dataclass(frozen=True)
class Regrouped:
    """Arguments of a class that became fields of one argument, the group.

    Attributes:
        key: Setting that names the class, such as "data".
        group: The argument that holds the fields now, such as "split".
        fields: Name of the field by the old name of the argument, in the order of the old arguments.
        classes: Import paths of the classes.
    """

    key: str
    group: str
    fields: Mapping[str, str]
    classes: tuple[str, ...]

    def takes(self, class_path: object) -> bool:
        """Return whether a class, named by its import path, has the group. Nothing is imported."""
        if class_path in self.classes:
            return True
        module, _, name = str(class_path).rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        return isinstance(kind, type) and self.belongs_to(kind)

    def belongs_to(self, kind: type) -> bool:
        """Return whether a class has the group, and none of the old arguments."""
        try:
            arguments = signature(kind).parameters.keys()
        except (TypeError, ValueError):
            return False
        return self.group in arguments and not arguments & self.fields.keys()

    def setting(self, name: str) -> str:
        """Return the current setting of an old argument, such as "data.init_args.split.fold"."""
        return f"{self.key}.init_args.{self.group}.{self.fields[name]}"

    def with_group(self, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the class, under old or current names, under the current names.

        Raises:
            ValueError: If an old name and its current name are both there.
        """
        current = {name: value for name, value in init_args.items() if name not in self.fields}
        old = {name: value for name, value in init_args.items() if name in self.fields}
        if not old:
            return current
        group = dict(current.get(self.group) or {})
        for name, value in old.items():
            if self.fields[name] in group:
                raise ValueError(
                    f"{self.key}.init_args.{name} and {self.setting(name)} are the same; leave out "
                    f"{self.key}.init_args.{name}."
                )
            group[self.fields[name]] = value
        return {**current, self.group: group}


SPLIT = Regrouped(
    "data",
    "split",
    {
        "fold": "fold",
        "splits": "file",
        "train_subjects": "train_subjects",
        "val_subjects": "val_subjects",
        "test_subjects": "test_subjects",
        "val_slab": "val_slab",
    },
    ("datamodules.NiftiDataModule", "datamodules.nifti.NiftiDataModule"),
)
"""Arguments of `datamodules.NiftiDataModule` that are fields of `datamodules.splits.SplitSettings` now."""

PLACEMENT = Regrouped(
    "model.adapter",
    "placement",
    {"parts": "parts", "stages": "stages", "propagation": "propagation"},
    tuple(f"{module}.{name}" for module in ("adapters", "adapters.lora") for name in ("Lora", "LoHa", "LoKr", "IA3")),
)
"""Arguments of the adapters of peft that are fields of `adapters.Placement` now."""

REGROUPED = (SPLIT, PLACEMENT)


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training under their current names.

    Raises:
        ValueError: If a setting stands there under both names.
    """
    current = dict(config)
    for regrouped in REGROUPED:
        current = _regroup(current, regrouped.key.split("."), regrouped)
    return current


def current_name(key: str, classes: Mapping[str, str | None]) -> str:
    """Return the current name of a dotted setting such as `data.init_args.fold`.

    Args:
        key: The setting, under its old or current name.
        classes: Import path of the class by the setting that names it, such as "data"; None if unknown.
    """
    place, _, name = key.rpartition(".")
    for regrouped in REGROUPED:
        if place in (regrouped.key, f"{regrouped.key}.init_args") and name in regrouped.fields:
            return regrouped.setting(name) if regrouped.takes(classes.get(regrouped.key)) else key
    return key


def accepts_old_arguments(regrouped: Regrouped) -> Callable[[Init], Init]:
    """Return a decorator of `__init__` that accepts the old arguments in Python; one line says the current name.

    The old arguments may be keywords. They may be positional where the first one is not of the group's type.
    """

    def decorate(init: Init) -> Init:
        parameters = signature(init).parameters
        default = parameters[regrouped.group].default
        place = list(parameters).index(regrouped.group) - 1  # in `args`, which lack `self`

        @wraps(init)
        def with_old_arguments(self: object, *args: Any, **kwargs: Any) -> None:
            old = {name: kwargs.pop(name) for name in regrouped.fields if name in kwargs}
            if len(args) > place and not isinstance(args[place], type(default)):
                old |= dict(zip(regrouped.fields, args[place:], strict=False))
                args = (*args[:place], default, *args[place + len(regrouped.fields) :])
            if old:
                names = ", ".join(f"{name} is now {regrouped.group}.{regrouped.fields[name]}" for name in old)
                if regrouped.group in kwargs:
                    raise ValueError(f"{names}; leave out {', '.join(old)} where {regrouped.group} is given.")
                warnings.warn(f"{type(self).__name__}: {names}", stacklevel=2)
                group = replace(default, **{regrouped.fields[name]: value for name, value in old.items()})
                if len(args) > place:
                    args = (*args[:place], group, *args[place + 1 :])
                else:
                    kwargs[regrouped.group] = group
            init(self, *args, **kwargs)

        return with_old_arguments  # type: ignore[return-value]

    return decorate


def _regroup(settings: dict[str, Any], keys: list[str], regrouped: Regrouped) -> dict[str, Any]:
    """Return settings with the class at a dotted key, given as a list, under current names."""
    inner = settings.get(keys[0])
    if not isinstance(inner, Mapping):
        return settings
    if len(keys) > 1:
        return {**settings, keys[0]: _regroup(dict(inner), keys[1:], regrouped)}
    init_args = inner.get("init_args")
    if not regrouped.takes(inner.get("class_path")) or not isinstance(init_args, Mapping):
        return settings
    return {**settings, keys[0]: {**inner, "init_args": regrouped.with_group(init_args)}}
