"""A copy of a bundle with pseudonyms for the names of scans and for paths, to be given to a logger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mois.files.atomic import file_sha256, read_regular, whole_folder, write_bytes, write_text
from mois.files.json_records import DIGEST, sealed
from mois.sharing.bundle_files import ADAPTER, CARD, PROPAGATION, check_files
from mois.sharing.bundle_record import DESCRIPTION, SECONDARY, read_description

TEXTS = (".json", ".md", ".txt")


def copy_with_pseudonyms(
    source: Path, target: Path, hide_text: Callable[[str], str], hide_settings: Callable[[Any], Any]
) -> None:
    """Copy a bundle. Its tensors stay; its digests are computed again, so the copy loads like any bundle.

    Args:
        source: Folder of the bundle.
        target: Folder of the copy.
        hide_text: Returns a text with pseudonyms for known names and paths.
        hide_settings: Returns plain settings with pseudonyms, also for paths that are not known.

    Raises:
        ValueError: If the source is no bundle.
    """
    record = read_description(source)
    check_files(source, record.files)
    with whole_folder(target, (DESCRIPTION, ADAPTER, PROPAGATION, CARD)) as part:
        for name in (*record.files, CARD):
            if not (source / name).exists():
                continue
            content = read_regular(source / name)
            if name.endswith(TEXTS):
                content = hide_text(content.decode("utf-8")).encode()
            write_bytes(part / name, content)
        plain = record.as_dict()
        plain.pop(DIGEST)
        plain["provenance"] = hide_settings(plain["provenance"])
        plain["identity"]["backbone"]["source"] = hide_settings(plain["identity"]["backbone"]["source"])
        for spec in plain["model"].values():
            places = {name: value for name, value in spec["init_args"].items() if name in SECONDARY}
            spec["init_args"] |= hide_settings(places)
        plain["files"] = {name: file_sha256(part / name) for name in record.files}
        write_text(part / DESCRIPTION, json.dumps(sealed(plain), indent=2, allow_nan=False) + "\n")
