"""The keys of bundle.json.

Format 2 has every argument of every class, every setting, and `sha256`, a digest of all other keys. Format 1 has no
digest, so it cannot be checked, and a warning says so. To add a key: add a field to `BundleRecord`, and the value for
bundles without the key to `_upgraded`.
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
SHIPPED = "shipped"
"""Word in the place of a bundle's folder: the model that ships with the package."""
SECONDARY = ("weights", "seed", "rules")
"""Arguments that only say where tensors and rules come from. The identity states which tensors and rules they are."""
_CURE = "copy the bundle again from where it was made"


@dataclass(frozen=True)
class ClassSpec:
    """A class and its arguments, as in a config.

    Attributes:
        class_path: Import path of the class, such as "adapters.Lora".
        init_args: Arguments by name, as plain values.
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
        """Return the arguments of each part, without those that only say where its tensors come from."""
        return {
            part: {name: value for name, value in spec["init_args"].items() if name not in SECONDARY}
            for part, spec in asdict(self).items()
        }


@dataclass(frozen=True)
class BundleRecord:
    """The content of bundle.json.

    Attributes:
        format: Version of the format.
        model: Classes with their arguments.
        identity: Identity of the model.
        inference: Inference settings for whole volumes.
        calibration: Calibration of the confidence of found lesions; None if there was nothing to fit it on.
        figures: Figures of the best validation, by name; None for a figure that could not be measured.
        provenance: Code, data, weights and settings that made the model.
        files: SHA-256 of each other file, by its path in the folder.
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
        """Return the content of bundle.json, with its digest."""
        plain = dict(vars(self))
        plain |= {name: asdict(plain[name]) for name in ("model", "inference")}
        plain["inference"] = {
            name: value
            for name, value in plain["inference"].items()
            if name not in _NOT_RECORDED or value != _NOT_RECORDED[name]
        }
        plain["identity"] = self.identity.as_dict()
        plain["calibration"] = self.calibration.as_dict() if self.calibration is not None else None
        return sealed(plain)


def is_shipped(bundle: str | Path | None) -> bool:
    """Return whether the word `shipped` stands in the place of a bundle's folder.

    Raises:
        ValueError: If a bundle lies in a folder of this name, so that both could be meant.
    """
    if bundle is None or str(bundle) != SHIPPED:
        return False
    if (Path(bundle) / DESCRIPTION).is_file():
        raise ValueError(
            f"bundle={SHIPPED} stands for the model that ships with the package, but a bundle lies in a folder "
            f"{SHIPPED} here; give its whole path ({Path(bundle).resolve()}), or rename it."
        )
    return True


def read_description(folder: Path) -> BundleRecord:
    """Read the bundle.json of a folder.

    Raises:
        ValueError: If the file is missing, damaged, changed, or of a format that this version does not read.
    """
    file = folder / DESCRIPTION
    if not file.exists():
        if is_shipped(folder):
            raise ValueError(
                f"bundle={SHIPPED} stands for the model that ships with the package, which has no folder; give the "
                "folder `bundle` of a training."
            )
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
    plain = {key: value for key, value in content.items() if key != DIGEST}
    return as_record(plain, BundleRecord, str(file), _CURE, later=_LATER)


def _upgraded(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a bundle.json of format 1 as format 2.

    Raises:
        ValueError: If a key of format 1 is missing, or there is another key. Then it is a damaged later bundle.json.
    """
    expected = [key.name for key in fields(BundleRecord)]
    _exactly(content, expected, name)
    for part, wanted in (("model", ["backbone", "adapter", "propagation"]), ("identity", _IDENTITY_1)):
        if isinstance(content[part], Mapping):
            _exactly(content[part], wanted, f"{name}: {part}")
    upgraded = dict(content)
    if isinstance(content["inference"], Mapping):
        _exactly(content["inference"], _INFERENCE_1, f"{name}: inference")
        upgraded["inference"] = {**content["inference"], "normalisation": FIRST.as_dict(), "level": "fixed"}
    if isinstance(content["identity"], Mapping):
        upgraded["identity"] = {**content["identity"], "arguments": None, "behaviour": {}}
    return upgraded


def _exactly(present: Mapping[str, Any], wanted: Sequence[str], name: str) -> None:
    """Refuse a table with other keys than wanted."""
    if missing := [key for key in wanted if key not in present]:
        raise ValueError(f"{name} lacks {missing[0]}; {_CURE}.")
    if unknown := [key for key in present if key not in wanted]:
        raise ValueError(f"{name} holds {unknown[0]}, which format 1 does not have; {_CURE}.")


_NOT_RECORDED: dict[str, Any] = {"channels": (), "clicks": "model", "window": "off", "rejections": "exemplars"}
"""Values of settings that a bundle does not record, as earlier versions had none of these settings."""

_LATER = ("inference.level", "inference.channels", "inference.clicks", "inference.window", "inference.rejections")
"""Keys that the first bundles of format 2 lack; their absence means the default."""

_IDENTITY_1 = ("backbone", "adapter_sha256", "propagation", "propagation_sha256")
_INFERENCE_1 = (
    "pixel_mm", "tile_px", "overlap", "batch_size", "threshold", "peak_threshold", "min_lesion_voxels", "min_lesion_ml",
    "track_mm", "track_growth", "track_memory", "air_level", "slice_axis", "weigh_by_presence", "precision", "compile",
    "half_features", "memory_gib", "split_prominence_mm", "most_exemplars",
)  # fmt: skip
