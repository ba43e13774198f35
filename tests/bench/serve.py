"""What a server costs beside Python: clicks over HTTP, clicks during a propagation, previews, memory.

    python -m tests.bench.serve --out runs/serve [--clicks 200] [--large]

The clicks lie on lesions of a phantom of 28 x 256 x 160, whose tiles are encoded. The server is a process of its own,
driven by the official client of nnInteractive. `--large` takes four clients on four scans of 44 x 1100 x 512 instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.files.atomic import write_text
from mois.scans.image_files import read_image
from mois.serve.nninteractive.images import scan_of
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.paths import ROOT

PIXEL_MM = 3.0
LARGE_PIXEL_MM = 1.5
"""Of the large scans; what a server takes if nothing is said."""
DURING = 40
"""Clicks during propagations."""
Scan = tuple[np.ndarray, list[float], list[tuple[int, ...]]]
"""Voxels, spacing, and voxels to click."""


def phantoms(folder: Path, count: int, clicks: int) -> list[Scan]:
    write_dataset(folder, subjects=count, seed=5, types=[NAMED_TYPES["ring"]], lesions=(40, 60))
    scans = []
    for file in sorted((folder / "imagesTr").glob("*.nii.gz")):
        image, affine = read_image(file)
        ids = read_image(folder / "instancesTr" / file.name.replace("_0000.nii", ".nii"))[0]
        lesions = [np.argwhere(ids == n) for n in np.unique(ids)[1:]]
        places = [tuple(where[len(where) // 2].tolist()) for where in lesions if len(where) > 20]
        spacing = [float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
        scans.append((image, spacing, [places[n % len(places)] for n in range(clicks)]))
    return scans


@contextmanager
def process(command: list[str], log: Path, until: str) -> Iterator[tuple[str, int]]:
    """A command of mois in a process of its own: what it said first, and the number of the process."""
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(
            [sys.executable, "-m", "mois.cli", *command], stdout=file, stderr=file, env=environment
        )
    try:
        while until not in log.read_text("utf-8"):
            if running.poll() is not None:
                raise RuntimeError(log.read_text("utf-8"))
            time.sleep(0.1)
        time.sleep(1)
        yield log.read_text("utf-8"), running.pid
    finally:
        running.terminate()
        running.wait()


@contextmanager
def server(studies: Path, *options: str) -> Iterator[tuple[str, str, int]]:
    """Address, key and process of a server."""
    command = ["serve", "nninteractive", f"--studies={studies}", "--port=0", f"--pixel_mm={PIXEL_MM}", "--device=cpu"]
    with process([*command, *options], studies.with_suffix(".log"), "API key") as (said, number):
        words = said.split()
        yield words[words.index("server:") + 1].strip(","), words[words.index("key") + 1].strip(";"), number


def connect(url: str, key: str, scan: Scan) -> nnInteractiveRemoteInferenceSession:
    client = nnInteractiveRemoteInferenceSession(url, api_key=key, read_timeout=3600)
    client.set_image(scan[0][None], {"spacing": scan[1]})
    client.set_target_buffer(np.zeros(scan[0].shape, dtype=np.uint8))
    return client


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begin)


def clicked(client: nnInteractiveRemoteInferenceSession, places: list[tuple[int, ...]]) -> list[float]:
    """Milliseconds of each click; every click is undone, so that all begin alike."""
    took = []
    for place in places:
        client.reset_interactions()
        took.append(timed(lambda place=place: client.add_point_interaction(place, include_interaction=True)))
        client.undo()
    return took


def in_python(scan: Scan, folder: Path) -> list[float]:
    """Milliseconds of the same clicks in a session of this process, which writes its journal, too."""
    volume = scan_of(scan[0][None], {"spacing": scan[1]}, ())
    session = InteractiveSession(served_model(None, PIXEL_MM, "cpu"), volume, folder)
    session.propagate()
    affine, took = session.volume.affine.numpy(), []
    for place in scan[2]:
        x, y, z = (affine @ [*place, 1.0])[:3]
        took.append(timed(lambda point=(-x, -y, z): session.click(point)))
        session.undo()
    return took


@contextmanager
def page(file: Path, studies: Path) -> Iterator[httpx.Client]:
    """The page of a scan, as its script talks to it."""
    command = ["view", str(file), f"--studies={studies}", f"--pixel_mm={PIXEL_MM}", "--device=cpu", "--no_browser"]
    with process(command, studies.with_suffix(".log"), "Ctrl-C") as (said, _):
        address = next(word for word in said.split() if word.startswith("http://"))
        with httpx.Client(base_url=address, headers={"X-Reader": "benchmark01"}, timeout=600) as client:
            yield client


def previews(file: Path, studies: Path, scan: Scan) -> list[float]:
    """Milliseconds of previews over HTTP, each at another place in or beside a lesion of an encoded scan."""
    affine, took, chance = read_image(file)[1], [], np.random.default_rng(0)
    aside = chance.integers((-2, -2, 0), (3, 3, 1), (len(scan[2]), 3))
    places = np.clip(np.array(scan[2]) + aside, 0, np.array(scan[0].shape) - 1).tolist()
    with page(file, studies) as client:
        client.post("/propagate").raise_for_status()
        while client.get("/pulse").json()["finding"]["running"]:
            time.sleep(0.1)
        to_view = np.linalg.inv(np.array(client.get("/scan").json()["to_lps_mm"]))
        for place in places:
            point = to_view @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine) @ [*place, 1.0]
            body = {"points": [point[:3].tolist()]}
            took.append(timed(lambda body=body: client.post("/preview/click", json=body).raise_for_status()))
    return took


def during_propagations(client: nnInteractiveRemoteInferenceSession, scan: Scan, clicks: int) -> list[float]:
    """Milliseconds of clicks of a client, each at a random moment of a propagation of its own.

    One more lesion is clicked before each propagation, so that the whole scan is searched. All is taken back after it.
    """
    places = distinct(scan[2])
    for place in places[:3]:
        click(client, place)
    chance, took, whole_ms = np.random.default_rng(0), [], timed(lambda: propagate(client))
    client.undo()
    while len(took) < clicks:
        before, meanwhile = chance.choice(len(places) - 3, 2, replace=False) + 3
        click(client, places[before])
        going = threading.Thread(target=propagate, args=(client,))
        going.start()
        time.sleep(chance.uniform(0, whole_ms / 1000))
        client.reset_interactions()
        in_time = client._http.get("/progress").json()["share"] < 1
        ms = timed(lambda place=places[meanwhile]: client.add_point_interaction(place, include_interaction=True))
        going.join()
        for _ in range(3):
            client.undo()
        if in_time:
            took.append(ms)
    return took


def click(client: nnInteractiveRemoteInferenceSession, place: tuple[int, ...]) -> None:
    client.reset_interactions()
    client.add_point_interaction(place, include_interaction=True)


def distinct(places: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(places))


def propagate(client: nnInteractiveRemoteInferenceSession) -> None:
    answer = client._http.post("/propagate", timeout=3600)
    if answer.status_code != 504:  # the server goes on after it has answered so
        answer.raise_for_status()
    while client._http.get("/progress").json()["share"] < 1:
        time.sleep(1)


def small(out: Path, clicks: int) -> dict[str, float]:
    scans = phantoms(out / "data", 4, clicks)
    figures = summary("python", in_python(scans[0], out / "session"))
    file = next(iter(sorted((out / "data" / "imagesTr").glob("*.nii.gz"))))
    figures |= summary("preview", previews(file, out / "page", scans[0]))
    with server(out / "studies") as (url, key, _):
        client = connect(url, key, scans[0])
        propagate(client)
        figures |= summary("during_propagation", during_propagations(client, scans[0], DURING))
        figures |= summary("http", http := clicked(client, scans[0][2]))
        inside = in_the_session(out / "studies", clicks)
        figures |= summary("overhead", [whole - part for whole, part in zip(http, inside, strict=True)])
        client.close()
        clients = [connect(url, key, scan) for scan in scans]
        for client in clients:
            propagate(client)
        took: list[list[float]] = [[] for _ in clients]
        threads = [
            threading.Thread(target=lambda n=n: took[n].extend(clicked(clients[n], scans[n][2][: clicks // 4])))
            for n in range(len(clients))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        figures |= summary("http_of_four", [ms for each in took for ms in each])
    figures["four_p95_vs_one"] = figures["http_of_four_p95_ms"] / figures["http_p95_ms"]
    return figures


def in_the_session(studies: Path, clicks: int) -> list[float]:
    """Milliseconds of the latest clicks as the server's session counted them: computing and writing to the disk."""
    (journal,) = studies.glob("*/session/journal.jsonl")
    actions = [json.loads(line) for line in journal.read_text("utf-8").splitlines()[1:]]
    return [1000 * action["seconds_waited"] for action in actions if action["name"] == "click"][-clicks:]


def large(out: Path) -> dict[str, float]:
    """Four clients, each a scan of 44 x 1100 x 512 of noise and balls, and a budget of 2 GiB."""
    scans = []
    for seed in range(4):
        chance = np.random.default_rng(seed)
        image = chance.normal(100, 10, (512, 1100, 44)).astype(np.float32)
        i, j, k = np.ogrid[:512, :1100, :44]
        places = [tuple(int(v) for v in chance.integers((40, 40, 4), (470, 1060, 40))) for _ in range(8)]
        for x, y, z in places:
            image[(i - x) ** 2 + (j - y) ** 2 + (3 * (k - z)) ** 2 < 15**2] += 80
        scans.append((image, [1.0, 1.0, 6.0], places))
    with server(out / "studies_large", "--memory_gib=2", f"--pixel_mm={LARGE_PIXEL_MM}") as (url, key, number):
        threads = [threading.Thread(target=at_work, args=(connect(url, key, scan), scan[2][:3])) for scan in scans]
        opened_gib = resident_peak_gib(number)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        actions = [
            len(file.read_text("utf-8").splitlines()) - 1 for file in (out / "studies_large").glob("*/*/*.jsonl")
        ]
        return {"opened_gib": opened_gib, "resident_peak_gib": resident_peak_gib(number), "actions": sum(actions)}


def at_work(client: nnInteractiveRemoteInferenceSession, places: list[tuple[int, ...]]) -> None:
    """Click some lesions, propagate once, and click another one."""
    for place in places[:-1]:
        click(client, place)
    propagate(client)
    click(client, places[-1])


def resident_peak_gib(process: int) -> float:
    """The most memory that a process has held so far."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def summary(name: str, took: list[float]) -> dict[str, float]:
    return {
        f"{name}_median_ms": float(np.median(took)),
        f"{name}_p95_ms": float(np.percentile(took, 95)),
        f"{name}_most_ms": max(took),
        f"{name}_count": len(took),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a server costs beside Python.")
    parser.add_argument("--out", type=Path, default=Path("runs/serve"))
    parser.add_argument("--clicks", type=int, default=200)
    parser.add_argument("--large", action="store_true", help="four clients on four scans of 44 x 1100 x 512")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    figures = large(given.out) if given.large else small(given.out, given.clicks)
    write_text(given.out / ("large.json" if given.large else "serve.json"), json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
