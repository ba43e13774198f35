"""The groups of options of `mois evaluate`: each option is documented here, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mois.evaluation.settings import ProtocolSettings


@dataclass(frozen=True)
class ReaderOptions:
    """The simulated reader: which lesions it prompts, and how well it clicks.

    Attributes:
        strategy: Which lesions the reader prompts first. With suggested and corrects, those that a reader comes to who
            follows the session's suggestions, or accepts and rejects found lesions.
        prompted: Number of lesions of each class that the reader prompts.
        clicks: Clicks on each prompted lesion.
        noise_mm: Distance by which clicks miss their aim, as a standard deviation.
        miss: Share of the lesions that the reader overlooks.
        masks: What becomes an exemplar: the mask that the clicks gave, or the true mask.
        slices: Where a lesion is clicked: on its largest slice, or on any slice on which it has at least 30 % of that
            area.
    """

    strategy: Literal["random", "largest", "spread", "suggested", "corrects"] = "random"
    prompted: int = 5
    clicks: int = 1
    noise_mm: float = 0.0
    miss: float = 0.0
    masks: Literal["predicted", "true"] = "predicted"
    slices: Literal["largest", "any"] = "largest"


@dataclass(frozen=True)
class ProtocolOptions:
    """How scans are scored.

    Attributes:
        counts: Numbers of prompted lesions for the curves; [] for no curves.
        curve_clicks: Numbers of clicks for the curves, such as [1,3]; by default `--reader.clicks` alone.
        actions: Numbers of actions for the curves over actions, such as [0,1,2,3,5,10]: clicks at random, clicks where
            the session suggests, and verdicts on found lesions; [] for no such curves.
        target_class: The class to score; by default every class.
        surface_mm: Tolerance of the surface Dice; mois doctor proposes a tolerance for very small lesions.
        bins_ml: Volumes between the size bins of lesions, such as [0.5,2,10].
        rules: With paper, the rules of arXiv 2509.19277 are scored beside ours.
    """

    counts: tuple[int, ...] = (0, 1, 3, 5, 10, 20)
    curve_clicks: tuple[int, ...] = ()
    target_class: int | None = None
    surface_mm: float = 2.0
    bins_ml: tuple[float, ...] = (0.5, 2.0, 10.0)
    rules: Literal["ours", "paper"] = "ours"
    actions: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputOptions:
    """What the results hold besides the usual files.

    Attributes:
        robustness: Score the scans again with bias field, noise, motion, gamma, ghosting and coarser pixels.
        title: Title of the report.
    """

    robustness: bool = False
    title: str = ""


def protocol_settings(reader: ReaderOptions, protocol: ProtocolOptions, seed: int) -> ProtocolSettings:
    """Return the settings of the protocol that these options ask for.

    Args:
        reader: Options of the reader.
        protocol: Options of the scoring.
        seed: Seed of the reader's choices.

    Raises:
        ValueError: If an option is out of range; the message names the option.
    """
    from mois.evaluation.reader import Reader
    from mois.evaluation.settings import ProtocolSettings

    try:
        return ProtocolSettings(
            prompted=reader.prompted,
            clicks=reader.clicks,
            masks=reader.masks,
            reader=Reader(reader.strategy, seed, reader.noise_mm, reader.miss, reader.slices),
            **asdict(protocol),
        )
    except ValueError as error:  # a training has the reader's settings in its protocol (model.protocol.clicks)
        message = re.sub(r"\bprotocol\.(prompted|clicks|masks)\b", r"reader.\1", str(error))
        raise ValueError(re.sub(r"\b(reader|protocol)\.(?=\w+=)", r"--\1.", message)) from error
