"""Sessions on scans written in all 48 orientations, at any spacing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mois.intensities import FIRST
from mois.records import Volume
from mois.session import InteractiveSession
from tests.support.fake_model import BLADDER, BODY, SKIN, TYPE_A
from tests.support.session_fakes import make_model

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
EDGES_MM = (54.0, 60.0, 48.0)
ONE = ((6.0, 24.0), (6.0, 30.0), (6.0, 24.0))  # RAS mm from the first corner: right, front, head
TWO = ((30.0, 48.0), (36.0, 54.0), (30.0, 48.0))


def body(spacing_mm: tuple[float, float, float], origin_mm: tuple[float, float, float]) -> Volume:
    """Two boxes of one intensity in a body, voxel axes to right, front and head."""
    shape = tuple(round(edge / step) for edge, step in zip(EDGES_MM, spacing_mm, strict=True))
    places = [(torch.arange(n) + 0.5) * step for n, step in zip(shape, spacing_mm, strict=True)]
    x, y, z = torch.meshgrid(*places, indexing="ij")
    image = torch.full(shape, BODY)
    lesions = torch.zeros(shape, dtype=torch.int32)
    image[x < 4] = SKIN
    image[x > EDGES_MM[0] - 4] = BLADDER
    for number, box in enumerate((ONE, TWO), start=1):
        inside = torch.ones(shape, dtype=torch.bool)
        for place, (low, high) in zip((x, y, z), box, strict=True):
            inside &= (place > low) & (place < high)
        image[inside], lesions[inside] = TYPE_A, number
    affine = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin_mm, dtype=torch.float64)
    return Volume("body", "body", image, affine, lesions, {1: 1, 2: 1})


def written_as(scan: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same scan with its voxel axes in another order and direction."""
    axes = [axis for axis, sign in enumerate(signs) if sign < 0]
    image, lesions = (array.permute(order).flip(axes).contiguous() for array in (scan.image, scan.lesions))
    move = torch.zeros(4, 4, dtype=torch.float64)
    move[3, 3] = 1
    for new, old in enumerate(order):
        move[old, new] = signs[new]
        move[old, 3] += 0 if signs[new] > 0 else image.shape[new] - 1
    return scan._replace(image=image, lesions=lesions, affine=scan.affine @ move)


def centre_lps_mm(box: tuple[tuple[float, float], ...], scan: Volume) -> tuple[float, float, float]:
    spacing = scan.affine.diagonal()[:3]
    x, y, z = (float(start) - float(step) / 2 + (low + high) / 2 for start, step, (low, high) in
               zip(scan.affine[:3, 3], spacing, box, strict=True))  # fmt: skip
    return -x, -y, z


def dice(one: torch.Tensor, two: torch.Tensor) -> float:
    return 2 * int((one & two).sum()) / (int(one.sum()) + int(two.sum()))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(
    spacing_mm=st.tuples(*[st.sampled_from([1.5, 2.0, 3.0, 6.0])] * 3),
    origin_mm=st.tuples(*[st.floats(-300, 300)] * 3),
    slice_axis=st.sampled_from(["auto", "left-right", "anterior-posterior", "superior-inferior"]),
)
def test_clicks_land_on_the_lesion_and_results_on_the_original_grid(order, signs, spacing_mm, origin_mm, slice_axis):
    plain = body(spacing_mm, origin_mm)  # it fills the scan: no background is to be found, so all that is not 0 is body
    scan = written_as(plain, order, signs)
    session = InteractiveSession(
        make_model(
            pixel_mm=1.5, tile_px=64, overlap=0.25, slice_axis=slice_axis, min_lesion_voxels=1, normalisation=FIRST
        ),
        scan,
    )
    clicked = centre_lps_mm(ONE, plain)
    assert session.click(clicked) == 1
    labels = session.label_map()
    assert labels.shape == scan.image.shape
    # the voxel under the click, by the affine alone
    ras = torch.tensor([-clicked[0], -clicked[1], clicked[2], 1.0], dtype=torch.float64)
    voxel = torch.linalg.solve(scan.affine, ras)[:3].round().long().tolist()
    assert scan.lesions[tuple(voxel)] == labels[tuple(voxel)] == 1
    # the fake model takes a voxel's blurred border for something else: what is there is right, its rim may be missing
    assert torch.all(scan.lesions[labels == 1] == 1)
    session.propagate()
    found = session.label_map()
    assert torch.equal(scan.lesions[found > 0], found[found > 0])
    assert dice(found == 2, scan.lesions == 2) > 0.3
    x, y, z = (getattr(session.lesions()[1], f"{axis}_lps_mm") for axis in "xyz")
    assert np.allclose((x, y, z), centre_lps_mm(TWO, plain), atol=max(spacing_mm))


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(
    way=st.sampled_from(ORIENTATIONS),
    spacing_mm=st.permutations([1.5, 2.0, 6.0]),
    slice_axis=st.sampled_from(["auto", "left-right", "anterior-posterior", "superior-inferior"]),
)
def test_the_result_is_turned_as_the_scan_is_voxel_by_voxel(way, spacing_mm, slice_axis):
    order, signs = way
    plain = body(tuple(spacing_mm), (10.0, -20.0, 30.0))
    made = []
    for scan in (plain, written_as(plain, order, signs)):
        session = InteractiveSession(make_model(tile_px=64, slice_axis=slice_axis, normalisation=FIRST), scan)
        session.click(centre_lps_mm(ONE, plain))
        session.propagate()
        made.append(session)
    turned = plain._replace(lesions=made[0].label_map())
    assert torch.equal(made[1].label_map(), written_as(turned, order, signs).lesions)
    for one, two in zip(made[0].lesions(), made[1].lesions(), strict=True):
        assert (one.id, one.volume_ml) == pytest.approx((two.id, two.volume_ml))
        assert (one.x_lps_mm, one.y_lps_mm, one.z_lps_mm) == pytest.approx((two.x_lps_mm, two.y_lps_mm, two.z_lps_mm))
