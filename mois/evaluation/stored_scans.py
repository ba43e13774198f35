"""The stored result of each finished scan, so that a scan is not scored twice.

A scan is scored again, without an error, in three cases:

- The stored file was changed.
- The files of the scan were changed.
- A map or picture that was written with it is missing or was changed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mois.errors import DataError
from mois.evaluation.figures import SubjectReport
from mois.files.atomic import file_sha256, write_text
from mois.files.json_records import check_seal, read_json, sealed

PARTS = ("predictions", "prompted", "overlays")
"""Folders that hold the maps and pictures of scans."""
_KEYS_WITHOUT_DIGEST = ({"files", "report"}, {"files", "figures"})
"""Keys of stored files of versions without a digest."""


def path_of(out: Path, subject: str, part: str = "") -> Path:
    """Return the file that stores the result of a scan, or of a part of its evaluation."""
    return out / "finished" / part / f"{subject}.json"


def store_scan(out: Path, subject: str, files: str, content: Mapping[str, Any], part: str = "") -> None:
    """Store the result of a scan.

    Args:
        out: Folder of the results.
        subject: The scan.
        files: SHA-256 of the scan's files.
        content: `report`; for a part `figures`.
        part: Part of the evaluation; "" for the unchanged scan, whose maps and pictures are written already.
    """
    left = {} if part else {str(path.relative_to(out)): file_sha256(path) for path in _written(out, subject)}
    write_text(path_of(out, subject, part), json.dumps(sealed({"files": files, "left": left, **content})) + "\n")


def stored_scan(out: Path, subject: str, files: str, part: str = "") -> dict[str, Any] | None:
    """Return the stored result of a scan; None if the scan has to be scored."""
    path = path_of(out, subject, part)
    if not path.exists():
        return None
    try:
        content = read_json(path)
        _check(content, str(path), part)
    except DataError as error:
        warnings.warn(f"{error} Scan {subject} is scored again.", stacklevel=2)
        return None
    if content["files"] != files:
        return None
    for name, sha256 in content.get("left", {}).items():
        if not (out / name).is_file() or file_sha256(out / name) != sha256:
            warnings.warn(f"{out / name} is missing or was changed; scan {subject} is scored again.", stacklevel=2)
            return None
    return dict(content)


def _check(content: Any, name: str, part: str) -> None:
    """Check that a stored file is whole.

    Raises:
        DataError: If it is not.
    """
    if not isinstance(content, dict):
        raise DataError(f"{name} is no record of a scan.")
    if {*content} not in _KEYS_WITHOUT_DIGEST:
        check_seal(content, name)
    key = "figures" if part else "report"
    for wanted, kind in (("files", str), (key, dict)):
        if not isinstance(content.get(wanted), kind):
            raise DataError(f"{name} lacks {wanted}.")
    if part:
        for figures in content["figures"].values():
            if not isinstance(figures, dict) or not all(v is None or type(v) in (int, float) for v in figures.values()):
                raise DataError(f"{name}: figures are no numbers.")
    else:
        SubjectReport.from_json(content["report"], name)


def _written(out: Path, subject: str) -> Iterator[Path]:
    """Yield the maps and pictures of a scan."""
    own = re.compile(rf"{re.escape(subject)}(_class\d+)?\.(nii\.gz|png)")
    for part in PARTS:
        yield from sorted(path for path in (out / part).glob("*") if own.fullmatch(path.name) and path.is_file())
