"""Any method of peft as an adapter, named by its configuration class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import formatannotation
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from adapters.peft_adapter import PeftAdapter
from adapters.placement import Placement

if TYPE_CHECKING:
    from peft import PeftConfig, PeftType

_KEY = "model.adapter.init_args.config"

PLACED = (
    "target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform",
    "layers_pattern", "layer_replication", "trainable_token_indices",
)  # fmt: skip
"""Settings of peft that say where a method goes. `Placement` says that here."""

REFUSED = (
    "megatron_config", "megatron_core", "inference_mode", "runtime_config",
    "peft_type", "use_qalora", "qalora_group_size",
)  # fmt: skip
"""Settings of peft that import other programs, switch the training off, or change nothing in a backbone like ours."""

PATTERNS = {"rank_pattern": (int,), "alpha_pattern": (int, float)}
"""Settings of peft that give layers a value of their own, and the types of their values."""


class PeftMethod(TypedDict):
    """A method of peft: its configuration class, such as peft.LoHaConfig, and the arguments of that class."""

    class_path: str
    init_args: NotRequired[dict[str, Any]]


class Peft(PeftAdapter):
    """A method of peft, by its configuration.

    A method that cannot adapt the backbone is refused when it is attached: one that changes answers before any
    training, one with a tensor that gets no gradient, one that peft cannot inject, or one that changes the backbone's
    own weights.

    Args:
        config: Configuration class of peft, and its arguments.
        placement: Where the adapter goes.

    Raises:
        ValueError: If the class path is no configuration class of peft, or an argument is one that `placement` decides.

    Examples:
        The same in a configuration::

            model:
              adapter:
                class_path: adapters.Peft
                init_args:
                  config: {class_path: peft.HRAConfig, init_args: {r: 4}}
                  placement: {parts: [trunk], stages: [4]}
    """

    def __init__(self, config: PeftMethod, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        super().__init__(placement)
        self.class_path, self.arguments = str(config["class_path"]), dict(config.get("init_args") or {})
        if not re.fullmatch(r"peft\.\w+Config", self.class_path):
            raise ValueError(
                f"{_KEY}.class_path={self.class_path} is no configuration class of peft; name one, such as "
                "peft.LoHaConfig."
            )
        for name in PLACED:
            if name in self.arguments:
                raise ValueError(
                    f"{_KEY}.init_args.{name} is decided by model.adapter.init_args.placement; leave it out."
                )
        for name in REFUSED:
            if name in self.arguments:
                raise ValueError(f"{_KEY}.init_args.{name} cannot be set here; leave it out.")

    @property
    def method(self) -> str:
        """See `PeftAdapter.method`."""
        return self.class_path

    def config(self, targets: list[str]) -> PeftConfig:
        """See `PeftAdapter.config`.

        Raises:
            ValueError: If this version of peft lacks the class, the class does not adapt layers, or an argument is
                unknown or of another type.
        """
        import peft  # costs 5 seconds to import

        kind = getattr(peft, self.class_path.removeprefix("peft."), None)
        if not (isinstance(kind, type) and issubclass(kind, peft.PeftConfig)):
            raise ValueError(f"peft {peft.__version__} has no configuration class of this name")
        method: Any = kind
        known = {field.name for field in fields(method) if field.init}
        if "target_modules" not in known:
            raise ValueError("it adapts no layers (it has no target_modules)")
        if unknown := sorted(self.arguments.keys() - known):
            raise ValueError(f"it takes no {', '.join(unknown)}")
        _check_types(self.arguments, get_type_hints(method))
        _check_effect(self.arguments, targets)
        made: PeftConfig = method(**self.arguments, target_modules=targets)
        if hasattr(peft.PEFT_TYPE_TO_TUNER_MAPPING.get(cast("PeftType", made.peft_type)), "update_and_allocate"):
            raise ValueError("it changes its ranks by a call after each step of the training, which is not made")
        return made


def _check_types(arguments: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse an argument of another type than peft says: peft itself does not look, and fails in the layers.

    None is always taken: peft has it as default where its annotations leave it out.

    Raises:
        ValueError: If there is one.
    """
    for name, value in arguments.items():
        types = _types_of(hints[name])
        if value is not None and types and type(value) not in types:
            allowed = formatannotation(hints[name])
            raise ValueError(f"{_KEY}.init_args.{name}={value!r} must be {allowed}")


def _check_effect(arguments: Mapping[str, Any], targets: Sequence[str]) -> None:
    """Refuse an argument that peft takes without a word, although it does nothing, or leaves nothing to learn.

    Args:
        arguments: Arguments of the configuration class.
        targets: Names of the layers that get the method.

    Raises:
        ValueError: If there is one.
    """
    for setting, types in PATTERNS.items():
        for pattern, value in (arguments.get(setting) or {}).items():
            key = f"{_KEY}.init_args.{setting}"
            if type(value) not in types:
                raise ValueError(f"{key} gives {pattern!r} {value!r}; give a number")
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):  # as peft matches
                raise ValueError(f"{key} names {pattern!r}, which is none of its layers, such as {targets[0]}")
    if arguments.get("init_lora_weights") == "eva":
        raise ValueError("init_lora_weights=eva needs a pass over the data before the training, which is not made")
    for name, value in arguments.items():
        if name.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"{_KEY}.init_args.{name}={value} must be 0 or more and below 1")


def _types_of(hint: Any) -> set[type]:
    """Return the types that an annotation allows; none if it allows any.

    A number may lack its fraction, and files have lists for tuples and sets. Of a `Literal`, the types count: peft
    lists "pissa_niter_[number of iters]" there.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {type(part) for part in parts}
    if origin in (Union, UnionType):
        each = [_types_of(part) for part in parts]
        return set().union(*each) if all(each) else set()
    kind = origin or hint
    if not isinstance(kind, type):
        return set()
    return {kind, *{float: (int,), tuple: (list,), set: (list,)}.get(kind, ())}
