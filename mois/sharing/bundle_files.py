"""The files of a bundle's folder: which files belong to a bundle, and checks of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mois.files.atomic import file_sha256
from mois.sharing.bundle_record import DESCRIPTION

ADAPTER, PROPAGATION, CARD = "adapter", "propagation.safetensors", "README.md"


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that holds files but no bundle.

    Raises:
        ValueError: If the folder holds files but no bundle.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION).exists():
        raise ValueError(f"bundle={folder} holds files, but no bundle; choose another folder, or move them away.")


def check_files(path: Path, recorded: Mapping[str, str]) -> None:
    """Refuse a bundle with a missing, changed or additional file.

    Args:
        path: Folder of the bundle.
        recorded: SHA-256 by file, as in bundle.json.

    Raises:
        ValueError: If there is such a file; the message names the first.
    """
    present = {str(file.relative_to(path)): file for file in files_of(path)}
    for file in present.values():
        check_place(path, file)
    for name in sorted({PROPAGATION, *recorded, *present}):
        if name not in present:
            raise ValueError(f"bundle={path} lacks {name}; copy the whole folder again.")
        if name not in recorded and _is_litter(present[name]):
            continue
        if name not in recorded:
            raise ValueError(f"bundle={path} holds {name}, which is not recorded; copy the whole folder again.")
        if file_sha256(present[name]) != recorded[name]:
            raise ValueError(f"bundle={path}: {name} is damaged or was changed; copy the whole folder again.")


def check_place(path: Path, file: Path) -> None:
    """Refuse anything but a regular file of the bundle's folder.

    The cache of the Hugging Face hub is an exception: files in `snapshots/REVISION` are links to files in `blobs`
    beside `snapshots`.

    Raises:
        ValueError: If it is something else, or a link to another place.
    """
    if not (file.exists() or file.is_symlink()):
        return
    inside, target = path.resolve(), file.resolve()
    blobs = next((folder.parent / "blobs" for folder in inside.parents if folder.name == "snapshots"), None)
    if not (file.is_file() and (target.is_relative_to(inside) or target.parent == blobs)):
        raise ValueError(
            f"bundle={path}: {file.relative_to(path)} is no regular file of its folder; copy the folder with what its "
            "links point to."
        )


def _is_litter(file: Path) -> bool:
    """Return whether a file is left by a desktop that showed the folder. Nothing reads such a file."""
    return file.name in (".DS_Store", "Thumbs.db", "desktop.ini") or file.name.startswith("._")


def files_of(folder: Path) -> list[Path]:
    """Return the files of the adapter and the propagation: tensors, and how to read them."""
    adapter = [file for file in sorted((folder / ADAPTER).rglob("*")) if not file.is_dir() or file.is_symlink()]
    return [file for file in (folder / PROPAGATION, *adapter) if file.exists() or file.is_symlink()]
