"""Several types of lesions through the servers: chosen, added with their bundles, found together, and kept."""

import json

import pytest
from starlette.testclient import TestClient

from mois.serve.host import Host
from mois.serve.page import page_app
from mois.serve.served_models import ServedModels, added_types
from mois.sharing.bundle import Bundle
from tests.support.nninteractive_story import TOKEN, further_paths, served, told
from tests.support.session_fakes import lps, make_model, other_model, three_lesions

READER = {"X-Reader": "aaaaaaaa"}
A, B = (2, 20, 20), (2, 40, 12)


@pytest.fixture
def scan():
    return three_lesions()._replace(path="")


def load(bundle):
    if not bundle.is_dir():
        raise ValueError(f"bundle={bundle} is no bundle.")
    return other_model()


def click(page, scan, place):
    index, row, column = place
    voxel = [scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, index]
    return page.post("draw/click", json={"points": [voxel]}).json()["state"]


def shown(state):
    return {row["id"]: row["type"] for row in state["lesions"]}


def wait_for_the_end(page):
    while page.get("pulse").json()["finding"]["running"]:
        pass
    return page.get("state").json()


def test_page_chooses_a_type_and_finds_lesions_of_all(scan, tmp_path):
    host = Host(tmp_path / "studies", ServedModels(make_model(), "long", {"round": other_model()}))
    with TestClient(page_app(host, scan), headers=READER) as page:
        state = click(page, scan, A)
        assert (state["type"], state["types"], state["exemplars"]) == ("long", ["long", "round"], 1)
        state = page.post("type", json={"name": "round"}).json()["state"]
        assert (state["type"], state["exemplars"]) == ("round", 0)
        click(page, scan, B)
        page.post("propagate", params={"every_type": True})
        state = wait_for_the_end(page)
        assert (state["finding"]["found"], state["finding"]["error"]) == (1, "")
        assert shown(state) == {1: "long", 2: "round", 3: "long"}
        assert state["type"] == "round"
        refused = page.post("type", json={"name": "flat"})
        assert (refused.status_code, "type=flat has no model" in refused.json()["error"]) == (400, True)
        assert "takes no further" in page.post("type", json={"name": "flat", "bundle": "b"}).json()["error"]
    host.close()


def test_type_that_a_reader_added_is_there_after_a_restart(scan, tmp_path):
    (tmp_path / "bundle").mkdir()
    models = ServedModels(make_model(), load=load)
    host = Host(tmp_path / "studies", models)
    with TestClient(page_app(host, scan), headers=READER) as page:
        click(page, scan, A)
        assert "no bundle" in page.post("type", json={"name": "round", "bundle": "/none"}).json()["error"]
        bad = page.post("type", json={"name": "a b", "bundle": str(tmp_path / "bundle")})
        assert "letters" in bad.json()["error"]
        state = page.post("type", json={"name": "round", "bundle": str(tmp_path / "bundle")}).json()["state"]
        assert state["types"] == ["", "round"]
        assert shown(click(page, scan, B)) == {1: "", 2: "round"}
    host.close()
    host = Host(tmp_path / "studies", models)
    with TestClient(page_app(host, scan), headers=READER) as page:
        state = page.get("state").json()
        assert (shown(state), state["types"]) == ({1: "", 2: "round"}, ["", "round"])
    host.close()
    (study,) = (tmp_path / "studies").glob("*-*")
    assert added_types(study) == {"round": str(tmp_path / "bundle")}
    (study / "types.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds no bundles by type"):
        Host(tmp_path / "studies", models).open("a", scan)


@pytest.mark.parametrize("bundle", ["\0", "a" * 4000, "/dev/zero", "/proc/self", "..", "none", "~", "\ud800"])
def test_folder_that_is_no_bundle_is_refused_in_one_line(scan, tmp_path, bundle):
    host = Host(tmp_path / "studies", ServedModels(make_model(), load=lambda path: Bundle.load(path, "cpu").model()))
    with TestClient(page_app(host, scan), headers=READER) as page:
        refused = page.post("type", content=json.dumps({"name": "round", "bundle": bundle}))
        assert refused.status_code in (400, 422)
        assert "\n" not in refused.json()["error"]
        assert page.get("state").json()["types"] == [""]
    host.close()


def test_session_of_one_type_goes_on_with_a_name_for_it(scan, tmp_path):
    host = Host(tmp_path / "studies", make_model())
    host.open("a", scan).do(lambda session: session.click(lps(scan, *A)))
    host.close()
    host = Host(tmp_path / "studies", ServedModels(make_model(), "long", {"round": other_model()}))
    seat = host.open("a", scan)
    assert seat.look(lambda session: session.types) == ("", "long", "round")
    assert [row.type for row in seat.look(lambda session: session.lesions())] == [""]
    host.close()


def test_nninteractive_client_uses_the_first_type_until_it_names_another(scan, tmp_path):
    remote = pytest.importorskip("nnInteractive.inference.remote")
    models = ServedModels(make_model(), "long", {"round": other_model()})
    with served(tmp_path / "studies", models) as url:
        client = remote.nnInteractiveRemoteInferenceSession(url, api_key=TOKEN)
        client.set_image(scan.image.numpy()[None], {"spacing": [1.5, 1.5, 5.0]})
        client.add_point_interaction((20, 20, 2), include_interaction=True)
        http = further_paths(client)
        assert told(http.post("/use", json={"type": "round"})) == {"type": "round", "types": ["long", "round"]}
        client.add_point_interaction((12, 40, 2), include_interaction=True)
        answer = told(http.get("/lesions"))
        assert [row["type"] for row in answer["lesions"]] == ["long", "round"]
        assert http.post("/use", json={"type": "flat"}).status_code == 400
