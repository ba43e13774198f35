import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.loading import VolumeLoader
from datamodules.nifti import NiftiDataModule
from datamodules.slabs import cut_slab, slab_slices, usable_slices
from datamodules.splits import SplitSettings
from mois.cli.choose_scans import ScanChoice, choose_scans
from mois.errors import DataError
from mois.geometry import SliceGrid
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.intensities import Normalisation
from mois.records import Volume
from mois.scans.datasets import SubjectFiles
from mois.testing import ContractError, check_datamodule
from mois.training.module import ExemplarSegmenter
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.fake_model import FakeBackbone, FakePropagation
from tests.support.small_data import module_of


def names(subjects):
    return [subject.subject for subject in subjects]


def test_it_keeps_the_contract(make_dataset):
    check_datamodule(module_of(make_dataset(3), val_subjects=["p1"]))
    check_datamodule(module_of(make_dataset(3), val_slab=0.25))


def test_the_contract_wants_an_attribute_that_says_whether_trained_scans_validate(make_dataset, monkeypatch):
    """A method in its place would always count as true."""
    data = module_of(make_dataset(3), val_subjects=["p1"])
    monkeypatch.setattr(type(data), "validates_on_trained_scans", lambda self: False)
    with pytest.raises(ContractError, match="validates_on_trained_scans is a method, not a bool"):
        check_datamodule(data)


def test_who_trains_validates_and_tests(make_dataset):
    root = make_dataset(subjects=5, held_out=1)
    whole = module_of(root).splits
    assert (names(whole.train), names(whole.val), names(whole.test)) == (["p0", "p1", "p2", "p3", "p4"], [], ["p5"])
    chosen = module_of(root, train_subjects=["p4"], val_subjects=["p0"], test_subjects=["p2"]).splits
    assert tuple(map(names, chosen)) == (["p4"], ["p0"], ["p2"])
    rest = module_of(root, val_subjects=["p0"], test_subjects=["p2"]).splits
    assert names(rest.train) == ["p1", "p3", "p4"]


def test_folds_come_from_nnunets_file_or_from_patients(make_dataset):
    root = make_dataset(subjects=5)
    folds = [module_of(root, fold=fold).splits for fold in range(5)]
    assert sorted(name for fold in folds for name in names(fold.val)) == ["p0", "p1", "p2", "p3", "p4"]
    (root / "splits_final.json").write_text(json.dumps([{"train": ["p0", "p1"], "val": ["p4"]}]))
    assert names(module_of(root, fold=0).splits.train) == ["p0", "p1"]
    with pytest.raises(DataError, match="fold=1: there are 1 folds"):
        _ = module_of(root, fold=1).splits


def test_a_patient_in_two_splits_stops_the_run(make_dataset):
    root = make_dataset(subjects=3)
    (root / "subjects.csv").write_text("subject,patient\np0,anna\np1,berta\np2,anna\n")
    with pytest.raises(DataError, match=r"patient anna stands in train \(p0\) and in val \(p2\)"):
        module_of(root, val_subjects=["p2"]).setup("fit")


def test_whole_volumes_are_shared_out_unpadded(make_dataset):
    data = module_of(make_dataset(subjects=1, held_out=5))
    data.setup("test")
    seen = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        volumes = list(data.test_dataloader())
        assert all(isinstance(volume, Volume) for volume in volumes)
        seen.append([volume.subject for volume in volumes])
    assert seen == [["p1", "p3", "p5"], ["p2", "p4"]]
    stays = ExemplarSegmenter.transfer_batch_to_device(SimpleNamespace(), volumes[0], torch.device("meta"), 0)
    assert stays is volumes[0]


def test_a_rank_without_volumes_takes_part():
    # a loader of length 0 would not even start to validate, and the other ranks would wait for it
    loaders = [VolumeLoader([lambda: "p0"], rank, 2) for rank in (0, 1)]
    assert [len(loader) for loader in loaders] == [1, 1]
    assert [list(loader) for loader in loaders] == [["p0"], []]
    assert len(VolumeLoader([])) == 0


def test_lesion_ids_are_used_where_there_are_any(make_dataset):
    root = make_dataset(instances=True)
    ids = scan_with_lesions()[2]
    save_nifti(root / "instancesTr" / "p0.nii.gz", np.where(ids == 3, 70_000, ids).astype(np.int32))
    data = module_of(root, val_subjects=["p0"])
    data.setup("fit")
    assert 70_000 in next(iter(data.val_dataloader())).classes
    without = module_of(root, val_subjects=["p0"], instances=False)
    assert max(next(iter(without.val_dataloader())).classes) == 12


def test_a_slab_is_validated_on_and_never_trained_on(make_dataset):
    data = module_of(make_dataset(subjects=2), val_slab=0.25)
    assert data.validates_on_trained_scans
    assert not module_of(make_dataset(subjects=2), val_subjects=["p0"]).validates_on_trained_scans
    data.setup("fit")
    for prepared, volume in zip(data._prepared, data.val_dataloader(), strict=True):
        whole = data._read(data.splits.train[int(prepared.name[1])])
        slab = slab_slices(whole, 0.25)
        assert len(slab) == 2
        stack = SliceGrid.of(tuple(whole.image.shape), whole.affine).to_stack(whole.image)
        grid = SliceGrid.of(tuple(volume.image.shape), volume.affine, "anterior-posterior")
        assert torch.equal(grid.to_stack(volume.image), stack[slab.start : slab.stop])
        assert not set(prepared.table.slice.tolist()) & set(slab)
        assert not prepared.scan["image"].data[..., slab.start : slab.stop].any()
        assert set(volume.classes) == set(volume.lesions.unique().tolist()) - {0}


def test_a_slab_holds_its_share_of_lesions_and_stays_in_place():
    lesions = torch.zeros(4, 10, 4, dtype=torch.int32)  # right-left, anterior-posterior, superior-inferior
    for number, at in enumerate([0, 1, 4, 9]):
        lesions[1, at, 1] = number + 1
    affine = torch.diag(torch.tensor([1.0, 5.0, 1.0, 1.0], dtype=torch.float64))
    volume = Volume("s", "p", torch.rand(4, 10, 4), affine, lesions, {1: 1, 2: 1, 3: 1, 4: 1})
    # slices run from anterior (index 9) to posterior; two of them hold one of four lesions: 0 and 1 do
    slab = slab_slices(volume, 0.25)
    assert slab == range(0, 2)
    assert usable_slices(volume, slab).tolist() == [False] * 2 + [True] * 8
    part = cut_slab(volume, slab)
    assert part.image.shape == (4, 2, 4)
    assert part.classes == {4: 1}
    assert (part.affine @ torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)).tolist() == [1, 45, 1, 1]
    assert part.lesions[1, 1, 1] == 4


def no_lesions(root):
    for number in (0, 1):
        save_nifti(root / "labelsTr" / f"p{number}.nii.gz", np.zeros((40, 8, 48), np.uint8))


def no_lesions_in_one(root):
    save_nifti(root / "labelsTr" / "p0.nii.gz", np.zeros((40, 8, 48), np.uint8))


def truncated(root):
    file = root / "imagesTr" / "p1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-500])


def not_finite(root):
    image = scan_with_lesions()[0]
    image[5, 5, 5] = np.nan
    save_nifti(root / "imagesTr" / "p1_0000.nii.gz", image)


def other_shape(root):
    save_nifti(root / "labelsTr" / "p1.nii.gz", np.ones((40, 8, 40), np.uint8))


def other_affine(root):
    save_nifti(root / "labelsTr" / "p1.nii.gz", scan_with_lesions(1)[1], np.eye(4))


def undeclared(root):
    save_nifti(root / "labelsTr" / "p1.nii.gz", scan_with_lesions(1)[1] * 5)


def unlabelled(root):
    (root / "labelsTr" / "p1.nii.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (no_lesions, {}, "none of the 2 training scans has a lesion"),
        (truncated, {}, "imagesTr/p1_0000.nii.gz: cut off"),
        (truncated, {"train_subjects": ["p0"], "val_subjects": ["p1"]}, "imagesTr/p1_0000.nii.gz: cut off"),
        (not_finite, {}, "p1_0000.nii.gz: 1 voxels are NaN"),
        (other_shape, {}, "labelsTr/p1.nii.gz: shape"),
        (other_affine, {}, "labelsTr/p1.nii.gz: its affine differs"),
        (undeclared, {}, "holds label 5"),
        (unlabelled, {}, "scan p1 has no label map to train on"),
        (lambda root: None, {"patch_px": 416}, "patch_px=416 at pixel_mm=2.0 is 832 mm, more than 4 times subject p0"),
        (lambda root: None, {"channel": 1}, "no image of channel 1"),
        (lambda root: None, {"train_subjects": ["p9"]}, "train_subjects: no scan is called 'p9'"),
        (lambda root: None, {"val_subjects": ["p0", "p1"]}, "no scan is left to train on"),
        (lambda root: (root / "dataset.json").unlink(), {}, "dataset.json: no such file"),
    ],
)
def test_bad_data_stops_before_training_with_one_line(make_dataset, damage, options, message):
    root = make_dataset()
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        module_of(root, **options).setup("fit")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(root), "")) < 250


@pytest.mark.parametrize("options", [{"val_subjects": ["p0", "p1", "p2"]}, {"val_slab": 0.25}], ids=["scans", "slabs"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_ranks_check_each_scan_once_among_them(make_dataset, monkeypatch, stage, options):
    root, read, checked, shares = make_dataset(subjects=3, held_out=3), SubjectFiles.read, [], []

    def noted(self, *arguments, **keywords):
        checked.append(self.subject)
        return read(self, *arguments, **keywords)

    monkeypatch.setattr(SubjectFiles, "read", noted)
    for rank in (0, 1):
        data = module_of(root, **options)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        data.setup(stage)
        shares.append(checked[:])
        checked.clear()
        loader = data.val_dataloader() if stage == "validate" else getattr(data, f"{stage}_dataloader")()
        assert [volume.subject for volume in loader] == shares[rank] == checked
        checked.clear()
    assert len({*shares[0], *shares[1]}) == 3 == len(shares[0] + shares[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_scan_of_one_rank_ends_all_with_its_line(make_dataset, monkeypatch, rank):
    root = make_dataset(subjects=2)
    truncated(root)  # p1, rank 1's
    line = "p1_0000.nii.gz: the file is cut short"
    own = []

    def gather(parts, part):
        own.append(part)
        parts[:] = [None, part or line]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    data = module_of(root, val_subjects=["p0", "p1"])
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    with pytest.raises(DataError, match=r"p1_0000.nii.gz"):
        data.setup("validate")
    assert (own[0] is None) == (rank == 0)


def test_one_scan_without_lesions_is_no_error(make_dataset):
    root = make_dataset()
    no_lesions_in_one(root)
    data = module_of(root)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).support_valid[:, 0].any()


@pytest.mark.parametrize("stage", ["test", TrainerFn.TESTING])  # Lightning gives its enum
def test_testing_needs_scans(make_dataset, stage):
    with pytest.raises(DataError, match="nothing to test on"):
        module_of(make_dataset()).setup(stage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_px": 100}, "multiple of 32"),
        ({"val_slab": 1.0}, "val_slab=1.0"),
        ({"val_slab": 0.2, "fold": 0}, "leave out fold"),
        ({"fold": 0, "train_subjects": ["p0"]}, "leave out train_subjects"),
        ({"pixel_mm": 0.0}, "pixel_mm=0.0"),
        ({"batch_size": 0}, r"data\.init_args\.batch_size=0 must be 1 or more\."),
        ({"episodes_per_epoch": 0}, r"data\.init_args\.episodes_per_epoch=0 must be 1 or more\."),
        ({"num_workers": -1}, r"data\.init_args\.num_workers=-1 must be 0 or more\."),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        module_of(tmp_path, **options)


def test_lightning_must_not_share_the_episodes_out_again(make_dataset):
    data = module_of(make_dataset())
    data.setup("fit")
    flags = SimpleNamespace(use_distributed_sampler=True)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, accumulate_grad_batches=1, _accelerator_connector=flags)
    with pytest.raises(ValueError, match=r"trainer.use_distributed_sampler=true .* set it to false"):
        data.train_dataloader()
    flags.use_distributed_sampler = False
    assert next(iter(data.train_dataloader().order)) == [(0, 1), (0, 3)]


def test_the_fingerprint_follows_the_contents(make_dataset):
    root = make_dataset()
    before = module_of(root).fingerprint()
    assert before == module_of(root).fingerprint() != module_of(root, val_subjects=["p0"]).fingerprint()
    label = root / "labelsTr" / "p1.nii.gz"
    label.write_bytes(gzip.compress(gzip.decompress(label.read_bytes())[:-1] + b"\1"))
    assert before != module_of(root).fingerprint()


@pytest.mark.real_data
def test_the_real_scans_load(real_data):
    data = NiftiDataModule(
        real_data / "Dataset501_MSLesions",
        split=SplitSettings(train_subjects=["patient19"], test_subjects=["patient07"], val_slab=0.25),
        pixel_mm=1.0,
        batch_size=2,
    )
    data.setup("fit")
    data.setup("test")
    episode = next(iter(data.train_dataloader()))
    assert episode.support_valid.all()
    assert next(iter(data.val_dataloader())).image.shape[2] == round(0.25 * 125)
    assert len(next(iter(data.test_dataloader())).classes) == 37


@pytest.mark.parametrize("rule", ["body", "nonzero"])
def test_a_slab_is_seen_as_in_the_whole_scan(rule):
    image = torch.arange(1, 11).reshape(1, 1, 10).expand(8, 8, 10) * 100.0  # the slab holds the darkest slices
    image = torch.where(torch.arange(8)[:, None, None] < 2, 0.0, image)
    affine = torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0], dtype=torch.float64))
    volume = Volume("s", "p", image, affine, torch.zeros_like(image).int(), {})
    normalisation = Normalisation(rule)
    segmenter = VolumeSegmenter(
        FakeBackbone(), FakePropagation(), InferenceSettings(pixel_mm=1.0, normalisation=normalisation)
    )
    slab = cut_slab(volume, range(0, 3), normalisation=normalisation)
    whole = segmenter.encode(volume).pictures
    assert torch.equal(segmenter.encode(slab).pictures, whole[:3])
    assert not torch.equal(segmenter.encode(slab._replace(levels=None)).pictures, whole[:3])
    again = cut_slab(slab, range(1, 2), normalisation=normalisation)
    assert torch.equal(segmenter.encode(again).pictures, whole[1:2])


def test_it_knows_which_scans_another_split_trained_on(make_dataset):
    root = make_dataset(subjects=4, held_out=1)
    given = {"root": str(root), "train_subjects": ["p0", "p1"], "val_subjects": ["p2"], "val_slab": 0.0}
    data = module_of(root, train_subjects=["p3"], val_subjects=["p1", "p2"], test_subjects=["p0", "p4"])
    assert data.trained_on(given, "test") == ["p0"]
    assert data.trained_on(given, "validate") == ["p1"]
    assert data.trained_on({**given, "root": str(root.parent)}, "test") == []
    assert data.trained_on({**given, "train_subjects": ["gone"]}, "test") == []
    slabs = module_of(root, train_subjects=["p0"], val_slab=0.5)
    assert slabs.trained_on(given, "validate") == ["p0"]
    assert slabs.trained_on({**given, "val_subjects": None, "val_slab": 0.5}, "validate") == []


def test_another_fold_than_the_models_does_not_hide_what_it_was_trained_on(make_dataset):
    root = make_dataset(subjects=3)
    made = {"config": {"data": {"init_args": {"root": str(root), "fold": 0}}}}
    of_fold = {fold: module_of(root, fold=fold).splits.val[0].subject for fold in range(3)}
    assert choose_scans(root, ScanChoice("val"), made)[1] == []
    for fold in (1, 2):
        assert choose_scans(root, ScanChoice("val", fold=fold), made)[1] == [of_fold[fold]]
