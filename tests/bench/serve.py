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

import numpy as np
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.files.atomic import write_text
from mois.scans.image_files import read_image
from mois.serve.host import Host
from mois.serve.nninteractive.images import scan_of
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.paths import ROOT

PIXEL_MM = 3.0
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
def server(studies: Path, *options: str) -> Iterator[tuple[str, str, int]]:
    """Address, key and process of a server."""
    log = (studies.parent / f"{studies.name}.log").open("w+", encoding="utf-8")
    command = ["serve", "nninteractive", f"--studies={studies}", "--port=0", f"--pixel_mm={PIXEL_MM}", "--device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mois.cli", *command, *options],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        while "API key" not in (said := Path(log.name).read_text("utf-8")):
            time.sleep(0.1)
        time.sleep(1)
        words = said.split()
        yield words[words.index("server:") + 1].strip(","), words[words.index("key") + 1].strip(";"), process.pid
    finally:
        process.terminate()
        process.wait()


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


def previews(scan: Scan, folder: Path) -> list[float]:
    """Milliseconds of previews through the queue of the host."""
    host = Host(folder, served_model(None, PIXEL_MM, "cpu"))
    seat = host.open("bench", scan_of(scan[0][None], {"spacing": scan[1]}, ()))
    seat.propagate()
    affine, took = seat.look(lambda session: session.volume.affine.numpy()), []
    for place in scan[2]:
        x, y, z = (affine @ [*place, 1.0])[:3]
        took.append(timed(lambda point=(-x, -y, z): seat.preview(point)))
    host.close()
    return took


def during_propagation(client: nnInteractiveRemoteInferenceSession, places: list[tuple[int, ...]]) -> list[float]:
    """Milliseconds of clicks of a client during its own propagation of a scan that is not encoded yet."""
    going = threading.Thread(target=lambda: client._http.post("/propagate", timeout=3600).raise_for_status())
    going.start()
    took: list[float] = []
    for place in places:
        time.sleep(0.2)
        if not going.is_alive():
            break
        client.reset_interactions()
        took.append(timed(lambda place=place: client.add_point_interaction(place, include_interaction=True)))
        client.undo()
    going.join()
    return took


def small(out: Path, clicks: int) -> dict[str, float]:
    scans = phantoms(out / "data", 4, clicks)
    figures = summary("python", in_python(scans[0], out / "session"))
    figures |= summary("preview", previews(scans[0], out / "previews"))
    with server(out / "studies") as (url, key, _):
        client = connect(url, key, scans[0])
        figures |= summary("during_propagation", during_propagation(client, scans[0][2]))
        client._http.post("/propagate", timeout=3600).raise_for_status()
        figures |= summary("http", http := clicked(client, scans[0][2]))
        inside = in_the_session(out / "studies", clicks)
        figures |= summary("overhead", [whole - part for whole, part in zip(http, inside, strict=True)])
        client.close()
        clients = [connect(url, key, scan) for scan in scans]
        for client in clients:
            client._http.post("/propagate", timeout=3600).raise_for_status()
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
    with server(out / "studies_large", "--memory_gib=2") as (url, key, process):
        clients = [connect(url, key, scan) for scan in scans]
        for client, scan in zip(clients, scans, strict=True):
            for place in scan[2][:3]:
                client.reset_interactions()
                client.add_point_interaction(place, include_interaction=True)
            client._http.post("/propagate", timeout=3600).raise_for_status()
        status = Path(f"/proc/{process}/status").read_text("ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"resident_peak_gib": peak / 2**20}


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
