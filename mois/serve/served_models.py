"""The models of a server: one, or one for each type of lesion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mois.files.atomic import write_text
from mois.files.text import read_json
from mois.sharing.lesion_model import LesionModel

ADDED = "types.json"
"""File beside a session: the bundle of each type that a reader added, by the type's name."""


@dataclass(frozen=True)
class ServedModels:
    """What sessions of a server begin with.

    Attributes:
        first: The model with which a session begins.
        type: Its type of lesions; "" has no name.
        further: Models of further types, by type.
        load: Returns the model of a bundle's folder that a reader adds; None: readers add none.
    """

    first: LesionModel
    type: str = ""
    further: Mapping[str, LesionModel] = field(default_factory=dict)
    load: Callable[[Path], LesionModel] | None = None

    @property
    def all(self) -> list[LesionModel]:
        """All models."""
        return [self.first, *self.further.values()]

    def beside(self, began_with: str, study: Path) -> dict[str, LesionModel]:
        """Return the models of a session besides the one with which it began.

        Args:
            began_with: Type with which the session began. If the first model has another name now, it has both.
            study: Folder of its study, with the types that readers added.

        Raises:
            ValueError: If a bundle that was added is gone or damaged.
        """
        models = {self.type: self.first, **self.further} if self.type else dict(self.further)
        for name, bundle in added_types(study).items():
            if name not in models and self.load is not None:
                models[name] = self.load(Path(bundle))
        return {name: model for name, model in models.items() if name != began_with}


def added_types(study: Path) -> dict[str, str]:
    """Return the folder of each bundle that readers added to a study, by type."""
    file = study / ADDED
    if not file.exists():
        return {}
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(bundle, str) for bundle in content.values()):
        raise ValueError(f"{file} holds no bundles by type; remove it, and add the types again.")
    return content


def write_added_type(study: Path, name: str, bundle: Path) -> None:
    """Note that a reader added a type."""
    write_text(study / ADDED, json.dumps(added_types(study) | {name: str(bundle)}, indent=1) + "\n")
