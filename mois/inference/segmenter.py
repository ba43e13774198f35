"""Whole volumes: tiles are encoded once, then clicks, tracking and propagation only decode.

A scan becomes a stack of S pictures (H, W) on its own pixels (`SliceGrid`), resampled in plane to (S, h, w) at the
model's millimetres per pixel, cut into T overlapping tiles (P, P) each. The model's answers go the same way back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mois.geometry import LARGEST_TILE, SliceGrid, TileGrid, resample_stack, restore_stack
from mois.grid import Edges, Spacing
from mois.inference.encoded_volume import EncodedVolume, Tracked, mask_centre, paste
from mois.inference.execution import Compiled, autocast, tiles_at_once
from mois.inference.feature_store import FeatureStore
from mois.inference.lesion_tracking import Limits, Seeds, track_lesions
from mois.inference.settings import InferenceSettings
from mois.intensities import Normalisation, doubt, normalise
from mois.interfaces import Backbone, Propagation, TrackingRules
from mois.lesions import Candidates, InstanceMap, Split, find_candidates
from mois.records import Exemplars, Features, MaskPrediction, Prompts, Volume


class VolumeSegmenter:
    """A model applied to whole volumes.

    Put the model into eval mode first. Features and exemplars stay on the model's device, pictures and results on the
    CPU.
    """

    def __init__(self, backbone: Backbone, propagation: Propagation, settings: InferenceSettings | None = None) -> None:
        self.backbone = backbone
        self.propagation = propagation
        self.settings = settings if settings is not None else InferenceSettings()
        self._encode = Compiled(backbone.encode) if self.settings.compile else backbone.encode

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.backbone.parameters()).device

    def normalisation(self, volume: Volume) -> Normalisation:
        """Return the normalisation of a scan, by the name of its channel where the rule is `auto`."""
        return self.settings.normalisation.for_channel(volume.channel)

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes, as `inference.precision` says."""
        return autocast(self.device, self.settings.precision)

    @torch.inference_mode()
    def encode(self, volume: Volume, *, lazy: bool = False) -> EncodedVolume:
        """Cut a scan into tiles, and encode each that is not air, once.

        Args:
            volume: The scan.
            lazy: Encode a tile when it is first asked for. Features are then kept as float16, and what comes out does
                not depend on the order in which tiles were asked for.
        """
        settings = self.settings
        grid = SliceGrid.of(volume.shape, volume.affine, settings.slice_axis)
        raw, rule = volume.image.float().cpu(), self.normalisation(volume)
        if volume.levels is None and (said := doubt(raw, rule, volume.channel)):
            warnings.warn(f"scan {volume.subject}: {said}", stacklevel=1)
        pictures = resample_stack(grid.to_stack(normalise(raw, rule, known=volume.levels)), grid, settings.pixel_mm)
        edge = settings.tile_px or self.backbone.patch_px
        self._warn_of_wide_tiles(edge, grid, volume.subject)
        tiles = TileGrid.of(pictures.shape[1], pictures.shape[2], edge, settings.overlap)
        shows = torch.zeros(len(pictures), len(tiles.corners), dtype=torch.bool)
        for index, picture in enumerate(pictures):
            cut = tiles.cut(picture)  # (T, P, P)
            shows[index] = functional.avg_pool2d(cut.unsqueeze(1), 8).amax((1, 2, 3)) > settings.air_level
        shows[0, 0] |= not bool(shows.any())  # nothing but air: one tile, so that there is something to decode
        places = torch.nonzero(shows).numpy()
        row_of = np.full(tuple(shows.shape), -1, dtype=np.int64)
        row_of[tuple(places.T)] = np.arange(len(places))
        stored = torch.float16 if lazy or settings.half_features else torch.float32
        store = FeatureStore(self._see, self.device, stored, settings.memory_gib)
        encoded = EncodedVolume(grid, tiles, pictures, store, row_of, places, len(places))
        if not lazy:
            step = tiles_at_once(self.device, edge, settings.batch_size)
            for start in range(0, len(places), step):
                rows = np.arange(start, min(start + step, len(places)))
                store.put(rows, encoded.images(rows))
        return encoded

    def _warn_of_wide_tiles(self, edge: int, grid: SliceGrid, subject: str) -> None:
        pixel_mm = self.settings.pixel_mm
        tile_mm, scan_mm = edge * pixel_mm, grid.extent_mm
        if tile_mm > LARGEST_TILE * scan_mm:
            warnings.warn(
                f"a tile of {edge} pixels of {pixel_mm} mm is {tile_mm:.0f} mm wide, {tile_mm / scan_mm:.2g} times as "
                f"much as {subject} ({scan_mm:.0f} mm), whose lesions it shows too small; lower inference.pixel_mm (to "
                f"{scan_mm / edge:.2g} the scan fills a tile) or inference.tile_px",
                stacklevel=3,
            )

    def _see(self, images: Tensor) -> Features:
        with self.autocast():
            return self._encode(images)

    def row(self, encoded: EncodedVolume, slice_index: int, tile: int) -> int:
        """Return the row of a tile; one that was taken for air is encoded when it is used, and kept."""
        return encoded.row(slice_index, tile)

    @torch.inference_mode()
    def answer(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prompts: Prompts) -> MaskPrediction:
        """Segment one prompted object on each of N rows."""
        moved = Prompts(*(None if part is None else part.to(self.device, non_blocking=True) for part in prompts))  # type: ignore[arg-type]
        step = tiles_at_once(self.device, encoded.tile_px, self.settings.batch_size)
        answers = []
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            asked = Prompts(*(None if given is None else given[part] for given in moved))  # type: ignore[arg-type]
            with self.autocast():
                answers.append(self.backbone.decode(encoded.select(rows[part]), asked))
        return MaskPrediction(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    def track(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], answer: MaskPrediction) -> Tracked:
        """Track N lesions from the slice on which each was clicked, in both directions.

        Args:
            encoded: The scan.
            rows: (N,) rows of the tiles on which the lesions were clicked.
            answer: Answer to the clicks on those tiles.
        """
        seeds = Seeds(rows, answer.logits, answer.pointer, answer.presence)
        with self.autocast():
            return track_lesions(self.backbone, encoded, seeds, self.limits, self.settings.batch_size)

    @property
    def limits(self) -> Limits:
        """Limits of the tracking of a lesion."""
        return Limits(self.settings.track_mm, self.settings.track_growth, self.tracking)

    @property
    def tracking(self) -> TrackingRules:
        """What of earlier slices a slice attends to: the backbone's rules, with `inference.track_memory` maps."""
        return self.settings.tracking(self.backbone)

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
        order = np.argsort(rows, kind="stable")
        described = []
        for part in self._batches(encoded, rows[order]):
            some = order[part]
            here, image = np.unique(rows[some], return_inverse=True)
            shown = masks[torch.from_numpy(some)].float().to(self.device, non_blocking=True)
            on = torch.from_numpy(image).to(self.device, non_blocking=True)
            with self.autocast():
                described.append(self.propagation.describe_on(encoded.select(here), on, shown, self.backbone))
        back = torch.from_numpy(np.argsort(order)).to(self.device, non_blocking=True)
        return Exemplars.cat([part.reshape(1, -1) for part in described]).pick(back)

    def _batches(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64]) -> Iterator[slice]:
        """Cut ascending rows into parts that go through the model at once: so many of them, on so many tiles."""
        tiles = tiles_at_once(self.device, encoded.tile_px, self.settings.batch_size)
        start = 0
        while start < len(rows):
            some = rows[start : start + self.settings.batch_size]
            number = np.cumsum(np.diff(some, prepend=some[0]) != 0)  # of the tile among these, from 0
            stop = start + int(np.searchsorted(number, tiles))
            yield slice(start, stop)
            start = stop

    def exemplars(self, encoded: EncodedVolume, items: Sequence[tuple[int, Tensor]]) -> Exemplars:
        """Turn lesions outlined on slices into exemplars.

        Args:
            encoded: The scan.
            items: Slice, and the lesion's mask (h, w) on its picture, bool or float 0 to 1.

        Raises:
            ValueError: If a mask holds anything else, such as logits.
        """
        if not items:
            return self.no_exemplars(encoded)
        rows, masks = [], []
        for slice_index, mask in items:
            if not bool(((mask >= 0) & (mask <= 1)).all()):  # false for NaN
                low, high = float(mask.amin()), float(mask.amax())
                raise ValueError(f"a mask of {low:g} to {high:g} is none; give bool, or 0 to 1 (sigmoid of logits).")
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
        """Find all lesions that are like the exemplars.

        Args:
            encoded: The scan.
            exemplars: B = 1; None stands for none.

        Returns:
            Probability (S, H, W) float32 on the scan's own pixels, on the CPU; 0 in air.
        """
        return self.propagate_all(encoded, [exemplars if exemplars is not None else self.no_exemplars(encoded)])[0]

    @torch.inference_mode()
    def propagate_all(self, encoded: EncodedVolume, questions: Sequence[Exemplars]) -> Tensor:
        """Ask several questions at once, so that each tile is embedded once for all of them.

        Args:
            encoded: The scan.
            questions: R sets of exemplars, B = 1 each and any K.

        Returns:
            Probability (R, S, H, W) float32, one stack per question as in `propagate`.
        """
        asked = self.prepare(questions)
        blended = torch.zeros(len(questions), *encoded.pictures.shape)
        most = max(1, tiles_at_once(self.device, encoded.tile_px, self.settings.batch_size) // len(questions))
        for slices, rows in encoded.groups(self.settings.batch_size):
            if not len(rows):
                continue
            parts = np.array_split(rows, ceil(len(rows) / most))
            probability = torch.cat([self.ask(encoded, part, asked) for part in parts])  # (rows, R, P, P)
            on_slice, tile = encoded.places[rows].T
            for slice_index in slices:
                here = torch.from_numpy(np.flatnonzero(on_slice == slice_index))
                blended[:, slice_index] = encoded.tiles.blend(probability[here], torch.from_numpy(tile)[here])
        found = torch.empty(len(questions), *encoded.grid.stack_shape)
        for number, stack in enumerate(blended):  # one at a time: a large scan's answers are not there twice
            found[number] = restore_stack(stack, encoded.grid)
        return found

    def prepare(self, questions: Sequence[Exemplars], *, merge: bool = True) -> Exemplars:
        """Return R sets of exemplars (B = 1, any K) as `ask` takes them, with all that depends on them alone.

        Args:
            questions: The sets.
            merge: Leave no more than `most_exemplars` of each where the propagation can merge them.
        """
        with self.autocast():
            prepared = self.propagation.prepare(side_by_side(questions))
            return self.propagation.condense(prepared, self.settings.most_exemplars) if merge else prepared

    def ask(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], asked: Exemplars) -> Tensor:
        """Return the probability (rows, R, P, P), on the CPU, of R prepared questions."""
        tiles = len(rows)
        # (R, K) -> (tiles * R, K), a view where R = 1
        exemplars = asked.each(lambda tensor: tensor.expand(tiles, *tensor.shape).flatten(0, 1))
        with self.autocast():
            prediction = self.propagation(encoded.select(rows), exemplars, self.backbone)
        probability: Tensor = prediction.logits.float().sigmoid()
        if self.settings.weigh_by_presence:
            probability = probability * prediction.presence.float().sigmoid()[:, None, None]
        return probability.view(tiles, -1, *probability.shape[1:]).cpu()

    def candidates(self, probability: Tensor, voxel_ml: float, spacing_mm: Spacing | Edges | None = None) -> Candidates:
        """Return the regions of a probability map that may be lesions.

        Args:
            probability: (S, H, W) float, on the scan's own pixels.
            voxel_ml: Volume of a voxel in millilitres.
            spacing_mm: Edges of a voxel (`mois.grid.edges_of`); needed where touching lesions are parted.

        Returns:
            The 26-connected components of what reaches the threshold, without those that are too small, and parted
            where `split_prominence_mm` says so.

        Raises:
            ValueError: If touching lesions are to be parted and the spacing is not given.
        """
        least, split = self.least_voxels(voxel_ml), None
        if self.settings.split_prominence_mm:
            if spacing_mm is None:
                raise ValueError(
                    f"inference.split_prominence_mm={self.settings.split_prominence_mm} needs the spacing in mm; "
                    "pass spacing_mm, or set it to 0."
                )
            split = Split(spacing_mm, self.settings.split_prominence_mm)
        return find_candidates(probability.numpy(), self.settings.threshold, least, split)

    def least_voxels(self, voxel_ml: float) -> int:
        """Return the size of the smallest lesion, in voxels of this volume in millilitres."""
        return max(self.settings.min_lesion_voxels, ceil(self.settings.min_lesion_ml / voxel_ml), 1)

    def lesions(self, probability: Tensor, voxel_ml: float, spacing_mm: Spacing | Edges | None = None) -> InstanceMap:
        """Return the lesions of a probability map: the candidates that reach `peak_threshold` in one voxel or more.

        Returns:
            Instance map (S, H, W) int32, ids 1..K.
        """
        return self.candidates(probability, voxel_ml, spacing_mm).sure(self.settings.peak_threshold).lesions


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
        fill([question.weight for question in questions]),
    )
