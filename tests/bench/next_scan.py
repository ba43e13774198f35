"""A bank from a patient's first scan on the next one: no click at all, beside three clicks and no bank.

    python -m tests.bench.next_scan --bundle runs/demo/bundle --types runs/demo/data/lesion_types.json --out runs/next

Phantoms of ten patients with two scans each, of the types that the bundle was adapted to. On the first scan three
lesions of a class are clicked; all systems are scored on the lesions of the second that were clicked in none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from datamodules.phantoms.lesion_types import LesionType
from datamodules.phantoms.phantom import write_dataset
from mois.clicks import central_pixel
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import paired_gain
from mois.evaluation.true_lesions import ClassPlan, TrueLesions
from mois.files.atomic import write_text
from mois.geometry import SliceGrid
from mois.lesions import dilate_in_plane
from mois.metrics.overlap import Overlap
from mois.records import Volume
from mois.scans.datasets import read_dataset
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle

CLICKED = 3
PATIENTS = 10
SYSTEMS = ("no click, no bank", "no click, bank", "3 clicks, no bank", "3 clicks, bank")


class Scan:
    """A scan, its true lesions, and sessions on it."""

    def __init__(self, bundle: Bundle, volume: Volume) -> None:
        self.bundle, self.volume = bundle, volume
        shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
        self.grid = SliceGrid.of(shape, volume.affine, "auto")
        self.truth = TrueLesions.of(volume, self.grid)

    def session(self) -> InteractiveSession:
        return InteractiveSession(self.bundle.model(), self.volume)

    def plan(self, target_class: int) -> ClassPlan:
        return ClassPlan.of(self.truth.volumes_of_class(target_class), ProtocolSettings().reader, 3 * CLICKED)

    def click(self, session: InteractiveSession, target_class: int) -> tuple[list[int], list[int]]:
        """Click lesions in their middle; returns their ids in the session and in truth."""
        ids: list[int] = []
        clicked: list[int] = []
        for lesion in self.plan(target_class).order:
            at = self.truth.largest_slice(lesion)
            position = int(np.searchsorted(self.truth.ids, lesion)) + 1
            x, y = central_pixel(torch.from_numpy(self.truth.index[at : at + 1] == position))[0].tolist()
            point = self.grid.to_lps_mm(torch.tensor([[at, y, x]], dtype=torch.float64))[0]
            try:
                ids.append(session.click(point))
            except ValueError:  # another clicked lesion has grown over this one: a reader would take the next
                continue
            clicked.append(lesion)
            if len(clicked) == CLICKED:
                break
        return ids, clicked

    def score(self, session: InteractiveSession, ids: list[int], clicked: list[int], target_class: int) -> list[float]:
        """Return Dice and F1 on the lesions that were not clicked, and the number of false ones."""
        found = self.grid.to_stack(session.label_map()).numpy().astype(np.int32)
        found[np.isin(found, ids)] = 0
        rest = self.truth.only([lesion for lesion in self.plan(target_class).lesions if lesion not in clicked])
        taken_out = dilate_in_plane(self.truth.only(clicked) > 0, ProtocolSettings().margin_px)
        overlap = Overlap.of(found, rest, taken_out)
        matches = overlap.match()
        return [overlap.dice(), matches.f1, float(len(matches.false))]


def compare(first: Scan, second: Scan, target_class: int) -> dict[str, list[float]]:
    """Return what each system finds in the second scan, of a class."""
    before = first.session()
    first.click(before, target_class)
    nothing, banked, clicked = second.session(), second.session(), second.session()
    nothing.propagate()
    banked.use_bank(before.bank)
    banked.propagate()
    ids, lesions = second.click(clicked, target_class)
    clicked.propagate()
    found = [second.score(nothing, [], lesions, target_class), second.score(banked, [], lesions, target_class)]
    found.append(second.score(clicked, ids, lesions, target_class))
    clicked.use_bank(before.bank)
    clicked.propagate()
    found.append(second.score(clicked, ids, lesions, target_class))
    for session in (before, nothing, banked, clicked):
        session.close()
    return dict(zip(SYSTEMS, found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="A bank of a patient's first scan on the next one.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--types", type=Path, required=True, help="lesion_types.json of the phantoms it was adapted to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle, console, rows = Bundle.load(given.bundle), Console(), []
    described: list[dict[str, Any]] = list(json.loads(given.types.read_text(encoding="utf-8")).values())
    types = [LesionType(**{name: value for name, value in kind.items() if name != "class"}) for kind in described]
    scans = 2 * given.patients
    write_dataset(given.out / "data", subjects=scans, sessions=2, seed=200, types=types, lesions=(20, 60))
    volumes = [subject.read(0, instances=True) for subject in read_dataset(given.out / "data")]
    for first, second in zip(volumes[::2], volumes[1::2], strict=True):
        for target_class in sorted(set(first.classes.values()) & set(second.classes.values())):
            found = compare(Scan(bundle, first), Scan(bundle, second), target_class)
            rows.append({"patient": second.patient, "class": target_class, **found})
            console.print(rows[-1])
    means = {system: np.nanmean([row[system] for row in rows], axis=0).round(3).tolist() for system in SYSTEMS}
    gain = paired_gain([(row["patient"], row["3 clicks, no bank"][0], row["no click, bank"][0]) for row in rows])
    console.print("Dice, F1, false lesions:", means, "bank minus clicks:", gain)
    write_text(given.out / "next_scan.json", json.dumps({"rows": rows, "means": means, "gain": gain}, indent=2) + "\n")


if __name__ == "__main__":
    main()
