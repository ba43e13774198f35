"""How time and memory grow with slices and lesions: whole phantoms, with the bundled nano unless stated.

python -m tests.bench.run --only slices,lesions    # measures
python -m tests.bench.scaling runs/bench/bench.json docs/images    # draws what was measured
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adapters import Frozen
from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom, write_dataset
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.cli import main as mois
from mois.files.atomic import whole_file
from mois.geometry import SliceGrid
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.machine.steps import finish
from mois.propagation import Similarity
from mois.records import Exemplars, Volume
from mois.scans.datasets import read_dataset
from mois.session import InteractiveSession
from mois.session.found_lesions import describe_lesions_steps
from mois.session.masks import BoxMask
from mois.sharing.bundle import Bundle, write_bundle
from mois.sharing.bundle_record import ModelSpec
from tests.bench.measure import Measurement, Outcome, interleaved

SETTINGS = InferenceSettings(overlap=0.25)
BODY_MM = (218.4, 768.0, 480.0)
SLICES = (7, 14, 28)
LESIONS = (5, 20, 75, 300)
LARGE = {"shape": (44, 1100, 512), "spacing_mm": (5.0, 0.7, 0.7), "lesions": (300, 300)}
CLICKED = 12
SPEC = {
    "backbone": {"class_path": "mois.backbones.SAM2", "init_args": {"weights": "bundled"}},
    "adapter": {"class_path": "adapters.Frozen"},
    "propagation": {"class_path": "mois.propagation.Similarity", "init_args": {"weights": "bundled"}},
}


def slices(repeats: int) -> Outcome:
    """Seconds of a scan by its slices: encoding, and the semantic pass with 5 exemplars; 1 is exactly linear."""
    segmenter = nano()
    scans = {count: phantom(count, lesions=20) for count in SLICES}

    def encode(volume: Volume) -> object:
        return segmenter.encode(volume)

    encoded = {count: segmenter.encode(volume) for count, volume in scans.items()}
    asked = {count: true_exemplars(segmenter, encoded[count], scans[count], 5) for count in SLICES}
    arms: dict[str, Callable[[], object]] = {}
    for count in SLICES:
        arms[f"encode_{count}"] = functools.partial(encode, scans[count])
        arms[f"semantic_{count}"] = functools.partial(find, segmenter, encoded[count], scans[count], asked[count])
    seconds = interleaved(arms, repeats)
    few, many = SLICES[0], SLICES[-1]
    whole = {count: seconds[f"encode_{count}"] + seconds[f"semantic_{count}"] for count in SLICES}
    ratio = (whole[many] / many) / (whole[few] / few)
    return Outcome({f"seconds_per_slice_{many}_vs_{few}": ratio}, seconds)


def lesions(repeats: int) -> Outcome:
    """Seconds of the semantic pass (Hiera-tiny) by lesions, all of them exemplars; of describing all that are found."""
    backbone, propagation = SAM2("tiny", "random"), Similarity()
    propagation.build(backbone)
    segmenter = VolumeSegmenter(backbone, propagation.eval(), replace(SETTINGS, tile_px=512))
    arms: dict[str, Callable[[], object]] = {}

    def described(segmenter: VolumeSegmenter, encoded: EncodedVolume, masks: list[BoxMask]) -> object:
        return finish(describe_lesions_steps(segmenter, encoded, masks))

    for count in LESIONS:
        volume = phantom(7, count)
        encoded = segmenter.encode(volume)
        asked = true_exemplars(segmenter, encoded, volume, count)
        arms[f"lesions_{count}"] = functools.partial(find, segmenter, encoded, volume, asked)
        arms[f"described_{count}"] = functools.partial(described, segmenter, encoded, true_masks(encoded, volume))
    seconds = interleaved(arms, repeats)
    few, many = f"lesions_{LESIONS[0]}", f"lesions_{LESIONS[-1]}"
    figures = {f"{many}_vs_{LESIONS[0]}": seconds[many] / seconds[few]}
    return Outcome(figures | {"described_300_vs_semantic": seconds["described_300"] / seconds[many]}, seconds)


def large_scan(repeats: int) -> Outcome:
    """Resident memory of session and evaluation on 44 x 1100 x 512 with 300 lesions, each in a process of its own."""
    del repeats  # memory does not vary from run to run
    with tempfile.TemporaryDirectory(prefix="mois-bench-") as name:
        folder = Path(name)
        write_dataset(
            folder / "data", subjects=1, seed=5, types=draw_lesion_types(np.random.default_rng(0), 2), **LARGE
        )
        segmenter = nano()
        spec, adapter = ModelSpec.of(SPEC), Frozen()
        adapter.attach(segmenter.backbone, segmenter.propagation)
        write_bundle(folder / "bundle", spec, segmenter.backbone, adapter, segmenter.propagation, InferenceSettings())
        details: dict[str, float] = {}
        for job in JOBS:
            command = [sys.executable, "-m", "tests.bench.scaling", job, name]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
            details |= {f"{job}_{key}": value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
    peaks = [value for key, value in details.items() if key.endswith("peak_gib")]
    return Outcome({"memory_large_scan_gib": max(peaks)}, details)


MEASUREMENTS: list[Measurement] = [slices, lesions, large_scan]


def session(folder: Path) -> dict[str, float]:
    """Click lesions of the large scan, propagate, ask for advice and save; return seconds by step."""
    volume = read_dataset(folder / "data")[0].read()
    bundle = Bundle.load(folder / "bundle")
    seconds: dict[str, float] = {}
    with Watch(seconds, "open"):
        opened = InteractiveSession(bundle.model(), volume, folder / "session")
    points = inner_points(volume)
    with Watch(seconds, "click"):
        for point in points[:: len(points) // CLICKED][:CLICKED]:
            opened.click(point)
    with Watch(seconds, "propagate"):
        opened.propagate()
    with Watch(seconds, "advise"):
        opened.suggest(3)
        opened.warnings()
    with Watch(seconds, "save"):
        opened.save()
    return seconds


def evaluation(folder: Path) -> dict[str, float]:
    """Evaluate the bundle on the large scan; return the seconds of all."""
    seconds: dict[str, float] = {}
    with Watch(seconds, "all"):
        mois(
            ["evaluate", f"--bundle={folder / 'bundle'}", f"--data={folder / 'data'}", "--split=all",
             f"--out={folder / 'results'}", "--protocol.counts=[0,5]", "--device=cpu"]
        )  # fmt: skip
    return seconds


JOBS = {"session": session, "evaluation": evaluation}


class Watch:
    """Adds the seconds of a block to a table."""

    def __init__(self, seconds: dict[str, float], step: str) -> None:
        self.seconds, self.step = seconds, step

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[f"{self.step}_seconds"] = time.perf_counter() - self.start


@functools.cache
def nano() -> VolumeSegmenter:
    """Return the bundled nano with its pretrained propagation."""
    backbone, propagation = SAM2(weights="bundled"), Similarity(weights="bundled")
    propagation.build(backbone)
    return VolumeSegmenter(backbone, propagation.eval(), SETTINGS)


def phantom(slices: int, lesions: int) -> Volume:
    """Return a scan of the default size, cut into so many slices."""
    rng = np.random.default_rng(3)
    shape, spacing_mm = (slices, 256, 160), (BODY_MM[0] / slices, 3.0, 3.0)
    types = draw_lesion_types(rng, 2)
    made = make_phantom(rng, types, shape=shape, spacing_mm=spacing_mm, lesions=(lesions, lesions))
    return as_volume(made, "phantom")


def true_exemplars(segmenter: VolumeSegmenter, encoded: EncodedVolume, volume: Volume, count: int) -> Exemplars:
    """Describe some lesions by their true outlines, on the slices on which they are largest."""
    ids = encoded.grid.to_stack(volume.lesions)
    found = []
    for lesion in ids.unique()[1:][:count].tolist():
        mask = ids == lesion
        index = int(mask.sum((1, 2)).argmax())
        size = encoded.pictures.shape[1:]
        soft = torch.nn.functional.interpolate(mask[None, None, index].float(), size, mode="bilinear", antialias=True)
        found.append((index, soft[0, 0]))
    return segmenter.exemplars(encoded, found)


def true_masks(encoded: EncodedVolume, volume: Volume) -> list[BoxMask]:
    """Return the lesions as a session keeps those that it finds."""
    ids = encoded.grid.to_stack(volume.lesions).numpy()
    return [BoxMask.of(ids == lesion) for lesion in np.unique(ids)[1:]]


def find(segmenter: VolumeSegmenter, encoded: EncodedVolume, volume: Volume, asked: Exemplars) -> object:
    """Go from the features of a scan to its lesions."""
    voxel_ml = float(torch.linalg.det(volume.affine[:3, :3]).abs()) / 1000
    return segmenter.lesions(segmenter.propagate(encoded, asked), voxel_ml, encoded.grid.spacing_mm)


def inner_points(volume: Volume) -> list[list[float]]:
    """Return a voxel of each lesion, in LPS mm."""
    shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
    grid = SliceGrid.of(shape, volume.affine)
    ids = grid.to_stack(volume.lesions)
    where = ids.nonzero()
    owner = ids[tuple(where.T)]
    middles = [where[owner == lesion] for lesion in owner.unique()]
    index = torch.stack([part[len(part) // 2] for part in middles]).double()
    points: list[list[float]] = grid.to_lps_mm(index).tolist()
    return points


def peak_gib() -> float:
    """Return the most memory that this process was resident with (not that of the process that started it)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**20


def draw(bench: Path, folder: Path) -> None:
    """Draw seconds by slices and by lesions as scaling_slices.png and scaling_lesions.png."""
    from matplotlib.figure import Figure

    details = json.loads(bench.read_text(encoding="utf-8"))["details"]
    drawn = {
        "slices": ("slices", {"encode": "encoding", "semantic": "semantic pass, 5 exemplars"}),
        "lesions": (
            "lesions in the scan (7 slices at 512 px, Hiera-tiny)",
            {"lesions": "semantic pass, each an exemplar", "described": "describing each as found (sessions)"},
        ),
    }
    for name, (across, curves) in drawn.items():
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for key, label in curves.items():
            points = sorted(
                (int(step.rpartition("_")[2]), seconds)
                for step, seconds in details[name].items()
                if step.startswith(f"{key}_")
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.set(xlabel=across, ylabel="CPU seconds, one thread")
        axes.set(xlim=(0, None), ylim=(0, 1.1 * axes.dataLim.y1))
        axes.legend(frameon=False)
        with whole_file(folder / f"scaling_{name}.png") as part:
            figure.savefig(part, format="png", dpi=130)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where = sys.argv[1], Path(sys.argv[2])
    if what in JOBS:
        spent = JOBS[what](where)
        print(json.dumps({**spent, "peak_gib": peak_gib()}))
    else:
        draw(Path(what), where)
