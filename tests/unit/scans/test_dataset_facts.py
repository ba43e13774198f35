"""What doctor says of a dataset's lesions, on scans that can be measured by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.cli.doctor_checks import Finding, dataset
from mois.records import Volume
from mois.scans.dataset_description import DatasetDescription
from mois.scans.dataset_facts import ScanFacts, describe, propose

DESCRIPTION = DatasetDescription({1: "bright", 2: "dark"}, ".nii.gz", {0: "FLAIR", 1: "T2"})


def scan(instances: bool = True, scale: float = 1.0) -> ScanFacts:
    """Three lesions of 4, 4 and 16 voxels in plane, of 2 x 2 mm, slices 5 mm apart; the first two touch at a corner."""
    lesions = torch.zeros(20, 20, 4, dtype=torch.int32)
    lesions[2:4, 2:4, 1] = 1
    lesions[4:6, 4:6, 2] = 2
    lesions[10:14, 10:14, 1:3] = 7
    affine = torch.diag(torch.tensor([2.0 * scale, 2.0 * scale, 5.0 * scale, 1.0], dtype=torch.float64))
    return ScanFacts.of(Volume("a", "a", torch.ones(20, 20, 4), affine, lesions, {1: 1, 2: 2, 7: 1}), instances)


def test_a_scan_is_measured_as_by_hand() -> None:
    facts = scan()
    assert facts.spacing_mm == (5.0, 2.0, 2.0)
    assert facts.slice_mm == (40.0, 40.0)
    assert facts.classes.tolist() == [1, 2, 1]
    assert facts.diameters_mm == pytest.approx([2 * math.sqrt(4 * 4 / math.pi)] * 2 + [2 * math.sqrt(16 * 4 / math.pi)])
    assert facts.volumes_ml == pytest.approx([0.08, 0.08, 0.64])
    assert facts.touching == 2


def test_the_lines_tell_spacing_lesions_and_sizes() -> None:
    told = dict(describe([scan(), scan(scale=1.5)], DESCRIPTION))
    assert told["channels"] == (
        "0 FLAIR, 1 T2; data.init_args.channel says which is used, data.init_args.channels which are used together"
    )
    assert told["spacing"] == "2 to 3 mm in a slice, 5 to 7.5 mm between slices"
    assert told["lesions"].startswith("4 of class 1 bright, 2 of class 2 dark; 6.77 mm across in the median, ")
    assert told["touching"] == "4 of 6 lesions touch another one (67%)"
    assert told["proposal"].startswith("pixel_mm 0.6, patch_px 128, tile_px 128: the median lesion is 11 pixels across")
    assert "; 1 tile a slice" in told["proposal"]  # 60 mm are 100 pixels


def test_labels_without_ids_say_what_they_cannot_tell() -> None:
    assert "hold no ids (instancesTr" in dict(describe([scan(instances=False)], DESCRIPTION))["touching"]


@pytest.mark.parametrize("median_mm", [0.003, 0.1, 1.0, 2.99, 4.66, 18.7, 99.0, 1200.0])
@pytest.mark.parametrize("crowded", [False, True])
def test_the_median_lesion_is_ten_pixels_across_or_more_at_what_is_proposed(median_mm: float, crowded: bool) -> None:
    made = propose(np.array([median_mm / 2, median_mm, median_mm * 2]), crowded)
    across = median_mm / made.pixel_mm
    assert (20 <= across <= 30) if crowded else (10 <= across <= 15)
    assert made.patch_px >= 2 * 1.8 * across - 1 or made.patch_px == 512


@pytest.mark.parametrize(
    ("median_mm", "crowded", "pixel_mm"), [(2.99, False, 0.25), (18.7, False, 1.5), (12.2, True, 0.5)]
)
def test_the_proposals_are_round(median_mm: float, crowded: bool, pixel_mm: float) -> None:
    assert propose(np.array([median_mm]), crowded).pixel_mm == pixel_mm


@pytest.mark.parametrize(
    ("median_mm", "voxel_mm", "pixel_mm"),
    [(14.0, 3.0, 1.2), (14.0, 1.0, 0.6), (14.0, 1.6, 0.8), (40.0, 3.0, 1.5), (12.2, 0.5, 0.5)],
)
def test_crowded_lesions_are_not_proposed_pixels_that_no_voxel_fills(
    median_mm: float, voxel_mm: float, pixel_mm: float
) -> None:
    assert propose(np.array([median_mm]), True, voxel_mm).pixel_mm == pixel_mm
    assert propose(np.array([median_mm]), False, voxel_mm) == propose(np.array([median_mm]), False)


def test_measures_are_proposed_where_the_usual_ones_tell_nothing() -> None:
    told = dict(describe([scan(scale=0.001)], DESCRIPTION))["measures"]  # micrometres, written as they are
    assert told.startswith("for model.protocol and mois evaluate: surface_mm 0.002 (")
    assert "bins_ml [8e-11," in told
    assert "measures" not in dict(describe([scan(scale=3.0)], DESCRIPTION))


def test_scans_without_lesions_have_a_spacing() -> None:
    affine = torch.eye(4, dtype=torch.float64)
    empty = ScanFacts.of(
        Volume("a", "a", torch.ones(5, 6, 7), affine, torch.zeros(5, 6, 7, dtype=torch.int32), {}), True
    )
    assert dict(describe([empty], DESCRIPTION)).keys() == {"channels", "spacing"}


def test_doctor_tells_them_after_the_faults(make_dataset: Callable[..., Path]) -> None:
    findings = list(dataset(make_dataset(subjects=2)))
    topics = [finding.topic for finding in findings]
    assert topics == ["data", "channels", "spacing", "lesions", "touching", "proposal", "measures"]
    assert all(finding.good for finding in findings)
    assert findings[2] == Finding("spacing", True, "2 mm in a slice, 6 mm between slices")
