"""What a scan costs beyond its encoding: propagation, clicks, tracking. Hiera-tiny at 512 px, and the bundled nano."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from mois.backbones import SAM2
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Propagation
from mois.propagation import Attention, LearnedMatching, Prototype, Similarity
from mois.records import Exemplars, MaskPrediction, Prompts, Volume
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from mois.testing import example_patches
from tests.bench.measure import Measurement, Outcome, interleaved

MANY = 100
TILES = 4
"""Asked about in a row, as a scan's are: a tenth of a second alone is at the mercy of what ran before it."""


def semantic_pass(repeats: int) -> Outcome:
    """One tile's semantic pass, encoder excluded: 100 exemplars against 1, and against the paper's dense attention."""
    with torch.inference_mode():
        backbone = SAM2("tiny", "random", patch_px=512)
        images, masks = example_patches(1, 512)
        features = backbone.encode(images)
        kinds: dict[str, tuple[Propagation, tuple[int, ...]]] = {
            "similarity": (Similarity(), (1, 10, MANY)),
            "paper": (Attention(rotary_keys=True), (1, 10)),
            "dense": (Attention(), (10,)),
            "foreground": (Attention(tokens="foreground"), (10, MANY)),
            "prototype": (Prototype(), (10, MANY)),
        }
        arms, details = {}, {}
        for name, (propagation, counts) in kinds.items():
            propagation.build(backbone)
            one = propagation.describe(features, masks, backbone)
            details[f"{name}_bytes_per_exemplar"] = float(one.bytes_per_exemplar())
            for count in counts:
                bank = propagation.condense(propagation.prepare(_times(one, count)), InferenceSettings().most_exemplars)

                def ask(propagation: Propagation = propagation, bank: Exemplars = bank) -> None:
                    for _ in range(TILES):
                        propagation(features, bank, backbone)

                arms[f"{name}_{count}"] = ask
        seconds = {name: spent / TILES for name, spent in interleaved(arms, repeats).items()}
    many = seconds[f"similarity_{MANY}"]
    figures = {
        "semantic_100_vs_1": many / seconds["similarity_1"],
        "semantic_100_vs_dense_10": many / seconds["paper_10"],
        "bytes_per_exemplar": details["similarity_bytes_per_exemplar"],
    }
    return Outcome(figures, details | {f"{name}_s": spent for name, spent in seconds.items()})


def _times(one: Exemplars, count: int) -> Exemplars:
    return one.each(lambda tensor: tensor.repeat_interleave(count, 1))


@dataclass(frozen=True)
class _Scan:
    """The default phantom, encoded by the bundled nano, and a click (slice, y, x in the picture) on each lesion."""

    segmenter: VolumeSegmenter
    volume: Volume
    encoded: EncodedVolume
    clicks: list[tuple[int, float, float]]

    def answer(self) -> tuple[npt.NDArray[np.int64], MaskPrediction]:
        """Return the rows of the clicks, and what they give there."""
        rows, points = [], []
        for index, y, x in self.clicks:
            tile = self.encoded.tiles.best_tile(y, x)
            top, left = self.encoded.corner(tile)
            rows.append(self.encoded.row(index, tile))
            points.append([(x - left, y - top)])
        labels = torch.ones(len(rows), 1, dtype=torch.int32)
        return np.array(rows), self.segmenter.answer(
            self.encoded, np.array(rows), Prompts(torch.tensor(points), labels)
        )


@cache
def _scan() -> _Scan:
    rng = np.random.default_rng(0)
    phantom = make_phantom(rng, draw_lesion_types(rng, 2), lesions=(60, 60))
    depth_mm, row_mm, column_mm = phantom.spacing_mm
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -column_mm, -row_mm, -depth_mm, 1.0
    image, lesions = (torch.from_numpy(part).permute(2, 1, 0) for part in (phantom.image, phantom.instances))
    volume = Volume("phantom", "phantom", image.contiguous(), affine, lesions.int().contiguous(), phantom.classes)
    backbone, propagation = SAM2("nano", "bundled"), Similarity(weights="bundled")
    propagation.build(backbone)
    segmenter = VolumeSegmenter(backbone.eval(), propagation.eval(), InferenceSettings())
    encoded = segmenter.encode(volume)
    clicks = []
    for lesion in np.unique(phantom.instances)[1:]:
        there = phantom.instances == lesion
        index = int(there.sum((1, 2)).argmax())
        places = np.argwhere(there[index])
        row, column = places[((places - places.mean(0)) ** 2).sum(1).argmin()].tolist()
        place = torch.tensor([[index, row, column]], dtype=torch.float64)
        _, y, x = encoded.grid.to_picture_index(place, segmenter.settings.pixel_mm)[0].tolist()
        clicks.append((index, y, x))
    return _Scan(segmenter, volume, encoded, clicks)


def clicks(repeats: int) -> Outcome:
    """A corrective click as previewed, and its lesion in 3-D, against encoding the scan (default phantom, nano)."""
    scan = _scan()
    segmenter, grid = scan.segmenter, scan.encoded.grid
    index, y, x = max(scan.clicks, key=lambda click: _area(scan, click))
    session = InteractiveSession(LesionModel.of(segmenter), scan.volume)

    def point(shift: float) -> torch.Tensor:
        spot = torch.tensor([[index, y + shift, x]], dtype=torch.float64)
        return grid.to_lps_mm(_stack_index(scan, spot))[0]

    lesion = session.click(point(0.0))
    shifts = itertools.count(2.0, 1e-3)  # each correction falls elsewhere: answers to the same one would be kept

    def correct() -> None:
        session.click(point(next(shifts)), lesion=lesion)
        session.undo()

    seconds = interleaved(
        {
            "encode": lambda: segmenter.encode(scan.volume),
            "click": lambda: session.preview(point(next(shifts)), lesion=lesion),
            "retrack": correct,
        },
        repeats,
    )
    figures = {f"{name}_vs_encode": seconds[name] / seconds["encode"] for name in ("click", "retrack")}
    tiles = len(scan.encoded.places)
    return Outcome(figures, {f"{name}_s": spent for name, spent in seconds.items()} | {"tiles": tiles})


def _stack_index(scan: _Scan, places: torch.Tensor) -> torch.Tensor:
    """Return slice, row, column (N, 3) of the stack that the segmenter sees, as those of the scan's own stack."""
    grid = scan.encoded.grid
    rows, columns = grid.picture_shape(scan.segmenter.settings.pixel_mm)
    _, height, width = grid.stack_shape
    return (places + 0.5) / torch.tensor([1.0, rows / height, columns / width], dtype=places.dtype) - 0.5


def _area(scan: _Scan, click: tuple[int, float, float]) -> int:
    index, y, x = click
    place = torch.tensor([[index, y, x]], dtype=torch.float64)
    _, row, column = _stack_index(scan, place)[0].round().long()
    lesions = scan.encoded.grid.to_stack(scan.volume.lesions)
    return int((lesions == lesions[index, row, column]).sum())


def tracking(repeats: int) -> Outcome:
    """50 lesions tracked one after another against all together (default phantom, nano)."""
    scan = _scan()
    rows, answers_there = scan.answer()
    rows, answer = rows[:50], MaskPrediction(*(part[:50] for part in answers_there))

    def one_after_another() -> None:
        for n in range(len(rows)):
            one = MaskPrediction(*(part[n : n + 1] for part in answer))
            scan.segmenter.track(scan.encoded, rows[n : n + 1], one)

    seconds = interleaved(
        {"serial": one_after_another, "batched": lambda: scan.segmenter.track(scan.encoded, rows, answer)}, repeats
    )
    answers = len(scan.segmenter.track(scan.encoded, rows, answer).rows)
    figures = {"tracking_batched_vs_serial": seconds["serial"] / seconds["batched"]}
    details = {f"{name}_s": spent for name, spent in seconds.items()}
    return Outcome(figures, details | {"answers": answers, "answer_batched_s": seconds["batched"] / answers})


def encoder_calls(repeats: int) -> Outcome:
    """How often a tile is encoded in a session of three clicks, two propagations and a correction (nano)."""
    del repeats
    scan = _scan()
    session = InteractiveSession(LesionModel.of(scan.segmenter), scan.volume)
    encoded = session._bench.encoded
    spots = torch.tensor([list(click) for click in scan.clicks[:3]], dtype=torch.float64)
    points = encoded.grid.to_lps_mm(_stack_index(scan, spots))
    lesions = [session.click(point) for point in points]
    session.propagate()
    session.click(points[0], lesion=lesions[0])
    session.propagate()
    return Outcome(
        {"encoder_calls_per_tile": encoded.store.encoded / len(encoded.places)}, {"tiles": len(encoded.places)}
    )


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def second_propagation(repeats: int) -> Outcome:
    """A propagation after one more click, against the first, which encodes the scan (default phantom, second nano)."""
    backbone, propagation = SAM2("nano", "bundled-2"), LearnedMatching(weights="bundled-2")
    propagation.build(backbone)
    settings = InferenceSettings(
        threshold=0.5, peak_threshold=0.6, level="known", split_prominence_mm=None, clicks="matched"
    )
    segmenter = VolumeSegmenter(backbone.eval(), propagation.eval(), settings)
    scan = _scan()
    spots = torch.tensor([list(click) for click in scan.clicks[:4]], dtype=torch.float64)
    seconds: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(repeats):
        session = InteractiveSession(LesionModel.of(segmenter), scan.volume)
        points = session._bench.encoded.grid.to_lps_mm(_stack_index(scan, spots))
        for point in points[:3]:
            session.click(point)
        seconds["first"].append(_cpu_seconds(session.propagate))
        session.click(points[3])
        seconds["again"].append(_cpu_seconds(session.propagate))
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    figures = {"propagate_again_vs_first": medians["again"] / medians["first"]}
    return Outcome(figures, {f"{name}_s": spent for name, spent in medians.items()})


MEASUREMENTS: list[Measurement] = [semantic_pass, clicks, tracking, encoder_calls, second_propagation]
