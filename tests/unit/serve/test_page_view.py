"""What the page shows lies where the session has it, in any orientation."""

import base64
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch

from mois.geometry import SliceGrid
from mois.serve.page_view import PageView, ShownMask
from mois.session import InteractiveSession
from tests.support.session_fakes import lps, make_model, three_lesions

ORIENTATIONS = [(order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)]


def stored(scan, order, flips, turn=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    """The scan with its voxels stored in another order, and turned in space."""
    signs = [-1 if flip else 1 for flip in flips]
    change = np.zeros((4, 4))
    for new, old in enumerate(order):
        change[old, new] = signs[new]
        change[old, 3] += (scan.shape[old] - 1) if flips[new] else 0
    change[3, 3] = 1
    turned = np.eye(4)
    turned[:3, :3] = turn
    affine = torch.from_numpy(turned @ scan.affine.numpy() @ change)
    image = scan.image.permute(order).flip([axis for axis, flip in enumerate(flips) if flip]).contiguous()
    return scan._replace(image=image, affine=affine, lesions=torch.zeros(image.shape, dtype=torch.int32), path="")


def view_of(session):
    return PageView(session.volume, SliceGrid.of(session.volume.shape, session.volume.affine))


def unpacked(shape, masks: dict[int, ShownMask]):
    picture = np.zeros(shape, dtype=int)
    for value, mask in masks.items():
        count = int(np.prod(mask.shape))
        bits = np.unpackbits(np.frombuffer(base64.b64decode(mask.bits), np.uint8))[:count].reshape(mask.shape)
        region = tuple(slice(first, first + edge) for first, edge in zip(mask.corner, mask.shape, strict=True))
        picture[region][bits == 1] = value
    return picture


def in_view(volume, array):
    """The same by nibabel: axes towards right, front and head."""
    return np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(array, volume.affine.numpy())).dataobj)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_masks_and_places_lie_where_the_session_has_them(order, flips):
    angle = np.radians(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    plain = three_lesions()
    session = InteractiveSession(make_model(), stored(plain, order, flips, turn))
    view = view_of(session)
    for place in ((2, 20, 20), (2, 40, 12)):
        point = turn @ (np.array(lps(plain, *place)) * [-1, -1, 1]) * [-1, -1, 1]
        voxel = view.voxel(point)
        assert np.allclose(view.lps_mm(voxel), point)
        shown = session.preview(view.lps_mm(voxel))
        lesion = session.click(view.lps_mm(voxel))
        mask = session.state.lesions[lesion].mask
        painted = unpacked(view.shape, {1: view.mask(mask)})
        assert np.array_equal(painted, in_view(session.volume, (session.label_map() == lesion).int().numpy()))
        assert painted[voxel] == 1
        assert painted[view.middle(mask)] == 1
        preview = unpacked(view.shape, {1: view.preview(shown)})
        index = voxel[view.slice_axis]
        assert np.array_equal(preview.take(index, view.slice_axis), painted.take(index, view.slice_axis))
        assert preview.sum() == preview.take(index, view.slice_axis).sum()


def test_image_has_the_scans_values_on_straight_axes():
    scan = stored(three_lesions(), (2, 0, 1), (True, False, True))
    view = PageView(scan, SliceGrid.of(scan.shape, scan.affine))
    picture = nib.Nifti1Image.from_bytes(view.image())
    assert np.allclose(picture.get_fdata(), in_view(scan, scan.image.numpy()), atol=1e-6)
    assert np.allclose(picture.affine, np.diag([*view.spacing_mm, 1]))
    assert picture.header["cal_min"] < picture.header["cal_max"]
