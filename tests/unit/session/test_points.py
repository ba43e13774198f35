"""Points in LPS, RAS and voxels are the same places, and a mix-up is suspected where it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.playing import ras_warnings, requested_actions
from mois.session.points import VoxelPoint, ras_suspected, read_point, to_lps_mm
from mois.session.prompts.prompt_file import read_prompts
from tests.support.session_fakes import lps, make_model, three_lesions

OBLIQUE = torch.tensor(
    [[0.0, 0.0, 3.0, -40.0], [-0.8, 0.6, 0.0, 25.0], [0.6, 0.8, 0.0, 100.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)


def scan(affine: torch.Tensor, image: torch.Tensor | None = None) -> Volume:
    image = torch.ones(10, 12, 8) if image is None else image
    return Volume("a", "a", image, affine, torch.zeros(image.shape, dtype=torch.int32), {})


def asked(folder: Path, entries: list[Any], volume: Volume) -> Any:
    (folder / "prompts.json").write_text(json.dumps(entries))
    return requested_actions(read_prompts(folder / "prompts.json"), volume)


def test_a_voxel_is_where_the_affine_says() -> None:
    # RAS: x = 3 k - 40, y = -.8 i + .6 j + 25, z = .6 i + .8 j + 100
    point = to_lps_mm(VoxelPoint(5, 10, 2), scan(OBLIQUE))
    assert point == pytest.approx([34.0, -(-4.0 + 6.0 + 25.0), 3.0 + 8.0 + 100.0])
    assert to_lps_mm([1.0, 2.0, 3.0], scan(OBLIQUE)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("given", "point"),
    [
        ([1, -2.5, 3], [1.0, -2.5, 3.0]),
        ({"lps": [1, -2.5, 3]}, [1.0, -2.5, 3.0]),
        ({"ras": [1, -2.5, 3]}, [-1.0, 2.5, 3.0]),
        ({"ras": [0, 0, 3]}, [0.0, 0.0, 3.0]),
        ({"voxel": [4, 5, 6.5]}, VoxelPoint(4.0, 5.0, 6.5)),
    ],
)
def test_a_point_has_one_of_three_forms(given: Any, point: Any) -> None:
    read = read_point(given)
    assert read == point
    assert str(read) == str(point)  # no -0.0, which a journal would keep


@pytest.mark.parametrize(
    "given",
    [
        {"voxel": [1, 2]},
        {"voxel": [1, 2, "3"]},
        {"voxel": [1, 2, True]},
        {"voxel": {"i": 1}},
        {"voxel": None},
        {"vox": [1, 2, 3]},
        {"voxel": [1, 2, 3], "ras": [1, 2, 3]},
        {},
        [1, 2, 3, 4],
        "1,2,3",
        {"ras": [1e300, 0, 0]},
        [float("nan"), 0, 0],
    ],
)
def test_anything_else_is_refused_with_the_forms(given: Any) -> None:
    with pytest.raises(ValueError, match=r"a point must be three numbers.*\{\"voxel\": \[i, j, k\]\}"):
        read_point(given)


@pytest.mark.parametrize("voxel", [[10, 0, 0], [-1, 0, 0], [0, 12, 0], [0, 0, 7.6]])
def test_a_voxel_outside_the_scan_is_named_with_its_entry(tmp_path: Path, voxel: list[float]) -> None:
    wanted = r"entry 2: voxel=\[.*\] lies outside the scan, whose voxels are 0, 0, 0 to 9, 11, 7"
    with pytest.raises(ValueError, match=wanted):
        asked(tmp_path, [{"click": {"voxel": [0, 0, 0]}}, {"click": {"voxel": voxel}}], scan(OBLIQUE))


def test_clicks_and_boxes_in_any_form_are_the_same_action(tmp_path: Path) -> None:
    volume = three_lesions()
    point = lps(volume, 2, 20, 20)
    ras = [-point[0], -point[1], point[2]]
    index = torch.linalg.inv(volume.affine) @ torch.tensor([*ras, 1.0], dtype=torch.float64)
    voxel = index[:3].tolist()
    forms: list[Any] = [point, {"lps": point}, {"ras": ras}, {"voxel": voxel}]
    clicks = asked(tmp_path, [{"click": form} for form in forms], volume)[:-1]
    for one in clicks:
        assert one.arguments["point_lps_mm"] == pytest.approx(point)
    boxes = asked(tmp_path, [{"box": [form, point]} for form in forms], volume)[:-1]
    for one in boxes:
        assert one.arguments["corners_lps_mm"][0] == pytest.approx(point)


def test_a_point_outside_the_scan_whose_mirror_image_is_inside_may_be_ras() -> None:
    affine = torch.tensor([[2.0, 0, 0, 30.0], [0, 2.0, 0, 40.0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    volume = three_lesions()._replace(affine=affine)
    session = InteractiveSession(make_model(), volume)
    with pytest.raises(ValueError, match=r"lies outside the scan .*; did you give RAS\? Negate x and y"):
        session.click((40.0, 60.0, 4.0))
    with pytest.raises(ValueError, match=r"lies outside the scan .*; correct it"):
        session.click((40.0, 60.0, 400.0))


def test_a_dark_lesion_of_a_difference_image_is_not_air() -> None:
    image = torch.zeros(41, 41, 9)  # grey around a brain that became brighter here and darker there
    image[4:37, 4:37] = torch.linspace(-30, 30, 33)[:, None, None]
    image[28:33, 28:33] = -90.0  # RAS: x and y from 8 to 12
    image[8:13, 8:13] = 90.0
    affine = torch.eye(4, dtype=torch.float64)
    affine[:2, 3] = -20.0
    assert not ras_suspected([-10.0, -10.0, 4.0], scan(affine, image))
    assert not ras_suspected([10.0, 10.0, 4.0], scan(affine, image))


def test_a_click_into_the_air_whose_mirror_image_is_in_the_body_may_be_ras(tmp_path: Path) -> None:
    image = torch.zeros(41, 41, 9)
    image[24:38, 24:38] = 100.0  # RAS: x and y from 4 to 17
    affine = torch.eye(4, dtype=torch.float64)
    affine[:2, 3] = -20.0
    volume = scan(affine, image)
    wrong, right = [10.0, 10.0, 4.0], [-10.0, -10.0, 4.0]
    assert ras_suspected(wrong, volume)
    assert not ras_suspected(right, volume)
    assert not ras_suspected([0.0, 0.0, 4.0], volume)  # as dark either way
    entries = [{"click": right}, {"click": wrong}, {"click": wrong, "positive": False}]
    (doubt,) = ras_warnings(asked(tmp_path, entries, volume), volume)
    assert doubt.startswith("entry 2: [10.0, 10.0, 4.0] (LPS mm) lies outside the body")
    assert doubt.endswith('did you give RAS? Then write {"ras": [-10.0, -10.0, 4.0]}')
