"""Numbers of maps and masks are what they say, or refused in one line."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from mois.errors import DataError
from mois.scans.labels import array_of, check_declared, one_mask, whole_numbers


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.int64, np.uint64, np.float16, np.float64])
def test_whole_numbers_of_any_type_are_kept(dtype: type) -> None:
    given = np.array([[0, 1], [1, 0]]).astype(dtype)
    found = whole_numbers(given, "map")
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 1], [1, 0]]


def test_floats_stand_for_the_whole_number_next_to_them() -> None:
    given = np.array([0.9999999, 2.0000001, 1e-7, -1e-7, 6.9995])
    assert whole_numbers(given, "map").tolist() == [1, 2, 0, 0, 7]
    assert whole_numbers(np.float32([16777217, 3]), "map").tolist() == [16777216, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 0.98], r"must be whole numbers, got 0\.98; threshold it"),
        ([0, 0.5], r"must be whole numbers, got 0\.5"),
        ([0, 1.0011], "must be whole numbers"),
        ([0, np.nan], "1 voxels are NaN or infinite"),
        ([0, -np.inf], "1 voxels are NaN or infinite"),
        ([-1, 0], "between 0 and 2147483647, got -1 to 0"),
        ([0, 2**31], "between 0 and 2147483647, got 0 to 2147483648"),
        ([0, 1e30], "between 0 and 2147483647"),
        (np.float32([0, 2**31]), "between 0 and 2147483647"),
        (np.array([2**64 - 1], np.uint64), "between 0 and 2147483647, got 18446744073709551615"),
        ([1j], "complex128 values are no labels"),
        ([b"a"], "values are no labels"),
    ],
)
def test_anything_else_is_refused_in_one_line(given, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        whole_numbers(np.asarray(given), "a.nii.gz")
    assert str(caught.value).startswith("a.nii.gz: ")
    assert "\n" not in str(caught.value)


def test_classes_are_those_that_are_declared() -> None:
    check_declared(np.int32([0, 1, 2]), [0, 1, 2], "map")
    check_declared(np.int32([0, 0]), [], "map")
    with pytest.raises(DataError, match=r"map: holds label 7, dataset.json declares \[1\]; add it to labels there"):
        check_declared(np.int32([0, 7, 9]), [0, 1], "map")


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        ([True, False], [1, 0]),
        (np.uint8([0, 255]), [0, 1]),
        ([7, 0], [1, 0]),
        ([0.0, 2.0], [0, 1]),
        ([1e-4, 0.9, 0.5, 0.49], [0, 1, 1, 0]),
        (np.float16([0.25, 0.75]), [0, 1]),
        ([0.1, 0.2], [0, 0]),
        ([0, 0], [0, 0]),
        ([1.0000001, 1e-9], [1, 0]),
    ],
)
def test_a_mask_is_hard_or_soft(given, mask: list[int]) -> None:
    found = one_mask(np.asarray(given), "mask")
    assert found.dtype == bool
    assert found.tolist() == [bool(inside) for inside in mask]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([-5.0, 5.0], "values from -5 to 5 are no mask; .* threshold logits at 0"),
        ([-4.7, 5.2], r"values from -4\.7 to 5\.2 are no mask; .* threshold logits at 0"),
        ([0.5, 1.2], r"values from 0\.5 to 1\.2 are no mask"),
        ([0.0, np.nan], "1 voxels are NaN"),
        ([1, 2, 0], r"holds 2 labels \(1, 2\), a mask is of one lesion; give a mask for each"),
        (np.uint8(range(9)), r"holds 8 labels \(1, 2, 3, 4, 5, \.\.\.\)"),
        ([-1, 0], "between 0 and"),
    ],
)
def test_what_is_no_mask_is_refused(given, message: str) -> None:
    with pytest.raises(DataError, match=message):
        one_mask(np.asarray(given), "mask")


@pytest.mark.parametrize("order", [2, 3, 5])
def test_a_mask_that_overshoots_where_it_was_resampled_is_a_soft_one(order: int) -> None:
    inside = (np.indices((24, 24, 24)) - 11.5) ** 2
    ball = (inside.sum(0) < 64).astype(np.float64)
    soft = ndimage.zoom(ball, 1.5, order=order)
    assert soft.min() < -0.2
    assert soft.max() > 1.2
    for given in (soft, soft.astype(np.float32)):
        found = one_mask(given, "mask")
        assert found.sum() == pytest.approx(ball.sum() * 1.5**3, rel=0.1)
        assert np.array_equal(found, soft >= 0.5)


@pytest.mark.parametrize("others", [[-0.6], [1.6], [-0.1] * 20])
def test_what_overshoots_by_more_or_in_many_places_is_no_soft_mask(others: list[float]) -> None:
    with pytest.raises(DataError, match="are no mask"):
        one_mask(np.array([0.0] * 50 + [1.0] * 50 + others), "mask")


def test_tensors_of_any_kind_are_arrays() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.uint16, torch.bool):
        assert array_of(torch.tensor([0, 1]).to(dtype)).tolist() == [0, 1]
    assert array_of(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
