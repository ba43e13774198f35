"""What SAM 2.1 does around its network, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mois.files.json_records import as_record
from mois.interfaces import TrackingRules


@dataclass(frozen=True)
class SAM2Rules:
    """The rules by which prompts, masks and memories go through the network; the defaults are SAM 2.1's.

    Attributes:
        maps: How many of the latest slices are remembered as maps, besides the clicked ones.
        pointers: How many of the latest slices are remembered as pointers; null: of the slices with maps.
        past_pointers: Pointers of clicked slices that lie ahead are left out.
        scaled_pointers: Distances of pointers are told relative to the scan's slices where there are fewer than 16.
        single_mask: Two points or more (a box is two) get one mask, also where a memory was attended to; else three
            candidates, of which the best is taken.
        stability_fallback: Where that one mask is not stable, the best candidate stands in.
        score_presence: The presence score says whether a remembered slice shows the object, else its mask does.
        hard_clicks: A clicked slice is remembered as inside and outside, without shades.
        learned_masks: A mask that a reader gave goes through the learned `mask_downsample`.
        mask_limit: Logits of an earlier answer are cut to this much either way where they are a prompt; null: never.
        intensity_limit: Intensities are cut to 0 and this much, 1 being the white of an 8-bit picture; null: never.

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
        """Refuse what cannot work."""
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
        """What of earlier slices a slice attends to."""
        return TrackingRules(self.maps, self.pointers, self.past_pointers, self.learned_masks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; empty for the first rules, which nothing recorded before there was a choice."""
        return {} if self == FIRST else asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SAM2Rules:
        """Return what `as_dict` was made from.

        Raises:
            DataError: If it is nothing of the kind.
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
