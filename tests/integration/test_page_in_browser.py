"""The page in a browser: a reader's story with mouse and keys gives what the session gives in Python."""

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.geometry import SliceGrid
from mois.scans.volumes import read_volume
from mois.serve.page_view import PageView
from mois.serve.served_models import ServedModels
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from mois.session.follow_up import TimePoint, time_point_of
from tests.support.browser import OpenPage, chromium, needs_chromium, served_page
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import make_model, other_model, three_lesions

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


@pytest.mark.ci
def test_three_hundred_lesions_scroll_smoothly_and_axe_finds_nothing_serious(browser, tmp_path):
    places = [(s, r, c) for s in (1, 4, 7, 10, 13) for r in range(8, 150, 16) for c in range(8, 115, 16)][:305]
    boxes = [(TYPE_A, box((s, s + 2), (r, r + 8), (c, c + 8))) for s, r, c in places]
    scan = make_scan(boxes, shape=(16, 160, 128))._replace(path="")
    with served_page(make_model(), scan, tmp_path / "studies") as url:
        page = OpenPage(browser, url)
        page.click((scan.shape[0] - 1 - 12, scan.shape[1] - 1 - 12, 1))
        page.propagate()
        count = len(page.state()["lesions"])
        assert count >= 300  # the clicked lesion may cover its neighbours
        rows = page.page.locator("#list .lesion")
        assert rows.count() < 40  # only those in sight
        still, scrolled = (min(page.page.evaluate(FRAMES, moves) for _ in range(3)) for moves in (False, True))
        assert scrolled <= max(100, 3 * still)  # 33 on two free cores; other work makes still frames long, too
        assert rows.first.get_attribute("aria-setsize") == str(count)
        page.press("j")
        page.page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        page.page.wait_for_timeout(100)  # the chosen lesion is far above those in sight
        assert serious(page.page) == []
        page.press("?")
        assert serious(page.page) == []
        assert page.errors == []


FRAMES = """(moves) => new Promise((done) => {
  const list = document.getElementById("list");
  let [longest, last, step] = [0, performance.now(), 0];
  const frame = (now) => {
    longest = Math.max(longest, now - last);
    last = now;
    if (moves) list.scrollTop = (list.scrollHeight * step) / 120;
    if (step++ < 120) requestAnimationFrame(frame);
    else done(longest);
  };
  requestAnimationFrame((now) => { last = now; requestAnimationFrame(frame); });
})"""
"""Longest of 120 frames, in ms, while the list is still, or is scrolled from its first to its last lesion."""


def serious(page) -> list[str]:
    """What axe-core says against the page: serious and critical findings."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]


def test_types_are_chosen_by_key_and_have_colours(browser, tmp_path):
    scan = three_lesions()._replace(path="")

    def voxel(index, row, column):
        return (scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, index)

    models = ServedModels(make_model(), "long", {"round": other_model()}, load=lambda bundle: other_model())
    with served_page(models, scan, tmp_path / "studies") as url:
        page = OpenPage(browser, url)
        page.click(voxel(2, 20, 20))
        page.after_action(lambda: page.press("x"))
        page.wait(lambda: page.says() == "The next lesion is of the type round.")
        page.click(voxel(2, 40, 12))
        page.press("e")
        page.wait(lambda: page.says().endswith("found.") or page.is_error())
        assert [row["type"] for row in page.state()["lesions"]] == ["long", "round", "long"]
        page.press("Escape")
        rows = page.page.locator("#list .lesion")
        assert sorted(rows.nth(n).get_attribute("class").split()[-1] for n in range(3)) == [
            "type-0",
            "type-0",
            "type-1",
        ]
        painted = page.page.evaluate("[...new Set(mois.viewer.paint)].sort()")
        assert painted == [0, 6, 7]
        page.press("b")
        page.page.fill("#new-type-name", "flat")
        page.page.fill("#new-type-bundle", str(tmp_path))
        assert serious(page.page) == []
        page.after_action(lambda: page.press("Enter"))
        assert page.state()["types"] == ["long", "round", "flat"]
        for width in (1400, 800, 480):
            page.page.set_viewport_size({"width": width, "height": 850})
            page.page.wait_for_timeout(200)
            assert serious(page.page) == []
            assert page.page.evaluate("document.documentElement.scrollWidth") == width
            below = "document.getElementById('{}').getBoundingClientRect()".format
            assert page.page.evaluate(f"{below('scan')}.bottom <= {below('list-head')}.top") == (width < 900)
        assert page.errors == []


def test_an_earlier_scan_is_compared_with(browser, tmp_path):
    scan = three_lesions()._replace(path="")
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    both, new = ((scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, 2) for row, column in ((20, 20), (40, 12)))
    earlier = InteractiveSession(make_model(), scan._replace(subject="before"))
    earlier.click(view.lps_mm(both))
    with served_page(make_model(), scan, tmp_path / "studies", time_point_of(earlier)) as url:
        page = OpenPage(browser, url)
        page.click(both)
        page.click(new)
        page.press("t")
        page.wait(lambda: page.says().startswith("Against before"))
        assert page.says() == "Against before: 1 the same, 1 new, 0 gone."
        rows = page.page.locator("#changes tbody tr")
        assert [row.split()[:2] for row in rows.all_inner_texts()] == [["same", "1"], ["new", "2"]]
        page.choose(1)
        rows.nth(1).locator("button").click()
        assert page.page.inner_text("#chosen-name").startswith("Lesion 2")
        assert serious(page.page) == []
        assert page.errors == []


def test_the_earlier_scan_is_beside_and_both_move_together(browser, tmp_path, monkeypatch):
    scan = three_lesions()._replace(path="")
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    both, gone = ((scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, 2) for row, column in ((20, 20), (40, 12)))
    earlier = InteractiveSession(make_model(), scan._replace(subject="before"))
    earlier.click(view.lps_mm(both))
    earlier.click(view.lps_mm(gone))
    motion = np.eye(4)
    motion[:3, 3] = 30, 0, 0
    moved = torch.linalg.inv(torch.from_numpy(motion)) @ scan.affine
    point = TimePoint(earlier.volume._replace(affine=moved), earlier.label_map())
    monkeypatch.setattr("mois.session.follow_up.alignment.register", lambda *_: motion)

    def crosses():
        return page.page.evaluate("[mois.viewer.cross(), mois.earlier.viewer.cross()]")

    with served_page(make_model(), scan, tmp_path / "studies", point) as url:
        page = OpenPage(browser, url)
        page.click(both)
        page.press("v")
        page.wait(lambda: page.says().startswith("The earlier scan is beside"))
        assert "Earlier: before, registered (30 mm apart)" in page.page.inner_text("#earlier")
        page.press("t")
        page.wait(lambda: page.says() == "Against before: 1 the same, 0 new, 1 gone.")
        rows = page.page.locator("#changes tbody tr")
        for row, words in ((0, "lesion 1, "), (1, "lesion 2, ")):
            rows.nth(row).locator("button").click()
            now, then = crosses()
            assert now == then
            assert words in page.page.inner_text("#earlier .place")
        painted = np.array(page.page.evaluate("Array.from(mois.earlier.viewer.paint)"))
        assert sorted(set(painted)) == [0, 1, 2]  # the chosen one stands out
        assert (painted > 0).sum() == (point.labels > 0).sum()
        box = page.page.locator("#earlier canvas").bounding_box()
        page.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        page.press("+")
        now, then = crosses()
        assert now == then != list(gone)
        zooms = "[mois.viewer, mois.earlier.viewer].map(each => [...each.niivue.scene.pan2Dxyzmm].join())"
        assert len(set(page.page.evaluate(zooms))) == 1
        page.after_action(lambda: page.press("z"))
        assert page.page.is_visible("#follow-up-old")
        assert serious(page.page) == []
        page.press("v")
        assert not page.page.is_visible("#earlier")
        page.press("v")
        page.wait(lambda: page.page.is_visible("#earlier canvas"))
        page.click(gone)  # the picture of now takes clicks where it is now
        assert page.errors == []


def test_what_the_other_scan_does_not_show_is_outside(browser, tmp_path, monkeypatch):
    scan = three_lesions()._replace(path="")
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    both, far = ((scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, 2) for row, column in ((20, 20), (40, 12)))
    earlier = InteractiveSession(make_model(), scan._replace(subject="before"))
    earlier.click(view.lps_mm(both))
    rows = slice(0, 30)  # the earlier scan shows these alone
    part = TimePoint(scan._replace(subject="before", image=scan.image[:, rows]), earlier.label_map()[:, rows])
    monkeypatch.setattr("mois.session.follow_up.alignment.register", lambda *_: np.eye(4))
    with served_page(make_model(), scan, tmp_path / "studies", part) as url:
        page = OpenPage(browser, url)
        page.click(both)
        page.click(far)
        page.press("t")
        page.wait(lambda: page.says() == "Against before: 1 the same, 0 new, 0 gone, 1 outside.")
        assert page.page.inner_text("#follow-up-total").endswith("0 % where both scans show it")
        page.page.locator("#changes tbody tr.outside button").click()
        page.wait(lambda: page.says() == "The earlier scan does not show the place of lesion 2.")
        assert np.abs(np.subtract(page.page.evaluate("mois.viewer.cross()"), far)).max() <= 1
        assert page.errors == []


def test_an_earlier_scan_that_cannot_be_registered_leaves_the_page_as_it_was(browser, tmp_path):
    scan = three_lesions()._replace(path="", patient="p")
    other = TimePoint(scan._replace(patient="q", subject="before"), torch.zeros(scan.shape, dtype=torch.int32))
    with served_page(make_model(), scan, tmp_path / "studies", other) as url:
        page = OpenPage(browser, url)
        for key in ("v", "t"):
            page.press(key)
            page.complains(
                "the scans are of two patients, q and p; give two scans of one patient, or name their patient "
                "(--patient NAME)."
            )
            page.click((scan.shape[0] - 1 - 20, scan.shape[1] - 1 - 20, 2))
            page.wait(lambda: page.says().startswith("Lesion"))  # else it may come after the next error
        assert not page.page.is_visible("#earlier")


def test_the_answer_to_an_earlier_click_does_not_hide_the_error_of_a_comparison(browser, tmp_path):
    scan = three_lesions()._replace(path="", patient="p")
    other = TimePoint(scan._replace(patient="q", subject="before"), torch.zeros(scan.shape, dtype=torch.int32))
    with served_page(make_model(), scan, tmp_path / "studies", other) as url:
        page = OpenPage(browser, url)
        held = []
        page.page.route("**/draw/click", lambda route: held.append(route))
        page.page.mouse.click(*page.place((scan.shape[0] - 1 - 20, scan.shape[1] - 1 - 20, 2)))
        page.wait(lambda: len(held) == 1)
        with page.page.expect_response("**/follow_up"):  # it is refused while the click waits
            page.press("t")
        page.page.wait_for_timeout(100)
        held[0].continue_()
        page.wait(lambda: len(page.state()["lesions"]) == 1)
        page.page.wait_for_timeout(200)
        assert page.says().startswith("the scans are of two patients, q and p;")
        assert page.is_error()


def test_drawings_of_every_kind_and_errors_in_one_line(browser, tmp_path):
    scan = three_lesions()._replace(path="")

    def voxel(index, row, column):
        return (scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, index)

    with served_page(make_model(), scan, tmp_path / "studies") as url:
        page = OpenPage(browser, url)
        for key, places in (
            ("3", [voxel(2, 20, 18), voxel(2, 20, 22)]),
            ("4", [voxel(2, 35, 7), voxel(2, 45, 17)]),
            ("5", [voxel(3, 38, 26), voxel(3, 54, 26), voxel(3, 54, 38), voxel(3, 38, 38)]),
        ):
            page.press(key)
            page.after_action(lambda places=places: page.drag(places))
        assert [row["origin"] for row in page.state()["lesions"]] == ["prompted"] * 3
        page.press("z")
        page.wait(lambda: len(page.state()["lesions"]) == 2)
        first, *others = [page.place(place) for place in places]
        page.page.mouse.move(*first)
        page.page.mouse.down()
        for place in others:
            page.page.mouse.move(*place, steps=4)
        page.wait(lambda: 5 in page.page.evaluate("[...new Set(mois.viewer.paint)]"))  # the preview, while it is drawn
        page.after_action(page.page.mouse.up)
        page.wait(lambda: 5 not in page.page.evaluate("[...new Set(mois.viewer.paint)]"))  # painted after the answer
        assert len(page.state()["lesions"]) == 3
        page.press("n")
        page.press("3")
        page.after_action(lambda: page.drag([voxel(2, 20, 20), voxel(2, 20, 22)]))  # something of the lesion is left
        assert len(page.state()["lesions"]) == 3
        x, y = page.place(voxel(2, 20, 20), plane=0 if page.page.evaluate("mois.viewer.sliceAxis") else 1)
        page.page.mouse.click(x, y)
        page.complains("Draw in the ")
        page.press("2")
        page.press("Escape")
        page.press("n")
        page.page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError()); }")
        page.press("z")
        page.complains("The server does not answer.")


@pytest.mark.ci
def test_story_on_a_phantom_is_that_of_python(browser, tmp_path):
    """5 clicks on 3 lesions, a correction, propagate, reject one, accept two, save; 28 x 256 x 160."""
    write_dataset(tmp_path / "scans", subjects=1, seed=3, types=[NAMED_TYPES["ring"]])
    (image,) = (tmp_path / "scans" / "imagesTr").glob("*.nii.gz")
    (truth,) = (tmp_path / "scans" / "instancesTr").glob("*.nii.gz")
    scan = read_volume(image, None, subject="scan", patient="scan", classes={})
    session = InteractiveSession(served_model(None, 1.5, "cpu"), scan)
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    ids = np.asanyarray(nib.as_closest_canonical(nib.load(truth)).dataobj)
    sizes = np.bincount(ids.ravel().astype(np.int64))
    sizes[0] = 0
    with served_page(served_model(None, 1.5, "cpu"), scan, tmp_path / "studies") as url:
        page = OpenPage(browser, url)

        def click(place, lesion=None, positive=True):
            if lesion is not None:  # prompts are for the chosen lesion, wherever they are
                page.press("c")
            page.click(place, negative=not positive)
            if lesion is not None:
                page.press("c")
            return session.click(view.lps_mm(place), lesion, positive)

        for count, number in enumerate(np.argsort(-sizes)[:3]):
            inside = np.argwhere(ids == number)
            middle = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))].tolist()
            lesion = click(middle)
            if count < 2:
                click([middle[0] + 1, *middle[1:]], lesion)
        beside = np.argwhere(in_view(scan, session.label_map().numpy()) == lesion)
        edge = beside[np.argmax(np.abs(beside - middle).sum(1))].tolist()
        click(edge, lesion, positive=False)
        page.propagate()
        session.propagate()
        found = [row.id for row in session.lesions() if row.origin == "found"]
        for name, lesion in (("r", found[0]), ("a", found[1]), ("a", 1)):
            page.choose(lesion)
            page.after_action(lambda name=name: page.press(name))
            session.reject(lesion) if name == "r" else session.accept(lesion)
        page.press("s")
        page.wait(lambda: page.says().startswith("Saved in"))
        page.page.screenshot(path=str(tmp_path / "page.png"), timeout=180_000)
        (folder,) = (tmp_path / "studies").glob("*/session")
        assert len(session.lesions()) > 5
        assert np.array_equal(saved_map(folder), session.label_map().numpy())
        assert page.errors == []


def in_view(scan, labels):
    return np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(labels, scan.affine.numpy())).dataobj)
