"""Which code, data, weights, packages, settings and seed made a result."""

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
    """What has to be known to make a result again.

    Attributes:
        code: Version of this package; in a git repository also the commit, and "changed" where files differ.
        data: Fingerprint that the datamodule gives of its files, "unknown" where it gives none.
        backbone: Which weights were adapted, None where there was no backbone.
        packages: Name to version, Python included.
        config: Every setting of the run.
        seed: Of every random draw, None where the run was not seeded.
        trainable_fraction: Trained parameters over all parameters, None where the model does not say.
        resumed: Where the run was gone on with: the step, and what was other before, by setting.
        files: SHA-256 of the files that settings name, by setting.
        trained_on: Which of the scans that are validated or tested on the model was trained on, as far as it says.
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
        """Return plain dicts, lists, strings and numbers, as JSON and safe checkpoints hold them."""
        return plain_settings(asdict(self))

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_text(path, json.dumps(self.as_dict(), indent=2) + "\n")


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as any JSON file holds them; numbers that are not finite become texts."""
    text = json.dumps(settings, default=str, ensure_ascii=False).encode(errors="replace")
    plain: dict[str, Any] = json.loads(text, parse_constant=str)
    return plain


def collect_provenance(module: object, datamodule: object, config: dict[str, Any], seed: int | None) -> Provenance:
    """Return the record of a run.

    Args:
        module: Its `backbone.identity` and `trainable_fraction` are asked for, where it has them.
        datamodule: Its `fingerprint()` is asked for, where it has one.
        config: Every setting of the run.
        seed: Of the run.
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
        files={key: told for key, value in _texts(plain_settings(config)) if (told := content_of(value))},
    )


def content_of(setting: object) -> str | None:
    """Return the SHA-256 of the file, or of the description of the bundle, that a setting names; None of others."""
    try:
        path = Path(setting) if isinstance(setting, str) and setting else None
        if path is not None and (path / "bundle.json").is_file():  # it holds the digest of each file beside it
            path = path / "bundle.json"
        return None if path is None or not path.is_file() else file_sha256(path)
    except (OSError, ValueError):  # it is no path, or one that may not be read
        return None


def _texts(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that are texts, but for backbone weights, whose digest `WeightsIdentity` holds."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{place}{key}.")
        elif isinstance(value, str) and f"{place}{key}" != "model.backbone.init_args.weights":
            yield f"{place}{key}", value


def code_version() -> str:
    """Return our version, with the git commit where the package lies in a repository of its own."""
    root = Path(mois.__file__).resolve().parent.parent
    if _git(root, "rev-parse", "--show-toplevel") != str(root):
        return mois.__version__
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = " changed" if _git(root, "status", "--porcelain") else ""
    return f"{mois.__version__} git {commit}{changed}" if commit else mois.__version__


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on; "missing" where one is not installed."""
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
