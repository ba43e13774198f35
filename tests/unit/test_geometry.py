import itertools
import math

import nibabel as nib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mois.geometry import SliceGrid, TileGrid, resample_stack, restore_stack

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
FLIP = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))


def written_as(array, affine, order, signs):
    """The same scan with its voxel axes in another order and direction."""
    axes = [axis for axis, sign in enumerate(signs) if sign < 0]
    out = array.permute(order).flip(axes)
    move = torch.zeros(4, 4, dtype=torch.float64)
    move[3, 3] = 1
    for new, old in enumerate(order):
        move[old, new] = signs[new]
        move[old, 3] += 0 if signs[new] > 0 else out.shape[new] - 1
    return out.contiguous(), affine @ move


def test_there_are_48_orientations():
    names = set()
    for order, signs in ORIENTATIONS:
        _, affine = written_as(torch.zeros(2, 3, 4), torch.eye(4, dtype=torch.float64), order, signs)
        names.add("".join(nib.aff2axcodes(affine.numpy())))
    assert len(ORIENTATIONS) == len(names) == 48


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 3.0, 7.8])] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    tilt=st.floats(-0.3, 0.3),
    slice_axis=st.sampled_from(["auto", "left-right", "anterior-posterior", "superior-inferior"]),
)
def test_all_48_orientations_give_the_same_stack_and_round_trip(shape, spacing, origin, tilt, slice_axis):
    scan = torch.arange(math.prod(shape)).view(shape)
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    turn = torch.eye(4, dtype=torch.float64)  # oblique: about the patient's long axis
    turn[:2, :2] = torch.tensor([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    affine = turn @ affine
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    stacks, corners = [], []
    for order, signs in ORIENTATIONS:
        array, matrix = written_as(scan, affine, order, signs)
        grid = SliceGrid.of(tuple(array.shape), matrix, slice_axis)
        stack = grid.to_stack(array)
        assert torch.equal(grid.to_volume(stack), array)
        assert stack.shape == grid.stack_shape
        stacks.append(stack)
        corners.append(grid.to_lps_mm(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])))
        # a voxel's place by the affine is its place by the stack
        voxel = [n - 1 for n in array.shape]
        ras = matrix @ torch.tensor([*voxel, 1.0], dtype=torch.float64)
        index = grid.to_stack_index((FLIP @ ras)[None, :3]).round().long()[0]
        assert stack[tuple(index)] == array[tuple(voxel)]
    assert all(torch.equal(stack, stacks[0]) for stack in stacks)
    assert all(torch.allclose(corner, corners[0], atol=1e-6) for corner in corners)


@pytest.mark.parametrize(
    ("slice_axis", "first"),
    [
        ("anterior-posterior", "anterior"),
        ("superior-inferior", "inferior"),
        ("left-right", "right"),
    ],
)
def test_pictures_are_radiological(slice_axis, first):
    # voxel axes run to the patient's right, front and head: (1, 1, 1) is the right, anterior, superior corner
    scan = torch.zeros(2, 2, 2)
    scan[1, 1, 1 if first != "inferior" else 0] = 1
    stack = SliceGrid.of((2, 2, 2), torch.eye(4), slice_axis).to_stack(scan)
    assert stack[0, 0, 0] == 1  # first slice, top row, left column


@pytest.mark.parametrize(
    ("spacing", "slices"),
    [
        ((1.0, 1.0, 1.0), 4),  # a tie: superior-inferior
        ((1.0, 7.8, 1.0), 3),  # coronal
        ((5.0, 1.0, 1.0), 2),  # sagittal
        ((1.0, 5.0, 4.96), 4),  # within 1 %: a tie
        ((5.0, 5.0, 1.0), 3),  # a tie without superior-inferior: coronal
    ],
)
def test_slices_are_taken_across_the_coarsest_axis(spacing, slices):
    grid = SliceGrid.of((2, 3, 4), torch.diag(torch.tensor([*spacing, 1.0])))
    assert grid.stack_shape[0] == slices


def test_spacing_and_shape_of_a_coronal_stack():
    grid = SliceGrid.of((160, 28, 256), torch.diag(torch.tensor([-3.0, 7.8, 2.0, 1.0])))
    assert grid.stack_shape == (28, 256, 160)
    assert (grid.gap_mm, grid.row_mm, grid.column_mm) == pytest.approx((7.8, 2.0, 3.0))
    assert grid.picture_shape(1.0) == (512, 480)


def test_stacks_are_copies():
    scan = torch.zeros(2, 3, 4)
    grid = SliceGrid.of((2, 3, 4), torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])), "superior-inferior")
    grid.to_stack(scan)[:] = 1
    assert not scan.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"slice_axis": "axial"}, "choose auto"), ({"affine": torch.zeros(4, 4)}, "no inverse")],
)
def test_a_grid_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SliceGrid.of(**{"shape": (2, 3, 4), "affine": torch.eye(4), **change})


def test_resampling_keeps_millimetres():
    grid = SliceGrid.of((4, 2, 2), torch.diag(torch.tensor([2.0, 9.0, 3.0, 1.0])))  # a stack of 2 x 2 x 4, 3 x 2 mm
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(2, 2, 4).contiguous()
    fine = resample_stack(ramp, grid, 1.0)
    assert fine.shape == (2, 6, 8)
    assert fine[0, 0, 2:6].tolist() == [0.75, 1.25, 1.75, 2.25]  # pixel centres at 1.25, 1.75, ... old pixels
    assert torch.equal(restore_stack(fine, grid)[..., 1:3], ramp[..., 1:3])
    ids = torch.tensor([[1, 1, 2, 9]], dtype=torch.int32).expand(2, 2, 4)
    assert resample_stack(ids, grid, 1.0, nearest=True)[0, 0].tolist() == [1, 1, 1, 1, 2, 2, 9, 9]
    assert torch.equal(restore_stack(resample_stack(ids, grid, 1.0, nearest=True), grid, nearest=True), ids)
    assert grid.to_picture_index(torch.tensor([[1.0, 0.5, 1.5]]), 1.0).tolist() == [[1.0, 2.5, 3.5]]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile_px=st.sampled_from([8, 16, 32]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_tiles_blend_back_exactly(height, width, tile_px, overlap):
    grid = TileGrid.of(height, width, tile_px, overlap)
    picture = torch.rand(height, width)
    tiles = grid.cut(picture)
    assert tiles.shape == (len(grid.corners), tile_px, tile_px)
    assert torch.allclose(grid.blend(tiles), picture, atol=1e-5)
    assert torch.allclose(grid.blend(torch.ones_like(tiles)), torch.ones(height, width), atol=1e-6)
    assert grid.corners.min() >= 0
    assert (grid.corners.amax(0) + tile_px <= torch.tensor([max(height, tile_px), max(width, tile_px)])).all()


def test_some_of_the_tiles_leave_the_rest_at_zero():
    grid = TileGrid.of(8, 24, 8, overlap=0.5)
    assert grid.corners.tolist() == [[0, 0], [0, 4], [0, 8], [0, 12], [0, 16]]
    picture = grid.blend(torch.ones(2, 8, 8), index=torch.tensor([0, 4]))
    assert torch.allclose(picture[0], torch.tensor([1.0] * 8 + [0.0] * 8 + [1.0] * 8))
    assert grid.best_tile(4, 23) == 4
    assert grid.best_tile(0, 9) == 1  # centres at 3.5, 7.5, 11.5, ...


def test_more_dimensions_are_cut_and_blended_alike():
    grid = TileGrid.of(10, 12, 8)
    stack = torch.rand(3, 10, 12)
    assert torch.allclose(grid.blend(grid.cut(stack)), stack, atol=1e-5)


def test_wrong_tiles_are_refused():
    with pytest.raises(ValueError, match="overlap=1"):
        TileGrid.of(8, 8, 8, overlap=1.0)
    with pytest.raises(ValueError, match="2 tiles to blend"):
        TileGrid.of(8, 8, 8).blend(torch.ones(2, 8, 8))
