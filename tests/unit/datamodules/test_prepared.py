"""Training scans that were prepared once and are mapped into memory give what scans in memory give."""

import errno
import logging
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules import prepared
from datamodules.nifti import NiftiDataModule
from datamodules.prepared import PreparedScans, key_of
from datamodules.subjects import LesionSlices
from mois.errors import DataError
from mois.scans.datasets import SubjectFiles
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.small_data import module_of

EPISODES = 12


def ready(root, folder=None, **options):
    data = module_of(root, **{"prepared": folder, "exemplars": 3, "episodes_per_epoch": EPISODES, **options})
    data.setup("fit")
    return data


def entries(folder):
    return sorted(folder.iterdir())


def unread(monkeypatch):
    """From now on nobody may read a scan."""

    def read(self, *args, **options):
        raise AssertionError(f"{self.subject} was read")

    monkeypatch.setattr(SubjectFiles, "read", read)


def same(ours, theirs):
    return all(
        torch.equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )


def is_mapped(array, path):
    """Tell whether an array lies in pages of a file that are shared and read-only, not in this process's own memory."""
    first = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, rights, *_ = line.split()
        start, stop = (int(edge, 16) for edge in place.split("-"))
        if line.endswith(str(path)) and start <= first and first + array.nbytes <= stop:
            return rights == "r--s"
    return False


@pytest.mark.parametrize("options", [{}, {"val_slab": 0.25}, {"num_workers": 1}, {"instances": False, "views": 2}])
def test_episodes_are_the_same_to_the_bit(make_dataset, tmp_path, options):
    root = make_dataset(subjects=3, instances=True)
    memory = ready(root, **options)
    first, second = (ready(root, tmp_path / "prepared", **options) for _ in range(2))
    expected = list(memory.train_dataloader())
    assert len(expected) == EPISODES / 2
    assert same(first.train_dataloader(), expected)
    assert same(second.train_dataloader(), expected)
    assert [s.name for s in second._prepared] == ["p0", "p1", "p2"]
    assert memory._slabs == first._slabs == second._slabs


def test_a_second_run_reads_no_scan_and_maps_what_it_needs(make_dataset, tmp_path, monkeypatch):
    root = make_dataset(subjects=2)
    ready(root, tmp_path / "prepared", val_slab=0.25)
    unread(monkeypatch)
    for subject in ready(root, tmp_path / "prepared", val_slab=0.25)._prepared:
        stacks = [subject.scan[name].data.numpy() for name in ("image", "lesions")]
        assert [stack.dtype for stack in stacks] == [np.float32, np.uint8]
        for array in (*stacks, *subject.table, subject.body):
            assert is_mapped(array, subject.path)
        assert not subject.body.flags.writeable


def test_an_episode_touches_its_patches_only(make_dataset, tmp_path):
    data = ready(make_dataset(), tmp_path / "prepared")
    maps = {s.scan[name].data.untyped_storage().data_ptr() for s in data._prepared for name in ("image", "lesions")}
    touched = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            from_map = isinstance(args[0] if args else None, torch.Tensor) and pointer(args[0]) in maps
            if from_map and pointer(result) not in maps:  # no mere view
                some = result if operation is torch.ops.aten.index.Tensor else args[0]
                touched.append(some.numel())
            return result

    def pointer(tensor):
        return tensor.untyped_storage().data_ptr()

    with Reads():
        list(data.train_dataloader())
    assert max(touched) == 32 * 32


def test_a_process_that_is_spawned_maps_the_file_again(make_dataset, tmp_path):
    subject = ready(make_dataset(), tmp_path / "prepared")._prepared[0]
    sent = pickle.dumps(subject)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert (again.name, again.patient, again.path) == (subject.name, subject.patient, subject.path)
    assert torch.equal(again.scan["image"].data, subject.scan["image"].data)
    assert is_mapped(again.scan["image"].data.numpy(), again.path)


def test_who_prepares_at_the_same_time_disturbs_nobody(make_dataset, tmp_path):
    root = make_dataset(subjects=3)
    expected = list(ready(root).train_dataloader())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ready(root, tmp_path / "prepared"), range(4)))
    assert [path.suffix for path in entries(tmp_path / "prepared")] == [".scan"] * 3
    assert all(same(data.train_dataloader(), expected) for data in found)


@pytest.mark.parametrize("given", ["elsewhere", None])
def test_ranks_share_the_scans_out_also_where_nobody_said_where(make_dataset, tmp_path, monkeypatch, caplog, given):
    folder = tmp_path / given if given else tmp_path / "run" / "prepared"
    root, made = make_dataset(subjects=3), {0: [], 1: []}
    read = SubjectFiles.read

    def rank(number, waits):
        def noted(self, *args, **options):
            made[number].append(self.subject)
            return read(self, *args, **options)

        def other_rank(name):
            if waits:
                rank(1 - number, waits=False)
                monkeypatch.setattr(SubjectFiles, "read", noted)

        monkeypatch.setattr(SubjectFiles, "read", noted)
        data = NiftiDataModule(root, patch_px=32, pixel_mm=2.0, prepared=given and folder)
        barrier = SimpleNamespace(barrier=other_rank)
        data.trainer = SimpleNamespace(
            global_rank=number, world_size=2, strategy=barrier, default_root_dir=str(tmp_path / "run")
        )
        data.setup("fit")
        assert [subject.name for subject in data._prepared] == ["p0", "p1", "p2"]
        assert {subject.path.parent for subject in data._prepared} == {folder}

    with caplog.at_level(logging.INFO):
        rank(0, waits=True)
    assert made == {0: ["p0", "p2"], 1: ["p1"]}
    said = f"2 processes share their training scans in {folder} (data.init_args.prepared)"
    assert (said in caplog.messages) == (given is None)


def test_one_process_keeps_its_scans_in_memory_unless_told_otherwise(make_dataset, tmp_path):
    data = NiftiDataModule(make_dataset(subjects=1), patch_px=32, pixel_mm=2.0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, default_root_dir=str(tmp_path / "run"))
    data.setup("fit")
    assert not (tmp_path / "run").exists()


def test_what_shapes_a_prepared_scan_names_it(make_dataset, tmp_path):
    root, folder = make_dataset(subjects=1, instances=True), tmp_path / "prepared"
    count = 0
    for options in (
        {},
        {"pixel_mm": 1.0},
        {"patch_px": 64},
        {"slice_axis": "left-right"},
        {"instances": False},
        {"val_slab": 0.25},
        {"val_slab": 0.5},
    ):
        ready(root, folder, **options)
        count += 1
        assert len(entries(folder)) == count
    ready(root, folder, exemplars=1, seed=5, episodes_per_epoch=4)  # how episodes are drawn does not matter
    assert len(entries(folder)) == count
    files = [root / "imagesTr" / "p0_0000.nii.gz", None]
    assert len({key_of(files, (1,)), key_of(files, (2,)), key_of(files[::-1], (1,)), key_of(files[:1], (1,))}) == 4


def test_a_scan_that_changed_is_read_and_checked_again(make_dataset, tmp_path):
    root = make_dataset()
    before = ready(root, tmp_path / "prepared")._prepared
    _, classes, _ = scan_with_lesions(1)
    save_nifti(root / "labelsTr" / "p1.nii.gz", np.where(classes == 2, 0, classes).astype(np.uint8))
    after = ready(root, tmp_path / "prepared")._prepared
    assert [subject.kinds for subject in before] == [[1, 2], [1, 2]]
    assert [subject.kinds for subject in after] == [[1, 2], [1]]
    save_nifti(root / "labelsTr" / "p1.nii.gz", classes * np.uint8(5))
    with pytest.raises(DataError, match="holds label 5"):
        ready(root, tmp_path / "prepared")
    (root / "labelsTr" / "p1.nii.gz").unlink()
    with pytest.raises(DataError, match="scan p1 has no label map to train on"):
        ready(root, tmp_path / "prepared")


def cut_off(content):
    return content[:-1]


def flipped_bit(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


@pytest.mark.parametrize("damage", [cut_off, flipped_bit, lambda _: b"", lambda _: b"{}\n", lambda _: b"\x80" * 300])
def test_a_damaged_entry_is_made_again_and_said_once(make_dataset, tmp_path, caplog, damage):
    root = make_dataset()
    expected = list(ready(root, tmp_path / "prepared").train_dataloader())
    path = entries(tmp_path / "prepared")[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        data = ready(root, tmp_path / "prepared")
    assert path.read_bytes() == whole
    assert same(data.train_dataloader(), expected)
    assert len(caplog.messages) == 1
    assert "is damaged" in caplog.text
    assert "it is made again" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(make_dataset, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepared.os, "fsync", full)
    with pytest.raises(DataError, match=r"scan p0 takes 0 MB and cannot be written \(No space left .*; free some"):
        ready(make_dataset(), tmp_path / "prepared")
    assert entries(tmp_path / "prepared") == []


def test_a_folder_that_cannot_be_made_is_said(make_dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.init_args.prepared=.* cannot be made"):
        ready(make_dataset(), tmp_path / "file" / "prepared")


def test_what_a_killed_process_left_is_removed(tmp_path):
    old, new = tmp_path / ".a.scan.1.part", tmp_path / ".b.scan.2.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    PreparedScans(tmp_path)
    assert entries(tmp_path) == [new]


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (256, np.int16), (70_000, np.int32)])
def test_large_lesion_ids_are_kept(make_dataset, tmp_path, largest, kind):
    root = make_dataset(subjects=1, instances=True)
    ids = scan_with_lesions()[2]
    save_nifti(root / "instancesTr" / "p0.nii.gz", np.where(ids == 3, largest, ids).astype(np.int32))
    data = ready(root, tmp_path / "prepared")
    subject = data._prepared[0]
    assert subject.scan["lesions"].data.numpy().dtype == kind
    assert subject.table.lesion.max() == largest
    assert LesionSlices._fields == tuple(subject.table._asdict())
    assert same(data.train_dataloader(), ready(root).train_dataloader())


def test_voxels_beside_their_header_count(tmp_path):
    header = tmp_path / "a.mhd"
    header.write_bytes(b"ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"1")
    before = key_of([header], ())
    (tmp_path / "a.raw").write_bytes(b"2")
    assert key_of([header], ()) != before
    (tmp_path / "a.raw").unlink()
    with pytest.raises(DataError, match=r"a.mhd: its voxels are in a.raw, which is missing"):
        key_of([header], ())
    attached = tmp_path / "b.nrrd"
    attached.write_bytes(b"NRRD0004\ndimension: 3\n\ndata file: these are voxels")
    key_of([attached], ())
