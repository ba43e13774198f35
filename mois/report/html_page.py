"""Elements of an HTML page (tables, pictures, texts), and the writer that makes one file of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

import mois
from mois.files.atomic import write_text
from mois.report.results import Estimate

NOT_MEASURED = "\N{EN DASH}"
_LARGEST_PICTURE_PX = 1800


@dataclass(frozen=True)
class KeyFigure:
    """A figure in large type at the top of a page."""

    name: str
    value: str
    interval: str
    note: str


@dataclass(frozen=True)
class Table:
    """Rows under columns; a row of one cell is a heading within the table.

    Attributes:
        columns: Headings.
        rows: Cells as text.
        title: Title above the table.
        note: Note below the table.
        words: Numbers of the columns that hold words instead of figures; the first column always does.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    words: tuple[int, ...] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """An image as data URI, with its caption."""

    source: str
    caption: str
    title: str = ""
    style: str = "chart"
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class SideBySide:
    """Elements side by side, if the page is wide enough; style `sides`, or `crops` for many small pictures."""

    parts: Sequence[PageElement]
    style: str = "sides"
    kind: ClassVar[str] = "sides"


@dataclass(frozen=True)
class Record:
    """Preformatted text, folded unless `open` is true."""

    title: str
    text: str
    open: bool = False
    kind: ClassVar[str] = "record"


PageElement = Table | Picture | SideBySide | Record


@dataclass(frozen=True)
class Section:
    """A heading, a text, and elements."""

    title: str
    parts: Sequence[PageElement]
    text: str = ""


@dataclass(frozen=True)
class Page:
    """A page. Its alarms come first."""

    title: str
    lead: str
    sections: Sequence[Section]
    key_figures: Sequence[KeyFigure] = ()
    alarms: Sequence[str] = field(default_factory=tuple)


def write_page(path: Path, page: Page) -> Path:
    """Write a page as one HTML file that loads nothing from elsewhere, whole or not at all."""
    environment = Environment(
        loader=PackageLoader("mois.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context: dict[str, Any] = {"page": page, "version": mois.__version__}
    write_text(path, environment.get_template("page.html.j2").render(context))
    return path


def picture_uri(path: Path) -> str:
    """Return a PNG as data URI, made smaller if it is wider than a page."""
    with Image.open(path) as image:
        if image.width <= _LARGEST_PICTURE_PX:
            content, kind = path.read_bytes(), "png"
        else:
            small = image.convert("RGB")
            small.thumbnail((_LARGEST_PICTURE_PX, _LARGEST_PICTURE_PX))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=88)
            content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def text_of(value: float | None, digits: int = 3) -> str:
    """Return a number as text."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def interval_of(estimate: Estimate, digits: int = 3) -> str:
    """Return the 95 % interval as text."""
    if estimate.low is None or estimate.high is None:
        return NOT_MEASURED
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
