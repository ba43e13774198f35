"""Scoring counts voxels of lesions only; its figures equal those of scoring on whole volumes, bit by bit."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.evaluation.figures import ClassReport, Figures
from mois.evaluation.overlays import telling_slices
from mois.evaluation.reader import Reader
from mois.evaluation.result_files import ScanFiles
from mois.evaluation.scoring import ClassResult, candidate_rows, grown, score_answer
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ScanPlan
from mois.geometry import SliceGrid
from mois.grid import Edges, Spacing
from mois.lesions import Candidates, InstanceMap, LesionVoxels, components, renumber
from mois.metrics import surface
from mois.metrics.counts import VoxelCounts
from mois.metrics.overlap import Overlap, join_tracked_and_found
from mois.metrics.surface import surface_dice
from mois.records import Volume
from mois.scans.image_files import write_volume
from tests.support import plain_scoring

SHAPE = (40, 33, 9)
UPRIGHT = torch.diag(torch.tensor([0.9, 1.1, 4.0, 1.0], dtype=torch.float64))
SHEARED = UPRIGHT + torch.tensor([[0.0, 0.3, 0.5, 7.0], [0, 0, 0.2, -3], [0.1, 0, 0, 5], [0, 0, 0, 0]])
SHEARED_EDGES = SliceGrid.of(SHAPE, SHEARED).edges_mm
SETTINGS = {
    "usual": ProtocolSettings(prompted=3),
    "wide": ProtocolSettings(prompted=2, margin_px=7, surface_mm=5.0),
    "fine": ProtocolSettings(prompted=9, margin_px=0, surface_mm=0.4),
    "none": ProtocolSettings(prompted=0),
}


def blobs(rng: np.random.Generator, count: int, largest: int = 7) -> InstanceMap:
    """Return an instance map (I, J, K) of boxes that may hide each other."""
    lesions = np.zeros(SHAPE, dtype=np.int32)
    for lesion in rng.permutation(4 * count)[:count] + 1:
        start = [int(rng.integers(edge)) for edge in SHAPE]
        lesions[tuple(slice(at, at + int(rng.integers(1, largest))) for at in start)] = lesion
    return lesions


def scan_of(lesions: InstanceMap, affine: torch.Tensor) -> Volume:
    classes = {int(lesion): 1 + int(lesion) % 2 for lesion in np.unique(lesions)[1:]}
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return Volume("scan", "patient", image, affine, torch.from_numpy(lesions), classes)


def answer_of(rng: np.random.Generator, plan: ScanPlan, prompted: tuple[int, ...], kind: str) -> ClassResult:
    """Return lesions that were found: parts of true ones, and others, beside masks of the prompted lesions."""
    shift = tuple(int(step) for step in rng.integers(-1, 2, 3))
    found = components(
        (np.roll(plan.lesions.index, shift, (0, 1, 2)) > 0) & (rng.random(plan.lesions.index.shape) > 0.2)
    )
    tracked = np.where(rng.random(found.shape) > 0.3, plan.lesions.only(prompted), 0)
    tracked = renumber(tracked, {lesion: number for number, lesion in enumerate(prompted, start=1)})
    if kind == "nothing":
        return ClassResult(prompted, np.zeros_like(found), np.zeros_like(found), 3)
    return ClassResult(prompted, found, None if kind == "found" else tracked, 4)


@pytest.mark.parametrize("affine", [UPRIGHT, SHEARED], ids=["upright", "sheared"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["tracked", "found", "nothing"])
def test_every_figure_equals_that_of_whole_volumes(affine: torch.Tensor, settings: ProtocolSettings, kind: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        volume = scan_of(blobs(rng, 14), affine)
        plan = ScanPlan.of(
            volume, SliceGrid.of(volume.shape, volume.affine), replace(settings, reader=Reader(seed=seed))
        )
        for class_plan in plan.classes.values():
            answer = answer_of(rng, plan, class_plan.order[: settings.prompted], kind)
            ours = score_answer(plan.lesions, class_plan, answer, settings, Figures())
            plain = plain_scoring.score_answer(plan.lesions, class_plan, answer, settings, Figures())
            assert ours[:3] == plain[:3]
            np.testing.assert_array_equal(ours[3], plain[3])


def test_candidates_and_masks_equal_those_of_whole_volumes() -> None:
    rng = np.random.default_rng(3)
    volume, settings = scan_of(blobs(rng, 12), UPRIGHT), ProtocolSettings(prompted=2)
    plan = ScanPlan.of(volume, SliceGrid.of(volume.shape, volume.affine), settings)
    lesions, class_plan = plan.lesions, plan.classes[1]
    prompted = class_plan.order[:2]
    found = components(rng.random(lesions.index.shape) > 0.8)
    candidates = Candidates(found, rng.random(int(found.max())).astype(np.float32))
    rest, taken_out = plain_scoring.unprompted_lesions(lesions, class_plan, prompted, settings.margin_px)
    np.testing.assert_array_equal(grown(lesions, prompted, settings.margin_px), taken_out)
    np.testing.assert_array_equal(lesions.only(class_plan.never), plain_scoring.only(lesions, class_plan.never))
    counts = lesions.count(LesionVoxels.of(found), taken_out)
    others = set(class_plan.lesions) - set(prompted)
    ours = candidate_rows(candidates, counts, others, lesions.voxel_ml)
    assert ours == plain_scoring.candidate_rows(candidates, rest, taken_out, lesions.voxel_ml)
    assert len(ours) > 1
    assert counts.apart() == Overlap.of(found, lesions.index).apart()


def test_a_voxel_in_the_margin_of_a_prompted_lesion_counts_where_a_scored_lesion_is() -> None:
    index = np.array([1, 1, 0, 2, 2, 0], dtype=np.int32)
    found = np.array([7, 7, 7, 7, 0, 7], dtype=np.int32)
    ignore = np.array([True, True, True, True, True, False])
    counts = VoxelCounts.of(LesionVoxels.of(found), index, np.array([3, 5], np.int32), np.array([2, 2]), ignore)
    overlap = counts.overlap([5])
    assert (overlap.shared.tolist(), overlap.found_voxels.tolist()) == ([[1]], [2])  # voxels 3 and 5
    assert overlap.ignored_voxels.tolist() == [3]  # voxels 0, 1 and 2
    plain = Overlap.of(found, np.array([0, 0, 0, 5, 5, 0], np.int32), ignore)
    assert all(
        np.array_equal(one, other) for one, other in zip(vars(overlap).values(), vars(plain).values(), strict=True)
    )


def test_joined_lesions_equal_those_of_whole_volumes() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tracked, found = blobs(rng, 5), blobs(rng, 9)
        joined = join_tracked_and_found(tracked, found)
        np.testing.assert_array_equal(joined, plain_scoring.join_tracked_and_found(tracked, found))
        assert joined.dtype == np.int32


@pytest.mark.parametrize("spacing_mm", [(4.0, 1.1, 0.9), (1.0, 1.0, 1.0), SHEARED_EDGES])
@pytest.mark.parametrize("tolerance_mm", [0.3, 1.0, 2.0, 3.3])
def test_the_surface_dice_is_the_same_by_steps_and_by_a_tree(
    spacing_mm: Spacing | Edges,
    tolerance_mm: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    true = blobs(rng, 8) > 0
    found = np.roll(true, (1, 1, 0), (0, 1, 2)) & (rng.random(SHAPE) > 0.05)
    expected = plain_scoring.surface_dice(found, true, spacing_mm, tolerance_mm)
    assert 0 < expected < 1
    assert surface_dice(found, true, spacing_mm, tolerance_mm) == expected
    monkeypatch.setattr(surface, "MOST_STEPS", 0)
    assert surface_dice(found, true, spacing_mm, tolerance_mm) == expected


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_a_view_of_a_scan_is_its_stack(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.diag(torch.tensor([1.0, 2.0, 5.0]) * torch.tensor(signs))[list(axes)]
    image = torch.arange(24.0).reshape(2, 3, 4)
    grid = SliceGrid.of((2, 3, 4), affine)
    np.testing.assert_array_equal(grid.view(image), grid.to_stack(image).numpy())
    assert np.shares_memory(grid.view(image), image.numpy())


def test_a_written_map_is_the_whole_stack_on_the_grid_of_the_scan(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    turned = torch.tensor([[0.0, 0, 4, 1], [-0.9, 0, 0, 2], [0, 1.1, 0, 3], [0, 0, 0, 1]], dtype=torch.float64)
    volume = scan_of(blobs(rng, 9), turned)
    grid = SliceGrid.of(volume.shape, volume.affine)
    plan = ScanPlan.of(volume, grid, ProtocolSettings())
    result = ClassResult((), plan.lesions.index, None)
    report = ClassReport(1, Figures(), (), ())
    ScanFiles(volume, grid, plan.lesions, tmp_path).write_class(report, result, plan.lesions.index)
    write_volume(grid.to_volume(torch.from_numpy(plan.lesions.index)), volume.affine, tmp_path / "whole.nii.gz")
    written = (tmp_path / "predictions" / "scan_class1.nii.gz").read_bytes()
    assert written == (tmp_path / "whole.nii.gz").read_bytes()


def test_slices_that_tell_most_equal_those_of_whole_volumes() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        true, found = blobs(rng, 9), blobs(rng, 9)
        assert telling_slices(true, found) == plain_scoring.telling_slices(true, found, 4)
