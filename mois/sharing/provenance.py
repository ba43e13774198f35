"""The provenance of a result: code, data, weights, packages, settings and seed."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mois
from mois.files.atomic import file_sha256, write_text
from mois.records import WeightsIdentity

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "sam2",
    "peft",
    "torchio",
    "SimpleITK",
    "nibabel",
    "pydicom",
    "numpy",
    "wandb",
)


@dataclass(frozen=True)
class Provenance:
    """All that is needed to make a result again.

    Attributes:
        code: Version of this package. In a git repository also the commit, and "changed" if files differ from it.
        data: Fingerprint of the data, as the datamodule gives it, or "unknown".
        backbone: Identity of the backbone's weights before training; None without a backbone.
        packages: Version by package name, with Python.
        config: Every setting of the run.
        seed: Seed of all random numbers; None if the run was not seeded.
        trainable_fraction: Trained parameters / all parameters, 0 to 1; None if the model does not state it.
        resumed: For each time the run was resumed: the step, and the earlier values of changed settings.
        files: SHA-256 of the files that settings name, by setting.
        trained_on: Scans for validation or test that the model was trained on, as far as the model states it.
    """

    code: str
    data: str
    backbone: WeightsIdentity | None
    packages: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    trainable_fraction: float | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    trained_on: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts, lists, strings and numbers, for JSON and checkpoints."""
        return plain_settings(asdict(self))

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_text(path, json.dumps(self.as_dict(), indent=2) + "\n")


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain JSON values. Numbers that are not finite become strings."""
    text = json.dumps(settings, default=str, ensure_ascii=False).encode(errors="replace")
    plain: dict[str, Any] = json.loads(text, parse_constant=str)
    return plain


def collect_provenance(module: object, datamodule: object, config: dict[str, Any], seed: int | None) -> Provenance:
    """Return the provenance of a run.

    Args:
        module: The model. Its `backbone.identity` and `trainable_fraction` are read if it has them.
        datamodule: The datamodule. Its `fingerprint()` is called if it has one.
        config: Every setting of the run.
        seed: Seed of the run, or None.
    """
    identity = getattr(getattr(module, "backbone", None), "identity", None)
    fingerprint = getattr(datamodule, "fingerprint", None)
    return Provenance(
        code=code_version(),
        data=str(fingerprint()) if callable(fingerprint) else "unknown",
        backbone=identity if isinstance(identity, WeightsIdentity) else None,
        packages=package_versions(),
        config=config,
        seed=seed,
        trainable_fraction=getattr(module, "trainable_fraction", None),
        files={key: sha256 for key, value in _texts(plain_settings(config)) if (sha256 := content_of(value))},
    )


def data_arguments(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return data.init_args of a training, with the seed of its folds; empty if its record has none.

    A config has one seed for data, model and training, so data.init_args lacks it.

    Args:
        provenance: Record of the training.
    """
    config = provenance.get("config") or {}
    given = (config.get("data") or {}).get("init_args") or {}
    seed = {"seed": config["seed_everything"]} if type(config.get("seed_everything")) is int else {}
    return {**seed, **given} if given else {}


def content_of(setting: object) -> str | None:
    """Return the SHA-256 of the file that a setting names (of a bundle: its bundle.json); None for other settings."""
    try:
        path = Path(setting) if isinstance(setting, str) and setting else None
        if path is not None and (path / "bundle.json").is_file():  # it has the digest of each other file
            path = path / "bundle.json"
        return None if path is None or not path.is_file() else file_sha256(path)
    except (OSError, ValueError):  # no path, or a file that cannot be read
        return None


def _texts(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that are strings, except the backbone weights: their digest is in `WeightsIdentity`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, str) and f"{prefix}{key}" != "model.backbone.init_args.weights":
            yield f"{prefix}{key}", value


def code_version() -> str:
    """Return the version of this package, with the git commit if the package lies in its own repository."""
    root = Path(mois.__file__).resolve().parent.parent
    if _git(root, "rev-parse", "--show-toplevel") != str(root):
        return mois.__version__
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = " changed" if _git(root, "status", "--porcelain") else ""
    return f"{mois.__version__} git {commit}{changed}" if commit else mois.__version__


def package_versions() -> dict[str, str]:
    """Return the version of each package that results depend on; "missing" if it is not installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def _git(root: Path, *arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, encoding="utf-8", timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()
