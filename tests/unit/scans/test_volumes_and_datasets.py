import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from mois.errors import DataError
from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image, write_volume
from mois.scans.volumes import read_volume
from tests.support.datasets import save_nifti, scan_with_lesions

CLASSES = {1: "bright", 2: "dark"}


def read(image, label, **more):
    return read_volume(image, label, subject="s", patient="p", classes=CLASSES, **more)


@pytest.fixture
def files(tmp_path):
    image, classes, ids = scan_with_lesions()
    return (
        save_nifti(tmp_path / "image.nii.gz", image),
        save_nifti(tmp_path / "label.nii.gz", classes),
        save_nifti(tmp_path / "ids.nii.gz", ids),
    )


def test_a_semantic_label_becomes_lesions(tmp_path):
    # two voxels that touch at a corner are one lesion; a neighbour of another class is another
    values = np.zeros((4, 4, 4), np.uint8)
    values[0, 0, 0] = values[1, 1, 1] = 1
    values[1, 1, 2] = 2
    values[3, 3, 3] = 1
    image = save_nifti(tmp_path / "i.nii.gz", np.arange(64, dtype=np.int16).reshape(4, 4, 4))
    volume = read(image, save_nifti(tmp_path / "l.nii.gz", values))
    lesions = volume.lesions
    assert volume.image.dtype == torch.float32
    assert lesions.dtype == torch.int32
    assert volume.affine.dtype == torch.float64
    assert lesions[0, 0, 0] == lesions[1, 1, 1] != lesions[3, 3, 3]
    assert sorted(volume.classes.values()) == [1, 1, 2]
    assert volume.classes[int(lesions[1, 1, 2])] == 2
    assert volume.path == str(image)


def test_lesion_ids_keep_their_numbers(files):
    image, label, ids = files
    volume = read(image, ids, instances=True, semantic=label)
    assert volume.classes == {number: 1 + (number - 1) % 2 for number in range(1, 13)}
    assert torch.equal(volume.lesions, torch.from_numpy(scan_with_lesions()[2]))


def test_without_a_label_there_are_no_lesions(files):
    volume = read(files[0], None)
    assert not volume.lesions.any()
    assert volume.classes == {}


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_what_is_written_is_read_again(tmp_path, dtype):
    array = (torch.arange(24).view(2, 3, 4) + 2**20).to(dtype)
    affine = torch.tensor([[0, -3.0, 0, 5], [2, 0, 0, -7], [0, 0, 1.5, 9], [0, 0, 0, 1]], dtype=torch.float64)
    write_volume(array, affine, tmp_path / "deep" / "a.nii.gz")
    voxels, found = read_image(tmp_path / "deep" / "a.nii.gz")
    assert voxels.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert np.array_equal(voxels, array.numpy())
    assert np.allclose(found, affine.numpy())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.nii.gz"]


def test_results_are_nifti_only(tmp_path):
    with pytest.raises(ValueError, match=r"\.nii\.gz"):
        write_volume(torch.zeros(2, 2, 2), torch.eye(4), tmp_path / "a.mha")


def cut_off(image, label):
    image.write_bytes(image.read_bytes()[:-100])


def cut_off_checksum(image, label):
    image.write_bytes(image.read_bytes()[:-4])


def damaged(image, label):
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 255
    image.write_bytes(bytes(data))


def cut_off_inside(image, label):
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:-1000]))


def no_image(image, label):
    image.write_bytes(b"hello")


def not_finite(image, label):
    array = scan_with_lesions()[0]
    array[1, 2, 3] = np.nan
    array[1, 2, 4] = np.inf
    save_nifti(image, array)


def constant(image, label):
    save_nifti(image, np.full((40, 8, 48), 7, np.int16))


def other_shape(image, label):
    save_nifti(label, np.zeros((40, 8, 47), np.uint8))


def other_affine(image, label):
    affine = np.diag([2.0, 6.0, 2.0, 1.0])
    affine[0, 3] = 0.5
    save_nifti(label, scan_with_lesions()[1], affine)


def other_spacing(image, label):
    save_nifti(label, scan_with_lesions()[1], np.diag([2.0, 6.0, 2.001, 1.0]))


def undeclared(image, label):
    save_nifti(label, scan_with_lesions()[1] * 3)


def fractions(image, label):
    save_nifti(label, scan_with_lesions()[1] * np.float32(0.5))


def colours(image, label):
    save_nifti(image, np.zeros((4, 4, 4, 3), np.float32))


def no_orientation(image, label):
    picture = nib.Nifti1Image(scan_with_lesions()[0], None)
    nib.save(picture, image)


def missing(image, label):
    label.unlink()


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (cut_off, "image", "cut off"),
        (cut_off_checksum, "image", "cut off"),
        (damaged, "image", "cut off"),
        (cut_off_inside, "image", "cut off"),
        (no_image, "image", "cut off"),
        (not_finite, "image", "2 voxels are NaN or infinite"),
        (constant, "image", "every voxel is 7"),
        (other_shape, "label", r"shape \(40, 8, 47\) differs from \(40, 8, 48\) of image.nii.gz"),
        (other_affine, "label", "differs from that of image.nii.gz by 0.5 mm"),
        (other_spacing, "label", "by 0.048 mm"),
        (undeclared, "label", r"holds label 3, dataset.json declares \[1, 2\]"),
        (fractions, "label", "whole numbers"),
        (colours, "image", "4 x 4 x 4 x 3"),
        (no_orientation, "image", "nothing about orientation"),
        (missing, "label", "no such file"),
    ],
)
def test_a_broken_file_is_named_in_one_line(files, damage, file, message):
    image, label, _ = files
    damage(image, label)
    with pytest.raises(DataError, match=message) as caught:
        read(image, label)
    assert str(caught.value).startswith(str(image if file == "image" else label))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do


def test_an_origin_shift_within_the_tolerance_is_fine(files):
    image, label, _ = files
    affine = np.diag([2.0, 6.0, 2.0, 1.0])
    affine[2, 3] = 0.005
    save_nifti(label, scan_with_lesions()[1], affine)
    assert len(read(image, label).classes) == 12


@pytest.mark.parametrize("change", ["two classes in one lesion", "a lesion without class", "a voxel without id"])
def test_ids_and_classes_that_disagree_are_refused(files, change):
    image, label, ids = files
    _, classes, numbers = scan_with_lesions()
    inside = tuple(np.argwhere(numbers == 5)[0])
    if change == "two classes in one lesion":
        classes[inside] = 3 - classes[inside]
    elif change == "a lesion without class":
        classes[numbers == 5] = 0
    else:
        numbers[inside] = 0
    save_nifti(label, classes)
    save_nifti(ids, numbers)
    with pytest.raises(DataError, match="lesion id"):
        read(image, ids, instances=True, semantic=label)


def test_ids_alone_need_a_single_class(files):
    image, _, ids = files
    with pytest.raises(DataError, match="do not say their class"):
        read(image, ids, instances=True)
    one = read_volume(image, ids, subject="s", patient="p", classes={0: "background", 1: "lesion"}, instances=True)
    assert set(one.classes.values()) == {1}


@pytest.mark.parametrize("ending", ["mha", "nrrd", "nii"])
def test_every_format_stands_in_the_same_place(tmp_path, ending):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.array([[0, -3.0, 0, 5], [2, 0, 0, -7], [0, 0, 1.5, 9], [0, 0, 0, 1]])
    source = save_nifti(tmp_path / "a.nii.gz", array, affine)
    sitk.WriteImage(sitk.ReadImage(str(source)), str(tmp_path / f"b.{ending}"))
    voxels, found = read_image(tmp_path / f"b.{ending}")
    assert np.array_equal(voxels, array)
    assert np.allclose(found, affine)


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_other_formats_cut_off_are_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((9, 9, 9), np.float32)), str(path))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="cut off"):
        read_image(path)


def write_series(folder, slices):
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in slices:
        picture = sitk.GetImageFromArray(np.full((1, 4, 5), number, np.int16))
        picture.SetSpacing((2.0, 3.0, 6.0))
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|0013": str(number),
            "0020|0032": f"1\\2\\{6 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            picture.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        writer.Execute(picture)


def test_a_dicom_series_is_a_scan(tmp_path):
    write_series(tmp_path / "series", range(3))
    voxels, affine = read_image(tmp_path / "series")
    assert voxels.shape == (5, 4, 3)
    assert voxels[0, 0].tolist() == [0, 1, 2]
    assert np.allclose(affine, [[-2, 0, 0, -1], [0, -3, 0, -2], [0, 0, 6, 0], [0, 0, 0, 1]])


def test_a_dicom_series_with_a_gap_is_refused(tmp_path):
    write_series(tmp_path / "series", [0, 1, 3])
    with pytest.raises(DataError, match="6 to 12 mm apart"):
        read_image(tmp_path / "series")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 DICOM series"):
        read_image(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUMPY\x01\0", "is a NumPy array"),
        (b"\x28\xb5\x2f\xfd\0", "is compressed by zstd"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\x89PNG\r\n", "is a PNG picture"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / "scan.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"scan.nii.gz: {said}.* convert it to .nii.gz"):
        read_image(tmp_path / "scan.nii.gz")


def test_itk_prints_nothing_beside_our_line(tmp_path, capfd):
    (tmp_path / "junk").mkdir()
    for number in range(3):
        (tmp_path / "junk" / f"{number}.dcm").write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"0 DICOM series \(its 3 files, such as 0.dcm, are of none\); give one image"):
        read_image(tmp_path / "junk")
    with pytest.raises(DataError, match="cut off or of an unknown format"):
        read_image(tmp_path / "junk" / "0.dcm")
    assert capfd.readouterr() == ("", "")


def test_a_dataset_is_listed(make_dataset):
    root = make_dataset(subjects=2, held_out=1, instances=True)
    (root / "subjects.csv").write_text(
        "subject,patient,session,site\np0,anna,1,x\np1,anna,2,x\np2,berta,1,y\n", encoding="utf-8"
    )
    subjects = read_dataset(root)
    assert [(s.subject, s.patient, s.session, s.site, s.held_out) for s in subjects] == [
        ("p0", "anna", "1", "x", False),
        ("p1", "anna", "2", "x", False),
        ("p2", "berta", "1", "y", True),
    ]
    assert subjects[0].classes == CLASSES
    assert subjects[0].read().classes == {number: 1 + (number - 1) % 2 for number in range(1, 13)}
    assert len(subjects[0].read(instances=False).classes) == 12
    with pytest.raises(DataError, match="no image of channel 1"):
        subjects[0].read(1)


def test_blanks_around_a_patient_are_not_part_of_the_name(make_dataset):
    root = make_dataset(subjects=3)
    (root / "subjects.csv").write_text("subject, patient\np0,anna\np1,anna \n p2 ,\tberta\n", encoding="utf-8")
    assert [subject.patient for subject in read_dataset(root)] == ["anna", "anna", "berta"]


def test_a_subject_without_a_table_is_its_own_patient(make_dataset):
    assert [subject.patient for subject in read_dataset(make_dataset())] == ["p0", "p1"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset.json", "{", "no JSON"),
        ("dataset.json", json.dumps({"labels": {"a": 1}}), "needs labels and file_ending"),
        ("dataset.json", json.dumps({"labels": {"a": [1, 2]}, "file_ending": ".nii.gz"}), "one whole number"),
        ("dataset.json", json.dumps({"labels": {"a": 1, "b": 1}, "file_ending": ".nii"}), "'a' and 'b' are both 1"),
        ("dataset.json", json.dumps({"labels": {"a": 1}, "file_ending": ".png"}), "cannot be read"),
        ("dataset.json", json.dumps({"labels": {"0": "a"}, "file_ending": ".nii"}), "swap name and number"),
        ("dataset.json", json.dumps({"labels": {"a": 1}, "file_ending": ".nrrd"}), "no images .* to .nii.gz"),
        ("subjects.csv", "name\np0\n", "needs subject and patient"),
        ("subjects.csv", "subject,patient\np0,a\n", "subject p1 is missing"),
        ("subjects.csv", "subject,patient\n", "names no subject"),
        ("subjects.csv", "subject,patient\np0,a\np1,\n", "line 3 has no patient"),
        ("subjects.csv", "subject,patient\np0,a\n ,b\np1,c\n", "line 3 has no subject"),
        ("subjects.csv", "subject,patient\np0,a\np1,b\np0 ,b\n", "line 4 lists subject p0 a second time"),
        ("subjects.csv", "subject,patient\np0,anna\np1,Anna\n", "line 3: are patients 'anna' and 'Anna' the same"),
        ("subjects.csv", "subject,patient\np0,an na\np1,an\u00a0 na\n", "the same person"),
        ("subjects.csv", "subject,patient\np0,M\u00fcller\np1,Mu\u0308ller\n", "the same person"),
        ("imagesTr/p7.nii.gz", "", "rename it"),
        ("instancesTr/p0.nii", "", "the map of scan p0 is called p0.nii.gz; convert or rename it"),
        ("instancesTr/P1.nii.gz", "", "the map of scan p1 is called p1.nii.gz; convert or rename it"),
    ],
)
def test_a_wrong_dataset_is_explained_in_one_line(make_dataset, file, content, message):
    root = make_dataset()
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "cure"),
    [
        (["a_0000.dcm", "b_0000.dcm"], "convert a_0000.dcm and the other images"),
        ([".DS_Store"], r"set data.init_args.root to the dataset's folder"),
        ([], r"set data.init_args.root to the dataset's folder"),
    ],
)
def test_what_to_do_without_images_depends_on_what_is_there(tmp_path, there, cure):
    (tmp_path / "imagesTr").mkdir()
    for name in there:
        (tmp_path / "imagesTr" / name).touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"a": 1}, "file_ending": ".nii.gz"}))
    with pytest.raises(DataError, match=f"imagesTr: no images .SUBJECT_0000.nii.gz.; {cure}"):
        read_dataset(tmp_path)


def test_a_folder_without_dataset_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"data\.init_args\.root"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["p1_0000.nii", "p1_0000.NII.GZ", "p1_0000.mha", "p0_0001.nrrd"])
def test_an_image_of_another_ending_is_not_left_out_without_a_word(make_dataset, name):
    root = make_dataset(subjects=1)
    (root / "imagesTr" / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: scan p. is not read: dataset.json declares file_ending .nii.gz"):
        read_dataset(root)
    (root / "imagesTr" / name).rename(root / "imagesTr" / "p0_0000.json")  # what converters leave beside an image
    assert len(read_dataset(root)) == 1


def test_a_name_stands_for_one_scan_of_training_or_test(make_dataset):
    root = make_dataset(subjects=2)
    (root / "imagesTs").mkdir(exist_ok=True)
    shutil.copy(root / "imagesTr" / "p1_0000.nii.gz", root / "imagesTs" / "p1_0000.nii.gz")
    with pytest.raises(DataError, match=r"scan p1 is in imagesTr and in imagesTs; keep it in one of them, or rename"):
        read_dataset(root)
    (root / "imagesTs" / "p1_0000.nii.gz").rename(root / "imagesTs" / "p9_0000.nii.gz")
    assert [scan.subject for scan in read_dataset(root)] == ["p0", "p1", "p9"]
