"""Surface Dice equals the published implementation; areas that can be worked out by hand."""

from math import hypot, isnan, sqrt

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from surface_distance import metrics as published
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from mois.geometry import SliceGrid
from mois.metrics.surface import _areas, surface_cells, surface_dice

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # within the package

SPACINGS = [(1.0, 1.0, 1.0), (7.8, 3.0, 3.0), (0.625, 0.625, 7.8), (2.0, 6.0, 2.0)]


def two_blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ragged masks with holes, single voxels and voxels at the border, that lie about the same place."""
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.normal(size=(10, 18, 16)), 1.2) > 0.1
    return np.roll(truth, 1 + seed % 2, axis=seed % 3) ^ (rng.random(truth.shape) < 0.02), truth


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_dice_equals_the_published_one(spacing_mm: tuple[float, float, float], seed: int) -> None:
    found, truth = two_blobs(seed)
    distances = published.compute_surface_distances(truth, found, spacing_mm)
    seen = set()
    for tolerance_mm in (0.5, 1.0, 2.0, 4.0):
        theirs = published.compute_surface_dice_at_tolerance(distances, tolerance_mm)
        assert surface_dice(found, truth, spacing_mm, tolerance_mm) == pytest.approx(theirs, abs=1e-9)
        seen.add(round(theirs, 3))
    assert len(seen) > 1


@pytest.mark.parametrize("spacing_mm", [*SPACINGS, (1.1, 0.7, 3.0)])
def test_the_area_of_every_cell_is_the_published_one(spacing_mm: tuple[float, float, float]) -> None:
    theirs = create_table_neighbour_code_to_surface_area(spacing_mm)
    ours = np.asarray(_areas(tuple(np.diag(spacing_mm).ravel().tolist())))
    # bit n of ours is corner (n >> 2, n >> 1 & 1, n & 1), of theirs it is counted from the other end
    order = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    assert ours[order] == pytest.approx(theirs, abs=1e-9)


def test_one_voxel_is_an_octahedron() -> None:
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[1, 1, 1] = True
    places, area = surface_cells(mask, (1.0, 1.0, 1.0))
    assert len(places) == 8
    assert places.min(0).tolist() == [0.5, 0.5, 0.5]
    assert area.sum() == pytest.approx(sqrt(3))  # eight triangles of side sqrt(1/2)


def test_a_slab_is_as_large_as_its_faces() -> None:
    mask = np.ones((2, 50, 50), dtype=bool)
    _, area = surface_cells(mask, (3.0, 2.0, 2.0))
    # two faces of 98 x 98 mm between the middles of the outer voxels; around them 3 mm between the middles of the
    # slices, and slopes of half a voxel (1.5 and 1 mm) above and below
    assert area.sum() == pytest.approx(2 * 98 * 98 + 4 * 98 * (3 + 2 * hypot(1.5, 1)), rel=0.005)


def test_slabs_agree_within_their_distance() -> None:
    truth = np.zeros((12, 40, 40), dtype=bool)
    found = truth.copy()
    truth[2:4], found[4:6] = True, True
    assert surface_dice(truth, truth, (5.0, 1.0, 1.0)) == 1.0
    assert surface_dice(found, truth, (1.0, 1.0, 1.0), tolerance_mm=2.0) == 1.0
    # 3 mm apart: of each, the face towards the other and the rim that is nearer than 2 mm to it
    assert surface_dice(found, truth, (1.5, 1.0, 1.0), tolerance_mm=2.0) == pytest.approx(0.5, abs=0.05)


def test_what_is_not_there_has_no_surface() -> None:
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    assert isnan(surface_dice(empty, empty, (1.0, 1.0, 1.0)))
    assert isnan(surface_dice(full, empty, (1.0, 1.0, 1.0)))
    assert surface_dice(empty, full, (1.0, 1.0, 1.0)) == 0.0


LEANING = np.array([[0.0, -1.5, 5.0], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0]])
"""Steps along S, H and W in mm: slices of a tilted gantry."""


def by_brute_force(found: np.ndarray, truth: np.ndarray, edges: np.ndarray, tolerance_mm: float) -> float:
    """Return the surface Dice by comparing all cells with all."""
    cells = [surface_cells(mask, tuple(map(tuple, edges.tolist()))) for mask in (found, truth)]
    places = [surface_cells(mask, (1.0, 1.0, 1.0))[0] @ edges for mask in (found, truth)]
    apart = cdist(*places)
    near = [(apart.min(axis) <= tolerance_mm) @ area for axis, (_, area) in zip((1, 0), cells, strict=True)]
    return sum(near) / sum(area.sum() for _, area in cells)


@pytest.mark.parametrize("tolerance_mm", [1.0, 2.0, 3.5])
def test_distances_on_a_leaning_grid_are_those_in_millimetres(tolerance_mm: float) -> None:
    found, truth = two_blobs(1)
    edges = tuple(map(tuple, LEANING.tolist()))
    lengths = tuple(np.linalg.norm(LEANING, axis=1).tolist())
    ours = surface_dice(found, truth, edges, tolerance_mm)
    assert ours == pytest.approx(by_brute_force(found, truth, LEANING, tolerance_mm), abs=1e-12)
    assert ours != pytest.approx(surface_dice(found, truth, lengths, tolerance_mm), abs=1e-4)


def test_areas_on_a_leaning_grid_are_those_in_millimetres() -> None:
    mask = np.ones((40, 40, 40), dtype=bool)
    _, area = surface_cells(mask, tuple(map(tuple, LEANING.tolist())))
    slices, rows, columns = LEANING
    faces = sum(np.linalg.norm(np.cross(a, b)) for a, b in ((slices, rows), (slices, columns), (rows, columns)))
    assert area.sum() == pytest.approx(2 * 39**2 * faces, rel=0.06)  # the edges are cut off by half a voxel


@pytest.mark.parametrize("turned", [False, True])
def test_a_straight_grid_has_the_figures_of_its_lengths_however_it_lies(turned: bool) -> None:
    found, truth = two_blobs(0)
    angle = 0.4 if turned else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    edges = tuple(map(tuple, (np.diag([-7.8, 3.0, 3.0]) @ turn).tolist()))
    assert surface_dice(found, truth, edges) == pytest.approx(surface_dice(found, truth, (7.8, 3.0, 3.0)), abs=1e-12)


def test_a_scan_of_a_tilted_gantry_is_measured_where_it_lies() -> None:
    affine = np.eye(4)
    affine[:3, :3] = LEANING[[2, 1, 0]].T  # voxel axes along W, H, S
    grid = SliceGrid.of((16, 18, 10), torch.from_numpy(affine), "superior-inferior")
    mask = np.zeros((16, 18, 10), bool)
    mask[4:9, 5:11, 2:7] = True
    stack = grid.to_stack(torch.from_numpy(mask)).numpy()
    places, _ = surface_cells(stack, grid.edges_mm)
    there, _ = surface_cells(mask, tuple(map(tuple, affine[:3, :3].T.tolist())))
    middle = there.mean(0) - places.mean(0)  # the same surface, up to where the first voxel lies
    assert sorted(map(tuple, (places + middle).round(6).tolist())) == sorted(map(tuple, there.round(6).tolist()))
