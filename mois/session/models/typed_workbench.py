"""Several models in one session: each finds the lesions of its own type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mois.machine.steps import Steps
from mois.records import Volume
from mois.session.header import about_model, model_digest
from mois.session.journal import PROMPT_ACTIONS, Action
from mois.session.models.model_on_scan import ModelOnScan
from mois.session.prompts.refusals import NothingLeft
from mois.session.state import State
from mois.session.workbench import StateAndResult, Workbench
from mois.sharing.bank import ExemplarBank
from mois.sharing.lesion_model import LesionModel

TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
"""A type stands in lesions.csv and in names of files."""


class TypedWorkbench:
    """One workbench for each type of lesion. An action goes to the workbench of its lesion, or of the current type.

    - A workbench sees the exemplars and rejected lesions of its type alone, so each type has its own bank, level,
      thresholds and calibration.
    - Lesions of all types share the voxels: to a propagation, lesions found for other types are locked.
    - Models whose backbone has the same weights and cuts the same tiles share the encoded tiles.

    Args:
        model: The model of the type with which a session begins.
        volume: The scan.
        scan: See `Workbench`.
        banks: Exemplar banks that actions can name.
        models: Models of further types.
        first: Type with which the session begins. "" has no name.
    """

    def __init__(
        self,
        model: LesionModel,
        volume: Volume,
        scan: str,
        banks: Mapping[str, ExemplarBank],
        models: Mapping[str, LesionModel] | None = None,
        first: str = "",
    ) -> None:
        if first:
            _check_name(first)
        self._volume, self._scan, self._banks = volume, scan, banks
        self._benches: dict[str, Workbench] = {first: Workbench(model, volume, scan, banks, type=first)}
        self._digests = {first: model_digest(about_model(model, volume))} if first else {}
        self._prepared: tuple[State, StateAndResult] | None = None  # a propagation that is computed, of which state
        for name, further in (models or {}).items():
            self.add(name, further)

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have a model; first the one with which the session began."""
        return tuple(self._benches)

    def add(self, name: str, model: LesionModel) -> None:
        """Bring in the model of a type.

        Raises:
            ValueError: If the name cannot be one, the type has another model, or this model slices the scan otherwise.
        """
        _check_name(name)
        digest = model_digest(about_model(model, self._volume))
        if self._digests.get(name, digest) != digest:
            raise ValueError(f"type={name} has another model in this session; choose another type.")
        if name in self._benches:
            return
        known = [bench.on_scan for bench in self._benches.values()]
        on_scan = ModelOnScan(model, self._volume, self._scan, known)
        if on_scan.grid.order != known[0].grid.order:
            raise ValueError(f"type={name}: this model takes slices across another axis; set inference.slice_axis.")
        self._benches[name] = Workbench(model, self._volume, self._scan, self._banks, type=name, on_scan=on_scan)
        self._digests[name] = digest

    def digest(self, name: str) -> str:
        """Return the digest of a type's model, settings and calibration; "" for the type "", which the header has.

        Raises:
            ValueError: If the session has no model of this type.
        """
        if name not in self._benches:
            known = ", ".join(name for name in self.types if name) or "none"
            raise ValueError(f"type={name} has no model in this session (there is {known}); give its model.")
        return self._digests.get(name, "")

    def check(self, actions: Iterable[Action]) -> None:
        """Refuse to go on without the models that a journal names.

        Raises:
            ValueError: If a model is missing, or is another one.
        """
        for action in actions:
            if action.name == "use":
                self._same_model(**action.arguments)

    def of(self, name: str) -> Workbench:
        """Return the workbench of a type."""
        return self._benches[name]

    def apply(self, name: str, state: State, arguments: Mapping[str, Any]) -> StateAndResult:
        """Return the state after an action, and the action's result; see `Workbench.apply`.

        Raises:
            ValueError: If the action does not exist or cannot be done.
        """
        if name == "use":
            self._same_model(**arguments)
            return replace(state, type=str(arguments["type"]), unsure=()), None
        if name == "propagate" and (prepared := self._prepared) is not None and prepared[0] is state:
            return prepared[1]
        kind = self._type_for(state, arguments)
        after, result = self._apply(kind, name, state, arguments)
        met = state.lesions.get(result) if name in PROMPT_ACTIONS and not arguments.get("positive", True) else None
        if met is not None and met.type != kind:  # a negative prompt fell on a lesion of another type
            return self._apply(met.type, name, state, arguments)
        return after, result

    def apply_new(self, name: str, state: State, arguments: Mapping[str, Any]) -> StateAndResult:
        """Return the same as `apply`, for an action that is no replay of an earlier one.

        Journals of earlier versions hold drawings that leave nothing of a lesion. They are replayed, and not done anew.

        Raises:
            ValueError: As `apply` raises it; or if a negative drawing would leave nothing of its lesion.
        """
        after, result = self.apply(name, state, arguments)
        lesion = after.lesions.get(result) if name in PROMPT_ACTIONS else None
        if lesion is not None and not lesion.mask.voxels:
            raise NothingLeft.of(result, lesion.prompts[-1], lesion.mask)
        return after, result

    def answer_steps(self, state: State) -> Steps[None]:
        """Compute where lesions like the exemplars of the current type are. Their workbench keeps the answer."""
        yield from self._benches[state.type].on_scan.answer_steps(state.of_type(state.type))

    def propagation_steps(self, state: State) -> Steps[None]:
        """Compute the action `propagate` on a state. The action then takes its result from here."""
        hidden = self._found_by_others(state.type, state)
        outcome = yield from self._benches[state.type].propagate_steps(self._seen(state.type, state, hidden))
        self._prepared = state, self._merged(state.type, state, hidden, *outcome)

    def is_prepared(self, state: State) -> bool:
        """Return whether the action `propagate` on a state is computed already."""
        return self._prepared is not None and self._prepared[0] is state

    def _apply(self, kind: str, name: str, state: State, arguments: Mapping[str, Any]) -> StateAndResult:
        """Do an action on the workbench of a type."""
        hidden = self._found_by_others(kind, state) if name == "propagate" else set()
        after, result = self._benches[kind].apply(name, self._seen(kind, state, hidden), arguments)
        others = state.exemplars.keys() - state.of_type(kind).exemplars.keys()
        if name == "use_bank" and (shared := sorted(others & after.exemplars.keys())):
            raise ValueError(f"exemplar {shared[0]} is in the bank of another type already; forget it there first.")
        return self._merged(kind, state, hidden, after, result)

    @staticmethod
    def _found_by_others(kind: str, state: State) -> set[int]:
        """Return the open lesions of other types. To a propagation they are locked."""
        return {n for n, each in state.lesions.items() if each.type != kind and not each.owns}

    @staticmethod
    def _seen(kind: str, state: State, hidden: set[int]) -> State:
        """Return what the workbench of a type sees of a state."""
        lesions = {n: replace(each, locked=True) if n in hidden else each for n, each in state.lesions.items()}
        return replace(state.of_type(kind), lesions=lesions)

    @staticmethod
    def _merged(kind: str, state: State, hidden: set[int], after: State, result: Any) -> StateAndResult:
        """Return the state after an action of a type, with what its workbench did not see; and the result."""
        own = state.of_type(kind)
        exemplars = {key: each for key, each in state.exemplars.items() if key not in own.exemplars}
        rejected = {key: each for key, each in state.rejected.items() if key not in own.rejected}
        types = {key: state.exemplar_types[key] for key in exemplars if key in state.exemplar_types}
        return replace(
            after,
            lesions={n: state.lesions[n] if n in hidden else each for n, each in after.lesions.items()},
            exemplars={**{k: e for k, e in exemplars.items() if k not in after.exemplars}, **after.exemplars},
            rejected={**rejected, **after.rejected},
            exemplar_types={**types, **dict.fromkeys(after.exemplars, kind)} if kind else types,
        ), result

    def _type_for(self, state: State, arguments: Mapping[str, Any]) -> str:
        """Return the type of the lesion or exemplar that an action names, or the current type."""
        if (key := arguments.get("exemplar")) in state.exemplars:
            return state.exemplar_types.get(str(key), "")
        lesion = state.lesions.get(arguments.get("lesion") or 0)
        return state.type if lesion is None else lesion.type

    def _same_model(self, type: str, model: str) -> None:
        if self.digest(type) != model:
            raise ValueError(f"type={type} was made with another model, settings or calibration; give the same bundle.")


def _check_name(name: str) -> None:
    if not TYPE_NAME.fullmatch(name):
        raise ValueError(f"type={name!r}: write 1 to 40 letters, digits, - or _, such as plexiform.")
