"""One story through the official client of nnInteractive and through Python, and a server in a thread for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from mois.serve.host import Host
from mois.serve.nninteractive.images import scan_of
from mois.serve.nninteractive.routes import nninteractive_app
from mois.serve.running import bound_socket, names_of
from mois.serve.safety import Guard
from mois.serve.served_models import ServedModels
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel

TOKEN = "a-secret-of-the-tests-1234"


@contextmanager
def served(studies: Path, model: LesionModel | ServedModels, **limits: float) -> Iterator[str]:
    """A server in a thread of this process; its address."""
    host = Host(studies, model)
    listening = bound_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = Guard(nninteractive_app(host, **limits), TOKEN, names_of("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        host.close()


def further_paths(client: object) -> httpx.Client:
    """The HTTP client of the official client, with its key and lease: for the paths that it has no method for."""
    return client._http  # type: ignore[attr-defined]


def told(answer: httpx.Response) -> dict:
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.headers["content-type"] == "application/json" else {}


def play_python(session: InteractiveSession, places: list[tuple[int, int, int]], outside: tuple[int, int, int]) -> None:
    """Five clicks on three lesions, a correction, a propagation, one lesion rejected, two accepted, saved."""

    def lps(voxel: tuple[int, int, int]) -> list[float]:
        x, y, z = (session.volume.affine.numpy() @ [*voxel, 1.0])[:3].tolist()
        return [-x, -y, z]

    first = session.click(lps(places[0]))
    session.click(lps(places[1]), first)
    second = session.click(lps(places[2]))
    session.click(lps(places[3]), second)
    third = session.click(lps(places[4]))
    session.click(lps(outside), first, positive=False)
    session.propagate()
    found = [row.id for row in session.lesions() if row.origin == "found"]
    session.reject(found[0] if found else third)
    for lesion in (first, second):
        session.accept(lesion)


def play_client(client: object, places: list[tuple[int, int, int]], outside: tuple[int, int, int]) -> bytes:
    """The same story through the official client; the label map as a file."""
    http = further_paths(client)
    client.add_point_interaction(places[0], include_interaction=True)
    client.add_point_interaction(places[1], include_interaction=True)
    first = told(http.get("/lesions"))["current"]
    client.reset_interactions()
    client.add_point_interaction(places[2], include_interaction=True)
    client.add_point_interaction(places[3], include_interaction=True)
    second = told(http.get("/lesions"))["current"]
    client.reset_interactions()
    client.add_point_interaction(places[4], include_interaction=True)
    third = told(http.get("/lesions"))["current"]
    told(http.post("/select", json={"lesion": first}))
    client.add_point_interaction(outside, include_interaction=False)
    rows = told(http.post("/propagate", timeout=600))["lesions"]
    found = [row["id"] for row in rows if row["origin"] == "found"]
    told(http.post("/reject", json={"lesion": found[0] if found else third}))
    for lesion in (first, second):
        told(http.post("/accept", json={"lesion": lesion}))
    answer = http.post("/result", json={})
    assert answer.status_code == 200, answer.text
    return answer.content


def scan(image: np.ndarray, spacing: list[float]):
    """The image as the server takes it."""
    return scan_of(image[None], {"spacing": spacing}, ())
