"""Rules of SAM 2.1 for prompts, masks and memories around its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mois.files.json_records import as_record
from mois.interfaces import TrackingRules


@dataclass(frozen=True)
class SAM2Rules:
    """Rules for prompts, masks and memories around the network. The defaults are the rules of SAM 2.1.

    Attributes:
        maps: Number of latest slices that are remembered as maps, besides the clicked slices.
        pointers: Number of latest slices that are remembered as pointers; null: the slices with maps.
        past_pointers: Leave out the pointers of clicked slices that lie ahead.
        scaled_pointers: In a scan of fewer than 16 slices, distances of pointers are relative to its number of slices.
        single_mask: Two or more points (a box is two points) give one mask, even with memory. Otherwise the decoder
            gives three candidates, and the best is taken.
        stability_fallback: If that one mask is not stable, the best candidate replaces it.
        score_presence: The presence score decides whether a remembered slice shows the object. Otherwise its mask does.
        hard_clicks: A clicked slice is remembered with a binary mask.
        learned_masks: A mask that a reader gave goes through the learned `mask_downsample`.
        mask_limit: Logits of an earlier answer are limited to plus or minus this value as a prompt; null: no limit.
        intensity_limit: Intensities are limited to 0 and this value, where 1 is white of an 8-bit picture; null: no
            limit.

    Source: Meta's configurations sam2.1_hiera_*.yaml and what `build_sam2_video_predictor` adds to them.
    """

    maps: int = 6
    pointers: int | None = 15
    past_pointers: bool = True
    scaled_pointers: bool = True
    single_mask: bool = True
    stability_fallback: bool = True
    score_presence: bool = True
    hard_clicks: bool = True
    learned_masks: bool = True
    mask_limit: float | None = 32.0
    intensity_limit: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuse rules that cannot work."""
        key = "backbone.rules"
        if not 0 <= self.maps <= MOST_MAPS:
            raise ValueError(f"{key}.maps={self.maps} must be 0 to {MOST_MAPS}: SAM 2.1 knows no older ones.")
        if self.pointers is not None and self.pointers < 0:
            raise ValueError(f"{key}.pointers={self.pointers} must be at least 0, or null.")
        if self.past_pointers and self.pointers is None:
            raise ValueError(f"{key}.past_pointers=true needs {key}.pointers: a number, such as 15.")
        for name in ("mask_limit", "intensity_limit"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise ValueError(f"{key}.{name}={limit} must be a number above 0, or null.")

    @property
    def tracking(self) -> TrackingRules:
        """Which earlier slices a slice attends to."""
        return TrackingRules(self.maps, self.pointers, self.past_pointers, self.learned_masks)

    def as_dict(self) -> dict[str, Any]:
        """Return the rules as plain values; {} for `FIRST`, because old bundles record no rules."""
        return {} if self == FIRST else asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SAM2Rules:
        """Return the rules that `as_dict` returned.

        Raises:
            DataError: If the values are no rules.
        """
        return as_record(dict(plain), cls, "the backbone's rules") if plain else FIRST


MOST_MAPS = 6
FIRST = SAM2Rules(
    maps=1,
    pointers=None,
    past_pointers=False,
    scaled_pointers=False,
    single_mask=False,
    stability_fallback=False,
    score_presence=False,
    hard_clicks=False,
    learned_masks=False,
    mask_limit=None,
    intensity_limit=None,
)
"""The rules of the bundled nano, and of every bundle that records none."""
