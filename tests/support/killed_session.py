"""A scripted session that is killed again and again; run as a program by test_session_kill.py.

One process imports torch once and forks a reader for each kill, so that 20 kills take seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mois.session import InteractiveSession
from tests.support.session_fakes import lps, make_model, three_lesions

SCAN = three_lesions()
SCRIPT = [
    lambda s: s.click(lps(SCAN, 2, 20, 20)),
    lambda s: s.propagate(),
    lambda s: s.click(lps(SCAN, 4, 44, 30), lesion=2, positive=False),
    lambda s: s.undo(),
    lambda s: s.redo(),
    lambda s: s.click(lps(SCAN, 2, 40, 12)),
    lambda s: s.lock(1),
    lambda s: s.propagate(),
    lambda s: s.reject(3),
    lambda s: s.undo(),
    lambda s: s.click(lps(SCAN, 1, 18, 18), lesion=2),
    lambda s: s.accept(2),
    lambda s: s.unlock(1),
    lambda s: s.click(lps(SCAN, 3, 22, 22), lesion=1, positive=False),
    lambda s: s.propagate(),
]


def read(folder: Path, out: int | None) -> None:
    """Play the script, telling on a pipe how many actions were over."""
    session = InteractiveSession(make_model(), SCAN, folder)
    for step in SCRIPT:
        step(session)
        if out is not None:
            os.write(out, b".")


def digest(session: InteractiveSession) -> list[object]:
    labels = session.label_map()
    return [
        int((labels * torch.arange(labels.numel()).view(labels.shape)).sum()),
        session.bank.keys(),
        session._history.position,
    ]


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    whole = InteractiveSession(make_model(), SCAN)
    expected = [digest(whole)]
    for step in SCRIPT:
        step(whole)
        expected.append(digest(whole))
    start = time.perf_counter()
    read(root / "timed", None)
    action_s = (time.perf_counter() - start) / len(SCRIPT)
    moments = random.Random(0)
    report = []
    for number in range(kills):
        folder = root / f"killed{number}"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            read(folder, writer)
            os._exit(0)
        os.close(writer)
        told, enough = b"", moments.randrange(len(SCRIPT))
        while len(told) < enough:
            told += os.read(reader, 1)
        time.sleep(moments.uniform(0, 2 * action_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while part := os.read(reader, 100):
            told += part
        os.close(reader)
        if not (folder / "journal.jsonl").is_file() or b"\n" not in (folder / "journal.jsonl").read_bytes():
            report.append({"told": len(told), "kept": -1, "same": not told, "goes_on": True})
            continue
        back = InteractiveSession.load(folder, make_model(), SCAN)
        kept = len(back.actions)
        same = digest(back) == expected[kept]
        again = InteractiveSession.replay(folder, make_model(), SCAN)
        same = same and torch.equal(again.label_map(), back.label_map())
        for step in SCRIPT[kept:]:
            step(back)
        report.append({"told": len(told), "kept": kept, "same": same, "goes_on": digest(back) == expected[-1]})
        back.close()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
