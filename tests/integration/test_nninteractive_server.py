"""The server of nnInteractive as a whole: a story on a phantom of 28 x 256 x 160, and a server that is killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import nrrd
import numpy as np
import pytest

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.scans.image_files import read_image
from mois.serve.host import Host
from mois.serve.nninteractive.routes import nninteractive_app
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.killed_server import KilledServer
from tests.support.lesions_apart import largest_apart
from tests.support.nninteractive_story import TOKEN, further_paths, play_client, play_python, scan, served, told
from tests.support.session_fakes import make_model, three_lesions

remote = pytest.importorskip("nnInteractive.inference.remote")
pytestmark = pytest.mark.ci
KILLS = 20


def connect(url: str, image: np.ndarray, spacing: list[float]):
    client = remote.nnInteractiveRemoteInferenceSession(url, api_key=TOKEN)
    client.set_image(image[None], {"spacing": spacing})
    client.set_target_buffer(np.zeros(image.shape, dtype=np.uint8))
    return client


def test_story_on_a_phantom_gives_the_label_map_of_python(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", subjects=1, seed=3, types=[NAMED_TYPES["ring"]])
    image, affine = read_image(next((tmp_path / "data" / "imagesTr").glob("*.nii.gz")))
    ids = read_image(next((tmp_path / "data" / "instancesTr").glob("*.nii.gz")))[0]
    spacing = [float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    across = int(np.argmax(spacing))
    places = []
    for lesion in largest_apart(ids, 3):  # two voxels of each, on its largest slice
        where = np.argwhere(ids == lesion)
        slices, counts = np.unique(where[:, across], return_counts=True)
        there = where[where[:, across] == slices[counts.argmax()]]
        places += [tuple(there[len(there) // 2].tolist()), tuple(there[len(there) // 4].tolist())]
    model = served_model(None, 3.0, "cpu")
    session = InteractiveSession(model, scan(image, spacing))
    play_python(session, places[:5], outside := places[0])
    with served(tmp_path / "studies", model) as url, connect(url, image, spacing) as client:
        (tmp_path / "lesions.seg.nrrd").write_bytes(play_client(client, places[:5], outside))
    labels = nrrd.read(str(tmp_path / "lesions.seg.nrrd"))[0]
    assert np.array_equal(labels, session.label_map().numpy())
    assert len(np.unique(labels)) > 3


def test_no_generated_request_breaks_the_server(tmp_path: Path) -> None:
    """Requests by the schema of all paths, but those that would end or fill the leases."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    host = Host(tmp_path / "none", make_model())
    (tmp_path / "schema.json").write_text(json.dumps(nninteractive_app(host).openapi()), encoding="utf-8")
    host.close()
    with served(tmp_path / "studies", make_model()) as url, connect(url, IMAGE, SPACING) as client:
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Lease-Token": client._lease_token}
        given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        left_out = [word for path in ("/claim", "/release") for word in ("--exclude-path", path)]
        options = ["--checks", "not_a_server_error", "-n", "5", "--seed", "1", "--generation-database", "none"]
        schema = [str(tmp_path / "schema.json"), "--url", url]
        run = subprocess.run(
            [str(program), "run", *schema, *given, *left_out, *options], capture_output=True, text=True, cwd=tmp_path
        )
        assert run.returncode == 0, run.stdout[-3000:]
        assert client.ping()


IMAGE, SPACING = three_lesions().image.numpy(), [1.5, 1.5, 5.0]
Step = Callable[[object], object]


def point(voxel: tuple[int, int, int], lesion: int | None = None, positive: bool = True) -> Step:
    def act(client):
        if lesion is None:
            client.reset_interactions()
        else:
            told(further_paths(client).post("/select", json={"lesion": lesion}))
        client.add_point_interaction(voxel, include_interaction=positive)

    return act


def post(path: str, **body: int) -> Step:
    return lambda client: told(further_paths(client).post(path, json=body))


# each step is one action of the session
STEPS = [
    point((20, 20, 2)),
    point((18, 18, 1), 1),
    point((30, 44, 4)),
    point((32, 46, 4), 2),
    point((12, 40, 2)),
    point((22, 22, 2), 1, positive=False),
    post("/propagate"),
    lambda client: client.undo(),
    post("/propagate"),
    post("/reject", lesion=3),
    post("/accept", lesion=1),
    post("/accept", lesion=2),
]


def labels_of(client, folder: Path) -> np.ndarray:
    answer = further_paths(client).post("/result", json={})
    assert answer.status_code == 200, answer.text
    (folder / "lesions.seg.nrrd").write_bytes(answer.content)
    return nrrd.read(str(folder / "lesions.seg.nrrd"))[0]


def play(server: KilledServer, spacing: list[float], kill_after_s: float | None) -> object:
    """Play the story; the client goes on after the server was killed. The client after the last step."""
    client, done = connect(server.url, IMAGE, spacing), 0
    killing = threading.Timer(kill_after_s or 0.0, server.kill if kill_after_s is not None else lambda: None)
    killing.start()
    whole = False
    while not whole:
        try:
            if done < len(STEPS):
                STEPS[done](client)
                done += 1
            else:
                killing.join()
                told(further_paths(client).get("/lesions"))
                whole = True
        except (httpx.HTTPError, remote.SessionExpiredError):
            server.start()
            client = connect(server.url, IMAGE, spacing)
            kept = told(further_paths(client).get("/lesions"))["actions"]
            assert done <= kept <= done + 1  # nothing that was answered is lost
            done = kept
    return client


def test_client_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    chance, server = random.Random(0), KilledServer("nninteractive", tmp_path / "studies")
    try:
        begin = time.perf_counter()
        expected = labels_of(play(server, SPACING, None), tmp_path)
        story_s = time.perf_counter() - begin
        for number in range(1, KILLS + 1):  # another spacing is another scan, with a session of its own
            spacing = [1.5, 1.5, 5.0 + number / 1024]
            client = play(server, spacing, chance.uniform(0, story_s))
            assert np.array_equal(labels_of(client, tmp_path), expected), number
    finally:
        server.kill()
        server.end()
