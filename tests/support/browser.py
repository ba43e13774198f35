"""The page in a real browser: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mois.records import Volume
from mois.serve.host import Host
from mois.serve.page import page_app
from mois.serve.running import bound_socket, serve, token_of
from mois.serve.served_models import ServedModels
from mois.session.follow_up import TimePoint
from mois.sharing.lesion_model import LesionModel

CHROMIUM = Path("/usr/bin/chromium")
SOFTWARE = [
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-gpu-rasterization",
]

needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium")


@contextmanager
def served_page(
    model: LesionModel | ServedModels, scan: Volume, studies: Path, earlier: TimePoint | None = None
) -> Iterator[str]:
    """Serve the page of a scan, and yield its address."""
    host = Host(studies, model)
    listening = bound_socket("127.0.0.1", 0)
    listening.listen()
    token = token_of(studies)
    threading.Thread(target=serve, args=(page_app(host, scan, earlier), listening, token), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/"
    finally:
        host.close()


class OpenPage:
    """An open page, used as a reader uses it: with mouse and keys.

    Args:
        browser: Playwright's browser.
        url: Address of the page.
    """

    def __init__(self, browser: Any, url: str, width: int = 1400, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda asked: self._own(asked.url, url))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def _own(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.errors.append(f"asked for {asked}")

    def says(self) -> str:
        return str(self.page.inner_text("#says"))

    def is_error(self) -> bool:
        return "error" in (self.page.get_attribute("#says", "class") or "")

    def state(self) -> dict[str, Any]:
        return dict(self.page.evaluate("mois.state()"))

    def wait(self, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, self.says()
            self.page.wait_for_timeout(20)

    def complains(self, start: str) -> None:
        """Wait until the page shows an error with this beginning; an earlier error may still stand there."""
        self.wait(lambda: self.is_error() and self.says().startswith(start))

    def after_action(self, act: Callable[[], Any], seconds: float = 60.0) -> None:
        """Do something, and wait until the session has done one more action."""
        before = self.state()["actions"]
        act()
        self.wait(lambda: self.state()["actions"] > before or self.is_error(), seconds)
        assert not self.is_error(), self.says()
        self.page.wait_for_timeout(50)

    def place(self, voxel: Sequence[float], plane: int | None = None) -> tuple[float, float]:
        """Bring a voxel into the planes, and return where it is shown in the window."""
        axis = self.page.evaluate("mois.viewer.sliceAxis") if plane is None else plane
        self.page.evaluate("voxel => mois.viewer.moveTo(voxel)", list(voxel))
        x, y = self.page.evaluate("([voxel, plane]) => mois.viewer.positionOf(voxel, plane)", [list(voxel), axis])
        box = self.page.locator("#scan").bounding_box()
        return box["x"] + x, box["y"] + y

    def click(self, voxel: Sequence[int], *, negative: bool = False, plane: int | None = None) -> None:
        """Click a voxel with the mouse, with Shift for a negative click."""
        x, y = self.place(voxel, plane)
        if negative:
            self.page.keyboard.down("Shift")
        self.after_action(lambda: self.page.mouse.click(x, y))
        if negative:
            self.page.keyboard.up("Shift")

    def drag(self, voxels: Sequence[Sequence[float]]) -> None:
        """Draw with the mouse from voxel to voxel."""
        places = [self.place(voxel) for voxel in voxels]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def propagate(self, seconds: float = 300.0) -> None:
        self.after_action(lambda: self.press("f"), seconds)
        self.wait(lambda: "found" in self.says() or self.is_error())

    def choose(self, lesion: int) -> None:
        """Choose a lesion in the list, with the keys."""
        for _ in range(1 + len(self.state()["lesions"])):
            if f"Lesion {lesion}:" in self.page.inner_text("#chosen-name"):
                return
            self.press("k")
        self.press("Escape")
        for _ in range(1 + len(self.state()["lesions"])):
            if f"Lesion {lesion}:" in self.page.inner_text("#chosen-name"):
                return
            self.press("j")
        raise AssertionError(f"lesion {lesion} is not in the list")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser, and end it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=SOFTWARE)
        try:
            yield browser
        finally:
            browser.close()
