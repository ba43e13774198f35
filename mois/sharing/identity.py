"""Which model gave a result: the digests and settings that decide what it answers."""

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
    """Which model gave a result.

    Attributes:
        backbone: The weights that were adapted.
        adapter_sha256: Of the backbone's tensors as they stand, with what the adapter made of them.
        propagation: Module and name of its class.
        propagation_sha256: Of its tensors.
        arguments: By part, what its class was made with, which answers depend on as much as on tensors; None where that
            is not known (a model made by hand, files of earlier formats) and cannot be compared.
        behaviour: `Backbone.behaviour`, such as the rules by which SAM2 tracks.
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
        """Return the identity of a model as it stands, with what its classes were made with if that is known."""
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
        """Return in words what differs from another model, this one's first; empty if they are the same."""
        found = []
        if self.backbone.sha256 != other.backbone.sha256:
            found.append(f"the backbone ({_weights(self.backbone)} instead of {_weights(other.backbone)})")
        elif self.adapter_sha256 != other.adapter_sha256:
            found.append(f"the adapter (sha256 {self.adapter_sha256[:12]} instead of {other.adapter_sha256[:12]})")
        if self.propagation != other.propagation:
            found.append(f"the propagation ({self.propagation} instead of {other.propagation})")
        elif self.propagation_sha256 != other.propagation_sha256:
            mine, theirs = self.propagation_sha256[:12], other.propagation_sha256[:12]
            found.append(f"the propagation's weights (sha256 {mine} instead of {theirs})")
        for part, arguments in (self.arguments or {}).items() if self.propagation == other.propagation else ():
            known = dotted((other.arguments or {}).get(part, {}))
            found += [
                f"the {part}'s {name} ({value!r} instead of {known[name]!r})"
                for name, value in dotted(arguments).items()
                if name in known and known[name] != value
            ]
        if self.behaviour != other.behaviour:
            mine, theirs = rules_apart(self.behaviour, other.behaviour), rules_apart(other.behaviour, self.behaviour)
            found.append(f"the backbone's rules ({mine} instead of {theirs})")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts and strings, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Any, name: str = "the model's identity") -> ModelIdentity:
        """Return what `as_dict` was made from.

        Raises:
            DataError: If it is nothing of the kind.
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
    """Return in words the first rules of a backbone's behaviour that another has not or otherwise."""
    rules = [f"{name}={value}" for name, value in behaviour.items() if other.get(name, ...) != value]
    return ", ".join([*rules[:3], *(["..."] if len(rules) > 3 else [])]) or "the first ones"
