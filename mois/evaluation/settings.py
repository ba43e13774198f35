"""How a scan is prompted and scored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite
from typing import Literal

from mois.errors import check_choices
from mois.evaluation.reader import Reader
from mois.metrics.surface import SURFACE_MM

BINS_ML = (0.5, 2.0, 10.0)


def size_bins(edges_ml: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Return the size bins of lesions: name to lower end (included) and upper end (excluded).

    Raises:
        ValueError: If the volumes do not ascend, or two are equal in six digits.
    """
    edges = [float(edge) for edge in edges_ml]
    if not edges or edges[0] <= 0 or not all(map(isfinite, edges)) or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"protocol.bins_ml={list(edges_ml)} must be one or more volumes above 0, ascending.")
    named = [f"<{edges[0]:g}", *(f"{low:g}-{high:g}" for low, high in pairwise(edges)), f">{edges[-1]:g}"]
    ends = [0.0, *edges, inf]
    if len(set(named)) < len(named) or any(f"{a:g}" == f"{b:g}" for a, b in pairwise(edges)):
        raise ValueError(f"protocol.bins_ml={list(edges_ml)}: some are the same in six digits; leave one out.")
    return dict(zip(named, pairwise(ends), strict=True))


def surface_key(surface_mm: float) -> str:
    """Return the name of the surface Dice in metrics.json for a tolerance."""
    return f"surface_dice_{surface_mm:g}mm"


@dataclass(frozen=True)
class ProtocolSettings:
    """How a scan is prompted and scored.

    Attributes:
        prompted: Number of lesions of a class that the reader prompts; fewer if fewer are promptable.
        clicks: Clicks per prompted lesion: one in its middle, then corrections.
        masks: What becomes an exemplar: the mask that the clicks gave, or the true mask.
        reader: Which lesions the reader chooses, and how well it clicks.
        counts: Numbers of exemplars for the curves, for example 0, 1, 3, 5, 10, 20; empty for no curves.
        curve_clicks: Numbers of clicks for the curves, for example 1 and 3; empty for `clicks` alone.
        actions: Numbers of actions for the curves over actions, for example 0, 1, 2, 5, 10; empty for no such curves.
        target_class: The class to score; None scores every class and averages.
        margin_px: Pixels around a prompted lesion, in plane, that are taken out with it.
        surface_mm: Tolerance of the surface Dice: a voxel's edge or two, and well below a lesion's diameter.
        bins_ml: Volumes between the size bins of lesions, ascending.
        rules: `paper` scores every scan also by the rules of arXiv 2509.19277.
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
    surface_mm: float = SURFACE_MM
    bins_ml: tuple[float, ...] = BINS_ML
    actions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.prompted < 0 or any(count < 0 for count in self.counts):
            raise ValueError(f"protocol.prompted={self.prompted} and protocol.counts={self.counts} must be 0 or more.")
        if any(count < 0 for count in self.actions):
            raise ValueError(f"protocol.actions={self.actions} must be 0 or more.")
        if self.clicks < 1 or any(count < 1 for count in self.curve_clicks):
            raise ValueError(
                f"protocol.clicks={self.clicks} and protocol.curve_clicks={self.curve_clicks} must be at least 1."
            )
        if self.margin_px < 0:
            raise ValueError(f"protocol.margin_px={self.margin_px} must be 0 or more.")
        if not (isfinite(self.surface_mm) and self.surface_mm > 0):
            raise ValueError(f"protocol.surface_mm={self.surface_mm} must be a number of millimetres above 0.")
        size_bins(self.bins_ml)
        check_choices(self, "protocol")

    def scored(self, classes: Iterable[int], declared: Collection[int]) -> list[int]:
        """Return which classes of a scan are scored.

        Args:
            classes: Classes that the scan has lesions of.
            declared: Classes that its dataset declares; empty if unknown.

        Raises:
            ValueError: If the class to score is not declared.
        """
        if self.target_class is not None and declared and self.target_class not in declared:
            raise ValueError(
                f"protocol.target_class={self.target_class} is not declared, dataset.json declares {sorted(declared)}; "
                "choose one of those."
            )
        return [one for one in classes if self.target_class in (None, one)]

    @property
    def every_clicks(self) -> tuple[int, ...]:
        """Numbers of clicks for the curves; empty without curves."""
        return (self.curve_clicks or (self.clicks,)) if self.counts else ()
