"""Cores of lesions, by hand."""

from __future__ import annotations

import cc3d
import numpy as np

from datamodules.cores import lesion_cores


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_a_square_keeps_its_middle() -> None:
    """A square of 7 x 7 pixels is 4 deep: its core is deeper than 2, a square of 3 x 3."""
    lesions = np.zeros((11, 11), np.int32)
    lesions[2:9, 2:9] = 5
    cores = lesion_cores(lesions)
    assert np.argwhere(cores).min() == 4
    assert np.argwhere(cores).max() == 6
    assert cores.sum() == 9


def test_touching_lesions_have_cores_apart() -> None:
    lesions = np.where(disc(20, 20, 9), 1, 0)
    lesions[disc(20, 36, 9) & (lesions == 0)] = 2
    cores = lesion_cores(lesions)
    parts, count = cc3d.connected_components(cores.view(np.uint8), connectivity=8, return_N=True)
    assert count == 2
    assert sorted({int(lesions[parts == number].min()) for number in (1, 2)}) == [1, 2]


def test_a_lobed_lesion_has_one_core() -> None:
    """Two lobes of one lesion, as wide as the two lesions above, with a waist: the core leads through the waist."""
    lesions = (disc(20, 20, 9) | disc(20, 36, 9)).astype(np.int32)
    assert cc3d.connected_components(lesion_cores(lesions).view(np.uint8), connectivity=4, return_N=True)[1] == 1
    narrow = (disc(20, 12, 9) | disc(20, 44, 9)).astype(np.int32)
    narrow[20, 12:44] = 1  # a bridge of one pixel
    assert np.array_equal(lesion_cores(narrow), narrow > 0)


def test_a_thin_lesion_is_core_as_a_whole() -> None:
    lesions = np.zeros((9, 9), np.int32)
    lesions[4, 1:8] = 1
    lesions[6:8, 1:8] = 2
    lesions[0, 0] = 3
    assert np.array_equal(lesion_cores(lesions), lesions > 0)


def test_each_piece_on_a_slice_has_a_core() -> None:
    """A lesion in two pieces: the depth of each piece counts, and ids may be of any size."""
    lesions = np.zeros((30, 30), np.int32)
    lesions[2:17, 2:17] = 2**31 - 1
    lesions[20:25, 20:25] = 2**31 - 1
    parts = cc3d.connected_components(lesion_cores(lesions).view(np.uint8), return_N=True)
    assert parts[1] == 2


def test_the_edge_of_the_picture_is_no_border() -> None:
    whole, half = np.zeros((21, 21), np.int32), np.zeros((21, 11), np.int32)
    whole[5:16, 5:16] = 1
    half[:] = whole[:, 10:]
    assert np.array_equal(lesion_cores(half), lesion_cores(whole)[:, 10:])
    assert lesion_cores(np.ones((4, 4), np.int32)).all()
    assert not lesion_cores(np.zeros((4, 4), np.int32)).any()


def test_a_core_lies_in_its_lesion_and_every_lesion_has_one() -> None:
    chance = np.random.default_rng(0)
    for _ in range(40):
        lesions = np.zeros((40, 60), np.int32)
        for number in range(1, 9):
            lesions[disc(*chance.uniform((0, 0), (40, 60)), chance.uniform(1, 9))] = number * 1000
        cores = lesion_cores(lesions)
        assert not cores[lesions == 0].any()
        assert set(np.unique(lesions[cores])) == set(np.unique(lesions)) - {0}
