"""The file of a sweep, in the layout of W&B: which settings are tried, how they are chosen, and what is best."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from mois.cli.settings import explain_yaml
from mois.files.text import as_yaml, read_text

Method = Literal["bayes", "random", "grid"]

LOG = "log_uniform_values"
OF_VALUES = ("categorical", "constant")
KEYS = ("program", "method", "metric", "run_cap", "parameters", "command")
OF_WANDB = ("name", "description", "project", "entity")
"""Keys that tell `wandb agent` where the sweep belongs. They change no trial."""
_PLAIN = (str, bool, int, float, type(None))
"""Values that the study stores. Lists and mappings become texts, which a command line takes as well."""


@dataclass(frozen=True)
class Parameter:
    """The values that a setting may have.

    Attributes:
        values: All values; empty for a range.
        low: Lower end of a range.
        high: Upper end of a range.
        log: Whether the range is searched by its logarithm.
        whole: Whether the values of the range are whole numbers.
    """

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> Parameter:
        """Read `{values: [...]}`, `{value: ...}` or `{min: ..., max: ..., distribution: ...}`.

        Raises:
            ValueError: If it is none of these.
        """
        what = f"parameters.{name}={dict(given) if isinstance(given, Mapping) else given}"
        wanted = ValueError(
            f"{what}: give values, a value, or min and max, with a distribution of uniform, int_uniform or "
            "log_uniform_values."
        )
        if not isinstance(given, Mapping) or not given.keys() <= {"value", "values", "min", "max", "distribution"}:
            raise wanted
        if "values" in given or "value" in given:
            values = given["values"] if "values" in given else [given["value"]]
            kind = given.get("distribution", OF_VALUES[0])
            if not isinstance(values, list) or not values or kind not in OF_VALUES or "min" in given or "max" in given:
                raise wanted
            return cls(values=tuple(value if isinstance(value, _PLAIN) else as_yaml(value) for value in values))
        kind = given.get("distribution")
        low, high = (_number(given.get(end)) for end in ("min", "max"))
        if low is None or high is None or kind not in (None, "uniform", "int_uniform", LOG) or low > high:
            raise wanted
        whole = kind == "int_uniform" or (kind is None and isinstance(low, int) and isinstance(high, int))
        if kind == LOG and low <= 0:
            raise ValueError(f"{what}: the ends of a logarithmic range are above 0; correct min.")
        if whole and (low != int(low) or high != int(high)):
            raise ValueError(f"{what}: the ends of int_uniform are whole numbers; correct them, or say uniform.")
        return cls(low=low, high=high, log=kind == LOG, whole=whole)


def _number(value: Any) -> float | None:
    """Return a finite number, also if YAML takes it for a text (1e-4); None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


@dataclass(frozen=True)
class SweepFile:
    """A sweep.

    Attributes:
        name: Name of the file.
        method: How values are chosen.
        metric: Figure of the validation that decides.
        maximise: Whether more is better.
        parameters: Setting to its values.
        command: Words of the command; `${args}` stands for the chosen settings.
        program: Program that `${program}` stands for.
        run_cap: Number of trials, if the file says it.
    """

    name: str
    method: Method
    metric: str
    maximise: bool
    parameters: dict[str, Parameter]
    command: tuple[str, ...]
    program: str
    run_cap: int | None

    @classmethod
    def read(cls, path: Path) -> SweepFile:
        """Read the file of a sweep.

        Raises:
            ValueError: If a key is missing or has another value than it may have.
        """
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {explain_yaml(error)}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no sweep; it must have the keys method, metric, parameters and command.")
        missing = [key for key in ("method", "metric", "parameters", "command") if not content.get(key)]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; see configs/sweeps for examples.")
        if unknown := [str(key) for key in content if key not in (*KEYS, *OF_WANDB)]:
            raise ValueError(f"{path}: {unknown[0]} is no key of a sweep here; there are {', '.join(KEYS)}.")
        metric, method = content["metric"], content["method"]
        if method not in ("bayes", "random", "grid"):
            raise ValueError(f"{path}: method={method} must be bayes, random or grid.")
        if not isinstance(metric, dict) or metric.get("goal") not in ("maximize", "minimize") or "name" not in metric:
            raise ValueError(f"{path}: metric={metric} must be {{name: val/score, goal: maximize}}, or minimize.")
        if not isinstance(content["parameters"], dict):
            raise ValueError(f"{path}: parameters={content['parameters']} must name settings, each with its values.")
        parameters = {name: Parameter.of(name, given) for name, given in content["parameters"].items()}
        if method == "grid" and any(not one.values for one in parameters.values()):
            raise ValueError(f"{path}: method=grid needs values for each parameter, not a range.")
        if not isinstance(content["command"], list):
            raise ValueError(f"{path}: command={content['command']} must be a list of words: [mois, fit, ${{args}}].")
        words = tuple(str(word) for word in content["command"])
        if "${args}" not in words:
            raise ValueError(f"{path}: command must have the word ${{args}}, where the settings go.")
        cap = content.get("run_cap")
        if cap is not None and (not isinstance(cap, int) or cap < 1):
            raise ValueError(f"{path}: run_cap={cap} must be a whole number of 1 or more.")
        name, program = str(metric["name"]), str(content.get("program", "mois"))
        return cls(path.stem, method, name, metric["goal"] == "maximize", parameters, words, program, cap)

    def grid(self) -> list[dict[str, Any]]:
        """Return all settings of a grid, in order; nothing for another method."""
        if self.method != "grid":
            return []
        every = product(*(one.values for one in self.parameters.values()))
        return [dict(zip(self.parameters, values, strict=True)) for values in every]

    def trials(self, given: int | None) -> int:
        """Return the number of trials that the user or the file wants. A grid has no more than its own.

        Raises:
            ValueError: If neither says it, or it is below 1.
        """
        count = given if given is not None else self.run_cap
        if self.method == "grid" and (count is None or count > 0):
            return min(count or len(self.grid()), len(self.grid()))
        if count is None or count < 1:
            raise ValueError(f"trials={count}: give --trials 1 or more, or run_cap in the file of the sweep.")
        return count

    def words(self, chosen: Mapping[str, Any]) -> list[str]:
        """Return the command of a trial, as `wandb agent` would make it.

        Args:
            chosen: Setting to its value.
        """
        words: list[str] = []
        for word in self.command:
            if word == "${args}":
                words += [f"--{name}={value}" for name, value in chosen.items()]
            elif word == "${interpreter}" or word in ("python", "python3"):
                words.append(sys.executable)
            elif word != "${env}":
                words.append(self.program if word == "${program}" else word)
        return words
