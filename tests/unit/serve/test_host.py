"""Sessions of several clients on several scans: writers and watchers, restarts, room, propagation in parts."""

import os
from dataclasses import replace

import pytest
import torch

from mois.cli.view import view
from mois.inference.feature_store import FeatureBudget, FeatureStore
from mois.scans.image_files import write_volume
from mois.serve.device_queue import Urgency
from mois.serve.host import Host
from mois.serve.refusals import Watching
from mois.serve.running import bound_socket
from mois.serve.served_models import ServedModels
from mois.session import InteractiveSession
from tests.support.fake_model import TYPE_A, make_scan
from tests.support.session_fakes import A1, B1, lps, make_model, three_lesions


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "studies", make_model())
    yield host
    host.close()


def plain(scan):
    """The scan as a client sends it: without a file."""
    return scan._replace(path="")


def test_seat_gives_what_the_session_gives(host):
    scan = plain(three_lesions())
    seat, session = host.open("a", scan), InteractiveSession(make_model(), scan)
    assert seat.do(lambda s: s.click(lps(scan, 2, 20, 20))) == session.click(lps(scan, 2, 20, 20))
    shares: list[float] = []
    assert seat.propagate(progress=shares.append) == session.propagate()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert torch.equal(seat.look(lambda s: s.label_map()), session.label_map())
    assert torch.equal(seat.preview(lps(scan, 2, 40, 12)).mask, session.preview(lps(scan, 2, 40, 12)).mask)


def test_one_writes_and_the_other_is_told_who(host):
    scan = plain(three_lesions())
    first, second = host.open("reader 1", scan), host.open("reader 2", scan)
    assert (first.role, second.role, second.writer) == ("writer", "watcher", "reader 1")
    first.do(lambda s: s.click(lps(scan, 2, 20, 20)))
    with pytest.raises(Watching, match="reader 1 writes to this scan"):
        second.do(lambda s: s.undo())
    assert torch.equal(second.look(lambda s: s.label_map()), first.look(lambda s: s.label_map()))
    first.leave()
    assert second.do(lambda s: s.undo())
    assert second.role == "writer"


def test_session_is_found_again_after_a_restart(tmp_path):
    scan = plain(three_lesions())
    host = Host(tmp_path / "studies", make_model())
    host.open("a", scan).do(lambda s: s.click(lps(scan, 2, 20, 20)))
    host.close()
    again = Host(tmp_path / "studies", make_model())
    renamed = scan._replace(subject="other name", patient="other")
    seat = again.open("b", renamed)
    assert len(seat.look(lambda s: s.actions)) == 1
    assert seat.do(lambda s: s.undo())
    again.close()


def shipped(**changes):
    """A model as the shipped one, whose settings change from version to version."""
    return replace(make_model(**changes), follows_sessions=True)


def test_session_of_an_earlier_version_is_found_after_an_update(tmp_path):
    scan, studies = plain(three_lesions()), tmp_path / "studies"
    for level, place in (("known", (2, 20, 20)), ("cautious", (2, 40, 12))):  # two versions
        host = Host(studies, shipped(level=level))
        host.open("a", scan).do(lambda s, place=place: s.click(lps(scan, *place)))
        host.close()
    (folder,) = studies.iterdir()
    now = Host(studies, shipped(level="selective", rejections="vetoes"))
    with pytest.warns(UserWarning, match=r"goes on by the settings it was made with: inference\.level=known \(now sel"):
        seat = now.open("b", scan._replace(subject="other name"))
    assert seat.key == folder.name
    assert [action.name for action in seat.look(lambda s: s.actions)] == ["click", "click"]
    assert seat.look(lambda s: s._bench.segmenter.settings.level) == "known"
    now.close()
    assert [each.name for each in studies.iterdir()] == [folder.name]


def test_page_keeps_its_port_after_an_update(tmp_path, monkeypatch):
    """An open page finds the server again by its port, which comes from the name of the session's folder."""
    file, studies, keys = tmp_path / "scan.nii.gz", tmp_path / "studies", []
    scan = three_lesions()
    write_volume(scan.image, scan.affine, file)
    host = Host(studies, shipped(level="known"))
    earlier = host.open("a", file).key
    host.close()

    def socket_of(key):
        keys.append(key)
        return bound_socket("127.0.0.1", 0)

    def served(app, listening, token, ended):
        listening.close()
        ended()

    monkeypatch.setattr("mois.serve.running.scan_socket", socket_of)
    monkeypatch.setattr("mois.serve.running.serve", served)
    for model in (shipped(level="selective"), make_model(level="selective")):  # the second follows no sessions
        monkeypatch.setattr("mois.cli.view.served_models", lambda *_, model=model: ServedModels(model))
        view([str(file)], studies=studies, no_browser=True)
    assert keys[0] == earlier
    assert keys[1] != earlier


@pytest.mark.parametrize("hindrance", ["other model", "damaged", "linked", "does not follow"])
def test_session_that_cannot_be_gone_on_with_stays_where_it_is(hindrance, tmp_path):
    scan, studies = plain(three_lesions()), tmp_path / "studies"
    host = Host(studies, shipped(level="known", **({"pixel_mm": 1.25} if hindrance == "other model" else {})))
    earlier = host.open("a", scan).key
    host.close()
    journal = studies / earlier / "session" / "journal.jsonl"
    if hindrance == "damaged":
        journal.write_bytes(journal.read_bytes().replace(b"scan_sha256", b"scan_sha257"))
    if hindrance == "linked":
        (studies / earlier).rename(tmp_path / "elsewhere")
        (studies / earlier).symlink_to(tmp_path / "elsewhere")
    before = journal.read_bytes()
    now = Host(studies, (make_model if hindrance == "does not follow" else shipped)(level="selective"))
    seat = now.open("b", scan)
    assert seat.key != earlier
    assert seat.look(lambda s: len(s.actions)) == 0
    assert journal.read_bytes() == before
    now.close()


def test_of_several_earlier_sessions_the_latest_is_taken_and_today_s_comes_before_all(tmp_path):
    scan, studies = plain(three_lesions()), tmp_path / "studies"
    keys = []
    for level in ("known", "cautious"):
        host = Host(studies, make_model(level=level))  # versions whose model did not follow sessions
        keys.append(host.open("a", scan).key)
        host.close()
    os.utime(studies / keys[0] / "session" / "journal.jsonl", ns=(2**61, 2**61))
    now = Host(studies, shipped(level="selective"))
    with pytest.warns(UserWarning, match="known"):
        seat = now.open("b", scan)
    assert seat.key == keys[0]
    now.close()
    host = Host(studies, make_model(level="selective"))
    today = host.open("a", scan).key
    host.close()
    again = Host(studies, shipped(level="selective"))
    assert again.open("b", scan).key == today
    again.close()


def test_scan_that_moved_is_where_the_client_says(tmp_path):
    scan = three_lesions()
    for name in ("before", "now"):
        write_volume(scan.image, scan.affine, tmp_path / f"{name}.nii")
    host = Host(tmp_path / "studies", make_model())
    host.open("a", scan._replace(path=str(tmp_path / "before.nii")))
    host.close()
    for kept, path in ((True, "before.nii"), (False, "now.nii")):
        if not kept:
            (tmp_path / "before.nii").unlink()
        again = Host(tmp_path / "studies", make_model())
        seat = again.open("a", scan._replace(path=str(tmp_path / "now.nii")))
        assert seat.look(lambda s: s.volume.path) == str(tmp_path / path)
        again.close()


def test_least_used_session_is_closed_and_opened_again(tmp_path):
    host = Host(tmp_path / "studies", make_model(), most_open=1)
    one, other = plain(three_lesions()), plain(make_scan([(TYPE_A, A1), (TYPE_A, B1)]))
    first = host.open("a", one)
    first.do(lambda s: s.click(lps(one, 2, 20, 20)))
    second = host.open("b", other)
    assert (first._study.session is None, second._study.session is None) == (True, False)
    first.do(lambda s: s.propagate())
    assert [action.name for action in first.look(lambda s: s.actions)] == ["click", "propagate"]
    host.close()


def test_scan_is_encoded_while_nobody_waits(host):
    seat = host.open("a", plain(three_lesions()))
    encoded = seat.look(lambda s: s._bench.on_scan.encoded)
    seat.ask(lambda s: None, Urgency.IDLE)  # behind the tiles
    assert encoded.store.encoded == encoded.shown


def test_linked_study_is_refused(host, tmp_path):
    scan = plain(three_lesions())
    key = host.open("a", scan).key
    host.close()
    (tmp_path / "studies" / key).rename(tmp_path / "elsewhere")
    (tmp_path / "studies" / key).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        Host(tmp_path / "studies", make_model()).open("a", scan)


def test_scan_that_was_not_used_for_longest_gives_its_features_away():
    from mois.records import Features

    def encode(images):
        return Features((images[:, None].expand(-1, 1024, -1, -1).clone(),), images[:, None], images[:, None])

    row = 1024 * 16 * 2  # bytes of a tile of 4 x 4, float16
    budget = FeatureBudget(3 * row / 2**30)
    one, other = (FeatureStore(encode, torch.device("cpu"), torch.float16, budget) for _ in range(2))
    import numpy as np

    images = torch.arange(3.0).view(3, 1, 1).expand(3, 4, 4)
    before = one.select(np.arange(3), images).levels[0]
    other.select(np.arange(2), images[:2])
    assert (one.kept_bytes, one.rows_in_file, other.kept_bytes) == (row, 2, 2 * row)
    assert torch.equal(one.select(np.arange(3), images).levels[0], before)
