"""Charts of reports, as inline pictures with labels and intervals."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mois.report.results import Estimate

# The palette of Okabe and Ito, for readers with any colour vision; dark colours first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
LINES = ("solid", "dashed", "dotted")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WORD_COLOURS = {"right": "#009E73", "wrong": "#D55E00", "swapped": "#56B4E9", "no_exemplars": "#888888"}
SPELLED = {
    "volume_error_ml": "volume error, ml",
    "volume_error_percent": "volume error, %",
    "volume_absolute_error_percent": "absolute volume error, %",
    r"surface_dice_(\S+?)mm": r"surface Dice at \1 mm",
    "fp_per_scan": "false lesions per scan",
    "dice": "Dice",
    "f1": "F1",
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mois",  # makes equal pictures equal byte by byte
    "text.parse_math": False,  # the name of a result may hold $
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3a3f47",
    "xtick.color": "#3a3f47",
    "ytick.color": "#3a3f47",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}

Series = Sequence[tuple[float, Estimate]]
"""Points of a curve: position on the horizontal axis, and the figure there."""


def curves(series: Mapping[str, Series], x_label: str, y_label: str, *, from_zero: bool = True) -> str:
    """Draw curves with their 95 % intervals.

    Args:
        series: Points of each curve, by name; figures that were not measured are left out.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        from_zero: Whether the vertical axis runs from 0 to 1.

    Returns:
        The picture as a data URI.
    """
    with rc_context(STYLE):
        figure, axes = _canvas(5.2, 3.5)
        ticks = sorted({x for points in series.values() for x, _ in points})
        position = {
            x: float(number) for number, x in enumerate(ticks)
        }  # evenly spaced, because 1, 3, 5, 10, 20 would crowd at the left
        words = list(dict.fromkeys(name.partition(",")[0] for name in series))
        for name, points in series.items():
            # the word sets the colour; variants of it differ in line and marker
            number = words.index(name.partition(",")[0])
            variant = [other for other in series if other.partition(",")[0] == words[number]].index(name)
            kept = [(position[x], estimate) for x, estimate in points if estimate.mean is not None]
            if not kept:
                continue
            colour = WORD_COLOURS.get(words[number], COLOURS[number % len(COLOURS)])
            axes.plot(
                [x for x, _ in kept],
                [estimate.mean or 0.0 for _, estimate in kept],
                color=colour,
                marker=MARKERS[(number + variant) % len(MARKERS)],
                markersize=5,
                linewidth=1.8,
                linestyle=LINES[variant % len(LINES)],
                label=in_words(name),
            )
            banded = [
                (x, estimate.low, estimate.high)
                for x, estimate in kept
                if estimate.low is not None and estimate.high is not None
            ]
            if banded:
                across, low, high = np.array(banded).T
                axes.fill_between(across, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.set_xticks(list(position.values()), [f"{x:g}" for x in ticks])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if from_zero:
            _share_axis(axes)
        if len(series) > 1:
            legend_above(figure, 2 if len(series) < 5 else 3)
        return _data_uri(figure)


def bars(groups: Mapping[str, Mapping[str, Estimate]], y_label: str, *, share: bool = True) -> str:
    """Draw bars with their 95 % intervals, side by side in groups.

    Args:
        groups: Name of the group to name of the bar to figure.
        y_label: Label of the vertical axis.
        share: Whether the vertical axis runs from 0 to 1.
    """
    with rc_context(STYLE):
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        figure, axes = _canvas(max(3.8, 1.2 + 0.48 * len(names) * len(groups)), 3.2)
        width = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            colour = WORD_COLOURS.get(name, COLOURS[number % len(COLOURS)])
            labelled = False
            for position, group in enumerate(groups.values()):
                estimate = group.get(name)
                if estimate is None or estimate.mean is None:
                    continue
                x = position - 0.4 + width * (number + 0.5)
                axes.bar(x, estimate.mean, width * 0.9, color=colour, label=None if labelled else in_words(name))
                labelled = True
                top = estimate.mean
                if estimate.low is not None and estimate.high is not None:
                    axes.plot(
                        [x, x], [estimate.low, estimate.high], color="#22262b", linewidth=1.2, solid_capstyle="butt"
                    )
                    top = estimate.high
                axes.annotate(
                    f"{estimate.mean:.2f}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=7.5
                )
        axes.set_xticks(range(len(groups)), [in_words(name) for name in groups])
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(y_label)
        if share:
            _share_axis(axes)
        if len(names) > 1:
            legend_above(figure, min(len(names), 4))
        return _data_uri(figure)


def forest(rows: Mapping[str, Estimate], x_label: str) -> str:
    """Draw differences with their 95 % intervals around a line at 0.

    Args:
        rows: Differences by name.
        x_label: Name of the figure that differs.
    """
    with rc_context(STYLE):
        kept = {name: estimate for name, estimate in rows.items() if estimate.mean is not None}
        figure, axes = _canvas(6.4, 0.9 + 0.34 * max(1, len(kept)))
        axes.axvline(0, color="#22262b", linewidth=1)
        for position, estimate in enumerate(kept.values()):
            clear = estimate.low is not None and estimate.high is not None and (estimate.low > 0 or estimate.high < 0)
            colour = COLOURS[0] if clear else "#8a8f98"
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [position, position], color=colour, linewidth=2)
            axes.plot([estimate.mean or 0.0], [position], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(kept)), [in_words(name) for name in kept])
        axes.set_ylim(len(kept) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        return _data_uri(figure)


def reliability(confidence: Sequence[float], hits: Sequence[bool], x_label: str, bins: int = 10) -> str:
    """Draw the share of found lesions that are true, over the confidence.

    Args:
        confidence: Confidence of each found lesion, 0 to 1.
        hits: Whether each found lesion is true.
        x_label: Name of the confidence.
        bins: Number of equal parts of 0 to 1; each point shows its number of lesions.
    """
    confidences, hit = np.asarray(confidence, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    bin_numbers = np.clip((confidences * bins).astype(int), 0, bins - 1)
    counts = np.bincount(bin_numbers, minlength=bins)
    filled = np.flatnonzero(counts)
    mean = np.bincount(bin_numbers, confidences, bins)[filled] / counts[filled]
    share = np.bincount(bin_numbers, hit, bins)[filled] / counts[filled]
    with rc_context(STYLE):
        figure, axes = _canvas(4.6, 4.0)
        axes.plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, linestyle="dashed", label="calibrated")
        low, high = _wilson(share, counts[filled])
        axes.vlines(mean, low, high, color=COLOURS[0], linewidth=1.2)
        axes.plot(mean, share, marker="o", color=COLOURS[0], linewidth=1.8, label="found lesions")
        for x, y, count in zip(mean, share, counts[filled], strict=True):
            axes.annotate(
                str(count), (x, y), (6, -9 if y > 0.05 else 4), textcoords="offset points", fontsize=7, color="#3a3f47"
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share that are lesions")
        axes.legend(loc="upper left")
        return _data_uri(figure)


def timing(seconds: Mapping[str, Sequence[float]]) -> str:
    """Draw seconds per scan by step, as mean and span over the scans."""
    with rc_context(STYLE):
        steps = [(step, values) for step, values in seconds.items() if values]
        figure, axes = _canvas(6.4, 0.9 + 0.3 * max(1, len(steps)))
        for position, (_, values) in enumerate(steps):
            mean = float(np.mean(values))
            axes.barh(position, mean, 0.62, color=COLOURS[0])
            axes.plot([min(values), max(values)], [position, position], color="#22262b", linewidth=1.2)
            axes.annotate(
                f"{mean:.2f}", (max(values), position), (4, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        axes.set_yticks(range(len(steps)), [in_words(step) for step, _ in steps])
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds per scan (bar: mean, line: fastest to slowest)")
        return _data_uri(figure)


def sizes(volumes_ml: Sequence[float], quality: Sequence[float], is_found: Sequence[bool], y_label: str) -> str:
    """Draw the quality of every unprompted lesion over its volume."""
    with rc_context(STYLE):
        figure, axes = _canvas(5.0, 3.5)
        volume, score, hit = np.asarray(volumes_ml), np.asarray(quality), np.asarray(is_found, dtype=bool)
        for name, chosen, colour, marker in (("found", hit, "#009E73", "o"), ("missed", ~hit, "#D55E00", "x")):
            if chosen.any():
                axes.scatter(
                    volume[chosen], score[chosen], s=16, c=colour, marker=marker, alpha=0.7, linewidths=1.1,
                    label=f"{name} ({int(chosen.sum())})", clip_on=False,
                )  # fmt: skip
        axes.set_xscale("log")
        for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            set_formatter(_PlainNumbers())
        axes.set_xlabel("true volume of the lesion in ml")
        axes.set_ylabel(y_label)
        _share_axis(axes)
        legend_above(figure, 2)
        return _data_uri(figure)


class _PlainNumbers(LogFormatter):
    """Labels the usual ticks of matplotlib with plain numbers, because STYLE switches off its maths text."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def in_words(name: str) -> str:
    """Return a key of metrics.json as words, such as "lesion F1"."""
    for key, words in SPELLED.items():
        name = re.sub(rf"(?<![a-z]){key}(?![a-z])", words, name)
    return name.replace("_", " ")


def legend_above(figure: Figure, most: int) -> None:
    """Put the legend above the axes, in as many columns as the figure has room for, up to `most`."""
    for columns in range(most, 0, -1):
        legend = figure.legend(loc="outside upper left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6))


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of a share.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def _data_uri(figure: Figure) -> str:
    """Return a figure as SVG data URI. In an <img>, the ids of two figures cannot clash."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
