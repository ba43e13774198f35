"""The page that a browser shows: one scan, its lesions, and what the reader does with them."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, field_validator

from mois.geometry import SliceGrid
from mois.records import Volume
from mois.serve.host import Host
from mois.serve.page_earlier import EarlierScan
from mois.serve.page_reader import PageReader
from mois.serve.page_view import PageView, ShownMask, ShownMasks
from mois.serve.refusals import Refusal
from mois.serve.running import plain_app
from mois.session.follow_up import TimePoint

WEB = Path(__file__).parent / "web"
"""Files of the page."""
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", "": "text/plain"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: "
    "blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files alone, and nothing from the internet."""
MOST_READERS = 32
"""Largest number of open pages."""
MOST_BANK_BYTES = 1 << 28

Coordinate = tuple[float, float, float]
NAME = r"^[A-Za-z0-9]{8,40}$"
Reader = Annotated[str, Header(alias="X-Reader", pattern=NAME)]
"""Name of an open page, made by the page at random."""


class Drawn(BaseModel):
    """What the reader drew.

    Attributes:
        points: Places in voxels of the view: one for a click, two corners for a box, more for scribbles and lassos.
        lesion: The lesion that it is for; None lets the session decide.
        positive: Whether it marks the lesion, and not what lies outside.
    """

    points: Annotated[list[Coordinate], Field(min_length=1, max_length=10_000)]
    lesion: int | None = None
    positive: bool = True

    @field_validator("points")
    @classmethod
    def _finite(cls, points: list[Coordinate]) -> list[Coordinate]:
        if not all(math.isfinite(value) for point in points for value in point):
            raise ValueError("points: a place is no number.")
        return points


class Chosen(BaseModel):
    """A lesion."""

    lesion: int


class TypeOfLesions(BaseModel):
    """A type of lesions.

    Attributes:
        name: Its name.
        bundle: Folder of the bundle of a new type, on the computer of the server; None for a type that is there.
    """

    name: Annotated[str, Field(max_length=40)]
    bundle: Annotated[str, Field(min_length=1, max_length=4096)] | None = None


class Numbers(BaseModel):
    """Numbers of masks."""

    numbers: Annotated[list[int], Field(max_length=100_000)]


class Pages:
    """The open pages of one scan.

    Args:
        host: The host of the session.
        volume: The scan.
        earlier: An earlier time point of the patient.
    """

    def __init__(self, host: Host, volume: Volume, earlier: TimePoint | None = None) -> None:
        self._host = host
        self._volume = volume
        grid = SliceGrid.of(volume.shape, volume.affine, host.model.segmenter.settings.slice_axis)
        self._view = PageView(volume, grid)
        self._earlier = None if earlier is None else EarlierScan(earlier, volume, grid, self._view)
        self._numbers = ShownMasks(self._view)
        self._readers: dict[str, PageReader] = {}
        self._lock = threading.Lock()

    def reader(self, name: str) -> PageReader:
        """Return the reader of a page; a page that is not known is opened. It writes if no other page does."""
        with self._lock:
            for other, silent in [(key, each) for key, each in self._readers.items() if key != name]:
                if silent.is_silent:
                    self._close(other)
            if name not in self._readers:
                if len(self._readers) >= MOST_READERS:
                    raise Refusal(503, f"{MOST_READERS} pages are open; close one.")
                seat = self._host.open(f"page {name[:4]}", self._volume)
                self._readers[name] = PageReader(seat, self._view, self._numbers, self._earlier)
            reader = self._readers[name]
            reader.heard()
            return reader

    def leave(self, name: str) -> None:
        """Close a page."""
        with self._lock:
            self._close(name)

    def _close(self, name: str) -> None:
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.leave()


def page_app(host: Host, volume: Volume, earlier: TimePoint | None = None) -> FastAPI:
    """Return the application of the page for one scan, with an earlier time point of its patient if there is one."""
    app = plain_app("mois view")
    pages = Pages(host, volume, earlier)
    _add_files(app)
    _add_actions(app, pages)
    _add_views(app, pages)
    _add_earlier(app, pages)
    return app


def _add_files(app: FastAPI) -> None:
    """Add the page's own files. Only files that are there at the start are given."""
    files = {str(file.relative_to(WEB).as_posix()): file for file in sorted(WEB.rglob("*")) if file.is_file()}

    @app.get("/")
    def index() -> Response:
        return _file(files["index.html"])

    @app.get("/web/{name:path}")
    def static(name: str) -> Response:
        if name not in files:
            raise Refusal(404, "this file does not exist.")
        return _file(files[name])


def _file(file: Path) -> Response:
    kept = "max-age=86400" if file.stat().st_size > 10**6 else "no-store"
    headers = {"content-security-policy": POLICY, "cache-control": kept}
    return FileResponse(file, media_type=KINDS[file.suffix], headers=headers)


def _add_actions(app: FastAPI, pages: Pages) -> None:
    """Add what changes the session. Each answer holds the result and the new state."""

    @app.post("/draw/{kind}")
    def draw(kind: Literal["click", "box", "scribble", "lasso"], body: Drawn, reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).draw(kind, body.points, body.lesion, body.positive)

    @app.post("/lesion/{action}")
    def lesion(
        action: Literal["accept", "reject", "lock", "unlock", "remove"], body: Chosen, reader: Reader
    ) -> dict[str, Any]:
        return pages.reader(reader).act(action, body.lesion)

    @app.post("/step/{action}")
    def step(action: Literal["undo", "redo", "save"], reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).act(action)

    @app.post("/type")
    def use(body: TypeOfLesions, reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).use(body.name, None if body.bundle is None else Path(body.bundle))

    @app.post("/propagate")
    def propagate(reader: Reader, every_type: bool = False) -> dict[str, Any]:
        return pages.reader(reader).propagate(every_type)

    @app.post("/cancel")
    def cancel(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).cancel()

    @app.put("/bank")
    async def bank_in(request: Request, reader: Reader) -> dict[str, Any]:
        content = await request.body()
        if len(content) > MOST_BANK_BYTES:
            raise Refusal(413, f"the bank is larger than {MOST_BANK_BYTES} bytes.")
        return await run_in_threadpool(pages.reader(reader).bank_in, content)

    @app.post("/leave")
    def leave(name: Annotated[str, Query(pattern=NAME)]) -> None:
        pages.leave(name)


def _add_views(app: FastAPI, pages: Pages) -> None:
    """Add what shows the session, and changes nothing."""

    @app.get("/scan")
    def scan(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).scan()

    @app.get("/image.nii")
    def image(reader: Reader) -> Response:
        return Response(pages.reader(reader).view.image(), media_type="application/octet-stream")

    @app.get("/state")
    def state(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).state()

    @app.get("/pulse")
    def pulse(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).pulse()

    @app.post("/masks")
    def masks(body: Numbers, reader: Reader) -> dict[int, ShownMask]:
        return pages.reader(reader).masks(body.numbers)

    @app.post("/preview/{kind}")
    def preview(kind: Literal["click", "box", "scribble", "lasso"], body: Drawn, reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).preview(kind, body.points, body.lesion, body.positive)

    @app.get("/suggest")
    def suggest(reader: Reader, count: Annotated[int, Query(ge=1, le=20)] = 5) -> list[dict[str, Any]]:
        return pages.reader(reader).suggest(count)

    @app.get("/warnings")
    def warnings(reader: Reader) -> list[str]:
        return pages.reader(reader).warnings()

    @app.get("/bank.safetensors")
    def bank_out(reader: Reader) -> Response:
        return Response(pages.reader(reader).bank_out(), media_type="application/octet-stream")


def _add_earlier(app: FastAPI, pages: Pages) -> None:
    """Add what shows the earlier scan of the patient."""

    @app.get("/follow_up")
    def follow_up(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).follow_up()

    @app.get("/follow_up.csv")
    def follow_up_table(reader: Reader) -> Response:
        return Response(pages.reader(reader).follow_up_table(), media_type="text/csv")

    @app.get("/earlier")
    def earlier(reader: Reader) -> dict[str, Any]:
        return pages.reader(reader).earlier.lesions()

    @app.get("/earlier.nii")
    def earlier_image(reader: Reader) -> Response:
        return Response(pages.reader(reader).earlier.picture(), media_type="application/octet-stream")
