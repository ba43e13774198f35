"""How a scan is prompted and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mois.prompts import Reader


@dataclass(frozen=True)
class ProtocolSettings:
    """How a scan is prompted and scored.

    Attributes:
        prompted: How many lesions of a class the reader prompts; all that may be prompted where there are fewer.
        clicks: Clicks per prompted lesion: one in its middle, then corrections.
        masks: What becomes an exemplar: the mask that the clicks gave, or the true one.
        reader: Who chooses the lesions, and how well they are clicked.
        counts: Numbers of exemplars for the curves, such as 0, 1, 3, 5, 10, 20; empty for no curves.
        curve_clicks: Numbers of clicks for the curves, such as 1 and 3; empty for `clicks` alone.
        target_class: The class to score; None scores every class and averages.
        margin_px: How many pixels around a prompted lesion, in plane, are taken out with it.
        rules: `paper` scores every scan by the rules of arXiv 2509.19277 as well, never instead.
    """

    prompted: int = 5
    clicks: int = 1
    masks: Literal["predicted", "true"] = "predicted"
    reader: Reader = field(default_factory=Reader)
    counts: tuple[int, ...] = ()
    curve_clicks: tuple[int, ...] = ()
    target_class: int | None = None
    margin_px: int = 2
    rules: Literal["ours", "paper"] = "ours"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.prompted < 0 or any(count < 0 for count in self.counts):
            raise ValueError(f"protocol.prompted={self.prompted} and protocol.counts={self.counts} must be 0 or more.")
        if self.clicks < 1 or any(count < 1 for count in self.curve_clicks):
            raise ValueError(
                f"protocol.clicks={self.clicks} and protocol.curve_clicks={self.curve_clicks} must be at least 1."
            )
        if self.margin_px < 0:
            raise ValueError(f"protocol.margin_px={self.margin_px} must be 0 or more.")
        if self.masks not in ("predicted", "true"):
            raise ValueError(f"protocol.masks={self.masks!r} is unknown; choose predicted or true.")
        if self.rules not in ("ours", "paper"):
            raise ValueError(f"protocol.rules={self.rules!r} is unknown; choose ours or paper.")

    @property
    def every_clicks(self) -> tuple[int, ...]:
        """Numbers of clicks for the curves; none where there are no curves."""
        return (self.curve_clicks or (self.clicks,)) if self.counts else ()
