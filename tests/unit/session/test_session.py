"""A reader's session with a model that can be computed by hand."""

import csv
import json
from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch

from mois.session import InteractiveSession
from mois.sharing.bank import ExemplarBank
from tests.support.fake_model import TYPE_A, TYPE_B, FakePropagation, box, make_scan
from tests.support.session_fakes import A1, A2, B1, as_stack, lps, make_segmenter, three_lesions


@pytest.fixture
def scan():
    return three_lesions()


@pytest.fixture
def session(scan):
    return InteractiveSession(make_segmenter(), scan)


def count(session, lesion):
    return int((session.label_map() == lesion).sum())


def cells(where):
    """Voxels of a box as decoded at a quarter of the resolution: its four corner pixels are lost on every slice."""
    slices, rows, columns = (part.stop - part.start for part in where)
    return slices * (rows * columns - 4)


def key_of(session, lesion):
    return f"{session.volume.subject}:{lesion}@{session._about['scan_sha256'][:8]}"


def test_a_click_gives_a_lesion_in_three_dimensions_and_a_second_one_another(scan, session):
    assert session.click(lps(scan, 2, 20, 20)) == 1
    assert session.click(lps(scan, 3, 46, 32)) == 2
    labels = as_stack(session.label_map())
    assert labels.dtype == np.int32
    assert (labels == 1).sum() == cells(A1)
    assert (labels == 2).sum() == cells(A2)
    assert (labels[A1] == 1).sum() == cells(A1)
    rows = session.lesions()
    assert [row.id for row in rows] == [1, 2]
    assert rows[0].volume_ml == pytest.approx(cells(A1) * 1.5 * 1.5 * 5 / 1000)
    assert (rows[0].x_lps_mm, rows[0].y_lps_mm, rows[0].z_lps_mm) == pytest.approx((19.5 * 1.5, 19.5 * 1.5, 10.0))
    assert (rows[0].confidence, rows[0].origin, rows[0].exemplar, rows[0].clicks) == (
        1.0,
        "prompted",
        key_of(session, 1),
        1,
    )


def test_propagation_finds_what_is_like_the_clicked_ones_and_leaves_them_alone(scan, session):
    session.click(lps(scan, 2, 20, 20))
    assert session.propagate() == 1
    labels = as_stack(session.label_map())
    assert (labels[A2] == 2).all()
    assert (labels[B1] == 0).all()
    assert (labels == 1).sum() == cells(A1)
    row = session.lesions()[1]
    assert (row.origin, row.status, row.exemplar) == ("found", "open", key_of(session, 1))
    assert row.confidence == pytest.approx(1 / (1 + np.exp(-10)))


def test_found_lesions_keep_their_ids_from_one_propagation_to_the_next(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.click(lps(scan, 2, 40, 12))  # the other type
    session.propagate()
    assert [(row.id, row.origin) for row in session.lesions()] == [(1, "prompted"), (2, "found"), (3, "prompted")]


def test_a_click_on_a_found_lesion_makes_it_a_prompted_one_of_the_same_id(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    assert session.click(lps(scan, 3, 46, 32)) == 2
    assert session.lesions()[1].origin == "prompted"


def test_a_negative_click_corrects_a_found_lesion_where_it_falls_and_nowhere_else(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    before = as_stack(session.label_map()) == 2
    assert session.click(lps(scan, 4, 44, 30), lesion=2, positive=False) == 2
    after = as_stack(session.label_map()) == 2
    assert not after[4, 44, 30]
    assert np.array_equal(after[3], before[3])
    assert 0 < after[4].sum() < before[4].sum()


def test_corrections_hold_on_every_slice_whatever_is_clicked_afterwards(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 3, 18, 18), lesion=1, positive=False)
    session.click(lps(scan, 1, 22, 22), lesion=1)
    labels = as_stack(session.label_map())
    assert labels[3, 18, 18] == 0
    assert labels[1, 22, 22] == labels[2, 20, 20] == 1
    # the last one wins
    session.click(lps(scan, 3, 18, 18), lesion=1)
    assert as_stack(session.label_map())[3, 18, 18] == 1


def test_a_click_holds_even_where_the_model_does_not_follow(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 2, 30, 30), lesion=1)  # nothing there: the first click's intensity decides
    assert as_stack(session.label_map())[2, 30, 30] == 1
    session.click(lps(scan, 5, 20, 20), lesion=1, positive=False)  # not even tracked there
    assert as_stack(session.label_map())[5, 20, 20] == 0


def test_a_slice_clicked_away_ends_the_lesion_there():
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    session = InteractiveSession(make_segmenter(), scan)
    session.click(lps(scan, 1, 20, 20))
    assert np.flatnonzero(as_stack(session.label_map()).any((1, 2))).tolist() == [0, 1, 2, 3, 4, 5]
    session.click(lps(scan, 4, 20, 20), lesion=1, positive=False)  # 8 x 8 pixels: all of it
    assert np.flatnonzero(as_stack(session.label_map()).any((1, 2))).tolist() == [0, 1, 2, 3]


def test_every_clicked_slice_is_remembered_while_following():
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    session = InteractiveSession(make_segmenter(track_memory=0), scan)
    session.click(lps(scan, 1, 20, 20))
    seen = session._bench.segmenter.backbone.attended
    seen.clear()
    session.click(lps(scan, 5, 20, 20), lesion=1)
    # slice 5 knows slice 1; then 1 is followed to 2 and 3 and to 0, 5 back to 4
    assert seen == [
        [(4, True)],
        [(1, True), (-3, True)],
        [(2, True), (-2, True)],
        [(1, True), (5, True)],
        [(1, True), (-3, True)],
    ]


def test_boxes_and_masks_are_prompts_too(scan, session):
    assert session.box(lps(scan, 2, 16, 16), lps(scan, 2, 23, 23)) == 1
    assert count(session, 1) == cells(A1)
    mask = torch.zeros_like(scan.lesions)
    mask[30:34, 42:48, 3] = 1  # on one slice: taken as it is there, and followed to slice 4
    assert session.mask(mask) == 2
    labels = as_stack(session.label_map())
    assert np.array_equal(labels[3] == 2, as_stack(mask)[3] > 0)
    assert (labels[4] == 2).any()
    whole = scan.lesions == 3
    whole[10, 38, 3] = True
    assert session.mask(whole) == 3  # over two slices: the whole lesion
    assert torch.equal(session.label_map() == 3, whole)


def test_a_soft_mask_is_what_reaches_a_half(scan, session):
    hard = torch.zeros_like(scan.lesions)
    hard[30:34, 42:48, 3:5] = 1
    number = session.mask(torch.where(hard > 0, 0.9, 1e-4).to(torch.bfloat16))
    assert torch.equal(session.label_map() == number, hard > 0)


def test_a_mask_over_several_slices_replaces_all_that_was_there_before():
    scan = three_lesions()
    session = InteractiveSession(make_segmenter(), scan)
    lesion = session.click(lps(scan, 2, 20, 20))
    for first in (16, 20):
        whole = torch.zeros(scan.image.shape, dtype=torch.bool)
        whole[first : first + 3, 18:21, 1:4] = True  # nowhere near the click
        assert session.mask(whole, lesion=lesion) == lesion
        assert torch.equal(session.label_map() == lesion, whole)
    again = InteractiveSession(make_segmenter(), scan)
    alone = again.mask(whole)
    for each, number in ((session, lesion), (again, alone)):
        each.click(lps(scan, 2, 19, 21), lesion=number, positive=False)
    assert torch.equal(session.label_map() == lesion, again.label_map() == alone)


def test_prompted_and_locked_lesions_keep_their_voxels(scan, session):
    mask = torch.zeros_like(scan.lesions)
    mask[16:20, 16:24, 1:4] = 1  # half of A1
    session.mask(mask)
    assert session.click(lps(scan, 2, 20, 22)) == 2
    labels = session.label_map()
    assert torch.equal(labels == 1, mask > 0)
    assert count(session, 2) == cells(A1) - 3 * (4 * 8 - 2)
    session.lock(2)
    with pytest.raises(ValueError, match="lesion=2 is locked"):
        session.click(lps(scan, 2, 20, 22), lesion=2)
    with pytest.raises(ValueError, match="lies in lesion 2; give lesion=2"):
        session.click(lps(scan, 2, 20, 22))
    session.propagate()
    after = session.label_map()
    assert torch.equal(after == 1, mask > 0)
    assert torch.equal(after == 2, labels == 2)


def test_nothing_is_merged_across_a_locked_lesion():
    bar = box((2, 3), (20, 24), (10, 40))
    scan = make_scan([(TYPE_A, bar), (TYPE_A, A2)])
    session = InteractiveSession(make_segmenter(), scan)
    session.click(lps(scan, 3, 46, 32))
    middle = torch.zeros_like(scan.lesions)
    middle[22:26, 20:24, 2:4] = 1
    session.mask(middle)
    session.lock(2)
    assert session.propagate() == 2
    labels = as_stack(session.label_map())
    assert sorted([labels[2, 22, 12], labels[2, 22, 38]]) == [3, 4]
    assert (labels[2:4, 20:24, 22:26] == 2).all()


def test_a_rejected_lesion_goes_stays_away_and_becomes_a_negative_exemplar(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.reject(2)
    assert [exemplar.negative for exemplar in session.bank] == [False, True]
    assert session.propagate() == 0
    assert [row.id for row in session.lesions()] == [1]


def test_an_accepted_lesion_is_locked_and_an_exemplar(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.accept(2)
    row = session.lesions()[1]
    assert (row.status, row.confidence, row.exemplar) == ("accepted", 1.0, key_of(session, 2))
    assert session.bank.keys() == [key_of(session, 1), key_of(session, 2)]


def test_undo_and_redo_are_exact(scan, session):
    steps = [
        lambda: session.click(lps(scan, 2, 20, 20)),
        session.propagate,
        lambda: session.click(lps(scan, 4, 44, 30), lesion=2, positive=False),
        lambda: session.reject(2),
        lambda: session.click(lps(scan, 2, 40, 12)),
        lambda: session.lock(3),
        session.propagate,
    ]
    seen = [(session.label_map(), session.bank.keys(), session.lesions())]
    for step in steps:
        step()
        seen.append((session.label_map(), session.bank.keys(), session.lesions()))
    assert any(not torch.equal(one[0], two[0]) for one, two in pairwise(seen))

    def check(number):
        assert torch.equal(session.label_map(), seen[number][0])
        assert (session.bank.keys(), session.lesions()) == seen[number][1:]

    for number in reversed(range(len(steps))):
        assert session.undo()
        check(number)
    assert not session.undo()
    for number in range(1, len(steps) + 1):
        assert session.redo()
        check(number)
    assert not session.redo()
    session.undo()
    session.remove(3) if session.state.lesions[3].locked is False else session.unlock(3)
    assert not session.redo()  # a new action ends what could be redone


def test_every_tile_is_encoded_once_whatever_the_number_of_clicks(scan):
    segmenter = make_segmenter()
    session = InteractiveSession(segmenter, scan)
    assert segmenter.backbone.encoded == 0
    session.click(lps(scan, 2, 20, 20))
    first = segmenter.backbone.encoded
    tiles = len(session._bench.encoded.places)
    assert 0 < first < tiles
    for _ in range(3):
        session.click(lps(scan, 2, 21, 21), lesion=1)
        session.click(lps(scan, 3, 46, 32), lesion=session.state.next_id - 1 if 2 in session.state.lesions else None)
        session.propagate()
        session.undo()
    assert segmenter.backbone.encoded == tiles
    # beyond the budget: files, the same voxels
    session.redo()
    small = make_segmenter(memory_gib=0.0)
    again = InteractiveSession.replay(_journal_of(session), small, scan)
    assert small.backbone.encoded == tiles == again._bench.encoded.store.spilt
    assert again._bench.encoded.store.bytes_in_memory == 0
    assert torch.equal(again.label_map(), session.label_map())


def _journal_of(session):
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    session.save(folder)
    return folder


def test_a_saved_session_goes_on_as_if_it_had_never_been_left(scan, tmp_path):
    left, stayed = (InteractiveSession(make_segmenter(), scan, tmp_path / name) for name in ("left", "stayed"))
    for session in (left, stayed):
        session.click(lps(scan, 2, 20, 20))
        session.propagate()
        session.click(lps(scan, 4, 44, 30), lesion=2, positive=False)
        session.undo()
    left.close()
    back = InteractiveSession.load(tmp_path / "left", make_segmenter(), scan)
    for session in (back, stayed):
        assert session.redo()
        session.reject(2)
        session.click(lps(scan, 2, 40, 12))
        session.propagate()
    assert torch.equal(back.label_map(), stayed.label_map())
    assert back.lesions() == stayed.lesions()
    assert [a.name for a in back.actions] == [a.name for a in stayed.actions]
    for _ in range(6):
        assert back.undo() == stayed.undo()
        assert torch.equal(back.label_map(), stayed.label_map())
    again = InteractiveSession.replay(tmp_path / "left", make_segmenter(), scan)
    assert torch.equal(again.label_map(), back.label_map())
    again.redo()
    back.redo()
    for key, exemplar in again.state.exemplars.items():
        for name, token in exemplar.tokens.items():
            assert torch.equal(token, back.state.exemplars[key].tokens[name])


def test_an_unfinished_last_line_is_ignored_and_a_damaged_middle_refused(scan, tmp_path):
    session = InteractiveSession(make_segmenter(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    one = session.label_map()
    session.click(lps(scan, 3, 46, 32))
    session.close()
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])
    back = InteractiveSession.load(tmp_path, make_segmenter(), scan)
    assert torch.equal(back.label_map(), one)
    assert back.click(lps(scan, 3, 46, 32)) == 2
    back.close()
    assert len(journal.read_bytes().splitlines()) == 3
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:-9] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is cut short or no JSON"):
        InteractiveSession.load(tmp_path, make_segmenter(), scan)


def test_one_process_at_a_time_and_no_session_over_another(scan, tmp_path):
    session = InteractiveSession(make_segmenter(), scan, tmp_path)
    with pytest.raises(ValueError, match="is being written by this process"):
        InteractiveSession.load(tmp_path, make_segmenter(), scan)
    session.close()
    with pytest.raises(ValueError, match="holds a session already"):
        InteractiveSession(make_segmenter(), scan, tmp_path)


def test_a_session_is_refused_on_another_scan_model_or_setting(scan, tmp_path):
    InteractiveSession(make_segmenter(), scan, tmp_path).close()
    other = scan._replace(image=scan.image + 1)
    with pytest.raises(ValueError, match="another scan"):
        InteractiveSession.load(tmp_path, make_segmenter(), other)
    with pytest.raises(ValueError, match=r"inference\.threshold=0\.35, now it is 0\.5"):
        InteractiveSession.load(tmp_path, make_segmenter(threshold=0.5), scan)
    with pytest.raises(ValueError, match=r"inference\.precision=32, now it is bf16"):
        InteractiveSession.load(tmp_path, make_segmenter(precision="bf16"), scan)
    InteractiveSession.load(tmp_path, make_segmenter(precision="32"), scan).close()  # what `auto` is on a CPU
    changed = make_segmenter()
    changed.backbone.anchor.data += 1
    with pytest.raises(ValueError, match="another model"):
        InteractiveSession.load(tmp_path, changed, scan)


def test_results_are_files_on_the_scanners_grid(scan, tmp_path):
    session = InteractiveSession(make_segmenter(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.save()
    labels, sure = (nib.load(tmp_path / name) for name in ("lesions.nii.gz", "confidence.nii.gz"))
    assert labels.get_data_dtype() == np.int32
    assert sure.get_data_dtype() == np.float32
    assert np.allclose(labels.affine, scan.affine.numpy())
    assert np.array_equal(labels.get_fdata(), session.label_map().numpy())
    assert np.array_equal(sure.get_fdata()[labels.get_fdata() == 1], np.ones(cells(A1)))
    with (tmp_path / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["origin"], row["exemplar"]) for row in rows] == [
        ("1", "prompted", key_of(session, 1)),
        ("2", "found", key_of(session, 1)),
    ]
    assert len(ExemplarBank.load(tmp_path / "bank.safetensors", session._bench.identity, 1.5)) == 1


def test_a_bank_of_another_pixel_size_is_refused_and_not_kept(scan, tmp_path):
    session = InteractiveSession(make_segmenter(), scan, tmp_path)
    with pytest.raises(ValueError, match=r"was described at 0\.7 mm a pixel, this model looks at 1\.5 mm"):
        session.use_bank(ExemplarBank(session._bench.identity, 0.7))
    session.close()
    assert InteractiveSession.load(tmp_path, make_segmenter(), scan).actions == ()


def test_a_bank_of_one_scan_finds_the_lesions_of_another(scan, tmp_path):
    first = InteractiveSession(make_segmenter(), scan)
    first.click(lps(scan, 2, 20, 20))
    bank = tmp_path / "bank.safetensors"
    first.bank.save(bank)
    (key,) = first.bank.keys()
    later = make_scan([(TYPE_A, A2)], subject="later")
    session = InteractiveSession(make_segmenter(), later, tmp_path / "session")
    assert session.use_bank(bank) == 1
    assert session.propagate() == 1
    assert session.lesions()[0].exemplar == key
    session.close()
    again = InteractiveSession.replay(tmp_path / "session", make_segmenter(), later)
    assert torch.equal(again.label_map(), session.label_map())
    session = InteractiveSession.load(tmp_path / "session", make_segmenter(), later)
    session.reweigh(key, 0.0)
    session.propagate()
    assert session.bank[key].weight == 0
    session.forget(key)
    assert not len(session.bank)


def test_a_scan_of_the_same_name_takes_no_exemplar_away(scan, tmp_path):
    visit_1 = InteractiveSession(make_segmenter(), scan)
    visit_1.click(lps(scan, 2, 20, 20))
    visit_1.bank.save(tmp_path / "bank.safetensors")
    visit_2 = make_scan([(TYPE_B, B1), (TYPE_A, A2)])  # called scan, too
    session = InteractiveSession(make_segmenter(), visit_2, tmp_path / "session")
    session.use_bank(tmp_path / "bank.safetensors")
    session.click(lps(visit_2, 2, 40, 12))
    assert session.bank.keys() == [key_of(visit_1, 1), key_of(session, 1)]
    assert session.propagate() == 1  # what visit 1 showed is found in visit 2
    session.reject(2)
    assert len(session.bank) == 3
    session.close()
    again = InteractiveSession.replay(tmp_path / "session", make_segmenter(), visit_2)
    assert again.bank.keys() == session.bank.keys()


def test_another_exemplar_under_the_same_key_is_kept_beside_it(scan):
    session, other = (InteractiveSession(make_segmenter(), scan) for _ in range(2))
    session.click(lps(scan, 2, 20, 20))
    own = session.bank
    other.click(lps(scan, 2, 40, 12))  # another reader's first lesion of the same scan
    assert session.use_bank(other.bank) == 1
    first, second = session.bank
    assert (first.key, second.key) == (key_of(session, 1), f"{key_of(session, 1)}~{second.sha256[:8]}")
    assert first.same_as(own[first.key])
    session.use_bank(other.bank)
    session.use_bank(own)
    assert len(session.bank) == 2  # the same ones are there already
    third = InteractiveSession(make_segmenter(), scan)
    third.use_bank(other.bank)  # before a lesion of this scan has the key
    third.click(lps(scan, 2, 20, 20))
    assert len(third.bank) == 2


def test_the_journal_tells_places_in_mm_and_times(scan, tmp_path):
    session = InteractiveSession(make_segmenter(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    header, line = (json.loads(each) for each in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    assert header["subject"] == "scan"
    assert line["arguments"] == {"point_lps_mm": [30.0, 30.0, 10.0], "lesion": None, "positive": True}
    assert (line["number"], line["name"], line["result"]) == (1, "click", 1)
    assert 0 < line["seconds_computed"] <= line["seconds_waited"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.click((1e4, 0, 0)), "outside the scan"),
        (lambda s: s.click((float("nan"), 0, 0)), "three numbers"),
        (lambda s: s.click((30.0, 30.0, 10.0), lesion=7), "lesion=7 does not exist"),
        (lambda s: s.click((9.0, 9.0, 10.0), positive=False), "negative click outside every lesion"),
        (lambda s: s.box((30.0, 30.0, 0.0), (40.0, 40.0, 20.0)), "drawn on one slice"),
        (lambda s: s.mask(np.zeros((2, 2, 2))), "resample it"),
        (lambda s: s.mask(np.zeros((48, 64, 6))), "it is empty"),
        (lambda s: s.mask(np.full((48, 64, 6), 0.4)), "it is empty"),
        (lambda s: s.mask(np.where(np.arange(6) > 2, 5.0, -5.0) * np.ones((48, 64, 6))), "are no mask"),
        (lambda s: s.mask(np.full((48, 64, 6), np.nan)), "NaN"),
        (lambda s: s.mask(np.arange(6) * np.ones((48, 64, 6), int)), r"holds 5 labels \(1, 2, 3, 4, 5\)"),
        (lambda s: s.save(), "in memory alone"),
        (lambda s: s.reweigh("nobody", 1.0), "no exemplar nobody"),
    ],
)
def test_mistakes_are_told_in_one_line_and_change_nothing(session, act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act(session)
    assert "\n" not in str(caught.value)
    assert session.actions == ()
    assert session.state.lesions == {}


def test_the_scan_is_gone_through_again_only_for_other_exemplars(monkeypatch):
    scan, segmenter = three_lesions(), make_segmenter()
    session = InteractiveSession(segmenter, scan)
    asked = []
    propagate = segmenter.propagate
    monkeypatch.setattr(segmenter, "propagate", lambda *given: asked.append(given) or propagate(*given))
    session.click(lps(scan, 2, 20, 20))
    found = session.propagate()
    first = session.label_map()
    session.lock(1)
    assert session.propagate() == found
    assert len(asked) == 1  # the same exemplars, the same answer
    assert torch.equal(session.label_map(), first)
    session.reweigh(next(iter(session.state.exemplars)), 2.0)
    session.propagate()
    assert len(asked) == 2
    session.undo()
    session.undo()  # before the other weight
    session.propagate()
    assert len(asked) == 3  # one answer is kept, the latest


class Merging(FakePropagation):
    """Keeps the first of what is more than `most`, and notes how many exemplars it was handed."""

    def condense(self, exemplars, most):
        self.handed = exemplars.count
        return exemplars.pick(slice(0, most))


@pytest.mark.parametrize(("propagation", "taken"), [(FakePropagation(), 2), (Merging(), 41)])
def test_what_merges_exemplars_is_handed_all_of_them_and_others_the_most_different(propagation, taken):
    segmenter, scan = make_segmenter(most_exemplars=2), three_lesions()
    segmenter.propagation = propagation
    session = InteractiveSession(segmenter, scan)
    session.click(lps(scan, 2, 20, 20))
    bank = session.bank
    for number in range(41):
        bank.add(replace(bank[key_of(session, 1)], key=f"other:{number}", weight=min(1.0, number)))
    session.use_bank(bank)  # 42 exemplars, one of them without weight
    session.propagate()
    keys, asked = session._bench.asked(session.state)
    assert len(keys) == asked.count == len(session.attribute()) == taken
    assert "other:0" not in keys
    assert getattr(propagation, "handed", taken) == taken
