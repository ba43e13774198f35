"""Whole volumes: tiles are encoded once, then clicks, tracking and propagation only decode.

A scan becomes a stack of S pictures (H, W) on its own pixels (`SliceGrid`), resampled in plane to (S, h, w) at the
model's millimetres per pixel, cut into T overlapping tiles (P, P) each. The model's answers go the same way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mois.components import Candidates, find_candidates
from mois.encoded import EncodedVolume, Tracked, mask_centre, paste
from mois.geometry import SliceGrid, TileGrid, resample_stack, restore_stack
from mois.interfaces import Backbone, Exemplars, Features, MaskPrediction, Memory, Prompts, Propagation, Volume
from mois.io import normalise
from mois.metrics import InstanceMap


@dataclass(frozen=True)
class InferenceSettings:
    """How a whole volume is cut up, decided and put together.

    Attributes:
        pixel_mm: Edge of a picture's pixel; the scan is resampled to it in plane.
        tile_px: Edge of a tile, a multiple of 32; None takes what the backbone was trained at.
        overlap: Share of a tile's edge that neighbouring tiles have in common.
        batch_size: Tiles that go through the model at once.
        threshold: Probability from which a voxel belongs to a lesion.
        peak_threshold: Probability that a lesion reaches at its surest voxel, or else it is dropped.
        min_lesion_voxels: Found lesions of fewer voxels are dropped.
        min_lesion_ml: Found lesions of less volume are dropped.
        track_mm: How far from the clicked slice a lesion is followed, either way.
        track_growth: A lesion that grows by more than this factor from one slice to the next has been lost.
        track_memory: How many of the latest slices are remembered, besides the clicked one.
        air_level: A tile in which no 8 x 8 pixels have this mean normalised intensity is air, and is not encoded.
        slice_axis: Direction across the slices; `auto` is the coarsest one.
        weigh_by_presence: Multiply a tile's probabilities by the probability that there is anything on it.
        half_features: Keep features as float16: half the memory, nearly the same answers.
    """

    pixel_mm: float = 1.5
    tile_px: int | None = None
    overlap: float = 0.5
    batch_size: int = 32
    threshold: float = 0.35
    peak_threshold: float = 0.75
    min_lesion_voxels: int = 4
    min_lesion_ml: float = 0.0
    track_mm: float = 60.0
    track_growth: float = 4.0
    track_memory: int = 1
    air_level: float = 0.12
    slice_axis: Literal["auto", "left-right", "anterior-posterior", "superior-inferior"] = "auto"
    weigh_by_presence: bool = False
    half_features: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.pixel_mm <= 0:
            raise ValueError(f"inference.pixel_mm={self.pixel_mm} must be above 0.")
        if self.tile_px is not None and (self.tile_px < 32 or self.tile_px % 32):
            raise ValueError(f"inference.tile_px={self.tile_px} must be a positive multiple of 32.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap={self.overlap} must be at least 0 and below 1.")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size={self.batch_size} must be at least 1.")
        if not 0 < self.threshold < 1:
            raise ValueError(f"inference.threshold={self.threshold} must lie between 0 and 1.")
        if not 0 <= self.peak_threshold < 1:
            raise ValueError(f"inference.peak_threshold={self.peak_threshold} must be at least 0 and below 1.")
        if self.track_growth <= 1:
            raise ValueError(f"inference.track_growth={self.track_growth} must be above 1.")
        if self.track_memory < 0:
            raise ValueError(f"inference.track_memory={self.track_memory} must be at least 0.")


class VolumeSegmenter:
    """A model applied to whole volumes.

    Put the model into eval mode first. Features and exemplars stay on the model's device, pictures and results on the
    CPU.
    """

    def __init__(self, backbone: Backbone, propagation: Propagation, settings: InferenceSettings | None = None) -> None:
        self.backbone = backbone
        self.propagation = propagation
        self.settings = settings if settings is not None else InferenceSettings()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.backbone.parameters()).device

    @torch.inference_mode()
    def encode(self, volume: Volume) -> EncodedVolume:
        """Cut a scan into tiles and encode each that is not air, once."""
        settings = self.settings
        shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
        grid = SliceGrid.of(shape, volume.affine, settings.slice_axis)
        pictures = resample_stack(normalise(grid.to_stack(volume.image.float().cpu())), grid, settings.pixel_mm)
        edge = settings.tile_px or self.backbone.patch_px
        tiles = TileGrid.of(pictures.shape[1], pictures.shape[2], edge, settings.overlap)
        row_of = np.full((len(pictures), len(tiles.corners)), -1, dtype=np.int64)
        kept: list[Tensor] = []
        places: list[tuple[int, int]] = []
        for index, picture in enumerate(pictures):
            cut = tiles.cut(picture)  # (T, P, P)
            brightest = functional.avg_pool2d(cut.unsqueeze(1), 8).amax((1, 2, 3))
            shown = torch.nonzero(brightest > settings.air_level).flatten()
            row_of[index, shown.numpy()] = np.arange(len(places), len(places) + len(shown))
            places += [(index, tile) for tile in shown.tolist()]
            kept.append(cut[shown])
        if not places:  # nothing but air: one tile, so that there is something to decode
            kept, places = [tiles.cut(pictures[0])[:1]], [(0, 0)]
            row_of[0, 0] = 0
        features = self._encode_tiles(torch.cat(kept))
        return EncodedVolume(grid, tiles, pictures, features, row_of, np.array(places, dtype=np.int64))

    def _encode_tiles(self, images: Tensor) -> Features:
        """Encode (N, P, P) in batches; keep one position code."""
        stored = torch.float16 if self.settings.half_features else torch.float32
        step = self.settings.batch_size
        batches = [self.backbone.encode(images[at : at + step].to(self.device)) for at in range(0, len(images), step)]
        levels = tuple(torch.cat(level).to(stored) for level in zip(*(batch.levels for batch in batches), strict=True))
        return Features(levels, batches[0].position[:1].to(stored), torch.cat([b.image for b in batches]).to(stored))

    @torch.inference_mode()
    def row(self, encoded: EncodedVolume, slice_index: int, tile: int) -> int:
        """Return the row of a tile; one that was taken for air is encoded now, and kept."""
        row = int(encoded.row_of[slice_index, tile])
        if row >= 0:
            return row
        new = self._encode_tiles(encoded.crop(encoded.pictures[slice_index], tile).unsqueeze(0))
        old = encoded.features
        levels = tuple(torch.cat(pair) for pair in zip(old.levels, new.levels, strict=True))
        encoded.features = Features(levels, old.position, torch.cat([old.image, new.image]))
        row = len(encoded.places)
        encoded.row_of[slice_index, tile] = row
        encoded.places = np.append(encoded.places, [[slice_index, tile]], axis=0)
        return row

    @torch.inference_mode()
    def answer(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prompts: Prompts) -> MaskPrediction:
        """Segment one prompted object on each of N rows."""
        moved = Prompts(*(None if part is None else part.to(self.device) for part in prompts))  # type: ignore[arg-type]
        return self.backbone.decode(encoded.select(rows), moved)

    def click(
        self,
        encoded: EncodedVolume,
        slice_index: int,
        y: float,
        x: float,
        corrections: Sequence[tuple[float, float, bool]] = (),
    ) -> Tensor:
        """Segment the clicked object on its slice.

        Args:
            encoded: The scan.
            slice_index: The slice that was clicked.
            y: Row of the click, in pixels of `encoded.pictures`.
            x: Column of the click.
            corrections: Row, column, and whether the click is positive, in the order in which they were made.

        Returns:
            Logits (h, w) float32, on the CPU; -20 outside the tile whose centre is nearest to the first click.
        """
        tile = int(encoded.tiles.best_tile(y, x))
        rows = np.array([self.row(encoded, slice_index, tile)])
        top, left = encoded.corner(tile)
        clicks = [(x, y, 1)] + [(cx, cy, int(positive)) for cy, cx, positive in corrections]
        points = torch.tensor([[(cx - left, cy - top) for cx, cy, _ in clicks]], dtype=torch.float32)
        labels = torch.tensor([[label for _, _, label in clicks]], dtype=torch.int32)
        answer = self.answer(encoded, rows, Prompts(points[:, :1], labels[:, :1]))
        for count in range(2, len(clicks) + 1):
            prompts = Prompts(points[:, :count], labels[:, :count], answer.logits.float().unsqueeze(1))
            answer = self.answer(encoded, rows, prompts)
        tracked = Tracked(np.zeros(1, dtype=np.int64), rows, answer.logits.float().cpu())
        return paste(encoded, tracked)[0][slice_index]

    @torch.inference_mode()
    def track(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], answer: MaskPrediction) -> Tracked:
        """Follow N lesions from the slice on which they were clicked, both ways.

        A lesion ends where the model sees none (presence below 0, or an empty mask), where it grows by more than
        `track_growth` from one slice to the next, at the end of the scan, and after `track_mm`.

        Args:
            encoded: The scan.
            rows: (N,) where each lesion was clicked.
            answer: What the clicks gave there.
        """
        clicked = Tracked(np.arange(len(rows)), rows, answer.logits.float().cpu())
        parts = [clicked]
        chunk = max(1, self.settings.batch_size // 2)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            parts += self._track_chunk(encoded, rows[part], answer.logits[part], answer.pointer[part], start)
        return Tracked(
            np.concatenate([part.lesion for part in parts]),
            np.concatenate([part.rows for part in parts]),
            torch.cat([part.logits for part in parts]),
        )

    def _track_chunk(
        self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], logits: Tensor, pointer: Tensor, first: int
    ) -> list[Tracked]:
        """Follow some lesions; both directions are objects of one batch."""
        clicked = self.backbone.remember(encoded.select(rows), logits, pointer)
        clicked = _pick(clicked, np.tile(np.arange(len(rows)), 2))
        recent: list[Memory] = []  # the latest slices, the last one first
        lesion = np.tile(np.arange(len(rows)), 2)
        direction = np.repeat([1, -1], len(rows))
        start, tile = encoded.places[rows][lesion].T
        area = (logits > 0).sum((1, 2)).float().repeat(2)  # in cells of 4 x 4 pixels
        found: list[Tracked] = []
        for step in range(1, int(self.settings.track_mm / encoded.grid.gap_mm) + 1):
            here = start + step * direction
            inside = (here >= 0) & (here < len(encoded.row_of))
            at_row = np.where(inside, encoded.row_of[here.clip(0, len(encoded.row_of) - 1), tile], -1)
            going = np.flatnonzero(at_row >= 0)
            if not len(going):
                break
            features = encoded.select(at_row[going])
            remembered = [clicked.at(step, clicked=True)]
            remembered += [part.at(distance, clicked=False) for distance, part in enumerate(recent, start=1)]
            memory = Memory.cat([_pick(part, going) for part in remembered])
            answer = self.backbone.decode(self.backbone.attend(features, memory), None)
            new_area = (answer.logits > 0).sum((1, 2)).float()
            # + 4: a lesion of one or two cells may double without having been lost.
            alive = (answer.presence >= 0) & (new_area > 0)
            alive &= new_area <= self.settings.track_growth * (_at(area, going) + 4)
            kept = torch.nonzero(alive).flatten().cpu().numpy()  # the only sync of a step
            if not len(kept):
                break
            index = going[kept]
            kept_logits = _at(answer.logits, kept)
            found.append(Tracked(lesion[index] + first, at_row[index], kept_logits.float().cpu()))
            latest = self.backbone.remember(encoded.select(at_row[index]), kept_logits, _at(answer.pointer, kept))
            recent = [latest, *(_pick(part, index) for part in recent)][: self.settings.track_memory]
            clicked = _pick(clicked, index)
            lesion, direction, start, tile = lesion[index], direction[index], start[index], tile[index]
            area = _at(new_area, kept)
        return found

    def tracked_lesions(self, encoded: EncodedVolume, tracked: Tracked) -> InstanceMap:
        """Return tracked lesions on the scan's own pixels.

        Returns:
            Instance map (S, H, W) int32; the lesion at position n has id n + 1. Where two of them claim a voxel, the
            more certain one has it.
        """
        score, owner = paste(encoded, tracked)
        inside = restore_stack(score, encoded.grid) > 0
        owner_there = restore_stack(owner, encoded.grid, nearest=True)
        return np.asarray((owner_there * inside).numpy(), dtype=np.int32)

    @torch.inference_mode()
    def describe(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], masks: Tensor) -> Exemplars:
        """Turn N masks on tiles into the exemplars of one query.

        Args:
            encoded: The scan.
            rows: (N,) the tile that each mask lies on.
            masks: (N, P, P) float, 0 to 1.

        Returns:
            Exemplars with B = 1 and K = N; an empty mask is not valid.
        """
        described = self.propagation.describe(encoded.select(rows), masks.float().to(self.device), self.backbone)
        return described.reshape(1, len(rows))

    def exemplars(self, encoded: EncodedVolume, items: Sequence[tuple[int, Tensor]]) -> Exemplars:
        """Turn lesions outlined on slices into exemplars.

        Args:
            encoded: The scan.
            items: Slice, and the lesion's mask (h, w) on its picture, bool or float 0 to 1.
        """
        if not items:
            return self.no_exemplars(encoded)
        rows, masks = [], []
        for slice_index, mask in items:
            y, x = mask_centre(mask)
            tile = int(encoded.tiles.best_tile(y, x))
            rows.append(self.row(encoded, slice_index, tile))
            masks.append(encoded.crop(mask.float(), tile))
        return self.describe(encoded, np.array(rows), torch.stack(masks))

    def no_exemplars(self, encoded: EncodedVolume) -> Exemplars:
        """Return K = 0 exemplars: with them the model finds what it finds by itself."""
        empty = torch.zeros(1, encoded.tile_px, encoded.tile_px)
        return self.describe(encoded, np.zeros(1, dtype=np.int64), empty).pick(slice(0, 0))

    def propagate(self, encoded: EncodedVolume, exemplars: Exemplars | None = None) -> Tensor:
        """Find all that is like the exemplars.

        Args:
            encoded: The scan.
            exemplars: B = 1; None stands for none.

        Returns:
            Probability (S, H, W) float32 on the scan's own pixels, on the CPU; 0 in air.
        """
        return self.propagate_all(encoded, [exemplars if exemplars is not None else self.no_exemplars(encoded)])[0]

    @torch.inference_mode()
    def propagate_all(self, encoded: EncodedVolume, questions: Sequence[Exemplars]) -> Tensor:
        """Ask several questions at once, so that what a tile shows is worked out once for all of them.

        Args:
            encoded: The scan.
            questions: R sets of exemplars, B = 1 each and any K.

        Returns:
            Probability (R, S, H, W) float32, one stack per question as in `propagate`.
        """
        asked = side_by_side(questions)
        blended = torch.zeros(len(questions), *encoded.pictures.shape)
        most = max(1, self.settings.batch_size // len(questions))
        for slices, rows in encoded.groups(self.settings.batch_size):
            if not len(rows):
                continue
            parts = np.array_split(rows, ceil(len(rows) / most))
            probability = torch.cat([self._ask(encoded, part, asked) for part in parts])  # (rows, R, P, P)
            places = torch.from_numpy(encoded.places[rows])
            for slice_index in slices:
                here = torch.nonzero(places[:, 0] == slice_index).flatten()
                blended[:, slice_index] = encoded.tiles.blend(probability[here], places[here, 1])
        return torch.stack([restore_stack(stack, encoded.grid) for stack in blended])

    def _ask(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], asked: Exemplars) -> Tensor:
        """Return the probability (rows, R, P, P), on the CPU."""
        tiles = len(rows)
        # (R, K) -> (tiles * R, K), a view where R = 1
        exemplars = Exemplars(
            {name: token.expand(tiles, *token.shape).flatten(0, 1) for name, token in asked.tokens.items()},
            asked.valid.expand(tiles, *asked.valid.shape).flatten(0, 1),
            asked.negative.expand(tiles, *asked.negative.shape).flatten(0, 1),
        )
        prediction = self.propagation(encoded.select(rows), exemplars, self.backbone)
        probability: Tensor = prediction.logits.float().sigmoid()
        if self.settings.weigh_by_presence:
            probability = probability * prediction.presence.float().sigmoid()[:, None, None]
        return probability.view(tiles, -1, *probability.shape[1:]).cpu()

    def candidates(self, probability: Tensor, voxel_ml: float) -> Candidates:
        """Return what might be a lesion in a probability map.

        Args:
            probability: (S, H, W) float, on the scan's own pixels.
            voxel_ml: Volume of a voxel in millilitres.

        Returns:
            The 26-connected components of what reaches the threshold, without those that are too small.
        """
        least = max(self.settings.min_lesion_voxels, ceil(self.settings.min_lesion_ml / voxel_ml), 1)
        return find_candidates(probability.numpy(), self.settings.threshold, least)

    def lesions(self, probability: Tensor, voxel_ml: float) -> InstanceMap:
        """Return the lesions of a probability map: those of the candidates that are sure enough somewhere.

        Returns:
            Instance map (S, H, W) int32, ids 1..K.
        """
        return self.candidates(probability, voxel_ml).sure(self.settings.peak_threshold).lesions


def side_by_side(questions: Sequence[Exemplars]) -> Exemplars:
    """Return R sets of exemplars (B = 1, any K) as one batch: B = R, K of the largest, the others padded."""
    if len(questions) == 1:
        return questions[0]
    most = max(question.count for question in questions)

    def fill(parts: Sequence[Tensor]) -> Tensor:
        padded = [torch.cat([part, part.new_zeros(1, most - part.shape[1], *part.shape[2:])], 1) for part in parts]
        return torch.cat(padded)

    return Exemplars(
        {name: fill([question.tokens[name] for question in questions]) for name in questions[0].tokens},
        fill([question.valid for question in questions]),
        fill([question.negative for question in questions]),
    )


def _at(tensor: Tensor, index: npt.NDArray[np.int64]) -> Tensor:
    """Return some rows of a tensor on any device."""
    return tensor[torch.from_numpy(index).to(tensor.device)]


def _pick(memory: Memory, index: npt.NDArray[np.int64]) -> Memory:
    """Return the memory of some objects."""
    maps, position, pointers = (_at(part, index) for part in (memory.maps, memory.position, memory.pointers))
    return memory._replace(maps=maps, position=position, pointers=pointers)
