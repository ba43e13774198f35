"""Lines and outlines as pixels, by hand."""

import numpy as np
import pytest

from mois.session.prompts.drawing import along_line, grown, line_pixels, outline_pixels


def picture(plane: np.ndarray) -> list[str]:
    return ["".join("#" if inside else "." for inside in row) for row in plane]


def test_a_line_is_drawn_through_its_points() -> None:
    drawn = line_pixels([(0.0, 0.0), (0.0, 3.0), (2.0, 5.0)], (4, 7))
    assert picture(drawn) == ["####...", "....#..", ".....#.", "......."]
    assert picture(line_pixels([(1.4, 1.4), (1.4, 1.4)], (3, 3))) == ["...", ".#.", "..."]
    assert picture(line_pixels([(0.0, 0.0), (3.4, 1.0)], (4, 2))) == ["#.", "#.", "#.", ".#"]  # steep, no gap


def test_places_along_a_line_part_its_length_in_mm() -> None:
    assert along_line([(0.0, 0.0), (0.0, 8.0)], 4, (1.0, 1.0)) == [(0.0, 1.0), (0.0, 3.0), (0.0, 5.0), (0.0, 7.0)]
    # 4 mm down and 4 mm right, where a pixel is 4 mm high and 1 mm wide
    assert along_line([(0.0, 0.0), (1.0, 0.0), (1.0, 4.0)], 2, (4.0, 1.0)) == [(0.5, 0.0), (1.0, 2.0)]
    assert along_line([(2.0, 2.0), (2.0, 2.0)], 1, (1.0, 1.0)) == [(2.0, 2.0)]


def test_an_outline_holds_the_pixels_whose_centre_is_inside() -> None:
    square = [(0.5, 0.5), (0.5, 3.5), (2.5, 3.5), (2.5, 0.5)]
    expected = [".....", ".###.", ".###.", "....."]
    assert picture(outline_pixels(square, (4, 5))) == expected
    assert picture(outline_pixels(square[::-1], (4, 5))) == expected
    assert picture(outline_pixels([*square, square[0]], (4, 5))) == expected  # closed by the reader
    assert not outline_pixels([(0.6, 0.6), (0.6, 0.9), (0.9, 0.7)], (4, 5)).any()  # between the centres


def test_an_outline_that_crosses_itself_is_filled_by_even_and_odd() -> None:
    eight = [(0.5, 0.5), (4.5, 6.5), (4.5, 0.5), (0.5, 6.5)]  # two triangles that meet in the middle, (2.5, 3.5)
    assert picture(outline_pixels(eight, (6, 8))) == [
        "........",
        "..####..",  # between the two crossing lines there
        "...##...",
        "...##...",
        "..####..",
        "........",
    ]
    twice = [(0.5, 0.5), (0.5, 3.5), (2.5, 3.5), (2.5, 0.5)] * 2
    assert not outline_pixels(twice, (4, 5)).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_is_filled_as_each_centre_is_tested_alone(seed: int) -> None:
    """Against the crossing number of each pixel, computed by a loop."""
    corners = np.random.default_rng(seed).uniform(0, 12, (7, 2))
    ends = np.roll(corners, -1, axis=0)
    inside = np.zeros((12, 12), dtype=bool)
    for row, column in np.ndindex(12, 12):
        crossed = 0
        for (r1, c1), (r2, c2) in zip(corners, ends, strict=True):
            if (r1 > row) != (r2 > row):
                crossed += column < c1 + (row - r1) / (r2 - r1) * (c2 - c1)
        inside[row, column] = crossed % 2
    assert np.array_equal(outline_pixels([tuple(corner) for corner in corners], (12, 12)), inside)


def test_a_plane_grows_by_one_pixel_in_all_directions() -> None:
    plane = np.zeros((4, 5), dtype=bool)
    plane[1, 1] = True
    assert picture(grown(plane)) == ["###..", "###..", "###..", "....."]
