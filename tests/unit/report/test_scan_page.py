"""The picture and the page of a segmented scan."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image, ImageColor

from mois.evaluation.overlays import STYLES, grey_levels
from mois.evaluation.slice_labels import scale_mm
from mois.records import Volume
from mois.report.scan_page import KINDS, PAGE, PANELS, PICTURE, draw_lesions, write_scan_page
from mois.session.output_files import LesionRow

AFFINE = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))


def scan(lesions: int, subject: str = "s", slices: int = 12) -> tuple[Volume, list[LesionRow]]:
    """A scan whose lesions lie on a slice each, the first of them prompted."""
    image = torch.rand(40, 30, slices, generator=torch.Generator().manual_seed(0)) * 100
    ids = torch.zeros(40, 30, slices, dtype=torch.int32)
    for number in range(lesions):
        ids[10:18, 8:16, number % slices] = number + 1
    rows = [
        LesionRow(
            n + 1, 0.19, -13.5, -11.5, 3.0 * n, 0.5, "found" if n else "prompted", "open", f"s:{n + 1}", 1 - bool(n)
        )
        for n in range(lesions)
    ]
    return Volume(subject, "p", image, AFFINE, ids, {}), rows


def near(picture: Path, colour: str) -> int:
    """Return how many pixels are of a colour, or nearly so."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array(ImageColor.getrgb(colour))).max(2) < 20).sum())


def test_prompted_and_found_lesions_have_outlines_of_two_colours(tmp_path: Path) -> None:
    for lesions, kinds in ((0, ()), (1, KINDS[:1]), (3, KINDS)):
        volume, rows = scan(lesions)
        picture, _ = write_scan_page(tmp_path / str(lesions), volume, rows)
        legend = [near(picture, STYLES[kind][0]) for kind in KINDS]
        write_scan_page(tmp_path / "bare", volume._replace(lesions=torch.zeros_like(volume.lesions)), rows)
        bare = [near(tmp_path / "bare" / PICTURE, STYLES[kind][0]) for kind in KINDS]
        drawn = [kind for kind, with_, without in zip(KINDS, legend, bare, strict=True) if with_ > without + 50]
        assert tuple(drawn) == kinds


def test_the_page_stands_alone_and_lists_every_lesion(tmp_path: Path) -> None:
    volume, rows = scan(3, subject="<b>s</b>")
    files = write_scan_page(tmp_path, volume, rows, ["look here"], ["click there"])
    assert files == [tmp_path / PICTURE, tmp_path / PAGE]
    page = files[1].read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<b>s</b>" not in page
    assert "1 prompted, 2 found." in page
    assert page.count("<tr>") == 1 + 3
    assert '<p class="alarm">look here</p>' in page
    assert "click there" in page
    assert "Every lesion is on one of these slices." in page
    assert "-13.5, -11.5, 6.0" in page


def test_what_lies_on_other_slices_is_counted(tmp_path: Path) -> None:
    volume, rows = scan(9)
    write_scan_page(tmp_path, volume, rows)
    assert f"{9 - PANELS} more lesions lie on other slices." in (tmp_path / PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize(("shape", "panels"), [((6, 40, 30), (1, 6)), ((6, 30, 40), (2, 3)), ((1, 30, 40), (1, 1))])
def test_slices_are_arranged_by_their_shape(shape: tuple[int, int, int], panels: tuple[int, int]) -> None:
    lesions = np.zeros(shape, np.int32)
    for number, of_slice in enumerate(lesions, start=1):
        of_slice[5:9, 5:9] = number
    _, rows = scan(shape[0])
    figure = draw_lesions(np.ones(shape, np.float32), lesions, rows, (1.0, 1.0))
    wide, high = figure.get_size_inches()
    assert len(figure.axes) == shape[0]
    assert (high > 6) == (panels[0] == 2)
    assert wide >= 6


@pytest.mark.parametrize(("width_mm", "bar_mm"), [(30, 10), (200, 50), (61, 20), (0.7, 0.2), (2.9, 0.5)])
def test_a_scale_bar_is_a_round_length_within_a_third_of_the_width(width_mm: float, bar_mm: float) -> None:
    assert scale_mm(width_mm) == pytest.approx(bar_mm)


def test_every_slice_has_a_scale_bar_of_its_own_pixels() -> None:
    _, rows = scan(1)
    lesions = np.zeros((2, 40, 30), np.int32)
    lesions[:, 5:9, 5:9] = 1
    figure = draw_lesions(np.ones((2, 40, 30), np.float32), lesions, rows, (2.0, 0.5))
    for axes in figure.axes:
        (bar,) = axes.lines
        left, right = bar.get_xdata()
        assert float(right) - float(left) == pytest.approx(5 / 0.5)  # 15 mm wide: a bar of 5 mm
        assert "5 mm" in [text.get_text() for text in axes.texts]


def test_ct_is_drawn_from_its_own_black_to_its_own_white() -> None:
    image = np.linspace(-1000, 1000, 1001, dtype=np.float32).reshape(7, 11, 13)
    black, white = grey_levels(image)
    assert black == pytest.approx(-990, abs=5)
    assert white == pytest.approx(990, abs=5)
    assert grey_levels(np.array([0, 0, 50, 100], np.float32))[0] == 0.0
    assert grey_levels(np.zeros(3, np.float32)) == (0.0, 1.0)
    low, high = grey_levels(np.full(3, 7, np.float32))
    assert low < high


def test_a_difference_of_two_scans_is_drawn_with_what_became_darker() -> None:
    image = np.zeros((8, 20, 20), np.float32)
    image[:, 4:16, 4:16] = np.random.default_rng(0).normal(0, 10, (8, 12, 12))
    image[3:5, 6:9, 6:9], image[3:5, 11:14, 11:14] = -90, 90
    black, white = grey_levels(image)
    assert black == pytest.approx(-90, abs=1)
    assert white == pytest.approx(90, abs=1)


def test_numbers_of_close_lesions_stand_apart_inside_the_slice() -> None:
    lesions = np.zeros((1, 60, 60), np.int32)
    for number in range(16):  # a block of 4 x 4 lesions in a corner, two pixels from each other
        row, column = 2 + 6 * (number // 4), 36 + 6 * (number % 4)
        lesions[0, row : row + 4, column : column + 4] = number + 101
    rows = [LesionRow(n + 101, 0.1, 0, 0, 0, 0.5, "prompted" if n % 2 else "found", "open", "", 1) for n in range(16)]
    figure = draw_lesions(np.ones((1, 60, 60), np.float32), lesions, rows, (1.0, 1.0))
    figure.canvas.draw()
    (axes,) = figure.axes
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    assert sorted(int(text.get_text()) for text in numbers) == [101 + n for n in range(16)]
    assert {text.get_color() for text in numbers} == {"white"}
    boxes = [Text.get_window_extent(text) for text in numbers]  # of an annotation, its line counts as well
    for index, box in enumerate(boxes):
        assert axes.get_window_extent().expanded(1.02, 1.02).contains(box.x1, box.y1)
        for other in boxes[:index]:
            shared = Bbox.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) < 0.35 * box.height, "a font's own margins"
