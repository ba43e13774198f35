"""What stands in a bundle's bundle.json: every key of it, and a digest over them all.

Format 2 states every argument of every class and every setting, and `sha256` over all other keys. Format 1 had no
digest: what it says cannot be checked, so that loading it says so. A key that comes to be: add a field here, and the
value that bundles without it had to `_upgraded`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mois.files.json_records import DIGEST, as_record, check_seal, read_json, sealed
from mois.inference.settings import InferenceSettings
from mois.intensities import FIRST
from mois.sharing.calibration import Calibration
from mois.sharing.identity import ModelIdentity

FORMAT_VERSION = 2
DESCRIPTION = "bundle.json"
SECONDARY = ("weights", "seed", "rules")
"""Arguments that say where tensors and rules come from; which they are stands in the identity."""
_CURE = "take the bundle from where it was made again"


@dataclass(frozen=True)
class ClassSpec:
    """A class by its import path, and what it is made with; as in a config.

    Attributes:
        class_path: Such as "adapters.Lora".
        init_args: Plain values.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ClassSpec:
        """Read `{class_path: ..., init_args: {...}}`."""
        return cls(str(plain["class_path"]), dict(plain.get("init_args") or {}))


@dataclass(frozen=True)
class ModelSpec:
    """The three parts of a model."""

    backbone: ClassSpec
    adapter: ClassSpec
    propagation: ClassSpec

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ModelSpec:
        """Read the keys `backbone`, `adapter` and `propagation` of a config's `model`."""
        return cls(*(ClassSpec.of(plain[name]) for name in ("backbone", "adapter", "propagation")))

    def arguments(self) -> dict[str, dict[str, Any]]:
        """Return by part what it was made with, but for where its tensors came from."""
        return {
            part: {name: value for name, value in spec["init_args"].items() if name not in SECONDARY}
            for part, spec in asdict(self).items()
        }


@dataclass(frozen=True)
class BundleRecord:
    """The content of bundle.json.

    Attributes:
        format: Of the file.
        model: The classes with their arguments.
        identity: Which model this is.
        inference: How whole volumes are cut, decided and put together.
        calibration: Confidence of found lesions, None where nothing was there to fit it on.
        figures: What the best validation measured, None where a figure could not be.
        provenance: Which code, data, weights and settings made it.
        files: SHA-256 of each other file, by its name within the folder.
    """

    format: int
    model: ModelSpec
    identity: ModelIdentity
    inference: InferenceSettings
    calibration: Calibration | None
    figures: dict[str, float | None]
    provenance: dict[str, Any]
    files: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return what is written, with its digest."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {name: asdict(plain[name]) for name in ("model", "inference")}
        plain["identity"] = self.identity.as_dict()
        plain["calibration"] = self.calibration.as_dict() if self.calibration is not None else None
        return sealed(plain)


def read_description(folder: Path) -> BundleRecord:
    """Return what the bundle.json of a folder says.

    Raises:
        ValueError: If there is none, it is damaged, was changed, or is of a format that this version does not read.
    """
    file = folder / DESCRIPTION
    if not file.exists():
        inner = folder / "bundle"
        cure = f"give {inner}" if (inner / DESCRIPTION).is_file() else "give the folder `bundle` of a training"
        raise ValueError(f"bundle={folder}: there is no {DESCRIPTION} in it; {cure}.")
    content = read_json(file, _CURE)
    given = content.get("format") if isinstance(content, dict) else None
    if given == 1 and type(given) is int:
        content = _upgraded(content, str(file))
        warnings.warn(
            f"bundle={folder}: unverified: format 1 (it has no digest that proves that its {DESCRIPTION} is as it was "
            "written)",
            stacklevel=3,
        )
    elif given == FORMAT_VERSION and type(given) is int:
        check_seal(content, str(file), _CURE)
    else:
        raise ValueError(
            f"{file} is of format {given!r}, this version reads 1 and {FORMAT_VERSION}; give another bundle."
        )
    return as_record({key: value for key, value in content.items() if key != DIGEST}, BundleRecord, str(file), _CURE)


def _upgraded(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a description of format 1 as format 2 would have stated it.

    Raises:
        ValueError: If it holds what only later formats have, or lacks what format 1 had: it is a damaged later one.
    """
    expected = [one.name for one in fields(BundleRecord)]
    _exactly(content, expected, name)
    for part, wanted in (("model", ["backbone", "adapter", "propagation"]), ("identity", _IDENTITY_1)):
        if isinstance(content[part], Mapping):
            _exactly(content[part], wanted, f"{name}: {part}")
    made = dict(content)
    if isinstance(content["inference"], Mapping):
        _exactly(content["inference"], _INFERENCE_1, f"{name}: inference")
        made["inference"] = {**content["inference"], "normalisation": FIRST.as_dict()}
    if isinstance(content["identity"], Mapping):
        made["identity"] = {**content["identity"], "arguments": None, "behaviour": {}}
    return made


def _exactly(there: Mapping[str, Any], wanted: Sequence[str], name: str) -> None:
    if missing := [key for key in wanted if key not in there]:
        raise ValueError(f"{name} lacks {missing[0]}; {_CURE}.")
    if unknown := [key for key in there if key not in wanted]:
        raise ValueError(f"{name} holds {unknown[0]}, which format 1 does not have; {_CURE}.")


_IDENTITY_1 = ("backbone", "adapter_sha256", "propagation", "propagation_sha256")
_INFERENCE_1 = (
    "pixel_mm", "tile_px", "overlap", "batch_size", "threshold", "peak_threshold", "min_lesion_voxels", "min_lesion_ml",
    "track_mm", "track_growth", "track_memory", "air_level", "slice_axis", "weigh_by_presence", "precision", "compile",
    "half_features", "memory_gib", "split_prominence_mm", "most_exemplars",
)  # fmt: skip
