"""The identity of a model: digests and settings that decide its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mois.files.json_records import as_record
from mois.files.tensor_records import tensors_sha256
from mois.interfaces import Backbone, Propagation
from mois.records import WeightsIdentity


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of a model. Two models with the same identity give the same answers.

    Attributes:
        backbone: Identity of the backbone's weights before the adapter changed them.
        adapter_sha256: SHA-256 of the backbone's tensors with the adapter.
        propagation: Module and name of the propagation's class.
        propagation_sha256: SHA-256 of the propagation's tensors.
        arguments: Arguments of the class of each part. None if they are not known (a model made by hand, files of
            earlier formats); then they are not compared.
        behaviour: `Backbone.behaviour`, such as the tracking rules of SAM2.
    """

    backbone: WeightsIdentity
    adapter_sha256: str
    propagation: str
    propagation_sha256: str
    arguments: dict[str, dict[str, Any]] | None = None
    behaviour: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, backbone: Backbone, propagation: Propagation, arguments: dict[str, dict[str, Any]] | None = None
    ) -> ModelIdentity:
        """Return the identity of a model as it is now.

        Args:
            backbone: Backbone with its adapter.
            propagation: The propagation.
            arguments: Arguments of the class of each part, if they are known.
        """
        kind = type(propagation)
        return cls(
            backbone.identity,
            tensors_sha256(backbone.state_dict()),
            f"{kind.__module__}.{kind.__qualname__}",
            tensors_sha256(propagation.state_dict()),
            arguments,
            backbone.behaviour(),
        )

    def differences(self, other: ModelIdentity) -> list[str]:
        """Return in words what differs from another model (this model is named first); empty if nothing differs."""
        apart = []
        if self.backbone.sha256 != other.backbone.sha256:
            apart.append(f"the backbone ({_weights(self.backbone)} instead of {_weights(other.backbone)})")
        elif self.adapter_sha256 != other.adapter_sha256:
            apart.append(f"the adapter (sha256 {self.adapter_sha256[:12]} instead of {other.adapter_sha256[:12]})")
        if self.propagation != other.propagation:
            apart.append(f"the propagation ({self.propagation} instead of {other.propagation})")
        elif self.propagation_sha256 != other.propagation_sha256:
            mine, theirs = self.propagation_sha256[:12], other.propagation_sha256[:12]
            apart.append(f"the propagation's weights (sha256 {mine} instead of {theirs})")
        for part, arguments in (self.arguments or {}).items() if self.propagation == other.propagation else ():
            others = dotted((other.arguments or {}).get(part, {}))
            apart += [
                f"the {part}'s {name} ({value!r} instead of {others[name]!r})"
                for name, value in dotted(arguments).items()
                if name in others and others[name] != value
            ]
        if self.behaviour != other.behaviour:
            mine, theirs = rules_apart(self.behaviour, other.behaviour), rules_apart(other.behaviour, self.behaviour)
            apart.append(f"the backbone's rules ({mine} instead of {theirs})")
        return apart

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as plain dicts and strings, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Any, name: str = "the model's identity") -> ModelIdentity:
        """Return the identity of plain dicts and strings, as `as_dict` gives them.

        Args:
            plain: The dicts and strings.
            name: What messages call them.

        Raises:
            DataError: If keys or types are wrong.
        """
        return as_record(plain, cls, name, later=("arguments", "behaviour"))


def dotted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by name; those in a table by a dotted name, such as "placement.stages"."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            flat |= {f"{name}.{inner}": each for inner, each in dotted(value).items()}
        else:
            flat[name] = value
    return flat


def _weights(identity: WeightsIdentity) -> str:
    return f"{identity.name}, {identity.source}, sha256 {identity.sha256[:12]}"


def rules_apart(behaviour: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in words the first rules of a behaviour that another behaviour lacks or has with another value."""
    rules = [f"{name}={value}" for name, value in behaviour.items() if other.get(name, ...) != value]
    return ", ".join([*rules[:3], *(["..."] if len(rules) > 3 else [])]) or "the first ones"
