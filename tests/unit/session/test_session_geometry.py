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


KINDS = ("click", "box", "scribble", "lasso", "mask")


def corner_lps_mm(place: tuple[float, float, float], scan: Volume) -> tuple[float, float, float]:
    """A place in RAS mm from the first corner of a scan of `body`, in LPS mm."""
    x, y, z = (float(start) - float(step) / 2 + mm for start, step, mm in
               zip(scan.affine[:3, 3], scan.affine.diagonal()[:3], place, strict=True))  # fmt: skip
    return -x, -y, z


def drawn_on(plain: Volume, across: int, low: float, high: float) -> list[tuple[float, float, float]]:
    """Corners of a square on the middle slice of ONE, from `low` to `high` of its edges in both directions."""
    middle = [(a + b) / 2 for a, b in ONE]
    corners = []
    for first, second in ((low, low), (low, high), (high, high), (high, low)):
        place, shares = list(middle), iter((first, second))
        for axis in range(3):
            if axis != across:
                start, end = ONE[axis]
                place[axis] = start + next(shares) * (end - start)
        corners.append(corner_lps_mm(tuple(place), plain))
    return corners


def prompt(session, kind, plain, across, scan_of, positive=True, lesion=None):
    """Prompt ONE: in its middle, or, negatively, in a corner of it."""
    low, high = (0.2, 0.8) if positive else (0.05, 0.4)
    square = drawn_on(plain, across, low, high)
    if kind == "click":
        return session.click(np.mean(square, axis=0), lesion, positive)
    if kind == "box":
        return session.box(square[0], square[2], lesion, positive)
    if kind in ("scribble", "lasso"):
        return getattr(session, kind)(square, lesion, positive)
    inside = torch.zeros_like(plain.lesions)
    start, stop = (plain.affine.inverse() @ torch.tensor([-x, -y, z, 1.0], dtype=torch.float64)
                   for x, y, z in (square[0], square[2]))  # fmt: skip
    first = torch.minimum(start, stop)[:3].round().long().tolist()
    last = torch.maximum(start, stop)[:3].round().long().tolist()
    inside[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = 1
    return session.mask(scan_of(plain._replace(lesions=inside)).lesions, lesion, positive)


def prompted(plain: Volume, across: int, scan_of) -> dict[str, torch.Tensor]:
    """The lesion that each kind of prompt gives, and what each negative one leaves of a clicked lesion."""
    session = InteractiveSession(make_model(tile_px=64, normalisation=FIRST), scan_of(plain))
    made = {}
    for kind in KINDS:
        assert prompt(session, kind, plain, across, scan_of) == 1
        made[kind] = session.label_map()
        assert session.undo()
    session.click(centre_lps_mm(ONE, plain))
    made["before"] = session.label_map()
    for kind in KINDS:
        assert prompt(session, kind, plain, across, scan_of, positive=False, lesion=1) == 1
        made[f"negative {kind}"] = session.label_map()
        assert session.undo()
    return made


@pytest.fixture(scope="module", params=range(3), ids=["sagittal", "coronal", "axial"])
def as_plain(request):
    """A scan whose slices lie across an axis of the patient, that axis, and what prompts give there."""
    across, spacing = request.param, [1.5, 2.0]
    spacing.insert(across, 6.0)
    plain = body(tuple(spacing), (10.0, -20.0, 30.0))
    return plain, across, prompted(plain, across, lambda scan: scan)


def test_prompts_of_every_kind_land_on_the_lesion(as_plain):
    plain, _, made = as_plain
    for kind in KINDS:
        found = made[kind] == 1
        assert found.sum() > 20
        assert torch.all(plain.lesions[found] == 1)
        negative = made[f"negative {kind}"] == 1
        assert 0 < negative.sum() < (made["before"] == 1).sum()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_prompts_of_every_kind_give_the_same_voxels_in_every_orientation(as_plain, order, signs):
    plain, across, made = as_plain
    turned = prompted(plain, across, lambda scan: written_as(scan, order, signs))
    for name, labels in made.items():
        assert torch.equal(turned[name], written_as(plain._replace(lesions=labels), order, signs).lesions), name
