"""The page in a browser: a reader's story with mouse and keys gives what the session gives in Python."""

import nibabel as nib
import numpy as np
import pytest

from mois.geometry import SliceGrid
from mois.serve.page_view import PageView
from mois.session import InteractiveSession
from tests.support.browser import OpenPage, chromium, needs_chromium, served_page
from tests.support.session_fakes import make_model, three_lesions

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def saved_map(folder):
    return np.asanyarray(nib.load(folder / "lesions.nii.gz").dataobj)


def test_story_on_a_small_scan(browser, tmp_path):
    scan = three_lesions()._replace(path="")
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    session = InteractiveSession(make_model(), scan)

    def voxel(index, row, column):
        return (scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, index)

    with served_page(make_model(), scan, tmp_path / "studies") as url:
        page = OpenPage(browser, url)
        for place, positive in ((voxel(2, 20, 20), True), (voxel(2, 18, 18), False), (voxel(2, 40, 12), True)):
            page.click(place, negative=not positive)
            session.click(view.lps_mm(place), None if positive else 1, positive)
        page.propagate()
        session.propagate()
        found = next(row.id for row in session.lesions() if row.origin == "found")
        page.choose(found)
        page.after_action(lambda: page.press("r"))
        session.reject(found)
        page.choose(1)
        page.after_action(lambda: page.press("a"))
        session.accept(1)
        page.after_action(lambda: page.press("z"))
        page.after_action(lambda: page.press("y"))
        page.press("s")
        page.wait(lambda: page.says().startswith("Saved in"))
        (folder,) = (tmp_path / "studies").glob("*/session")
        assert np.array_equal(saved_map(folder), session.label_map().numpy())
        painted = np.array(page.page.evaluate("Array.from(mois.viewer.paint, v => v ? 1 : 0)"), dtype=bool)
        shown = np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(saved_map(folder), scan.affine.numpy())).dataobj)
        assert np.array_equal(painted.reshape(view.shape, order="F"), shown > 0)
        assert page.errors == []
