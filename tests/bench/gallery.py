"""One picture of each class of a set of look-alikes, with its figures: what is found, what is missed, what is false.

`python -m tests.bench.look_alikes` writes the page. It holds slices of the scans, so it stays beside the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mois.report.html_page import Page, Picture, Section, picture_uri, text_of, write_page

LEAD = (
    "The shipped model without any training. A simulated reader clicks up to five lesions of each class once. No "
    "picture was chosen: each shows the slices with most lesions, found or not."
)


def write_gallery(out: Path, rows: Mapping[str, Path]) -> Path:
    """Write `gallery.html` from the rows and the pictures of `look_alikes`.

    Args:
        out: Folder of the page.
        rows: File of the row of each set, in the order of the page. What has no row or no pictures is left out.

    Returns:
        The page.
    """
    sections = []
    for name, row in rows.items():
        pictures = sorted((pictures_of(row) / "overlays").glob("*.png"))
        if row.is_file() and pictures:
            figures = json.loads(row.read_text(encoding="utf-8"))
            sections.append(Section(name, [_picture(file, figures) for file in pictures]))
    return write_page(out / "gallery.html", Page("Look-alikes without a training", LEAD, sections))


def pictures_of(row: Path) -> Path:
    """Return the folder of a row's results on the scan, with its pictures."""
    return row.parent / "pictures" / row.stem


def _picture(file: Path, figures: dict[str, dict[str, Any]]) -> Picture:
    """Return a picture with the figures of its class, which the name of the file ends with."""
    target = file.stem.rpartition("class")[2]
    of_class = figures[target]
    caption = (
        f"class {target}: right {text_of(of_class['right'], 2)}, wrong {text_of(of_class['wrong'], 2)}, no_exemplars "
        f"{text_of(of_class['no_exemplars'], 2)}, lesion F1 {text_of(of_class['lesion_f1'], 2)}, "
        f"{of_class['false_lesions']} false lesions"
    )
    return Picture(picture_uri(file), caption)
