"""The options `inference.*`: how a whole volume is cut up, decided and put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mois.inference.execution import Precision
from mois.intensities import Normalisation
from mois.interfaces import Backbone, TrackingRules


@dataclass(frozen=True)
class InferenceSettings:
    """How a whole volume is cut up, decided and put together.

    Attributes:
        pixel_mm: Edge of a picture's pixel; the scan is resampled to it in plane. A training that leaves it unset takes
            that of its patches (data.init_args.pixel_mm).
        tile_px: Edge of a tile, a multiple of 32; None takes what the backbone was trained at.
        overlap: Share of a tile's edge that neighbouring tiles have in common.
        batch_size: Tiles that go through the model at once; on a CPU fewer, where they would not fit its cache.
        threshold: Probability from which a voxel belongs to a lesion.
        peak_threshold: Probability that a lesion reaches at its surest voxel, or else it is dropped.
        min_lesion_voxels: Found lesions of fewer voxels are dropped.
        min_lesion_ml: Found lesions of less volume are dropped.
        track_mm: How far from the clicked slice a lesion is followed, either way.
        track_growth: A lesion that grows by more than this factor from one slice to the next has been lost.
        track_memory: How many of the latest slices' maps are remembered, besides those of clicked slices; null takes
            what the backbone's rules say: 6 for SAM 2.1, 1 for the bundled nano.
        air_level: A tile in which no 8 x 8 pixels have this mean normalised intensity is air, and is not encoded.
        slice_axis: Direction across the slices; `auto` is the coarsest one.
        weigh_by_presence: Multiply a tile's probabilities by the probability that there is anything on it.
        precision: `32` computes in float32, `bf16` in bfloat16 where that serves (autocast); `auto` is bfloat16 on an
            accelerator that computes with it, else float32.
        compile: Compile the encoder (torch.compile) at its second use: once for several tiles and once for a single
            one, up to a minute each for the nano on one core, then about 15 % less per tile. Where it cannot be
            compiled, a warning says so.
        half_features: Keep features as float16, as sessions always do: half the memory, Dice the same to 1e-4.
        memory_gib: How much of a scan's features is kept in memory; the rest goes to a file in the temporary folder.
        split_prominence_mm: Touching lesions are parted where the waist between them is thinner than the thinner of the
            two by this much, as a radius; 0 parts none.
        normalisation: How raw intensities become those that the model sees: as its training patches were
            (data.init_args.normalisation).
        most_exemplars: Of more, a propagation that can merges those that look most alike (`Propagation.condense`).
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
    track_memory: int | None = None
    air_level: float = 0.12
    slice_axis: Literal["auto", "left-right", "anterior-posterior", "superior-inferior"] = "auto"
    weigh_by_presence: bool = False
    precision: Precision = "auto"
    compile: bool = False
    half_features: bool = True
    memory_gib: float = 4.0
    split_prominence_mm: float = 0.0
    most_exemplars: int = 16
    normalisation: Normalisation = Normalisation()  # noqa: RUF009 (frozen)

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
        if self.track_memory is not None and self.track_memory < 0:
            raise ValueError(f"inference.track_memory={self.track_memory} must be at least 0, or null.")
        if self.memory_gib < 0:
            raise ValueError(f"inference.memory_gib={self.memory_gib} must be at least 0.")
        if self.most_exemplars < 2:
            raise ValueError(f"inference.most_exemplars={self.most_exemplars} must be at least 2: one of each sign.")
        if self.split_prominence_mm < 0:
            raise ValueError(f"inference.split_prominence_mm={self.split_prominence_mm} must be at least 0.")

    def tracking(self, backbone: Backbone) -> TrackingRules:
        """Return what of earlier slices a slice attends to, with this backbone."""
        rules = backbone.tracking
        return rules if self.track_memory is None else replace(rules, maps=self.track_memory)
