"""docs/viewers/browser.md, followed word by word: from the scan to try to the saved lesions."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mois.scans.image_files import read_image
from tests.support.browser import OpenPage, chromium, needs_chromium
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "viewers" / "browser.md").read_text(encoding="utf-8")


def told(sentence: str) -> None:
    """The page of the docs says so, after what was followed before."""
    told.at = PAGE.index(sentence, told.at)


told.at = 0


@needs_chromium
@pytest.mark.ci
def test_page_of_the_docs_followed_word_by_word(tmp_path):
    commands = re.findall(r"```bash\n(.*?)\n```", PAGE, re.S)
    assert commands[0].startswith("python -m pip install")
    make, view = (command.split()[1:] for command in commands[1:])
    told("A scan to try is made in a few seconds")
    subprocess.run([sys.executable, "-m", "mois.cli", *make], cwd=tmp_path, check=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "mois.cli", *view, "--no_browser"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().strip()
        with chromium() as browser:
            follow(OpenPage(browser, address), read_image(tmp_path / "scans/instancesTr/phantom_0000.nii.gz")[0])
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert list((tmp_path / "studies").glob("*/session/lesions.nii.gz"))


def follow(page, ids):
    sizes = np.bincount(ids.ravel().astype(np.int64))
    sizes[0] = 0
    i, j, k = np.argwhere(ids == np.argmax(sizes)).mean(0).round().astype(int).tolist()
    voxel = [ids.shape[0] - 1 - i, j, ids.shape[2] - 1 - k]  # the phantom's axes run to left, head and back
    axis = page.page.evaluate("mois.viewer.sliceAxis")
    told("Turn the mouse wheel over a plane")
    start = page.page.evaluate("mois.viewer.cross()")
    page.page.mouse.move(*page.place(start))
    for _ in range(abs(voxel[axis] - start[axis])):
        page.page.mouse.wheel(0, -100 if voxel[axis] > start[axis] else 100)
        page.page.wait_for_timeout(30)
    assert page.page.evaluate("mois.viewer.cross()")[axis] == voxel[axis]
    told("Move the pointer over it. The preview shows")
    x, y = page.place(voxel)
    page.page.mouse.move(x, y)
    page.wait(lambda: page.page.evaluate("mois.painting.preview !== null"))
    told("Click. The lesion is drawn on all its slices")
    page.after_action(lambda: page.page.mouse.click(x, y))
    assert page.page.locator("#list .lesion").count() == 1
    told("Press `F`")
    page.propagate()
    told("Press `J`")
    page.press("j")
    assert page.page.inner_text("#chosen-name").startswith("Lesion ")
    told("Press `A`. The lesion is accepted")
    page.after_action(lambda: page.press("a"))
    assert "accepted" in [row["status"] for row in page.state()["lesions"]]
    told("Press `S`")
    page.press("s")
    page.wait(lambda: page.says().startswith("Saved in"))
    assert page.errors == []
