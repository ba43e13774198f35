"""Draw docs/images/rooms.svg: the rooms in the order of pyproject.toml, and who imports whom.

python docs/site/draw_rooms.py         # writes the picture; `make docs` calls it

An arrow that follows from two others is left out: cli -> session and session -> scans say that cli may reach scans.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
OUTER = ("adapters", "datamodules")
PROGRAM = "__main__"
"""The module that `python -m mois` runs; it is no room."""

BOX_WIDTH, BOX_HEIGHT, GAP, ROW_HEIGHT, MARGIN = 118, 36, 18, 82, 20  # pixels


def layers() -> list[list[str]]:
    """Return the rows of the picture from top to bottom: the layers of the import contract, and the outer packages."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    inside = next(contract for contract in contracts if contract.get("containers") == ["mois"])
    named = [layer for layer in inside["layers"] if layer != PROGRAM]
    first, second, *others = [[room.strip() for room in re.split("[|:]", layer)] for layer in named]
    return [first, [OUTER[0], *second, OUTER[1]], *others]


def imports() -> set[tuple[str, str]]:
    """Return every pair (importer, imported) of two different rooms."""
    graph = grimp.build_graph("mois", *OUTER, cache_dir=None)
    pairs = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = room_of(importer), room_of(imported)
            if None not in pair and pair[0] != pair[1]:
                pairs.add(pair)
    return pairs


def room_of(module: str) -> str | None:
    """Return the room of a module: `session` for mois.session.playing, None for the package mois itself."""
    package, _, rest = module.partition(".")
    if package in OUTER:
        return package
    return None if rest == PROGRAM else rest.partition(".")[0] or None


def reduced(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the pairs without those that follow from a longer way."""
    below: dict[str, set[str]] = {}
    for importer, imported in pairs:
        below.setdefault(importer, set()).add(imported)

    def reached(room: str) -> set[str]:
        rooms = set(below.get(room, ()))
        return rooms.union(*(reached(imported) for imported in rooms))

    return {
        (importer, imported)
        for importer, imported in pairs
        if not any(imported in reached(other) for other in below[importer] - {imported})
    }


def centres(rows: list[list[str]], arrows: set[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return the centre of each room's box in pixels: every row centred, each room below its importers if possible."""
    width = picture_width(rows)
    places: dict[str, tuple[int, int]] = {}

    def wanted(room: str) -> float:
        above = [places[importer][0] for importer, imported in arrows if imported == room and importer in places]
        return sum(above) / len(above) if above else width / 2

    for line, row in enumerate(rows):
        left = (width - len(row) * (BOX_WIDTH + GAP) + GAP) // 2
        for column, room in enumerate(row if OUTER[0] in row else sorted(row, key=wanted)):
            x = left + column * (BOX_WIDTH + GAP) + BOX_WIDTH // 2
            places[room] = (x, MARGIN + line * ROW_HEIGHT + BOX_HEIGHT // 2)
    half = MARGIN + BOX_WIDTH // 2
    places |= {room: (x, places[room][1]) for room, x in zip(OUTER, (half, width - half), strict=True)}
    return places


def picture_width(rows: list[list[str]]) -> int:
    """Return the width of the picture in pixels."""
    return 2 * MARGIN + max(len(row) for row in rows) * (BOX_WIDTH + GAP) - GAP


def arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return a curve from the lower edge of a box to the upper edge of another."""
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 + BOX_HEIGHT // 2, y1 - BOX_HEIGHT // 2 - 6
    bend = (y1 - y0) // 2
    return f'<path d="M{x0} {y0}C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"/>'


def side_arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return an arrow between two boxes of one row: a bow below them."""
    (x0, y), (x1, _) = start, end
    y += BOX_HEIGHT // 2
    return f'<path d="M{x0} {y}C{x0} {y + 34} {x1} {y + 34} {x1} {y + 6}"/>'


def box(room: str, centre: tuple[int, int]) -> str:
    """Return a room's box with its name."""
    x, y = centre
    fill = "#e8f0e0" if room in OUTER else "#e4ebf5"
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return (
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" stroke="#5a6b80"/>'
        f'<text x="{x}" y="{y + 5}">{room}</text>'
    )


def picture() -> str:
    """Return the SVG."""
    rows = layers()
    pairs = reduced(imports())
    places = centres(rows, pairs)
    width, height = picture_width(rows), 2 * MARGIN + (len(rows) - 1) * ROW_HEIGHT + BOX_HEIGHT
    arrows = [
        (side_arrow if places[importer][1] == places[imported][1] else arrow)(places[importer], places[imported])
        for importer, imported in sorted(pairs)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#8793a5"/></marker></defs>',
            '<g fill="none" stroke="#8793a5" stroke-width="1.2" marker-end="url(#tip)">',
            *arrows,
            "</g>",
            '<g font-family="sans-serif" font-size="14" text-anchor="middle" fill="#1c2733">',
            *(box(room, places[room]) for row in rows for room in row),
            "</g>",
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
