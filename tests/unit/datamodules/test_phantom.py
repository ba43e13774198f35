import csv
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from datamodules.phantoms import phantom as phantoms
from datamodules.phantoms.body import DISTRACTORS
from datamodules.phantoms.lesion_types import NAMED_TYPES, draw_lesion_types
from datamodules.phantoms.phantom import Phantom, make_patient, make_phantom, make_slab, write_dataset

NAMED = list(NAMED_TYPES.values())
SMALL = {"shape": (14, 128, 80), "spacing_mm": (15.6, 6.0, 6.0), "lesions": (5, 8)}  # a whole body in 0.02 s
NEIGHBOURS = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def bodies() -> list[Phantom]:
    """Eight scans of the default size, with 20 to 40 lesions of the four named types."""
    return [make_phantom(np.random.default_rng([1, seed]), NAMED, lesions=(20, 40)) for seed in range(8)]


def voxels(scan: Phantom) -> dict[int, int]:
    return {lesion: int((scan.instances == lesion).sum()) for lesion in scan.classes}


def semantic(scan: Phantom, kind: int) -> np.ndarray:
    return np.isin(scan.instances, [lesion for lesion, of in scan.classes.items() if of == kind])


# -- bodies


def test_every_lesion_has_8_voxels_and_is_one_piece(bodies: list[Phantom]) -> None:
    for scan in bodies:
        assert 20 <= len(scan.classes) <= 40
        assert set(np.unique(scan.instances)) == {0, *scan.classes}
        assert min(voxels(scan).values()) >= 8
        boxes = ndimage.find_objects(scan.instances)
        assert all(ndimage.label(scan.instances[b] == i + 1, NEIGHBOURS)[1] == 1 for i, b in enumerate(boxes))


def test_every_type_has_two_lesions_or_more(bodies: list[Phantom]) -> None:
    for scan in bodies:
        assert min(Counter(scan.classes.values()).values()) >= 2
        assert set(scan.classes.values()) == {1, 2, 3, 4}


def test_lesions_reach_from_8_voxels_to_50_ml(bodies: list[Phantom]) -> None:
    sizes = [size for scan in bodies for size in voxels(scan).values()]
    assert min(sizes) == 8
    assert 30 < max(sizes) * 0.0702 <= 50.1  # ml; a voxel of 7.8 x 3 x 3 mm has 0.0702
    assert np.median(sizes) * 0.0702 < 5


def test_touching_lesions_stay_two_instances(bodies: list[Phantom]) -> None:
    touching = 0
    for scan in bodies:
        for kind in (1, 2, 3, 4):
            pieces = ndimage.label(semantic(scan, kind), NEIGHBOURS)[1]
            touching += list(scan.classes.values()).count(kind) - pieces
    assert touching >= 8  # 26-connected components alone would lose these


def test_lesions_differ_from_their_surroundings_as_their_type_says(bodies: list[Phantom]) -> None:
    right = total = 0
    for scan in bodies:
        for index, found in enumerate(ndimage.find_objects(scan.instances)):
            box = tuple(slice(max(0, axis.start - 2), axis.stop + 2) for axis in found)
            mask, image = scan.instances[box] == index + 1, scan.image[box]
            ring = ndimage.binary_dilation(mask, NEIGHBOURS, iterations=2)
            ring &= (scan.instances[box] == 0) & (scan.distractors[box] == 0)
            inside, outside, kind = image[mask].mean(), image[ring].mean(), scan.classes[index + 1]
            right += np.sign(inside - outside) == np.sign(NAMED[kind - 1].contrast)
            total += 1
    assert right / total > 0.93  # a few lie at the skin or at an organ's edge


def test_distractors_are_no_lesions(bodies: list[Phantom]) -> None:
    seen = set()
    for scan in bodies:
        assert not ((scan.distractors > 0) & (scan.instances > 0)).any()
        seen |= set(np.unique(scan.distractors)) - {0}
    assert {DISTRACTORS[name] for name in ("bladder", "csf", "vessel", "kidney", "eye", "node")} <= seen
    assert DISTRACTORS["cyst"] not in seen  # it would look like a lesion of the type solid_bright


def test_same_seed_same_voxels() -> None:
    first, second, other = (make_phantom(np.random.default_rng(seed), NAMED, **SMALL) for seed in (3, 3, 4))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.instances, second.instances)
    assert first.classes == second.classes
    assert not np.array_equal(first.image, other.image)


def test_scans_of_one_patient_share_body_and_lesions() -> None:
    scans = make_patient(np.random.default_rng(5), NAMED, sessions=4, **{**SMALL, "lesions": (12, 12)})
    first = scans[0]
    assert len(scans) == 4
    changed = 0
    for scan in scans[1:]:
        assert np.array_equal(scan.distractors, first.distractors)
        still = scan.instances.astype(bool) | first.instances.astype(bool)
        assert np.corrcoef(scan.image[~still], first.image[~still])[0, 1] > 0.9  # the same body
        assert not np.array_equal(scan.image, first.image)  # seen anew
        kept = set(scan.classes) & set(first.classes)
        assert len(kept) >= 11
        assert min(voxels(scan).values()) >= 8
        assert all(scan.classes[lesion] == first.classes[lesion] for lesion in kept)
        for lesion in kept:
            centre = np.argwhere(first.instances == lesion).mean(0)
            assert np.linalg.norm((np.argwhere(scan.instances == lesion).mean(0) - centre) * (15.6, 6, 6)) < 25
        changed += sum(voxels(scan)[lesion] != voxels(first)[lesion] for lesion in kept)
    assert changed > 10
    assert any(set(scan.classes) - set(first.classes) for scan in scans)  # a new one


def test_more_lesions_than_room() -> None:
    with pytest.raises(ValueError, match="of 400 lesions; lower lesions"):
        make_phantom(np.random.default_rng(0), NAMED, **{**SMALL, "shape": (6, 40, 30), "lesions": (400, 400)})


@pytest.mark.parametrize("lesions", [(0, 3), (5, 4)])
def test_lesions_out_of_range(lesions: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"lesions as \(fewest, most\)"):
        make_phantom(np.random.default_rng(0), NAMED, **{**SMALL, "lesions": lesions})


# -- slabs


def test_slabs_have_their_shape_and_their_lesions() -> None:
    full = 0
    for seed in range(20):
        rng = np.random.default_rng([2, seed])
        scan = make_slab(rng, draw_lesion_types(rng, 2), slices=5, height_px=160, width_px=128, pixel_mm=1.5)
        assert scan.image.shape == scan.instances.shape == scan.distractors.shape == (5, 160, 128)
        assert scan.image.dtype == np.float32
        assert scan.spacing_mm == (7.8, 1.5, 1.5)
        assert set(np.unique(scan.instances)) == {0, *scan.classes}
        assert min(voxels(scan).values()) >= 8
        full += min(Counter(scan.classes.values()).values()) >= 2 and len(set(scan.classes.values())) == 2
    assert full >= 19


def test_slab_resampling_by_hand() -> None:
    matrix, nearest = phantoms._resampling(2, 3.0, 4, 1.5)
    assert matrix.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert nearest.tolist() == [0, 0, 1, 1]


# -- files


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    write_dataset(out, subjects=4, test_subjects=2, sessions=2, seed=7, **SMALL)
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_same_seed_same_bytes(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.0)  # gzip would store the hour of writing
    write_dataset(tmp_path / "again", subjects=4, test_subjects=2, sessions=2, seed=7, **SMALL)
    write_dataset(tmp_path / "other", subjects=2, sessions=2, seed=8, **SMALL)
    assert content(tmp_path / "again") == content(dataset)
    image = "imagesTr/phantom_0000_0000.nii.gz"
    assert content(tmp_path / "other")[image] != content(dataset)[image]


def test_a_smaller_dataset_is_the_beginning_of_a_larger_one(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, subjects=2, sessions=2, seed=7, **SMALL)
    small, large = content(tmp_path), content(dataset)
    scans = [name for name in small if name.endswith(".nii.gz")]
    assert len(scans) == 2 * 4
    assert all(small[name] == large[name] for name in scans)


def test_layout_is_nnunet_raw(dataset: Path) -> None:
    about = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    assert about == {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "solid_bright": 1, "ring": 2, "striped": 3, "dark": 4},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    for part, numbers in (("Tr", (0, 1, 2, 3)), ("Ts", (4, 5))):
        names = [f"phantom_{number:04d}" for number in numbers]
        assert sorted(f.name for f in (dataset / f"images{part}").iterdir()) == [f"{n}_0000.nii.gz" for n in names]
        for folder in ("labels", "instances", "distractors"):
            assert sorted(f.name for f in (dataset / f"{folder}{part}").iterdir()) == [f"{n}.nii.gz" for n in names]
    types = json.loads((dataset / "lesion_types.json").read_text(encoding="utf-8"))
    assert [types[name]["class"] for name in NAMED_TYPES] == [1, 2, 3, 4]
    assert types["dark"]["contrast"] == NAMED_TYPES["dark"].contrast


def test_labels_and_instances_tell_the_same(dataset: Path) -> None:
    for number in range(4):
        image = nib.load(dataset / f"imagesTr/phantom_{number:04d}_0000.nii.gz")
        label = nib.load(dataset / f"labelsTr/phantom_{number:04d}.nii.gz")
        instance = nib.load(dataset / f"instancesTr/phantom_{number:04d}.nii.gz")
        assert [file.get_data_dtype() for file in (image, label, instance)] == [np.int16, np.uint8, np.int32]
        assert np.array_equal(image.affine, label.affine)
        classes, ids = np.asarray(label.dataobj), np.asarray(instance.dataobj)
        assert np.array_equal(classes > 0, ids > 0)
        assert all(len(np.unique(classes[ids == lesion])) == 1 for lesion in np.unique(ids))
        assert set(np.unique(classes)) == {0, 1, 2, 3, 4}


def test_subjects_name_patient_and_session(dataset: Path) -> None:
    with (dataset / "subjects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == [f"phantom_{number:04d}" for number in range(6)]
    assert [row["patient"] for row in rows] == [f"patient_{number:04d}" for number in (0, 0, 1, 1, 2, 2)]
    assert [row["session"] for row in rows] == ["0", "1"] * 3


def test_file_axes_are_those_of_a_coronal_scan(tmp_path: Path) -> None:
    stack = np.zeros((2, 3, 4), np.int16)
    stack[0, 0, 0] = 1  # most anterior, most superior, most to the patient's right
    stack[1, 2, 3] = 2  # most posterior, inferior, left
    phantoms._write_nifti(tmp_path / "scan.nii.gz", stack, (10.0, 2.0, 1.0))
    file = nib.load(tmp_path / "scan.nii.gz")
    array = np.asarray(file.dataobj)
    assert nib.aff2axcodes(file.affine) == ("L", "S", "P")
    assert array.shape == (4, 3, 2)
    for value, world_ras_mm in ((1, (1.5, 5.0, 2.0)), (2, (-1.5, -5.0, -2.0))):
        voxel = np.argwhere(array == value)[0]
        assert (file.affine @ [*voxel, 1])[:3] == pytest.approx(world_ras_mm)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nii.gz"]  # no temporary file is left


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_dataset(tmp_path, subjects=2, seed=0, progress=lambda done, of: told.append((done, of)), **SMALL)
    assert told == [(1, 2), (2, 2)]


def test_the_same_command_twice_and_after_an_interruption_writes_the_same(tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, subjects=2, seed=0, progress=stop, **SMALL)
    assert not (tmp_path / "dataset.json").exists()  # the demo looks for it: it comes last
    write_dataset(tmp_path, subjects=2, seed=0, **SMALL)
    first = content(tmp_path)
    write_dataset(tmp_path, subjects=2, seed=0, **SMALL)
    assert content(tmp_path) == first


def test_a_folder_with_other_scans_is_refused_and_left_as_it_is(dataset: Path, tmp_path: Path) -> None:
    before = content(dataset)
    line = r"^out=.* holds phantoms of other settings: subjects \(4 there, 2 now\), test_subjects \(2 there, 0 now\); "
    with pytest.raises(ValueError, match=line + "choose another folder, or delete this one"):
        write_dataset(dataset, subjects=2, sessions=2, seed=7, **SMALL)
    with pytest.raises(ValueError, match="other settings: types; choose another"):
        write_dataset(dataset, subjects=4, test_subjects=2, sessions=2, seed=7, types=NAMED[:1], **SMALL)
    assert content(dataset) == before
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "p0_0000.nii.gz").touch()
    with pytest.raises(ValueError, match=r"^out=.* holds other scans; choose another folder"):
        write_dataset(tmp_path, subjects=1, seed=0, **SMALL)
    assert list(content(tmp_path)) == ["imagesTs/p0_0000.nii.gz"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subjects": 0}, "^subjects=0 must be 1 or more"),
        ({"subjects": 1, "test_subjects": -1}, "^test_subjects=-1 must be 0 or more"),
        ({"subjects": 1, "sessions": 0}, "^sessions=0 must be 1 or more"),
        ({"subjects": 3, "sessions": 2}, "subjects=3, test_subjects=0 must be multiples of sessions=2"),
        ({"subjects": 1, "types": [NAMED[0], NAMED[0]]}, "a name stands twice"),
    ],
)
def test_datasets_that_cannot_be_written(given: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path, seed=0, **given)
    assert not list(tmp_path.iterdir())
