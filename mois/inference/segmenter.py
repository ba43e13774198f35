"""A model on whole volumes. Tiles are encoded once; then clicks, tracking and propagation only decode.

    scan (I, J, K)  ->  stack (S, H, W)  ->  pictures (S, h, w)  ->  T tiles (P, P) of each picture
                        own pixels           pixel_mm                overlapping

The results of the model go the same way back.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.geometry import SliceGrid, TileGrid, restore_stack
from mois.grid import Edges, Spacing
from mois.inference.encoded_volume import EncodedVolume, Tracked, mask_centre, paste, warn_of_wide_tiles
from mois.inference.execution import Compiled, autocast, batches, tiles_at_once
from mois.inference.feature_store import FeatureBudget, FeatureStore
from mois.inference.lesion_maps import LesionMaps, TileAnswers, parting_of, side_by_side
from mois.inference.lesion_tracking import Limits, Seeds, track_lesions
from mois.inference.matched_masks import for_model, match_answer
from mois.inference.opinions import alone_on, answers_on
from mois.inference.search import Search
from mois.inference.settings import InferenceSettings
from mois.intensities import Normalisation, doubt
from mois.interfaces import Backbone, Propagation, TrackingRules
from mois.lesions import Candidates, InstanceMap, find_candidates_steps
from mois.machine.steps import Steps, finish
from mois.records import Exemplars, Features, MaskPrediction, Prompts, Volume
from mois.scans.channels import channels_of, normalised_stack


class VolumeSegmenter:
    """Applies a model to whole volumes.

    Put the model into eval mode first. Features and exemplars stay on the device of the model. Pictures and results
    stay on the CPU.

    Args:
        backbone: The backbone.
        propagation: The propagation, built for this backbone.
        settings: The options `inference.*`; None takes the defaults.

    Examples:
        One lesion is outlined on a slice; the model looks for others like it in the whole scan.

        >>> from mois.propagation import Similarity
        >>> from mois.testing import nano_backbone
        >>> backbone, propagation = nano_backbone(), Similarity()
        >>> propagation.build(backbone)
        >>> segmenter = VolumeSegmenter(backbone.eval(), propagation.eval())
        >>> image = torch.rand(64, 48, 3)  # (I, J, K), voxels of 1 mm
        >>> affine, no_lesions = torch.eye(4, dtype=torch.float64), torch.zeros(64, 48, 3, dtype=torch.int32)
        >>> scan = Volume("scan", "patient", image, affine, no_lesions, classes={})
        >>> encoded = segmenter.encode(scan)
        >>> outline = torch.zeros(encoded.pictures.shape[1:], dtype=torch.bool)  # (h, w)
        >>> outline[10:20, 10:20] = True
        >>> exemplars = segmenter.exemplars(encoded, [(1, outline)])  # on slice 1
        >>> found = segmenter.find(encoded, exemplars)
        >>> tuple(found.probability.shape)  # (S, H, W)
        (3, 48, 64)
        >>> lesions = segmenter.lesions(found, scan.voxel_ml, encoded.grid.edges_mm)  # instance map (S, H, W)
    """

    def __init__(self, backbone: Backbone, propagation: Propagation, settings: InferenceSettings | None = None) -> None:
        self.backbone = backbone
        self.propagation = propagation
        self.settings = settings if settings is not None else InferenceSettings()
        self.settings.check_backbone(backbone)
        self._own = object()  # nobody else's answers are mine
        self.budget: FeatureBudget | None = None  # shared by several scans; None: `memory_gib` for each scan
        self._encode = Compiled(backbone.encode) if self.settings.compile else backbone.encode

    def with_settings(self, settings: InferenceSettings) -> VolumeSegmenter:
        """Return the same model with other settings. Both share the room for features."""
        other = VolumeSegmenter(self.backbone, self.propagation, settings)
        other.budget = self.budget
        return other

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.backbone.parameters()).device

    def normalisation(self, volume: Volume) -> Normalisation:
        """Return the normalisation of a scan's first channel. With the rule `auto` it depends on the channel's name."""
        return self.settings.normalisation.for_channel(channels_of(volume, self.settings.channels)[0][0].name)

    def autocast(self) -> torch.autocast:
        """Return the autocast context for `inference.precision`."""
        return autocast(self.device, self.settings.precision)

    @torch.inference_mode()
    def encode(self, volume: Volume, *, lazy: bool = False) -> EncodedVolume:
        """Cut a scan into tiles, and encode each tile that is not air, once.

        Args:
            volume: The scan.
            lazy: Encode a tile when it is first used, and keep features as float16. The results do not depend on the
                order in which tiles are used.
        """
        settings = self.settings
        grid = SliceGrid.of(volume.shape, volume.affine, settings.slice_axis)
        self._warn_of_doubts(volume)
        stack = normalised_stack(volume, grid, settings.pixel_mm, settings.normalisation, settings.channels)
        edge = settings.tile_px or self.backbone.patch_px
        warn_of_wide_tiles(edge, settings.pixel_mm, grid, volume.subject)
        tiles = TileGrid.of(stack.shape[-2], stack.shape[-1], edge, settings.overlap)
        stored = torch.float16 if lazy or settings.half_features else torch.float32
        store = FeatureStore(self._see, self.device, stored, self.budget or FeatureBudget(settings.memory_gib))
        encoded = EncodedVolume.cut(stack, grid, tiles, settings.air_level, store)
        if not lazy:
            step = tiles_at_once(self.device, edge, settings.batch_size)
            for start in range(0, encoded.shown, step):
                rows = np.arange(start, min(start + step, encoded.shown))
                store.put(rows, encoded.images(rows))
        return encoded

    def _warn_of_doubts(self, volume: Volume) -> None:
        for channel, step in channels_of(volume, self.settings.channels):
            rule = self.settings.normalisation.for_channel(channel.name)
            if channel.levels is None and not step and (reason := doubt(channel.image, rule, channel.name)):
                warnings.warn(f"scan {volume.subject}: {reason}", stacklevel=2)

    def _see(self, images: Tensor) -> Features:
        with self.autocast():
            return self._encode(images)

    def row(self, encoded: EncodedVolume, slice_index: int, tile: int) -> int:
        """Return the row of a tile. A tile of air is encoded when it is first used, and kept."""
        return encoded.row(slice_index, tile)

    @torch.inference_mode()
    def answer(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prompts: Prompts) -> MaskPrediction:
        """Segment one prompted object on each of N rows.

        Args:
            encoded: The scan.
            rows: (N,) rows of tiles.
            prompts: Prompts on N images, in pixels of the tile.

        Where clicks are matched to the picture, the logits are (N, P / 2, P / 2).
        """
        if prompts.mask_logits is not None:
            prompts = prompts._replace(mask_logits=for_model(prompts.mask_logits, encoded.tile_px))
        prompts_here = Prompts(*(None if part is None else part.to(self.device, non_blocking=True) for part in prompts))  # type: ignore[arg-type]
        step = tiles_at_once(self.device, encoded.tile_px, self.settings.batch_size)
        answers = []
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            part_prompts = Prompts(*(None if given is None else given[part] for given in prompts_here))  # type: ignore[arg-type]
            with self.autocast():
                answers.append(self.backbone.decode(encoded.select(rows[part]), part_prompts))
        answer = MaskPrediction(*(torch.cat(parts) for parts in zip(*answers, strict=True)))
        return match_answer(encoded, rows, prompts, answer, self.settings.mask_rules)

    def track(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], answer: MaskPrediction) -> Tracked:
        """Track N lesions from the slice on which each was clicked, in both directions.

        Args:
            encoded: The scan.
            rows: (N,) rows of the tiles on which the lesions were clicked.
            answer: Masks that the clicks gave on those tiles.
        """
        seeds = Seeds(rows, answer.logits, answer.pointer, answer.presence)
        with self.autocast():
            return track_lesions(self.backbone, encoded, seeds, self.limits, self.settings.batch_size)

    @property
    def limits(self) -> Limits:
        """Where the tracking of a lesion ends."""
        settings = self.settings
        limits = Limits(settings.track_mm, settings.track_growth, self.tracking, windows=settings.window == "auto")
        if settings.mask_rules is None:
            return limits
        return replace(limits, matched_pixel_mm=settings.pixel_mm, mask_rules=settings.mask_rules)

    @property
    def tracking(self) -> TrackingRules:
        """Which earlier slices a slice attends to: the rules of the backbone, with `inference.track_memory` maps."""
        return self.settings.tracking(self.backbone)

    def tracked_lesions(self, encoded: EncodedVolume, tracked: Tracked) -> InstanceMap:
        """Return tracked lesions on the scan's own pixels.

        Returns:
            Instance map (S, H, W) int32; the lesion at position n has id n + 1. If two lesions claim a voxel, the
            lesion with the higher logit gets it; with `clicks: near` the one whose clicked slice is nearer.
        """
        score, owner = paste(encoded, tracked, self.settings.nearer_owns)
        inside = restore_stack(score, encoded.grid) > 0
        owner_there = restore_stack(owner, encoded.grid, nearest=True)
        return np.asarray((owner_there * inside).numpy(), dtype=np.int32)

    @torch.inference_mode()
    def describe(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], masks: Tensor) -> Exemplars:
        """Turn N masks on tiles into exemplars.

        Args:
            encoded: The scan.
            rows: (N,) the tile that each mask lies on.
            masks: (N, P, P) float, 0 to 1.

        Returns:
            Exemplars with B = 1 and K = N; an exemplar of an empty mask is not valid.
        """
        order = np.argsort(rows, kind="stable")
        described = []
        tiles = tiles_at_once(self.device, encoded.tile_px, self.settings.batch_size)
        for part in batches(rows[order], self.settings.batch_size, tiles):
            part_order = order[part]
            distinct_rows, image = np.unique(rows[part_order], return_inverse=True)
            part_masks = masks[torch.from_numpy(part_order)].float().to(self.device, non_blocking=True)
            image_of_mask = torch.from_numpy(image).to(self.device, non_blocking=True)
            with self.autocast():
                described.append(
                    self.propagation.describe_on(
                        encoded.select(distinct_rows), image_of_mask, part_masks, self.backbone
                    )
                )
        back = torch.from_numpy(np.argsort(order)).to(self.device, non_blocking=True)
        return Exemplars.cat([part.reshape(1, -1) for part in described]).pick(back)

    def exemplars(self, encoded: EncodedVolume, items: Sequence[tuple[int, Tensor]]) -> Exemplars:
        """Turn lesions outlined on slices into exemplars; see `on_tiles`."""
        if not items:
            return self.no_exemplars(encoded)
        return self.describe(encoded, *self.on_tiles(encoded, items))

    def on_tiles(
        self, encoded: EncodedVolume, items: Sequence[tuple[int, Tensor]]
    ) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Return the tile on which each lesion lies best, (N,) its row, and the masks there, (N, P, P) float.

        Args:
            encoded: The scan.
            items: Slice, and mask of the lesion (h, w) on the picture of that slice, bool or float 0 to 1.

        Raises:
            ValueError: If a mask holds other values, such as logits.
        """
        rows, masks = [], []
        for slice_index, mask in items:
            if not bool(((mask >= 0) & (mask <= 1)).all()):  # false for NaN
                low, high = float(mask.amin()), float(mask.amax())
                raise ValueError(f"a mask holds {low:g} to {high:g}; give bool, or 0 to 1 (sigmoid of logits).")
            y, x = mask_centre(mask)
            tile = int(encoded.tiles.best_tile(y, x))
            rows.append(self.row(encoded, slice_index, tile))
            masks.append(encoded.crop(mask.float(), tile))
        return np.array(rows), torch.stack(masks)

    def no_exemplars(self, encoded: EncodedVolume) -> Exemplars:
        """Return exemplars with K = 0. With them the model finds lesions without any exemplar."""
        empty = torch.zeros(1, encoded.tile_px, encoded.tile_px)
        return self.describe(encoded, np.zeros(1, dtype=np.int64), empty).pick(slice(0, 0))

    def propagate(self, encoded: EncodedVolume, exemplars: Exemplars | None = None) -> Tensor:
        """Find all lesions that look like the exemplars.

        Args:
            encoded: The scan.
            exemplars: Exemplars with B = 1; None stands for `no_exemplars`.

        Returns:
            Probability (S, H, W) float32 on the scan's own pixels, on the CPU; 0 in air.
        """
        return self.propagate_all(encoded, [exemplars if exemplars is not None else self.no_exemplars(encoded)])[0]

    @torch.inference_mode()
    def propagate_all(self, encoded: EncodedVolume, questions: Sequence[Exemplars]) -> Tensor:
        """Propagate several sets of exemplars at once, so that each tile is embedded only once.

        Args:
            encoded: The scan.
            questions: R sets of exemplars, B = 1 each and any K.

        Returns:
            Probability (R, S, H, W) float32, one stack per question as in `propagate`.
        """
        return torch.stack([maps.probability for maps in self.find_all(encoded, questions)])

    def find(self, encoded: EncodedVolume, exemplars: Exemplars | None = None) -> LesionMaps:
        """Find all lesions that look like the exemplars, with the cores that tell touching lesions apart.

        Args:
            encoded: The scan.
            exemplars: Exemplars with B = 1; None stands for `no_exemplars`.
        """
        return self.find_all(encoded, [exemplars if exemplars is not None else self.no_exemplars(encoded)])[0]

    def find_all(
        self, encoded: EncodedVolume, questions: Sequence[Exemplars], plain: Sequence[bool] | None = None
    ) -> list[LesionMaps]:
        """Find lesions for several sets of exemplars at once, and return one answer for each set; see `Search`."""
        return Search(self, encoded, questions, plain=plain).whole()

    def prepare(self, questions: Sequence[Exemplars], *, merge: bool = True) -> Exemplars:
        """Return R sets of exemplars as one batch for `ask`, with everything computed that depends on exemplars alone.

        Args:
            questions: R sets of exemplars, B = 1 each and any K.
            merge: Merge each set down to `most_exemplars` exemplars, if the propagation can merge.
        """
        with self.autocast():
            prepared = self.propagation.prepare(side_by_side(questions))
            return self.propagation.condense(prepared, self.settings.most_exemplars) if merge else prepared

    def ask(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prepared: Exemplars) -> Tensor:
        """Return the probability of R prepared questions on some tiles.

        Args:
            encoded: The scan.
            rows: (T,) rows of tiles.
            prepared: R sets of exemplars, from `prepare`.

        Returns:
            (T, R, P, P) float32, on the CPU.
        """
        return self.tile_answers(encoded, rows, prepared).probability

    @torch.inference_mode()
    def tile_answers(
        self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prepared: Exemplars, plain: Exemplars | None = None
    ) -> TileAnswers:
        """Return what R prepared questions answer on some tiles; see `ask` and `answers_on`."""
        with self.autocast():
            return answers_on(encoded.select(rows), prepared, self.propagation, self.backbone, self.settings, plain)

    def opinions(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64], prepared: Exemplars) -> TileAnswers:
        """Return what `tile_answers` does; also the answer without exemplars if the level needs it."""
        answers = self.tile_answers(encoded, rows, prepared, prepared)
        return answers._replace(alone=self.answer_alone(encoded, rows)) if self.settings.asks_alone else answers

    @torch.inference_mode()
    def answer_alone(self, encoded: EncodedVolume, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the answer without exemplars on T tiles, (T, 1, P, P) float32, on the CPU."""
        return alone_on(self, encoded, rows)

    def subject(self, *what: Hashable) -> Hashable:
        """Return the subject under which an answer of this model is kept (`FeatureStore.keep`)."""
        return (self._own, self.settings, *what)

    def candidates(
        self, answer: LesionMaps | Tensor, voxel_ml: float, spacing_mm: Spacing | Edges | None = None
    ) -> Candidates:
        """Return the regions of an answer that may be lesions.

        Args:
            answer: What `find` returns, or a probability (S, H, W) float on the scan's own pixels.
            voxel_ml: Volume of a voxel in millilitres.
            spacing_mm: Edges of a voxel (`mois.grid.edges_of`); needed if touching lesions are parted.

        Returns:
            The 26-connected components of voxels that reach the threshold. Small components are left out. Touching
            lesions are parted as `parting_of` says.

        Raises:
            ValueError: If touching lesions are to be parted and the spacing is missing.
        """
        return finish(self.candidates_steps(answer, voxel_ml, spacing_mm))

    def candidates_steps(
        self, answer: LesionMaps | Tensor, voxel_ml: float, spacing_mm: Spacing | Edges | None = None
    ) -> Steps[Candidates]:
        """Do what `candidates` does, in steps."""
        maps = answer if isinstance(answer, LesionMaps) else LesionMaps(answer)
        min_voxels = self.min_voxels(voxel_ml)
        part = parting_of(maps, self.settings.split_prominence_mm, min_voxels, spacing_mm)
        found = yield from find_candidates_steps(maps.probability.numpy(), self.settings.threshold, min_voxels, part)
        return Candidates(found.lesions, maps.at_peak_level(found.peaks))

    def min_voxels(self, voxel_ml: float) -> int:
        """Return the size in voxels of the smallest lesion that is kept, for voxels of this volume in millilitres."""
        return max(self.settings.min_lesion_voxels, ceil(self.settings.min_lesion_ml / voxel_ml), 1)

    def lesions(
        self, answer: LesionMaps | Tensor, voxel_ml: float, spacing_mm: Spacing | Edges | None = None
    ) -> InstanceMap:
        """Return the lesions of an answer: the candidates that reach `peak_threshold` in one voxel or more.

        Returns:
            Instance map (S, H, W) int32, ids 1..K.
        """
        return self.candidates(answer, voxel_ml, spacing_mm).sure(self.settings.peak_threshold).lesions
