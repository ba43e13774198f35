"""The options `inference.*`: how a whole volume is cut into tiles, segmented and assembled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mois.errors import check_choices
from mois.inference.execution import Precision
from mois.inference.matched_masks import MASK_RULES, MaskRules
from mois.intensities import Normalisation
from mois.interfaces import Backbone, TrackingRules
from mois.scans.channels import rule_of_channels, wanted_channels


@dataclass(frozen=True)
class InferenceSettings:
    """How a whole volume is cut into tiles, segmented and assembled.

    Attributes:
        pixel_mm: Edge of a pixel in mm; slices are resampled to it. A training that leaves it unset takes the value of
            its patches (data.init_args.pixel_mm).
        tile_px: Edge of a tile in pixels, a multiple of 32; None takes the size that the backbone was trained with.
        overlap: Overlap of neighbouring tiles, as a share of the edge of a tile.
        batch_size: Tiles that go through the model at once. A CPU takes fewer if they do not fit its cache.
        threshold: Probability from which a voxel belongs to a lesion.
        peak_threshold: A lesion is dropped if no voxel of it reaches this probability. `level` may ask for a higher
            one.
        min_lesion_voxels: Smallest lesion that is kept, in voxels.
        min_lesion_ml: Smallest lesion that is kept, in millilitres.
        clicks: How a click becomes a lesion. `model`: as the model says, on the clicked slice and while it is tracked.
            `matched`: masks of the model are matched to the look of the clicked place, and tracking ends where the
            picture no longer shows the lesion (`mois.inference.matched_masks`). `bounded`: so too, but a mask ends at
            most 4 pixels outside of a candidate of the model, and all candidates say which one is taken. So a lesion
            does not run into others that touch it and look like it. `followed`: so too, and where slices are thin for a
            lesion, tracking follows it where it fades from slice to slice, and ends where another lesion touches it
            from above or below (`mois.inference.followed_lesions`). `near`: so too, and there a lesion ends three radii
            from its clicked slice; between two clicked slices it does not. In evaluations, a voxel that two tracked
            lesions claim belongs to the lesion whose clicked slice is nearer, not to the surer one.
        window: Where a tracked lesion is looked for. `off`: on the whole tile. `auto`: in a square window of the tile
            around the lesion, which moves and grows with it (`mois.inference.lesion_windows`). It costs less, and the
            answers differ a little.
        track_mm: Largest distance from the clicked slice to which a lesion is tracked, in mm, in both directions.
        track_growth: Tracking ends if the area grows by more than this factor from one slice to the next.
        track_memory: Number of latest slices whose memory maps are kept, besides the clicked slices. Null takes the
            rule of the backbone: 6 for SAM 2.1, 1 for the bundled nano.
        air_level: A tile is air, and not encoded, if the mean normalised intensity of every 8 x 8 pixels is below this.
        slice_axis: Direction across the slices; `auto` is the direction with the largest spacing.
        weigh_by_presence: Multiply the probabilities of a tile by the probability that the tile shows a lesion.
        precision: `32` computes in float32. `bf16` computes in bfloat16 (autocast). `auto` is bfloat16 on a GPU that
            computes with it, else float32.
        compile: Compile the encoder (torch.compile) at its second use: once for a single tile, once for several tiles.
            Each compilation takes up to a minute for the nano on one core. A tile then takes about 15 % less time. If
            the compilation fails, a warning says so.
        half_features: Keep features as float16, as sessions always do: half the memory, Dice equal to 1e-4.
        memory_gib: Size of the features kept in memory, in GiB; further features go to a file in the temporary folder.
        split_prominence_mm: Split touching lesions if the radius of the waist between them is smaller than the radius
            of the thinner lesion by this much, in mm; 0 splits no lesion. It counts for propagations without cores.
            Null follows the exemplars: if they are compact and slices are dense, shape parts lesions, with cores or
            without (`mois.inference.parting.waist_of`).
        normalisation: How raw intensities become model intensities. It must be that of the training patches
            (data.init_args.normalisation).
        level: What a probability of 0.5 means. `fixed`: what the propagation says. `exemplars`: it is found for each
            scan, from how well the exemplars find each other and from how much of the scan they find
            (`mois.inference.levels`). `mixed`: so too, and the exemplars decide whether a plain comparison, of which
            nothing was learned, has half a say (`Propagation.plain_answer`). `pooled`: the same, but if the model finds
            the exemplars without any exemplar too, the level is found for the average of all three opinions. `known`:
            the same, but where such a scan shows one kind of object, the level is the one at which the average agrees
            best with the outlines that the model gives without exemplars; else the answer with exemplars counts alone.
            `cautious`: as `known`; for other lesions, of levels that are about as good the highest is taken.
            `selective`: as `cautious`; a candidate must also reach 0.69, or up to 0.8 where a scan shows one kind of
            object and most are hardly sure. Among other kinds, with two exemplars or more, it must be as sure as half
            of them are where the others look for them. Of known objects, only those that are clearly unlike the
            exemplars are of another kind. `moderate`: as `selective`; for lesions that the model hardly knows the level
            is 0.25 to 0.4, and a candidate must reach 0.75 to 0.84.
            Sessions and evaluations do so; `VolumeSegmenter.find` answers without it.
        rejections: What a rejected lesion changes elsewhere in a session. `exemplars`: it is a negative exemplar of the
            question, and has a say in outlines and levels. With the last five values of `level`, candidates that are
            found better if the exemplars change sides are not found. `vetoes`: positive exemplars alone decide about
            outlines and levels. Candidates that are found better if the exemplars change sides are not found; at most
            two rejected lesions count for each positive exemplar, those of the scan before those of a bank.
        most_exemplars: Largest number of exemplars. A propagation that can merge reduces more exemplars to this number
            (`Propagation.condense`).
        channels: Names of the 1 to 3 sequences that the model sees (`mois.scans.channels`); none for one image of any
            name. A training that leaves it unset takes data.init_args.channels.
    """

    pixel_mm: float = 1.5
    tile_px: int | None = None
    overlap: float = 0.5
    batch_size: int = 32
    threshold: float = 0.35
    peak_threshold: float = 0.75
    min_lesion_voxels: int = 4
    min_lesion_ml: float = 0.0
    clicks: Literal["model", "matched", "bounded", "followed", "near"] = "model"
    window: Literal["off", "auto"] = "off"
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
    split_prominence_mm: float | None = 0.0
    most_exemplars: int = 16
    level: Literal["fixed", "exemplars", "mixed", "pooled", "known", "cautious", "selective", "moderate"] = "fixed"
    rejections: Literal["exemplars", "vetoes"] = "exemplars"
    normalisation: Normalisation = Normalisation()  # noqa: RUF009 (frozen)
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_choices(self, "inference")
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
        object.__setattr__(self, "channels", tuple(self.channels))
        wanted_channels(self.channels, "inference.channels")
        if self.split_prominence_mm is not None and self.split_prominence_mm < 0:
            raise ValueError(f"inference.split_prominence_mm={self.split_prominence_mm} must be at least 0, or null.")

    @property
    def by_exemplars(self) -> bool:
        """Whether the exemplars of a scan decide anything (`mois.inference.levels`)."""
        return self.level != "fixed" or self.split_prominence_mm is None

    @property
    def matches_clicks(self) -> bool:
        """Whether clicked masks are matched to the picture."""
        return self.clicks != "model"

    @property
    def mask_rules(self) -> MaskRules | None:
        """How far matched masks may leave what the model says; None if clicked masks are those of the model."""
        return MASK_RULES.get(self.clicks)

    @property
    def nearer_owns(self) -> bool:
        """Whether evaluations give a voxel to the lesion that was clicked nearer; else to the surer one."""
        return self.mask_rules is not None and self.mask_rules.stays_near

    @property
    def shows_own_masks(self) -> bool:
        """Whether exemplars are described by masks of the model itself, not by what the reader sees."""
        return self.clicks == "matched"

    @property
    def asks_plain(self) -> bool:
        """Whether the plain answer may have a say."""
        return self.level == "mixed" or self.asks_alone

    @property
    def asks_alone(self) -> bool:
        """Whether the answer without exemplars may have a say."""
        return self.level in ("pooled", "known", "cautious", "selective", "moderate")

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse more channels than a backbone has inputs for.

        Raises:
            ValueError: If there are more.
        """
        if len(self.channels) > backbone.most_channels:
            raise ValueError(
                f"inference.channels={list(self.channels)} are {len(self.channels)} channels, and "
                f"{type(backbone).__name__} sees {backbone.most_channels}; leave some out, or take mois.backbones.SAM2."
            )

    def settled(self) -> InferenceSettings:
        """Return these settings as a model records them: with `auto` settled, if it is one rule for all channels."""
        return replace(self, normalisation=rule_of_channels(self.normalisation, self.channels))

    def tracking(self, backbone: Backbone) -> TrackingRules:
        """Return which earlier slices a slice attends to, with this backbone."""
        rules = backbone.tracking
        return rules if self.track_memory is None else replace(rules, maps=self.track_memory)
