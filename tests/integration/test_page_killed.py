"""The server is killed (kill -9) below an open page, 20 times in a reader's story. The page says so, and goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mois.geometry import SliceGrid
from mois.serve.page_view import PageView
from mois.session import InteractiveSession
from tests.support.browser import OpenPage, chromium, needs_chromium
from tests.support.killed_server import KilledServer
from tests.support.session_fakes import make_model, three_lesions

pytestmark = [needs_chromium, pytest.mark.ci]
KILLS = 20
SCAN = three_lesions()._replace(path="")
VIEW = PageView(SCAN, SliceGrid.of(SCAN.shape, SCAN.affine))


def voxel(index: int, row: int, column: int) -> tuple[int, int, int]:
    return (SCAN.shape[0] - 1 - column, SCAN.shape[1] - 1 - row, index)


Act = Callable[[OpenPage], None]
InPython = Callable[[InteractiveSession], object]


def click(place: tuple[int, int, int]) -> tuple[Act, InPython]:
    return (
        lambda page: page.page.mouse.click(*page.place(place)),
        lambda session: session.click(VIEW.lps_mm(place)),
    )


def judge(key: str, lesion: int) -> tuple[Act, InPython]:
    def act(page: OpenPage) -> None:
        page.choose(lesion)
        page.press(key)

    return act, lambda session: {"a": session.accept, "r": session.reject, "l": session.lock}[key](lesion)


def press(key: str) -> tuple[Act, InPython]:
    done = {"f": "propagate", "z": "undo", "y": "redo"}[key]
    return lambda page: page.press(key), lambda session: getattr(session, done)()


# each step is one action of the session: on the page, and in Python
STORY = [
    click(voxel(2, 20, 20)),
    press("z"),
    press("y"),
    click(voxel(2, 40, 12)),
    press("f"),
    press("z"),
    press("f"),
    judge("l", 3),
    press("z"),
    judge("r", 3),
    press("f"),
    press("z"),
    press("z"),
    judge("a", 3),
    judge("a", 1),
    press("f"),
    press("z"),
    press("y"),
    judge("a", 2),
    press("f"),
]


def test_page_goes_on_after_each_kill_and_loses_at_most_the_action_in_flight(tmp_path: Path) -> None:
    assert len(STORY) == KILLS
    session = InteractiveSession(make_model(), SCAN)
    server, moments = KilledServer("page", tmp_path / "studies"), random.Random(0)
    lost = 0
    try:
        with chromium() as browser:
            page = OpenPage(browser, server.url)
            for act, in_python in STORY:
                before = page.state()["actions"]
                act(page)
                page.page.wait_for_timeout(moments.choice((0, 5, 20, 60, 150)))
                server.kill()
                page.page.wait_for_selector("#gone:not([hidden])", timeout=10_000)
                assert "does not answer" in page.page.inner_text("#gone")
                server.start()
                page.page.wait_for_selector("#gone", state="hidden", timeout=30_000)
                assert page.says().startswith("The server is back")
                assert page.state()["role"] == "writer"
                done = page.state()["actions"] - before
                assert done in (0, 1)
                if not done:
                    lost += 1
                    page.after_action(lambda act=act: act(page))
                in_python(session)
                page.wait(lambda: not page.state()["finding"]["running"])
                assert shown(page) == {row.id: row.volume_ml for row in session.lesions()}
            page.press("s")
            page.wait(lambda: page.says().startswith("Saved in"))
            (folder,) = (tmp_path / "studies").glob("*/session")
            saved = np.asanyarray(nib.load(folder / "lesions.nii.gz").dataobj)
            assert np.array_equal(saved, session.label_map().numpy())
            assert [
                line for line in page.errors if "ERR_" not in line
            ] == []  # the browser logs what it could not reach
    finally:
        server.end()
    assert 0 < lost < KILLS  # kills fell before, in and after actions


def shown(page: OpenPage) -> dict[int, float]:
    return {row["id"]: row["ml"] for row in page.state()["lesions"]}
