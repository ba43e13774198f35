"""What a reader does through MONAI Label, without its server."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mois.scans.image_files import write_volume
from mois.serve.host import Host
from mois.serve.monailabel_app import reader
from mois.serve.monailabel_app.images import Images, checked_id
from mois.serve.monailabel_app.lesion_names import LesionNames
from mois.serve.monailabel_app.tasks import TASKS
from mois.session import InteractiveSession
from tests.support.scan_files import ORIENTATIONS, stored_otherwise
from tests.support.session_fakes import lps, make_model, three_lesions

A1, A2, B1 = (2, 20, 20), (3, 46, 32), (2, 40, 12)  # slice, row, column of a voxel in each lesion


def voxel(place):
    """[i, j, k] of the file: its axes are column, row, slice."""
    return [place[2], place[1], place[0]]


@pytest.fixture
def images(tmp_path):
    scan = three_lesions()
    write_volume(scan.image, scan.affine, tmp_path / "scan.nii.gz")
    opened = Images(tmp_path, Host(tmp_path / "sessions", make_model()))
    yield opened
    opened.host.close()


def run(images, task, **params):
    return TASKS[task].run(images.open(None, "scan"), params)


def click(images, label, foreground=(), background=()):
    points = {
        "foreground": [voxel(place) for place in foreground],
        "background": [voxel(place) for place in background],
    }
    return run(images, "click", label=label, **points)


def save(images, labels, names=None):
    return images.open(None, "scan").do(lambda session, known: reader.accept(session, known, labels, names))


def look(images, question):
    return images.open(None, "scan").seat.look(question)


def in_python(*clicks):
    session = InteractiveSession(make_model(), three_lesions())
    for place, lesion, positive in clicks:
        session.click(lps(session.volume, *place), lesion, positive)
    return session


def test_each_label_is_a_lesion_and_an_answer_holds_that_lesion_alone(images):
    click(images, "first", [A1])
    answer = click(images, "second", [B1])

    session = in_python((A1, None, True), (B1, None, True))
    assert np.array_equal(answer.labels, session.label_map() * (session.label_map() == 2))
    assert answer.params["label_names"] == {"second": 2}


def test_points_sent_again_are_not_clicked_again(images):
    click(images, "first", [A1])
    near = (2, 22, 22)
    answer = click(images, "first", [A1], [near])  # a viewer sends all points of the label

    session = in_python((A1, None, True), (near, 1, False))
    assert np.array_equal(answer.labels, session.label_map())
    assert look(images, lambda session: [action.name for action in session.actions]) == ["click", "click"]


def test_a_lesion_is_drawn_again_when_points_were_taken_away(images):
    click(images, "first", [A1], [(2, 22, 22)])
    answer = click(images, "first", [A1])

    assert np.array_equal(answer.labels > 0, in_python((A1, None, True)).label_map() > 0)


def test_propagation_names_found_lesions_in_the_order_of_their_values(images):
    click(images, "lesion 2", [A1])  # the name that lesion 2 would have
    answer = run(images, "propagate")

    values = np.unique(answer.labels[answer.labels > 0]).tolist()
    assert list(answer.params["label_names"].values()) == values
    assert answer.params["label_names"]["lesion 2"] == 1
    assert len(set(answer.params["label_names"])) == len(values) > 1


def test_a_rejected_lesion_is_gone_and_a_saved_label_does_not_bring_it_back(images):
    click(images, "first", [A1])
    before = run(images, "propagate")
    wrong = next(row["label"] for row in before.params["lesions"] if row["origin"] == "found")
    after = run(images, "reject", label=wrong)
    assert wrong not in after.params["label_names"]

    names = {value: name for name, value in before.params["label_names"].items()}
    saved = save(images, before.labels.numpy(), names)  # the viewer still shows it
    assert saved.left_out == [wrong]
    assert "first" in saved.accepted


def test_saving_accepts_the_lesions_of_the_label_and_leaves_the_others_open(images):
    click(images, "first", [A1])
    answer = run(images, "propagate")
    only = np.where(answer.labels.numpy() == 1, 7, 0).astype(np.int32)
    saved = save(images, only, {7: "first"})

    state = look(images, lambda session: session.state)
    assert saved.accepted == ["first"]
    assert state.lesions[1].accepted
    assert saved.open
    assert not any(state.lesions[number].accepted for number in state.lesions if number != 1)


def test_voxels_that_the_reader_changed_are_taken_as_drawn(images):
    labels = click(images, "first", [A1]).labels.numpy().copy()
    save(images, labels)
    i, j, k = np.argwhere(labels == 1)[0]
    labels[i, j, k] = 0
    labels[2:4, 2:4, 0] = 9  # a lesion that the reader drew by hand
    saved = save(images, labels, {1: "first", 9: "by hand"})

    assert saved.accepted == ["first", "by hand"]
    now = look(images, lambda session: session.label_map().numpy())
    assert np.array_equal(now > 0, labels > 0)


def test_names_and_lesions_are_there_after_a_restart(images):
    click(images, "first", [A1])
    before = run(images, "propagate")
    images.host.close()
    again = Images(images.folder, Host(images.folder / "sessions", make_model()))
    after = run(again, "lesions")
    again.host.close()

    assert np.array_equal(after.labels, before.labels)
    assert after.params == before.params


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "label must be a name"),
        ({"label": "a\nb"}, "label must be a name"),
        ({"label": "a", "foreground": [[1, 2]]}, "foreground: a point must be"),
        ({"label": "a", "foreground": "all"}, "foreground must be a list"),
        ({"label": "a", "foreground": [[1, 2, 99]]}, "lies outside the scan"),
        ({"label": "a", "foreground": [[float("nan"), 2, 3]]}, "foreground: a point must be"),
        ({"label": "a", "background": [[1, 2, 3]]}, "a has no lesion yet"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(images, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(images, "click", **given)
    assert "\n" not in str(caught.value)


def test_a_click_in_a_lesion_of_another_label_names_that_label(images):
    click(images, "first", [A1])
    with pytest.raises(ValueError, match="this place belongs to first; choose that label"):
        click(images, "second", [A1])


def test_an_unknown_label_cannot_be_rejected(images):
    click(images, "first", [A1])
    with pytest.raises(ValueError, match="label=other: has no lesion to reject; lesions: first"):
        run(images, "reject", label="other")


@pytest.mark.parametrize(
    "name", ["", "..", "../scan", "a/b", "a\\b", ".hidden", "C:x", "~root", "a\x00b", "-rf", 7, None]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name):
    with pytest.raises(ValueError, match="must be a plain name"):
        checked_id(name)


def test_a_free_name_is_never_that_of_a_rejected_lesion():
    names = LesionNames({"lesion 2": 1}, rejected=["lesion 3"])
    names.follow([1, 2, 3])
    assert names.ids == {"lesion 2": 1, "lesion 4": 2, "lesion 5": 3}


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_voxels_are_those_of_the_file_however_it_is_stored(tmp_path, order, signs):
    scan = three_lesions()
    array, affine = stored_otherwise(scan.image.numpy(), scan.affine.numpy(), order, signs)
    lesions, _ = stored_otherwise((scan.lesions == 1).numpy().astype(np.int16), scan.affine.numpy(), order, signs)
    write_volume(array, torch.from_numpy(affine), tmp_path / "scan.nii.gz")
    images = Images(tmp_path, Host(tmp_path / "sessions", make_model()))
    inside = np.argwhere(lesions)
    middle = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))].tolist()
    answer = run(images, "click", label="a", foreground=[middle])
    images.host.close()

    drawn = answer.labels.numpy() > 0
    assert drawn.shape == lesions.shape
    assert drawn[tuple(middle)]
    assert (drawn & (lesions > 0)).sum() > 0.7 * drawn.sum()


def test_a_refused_point_of_several_is_named(images):
    click(images, "first", [A1])
    images.open(None, "scan").do(lambda session, names: session.lock(1))
    with pytest.raises(ValueError, match=r"^first, point 1 of background: lesion=1 is locked"):
        click(images, "first", [A1], [(2, 22, 22)])
    with pytest.raises(ValueError, match=r"^first, point 2 of background: .*outside the scan"):
        run(images, "click", label="first", foreground=[voxel(A1)], background=[voxel((2, 22, 22)), [0, 0, 99]])
    with pytest.raises(ValueError, match=r"^first, point 2 of foreground: a point must be \[i, j, k\]"):
        run(images, "click", label="first", foreground=[voxel(A1), "here"])


def test_a_refused_point_leaves_the_lesion_as_it_was(images, monkeypatch):
    drawn = click(images, "first", [A1], [(2, 22, 22)])
    do = InteractiveSession.click

    def first_alone(session, point, lesion, positive):
        if lesion is not None:
            raise ValueError("no further click")
        return do(session, point, lesion, positive)

    monkeypatch.setattr(InteractiveSession, "click", first_alone)
    with pytest.raises(ValueError, match=r"^first, point 2 of foreground: no further click"):
        click(images, "first", [B1, A1])  # drawn again, since a point is gone
    assert look(images, lambda session: list(session.state.lesions)) == [1]
    again = click(images, "first", [A1], [(2, 22, 22)])  # nothing to click: it is all there
    assert np.array_equal(again.labels, drawn.labels)
    assert again.params["label_names"] == drawn.params["label_names"]
