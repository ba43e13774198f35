"""Normalises raw intensities to the scale that models see, and finds the background outside of the body.

The low level becomes 0 and the high level becomes 1. Values are cut to 0..2, and the background is exactly 0. The rule
that gives the levels is part of a model. Bundles and banks record it, and it is checked where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rule = Literal["auto", "body", "window", "nonzero"]
RULES: tuple[Rule, ...] = ("auto", "body", "window", "nonzero")
PERCENTILES = (0.5, 99.5)
HIGHEST_VALUE = 2.0
"""Upper end of normalised intensities; larger values are cut to it."""
CT_WINDOW_HU = (-160.0, 240.0)
"""Soft tissue, the usual 400 HU around 40; the cut at 2 lies at 640 HU."""
LOWEST_SHARE = 0.25
"""The lowest value of a scan is its background if it fills at least this share of the voxels along the edges."""
ANY_SHARE = 0.9
"""Any other value is the background from this share on, such as 0 around a difference of two scans."""
SPREADS = 3.0
"""Upper end of a noisy background, in standard deviations above its level."""
DARK_SHARE = 0.25
"""Largest upper end of a noisy background, as a share of the range of intensities. A higher end is no background."""
LARGEST_INTENSITY = 1e30
"""Largest end of a window. Differences of intensities have to fit float32."""
SMALLEST_NOISE_SHARE = 0.05
"""Smallest share of the voxels that can be a noisy background."""

_Image = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Normalisation:
    """How raw intensities become those that a model sees.

    Attributes:
        rule: How the low and the high level are found.
            `body`: the 0.5th and the 99.5th percentile of the body. The background is found in each scan: a single
            value (0, -1024) or noise.
            `window`: the ends of `window`.
            `nonzero`: like `body`, but exactly the voxels of value 0 are background. It is the rule of bundles that
            record none.
            `auto`: `window` if dataset.json calls the channel CT, else `body`. Bundles record which of the two it was.
        window: Low and high raw intensity. The default of `auto` for CT is soft tissue, -160 to 240 HU.
    """

    rule: Rule = "auto"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.rule not in RULES:
            raise ValueError(f"normalisation.rule={self.rule!r} is unknown; choose {', '.join(RULES)}.")
        if self.rule == "window" and self.window is None:
            raise ValueError(
                "normalisation.rule=window needs normalisation.window, its ends, such as [-160, 240] for CT."
            )
        if self.rule in ("body", "nonzero") and self.window is not None:
            raise ValueError(
                f"normalisation.window={list(self.window)} is not used by rule={self.rule}; leave it out, or set "
                "normalisation.rule=window."
            )
        if self.window is not None:
            try:
                low, high = map(float, self.window)
            except (TypeError, ValueError):
                low = high = np.nan
            if not -LARGEST_INTENSITY < low < high < LARGEST_INTENSITY:
                raise ValueError(f"normalisation.window={list(self.window)} must be two numbers, the lower one first.")
            object.__setattr__(self, "window", (low, high))

    def for_channel(self, channel: str = "") -> Normalisation:
        """Return the rule for one channel: `auto` becomes `window` for CT, or else `body`.

        Args:
            channel: Name of the channel in dataset.json; "" if unknown.
        """
        if self.rule != "auto":
            return self
        if is_ct(channel) or self.window is not None:
            return Normalisation("window", self.window or CT_WINDOW_HU)
        return Normalisation("body")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON."""
        plain = asdict(self)
        return {**plain, "window": None if self.window is None else list(self.window)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> Normalisation:
        """Return the settings that `as_dict` returned; None gives the rule of files that record none."""
        if plain is None:
            return FIRST
        window = plain["window"]
        return cls(plain["rule"], None if window is None else (window[0], window[1]))

    def __str__(self) -> str:
        """Return the rule in words, such as "window -160 to 240"."""
        return self.rule if self.window is None else f"{self.rule} {self.window[0]:g} to {self.window[1]:g}"


FIRST = Normalisation("nonzero")
"""The rule of bundles, banks and sessions that record none: there was no other."""


class Levels(NamedTuple):
    """Levels and background by which a scan is normalised.

    Attributes:
        outside: Background around the body, bool, in the shape of the image; None if there is no background.
        low: Raw intensity that becomes 0.
        high: Raw intensity that becomes 1.
        rule: The rule that gave them; never `auto`.
    """

    outside: Tensor | None
    low: float
    high: float
    rule: Normalisation

    def narrow(self, axis: int, start: int, length: int) -> Levels:
        """Return the levels for a part of the scan: `length` voxels along an axis, from `start` on."""
        outside = None if self.outside is None else self.outside.narrow(axis, start, length).contiguous()
        return self._replace(outside=outside)


def normalise(
    image: Tensor, normalisation: Normalisation | None = None, channel: str = "", known: Levels | None = None
) -> Tensor:
    """Return intensities as a model sees them.

    Args:
        image: Raw intensities of a scan (I, J, K), with the axes in any order.
        normalisation: The rule; None is `auto`.
        channel: Name of the image in dataset.json, for `auto`.
        known: Levels of the whole scan, if the image is a part of a scan. They are used if their rule is the same.

    Returns:
        Float32, linear from 0 at the low level to 1 at the high level, cut to 0..2; exactly 0 in the background.

    Raises:
        ValueError: If an intensity is NaN or infinite.
    """
    image = image.to(torch.float32)
    outside, low, high, _ = levels(image, normalisation, channel, known)
    width = high - low or 1.0
    scaled = ((image - low) / width).clamp_(0, HIGHEST_VALUE)
    return scaled if outside is None else scaled.mul_(~outside)


def levels(
    image: Tensor, normalisation: Normalisation | None = None, channel: str = "", known: Levels | None = None
) -> Levels:
    """Return the levels and the background of a scan; see `normalise`."""
    rule = (normalisation or Normalisation()).for_channel(channel)
    if known is not None and known.rule == rule:
        return known
    voxels = np.atleast_3d(image.detach().to("cpu", torch.float32).numpy())
    if not np.isfinite(voxels).all():
        raise ValueError("the scan holds NaN or infinite intensities; replace them (numpy.nan_to_num).")
    if rule.window is not None:
        outside = find_frame(voxels)
        low, high = rule.window
    else:
        outside = voxels == 0 if rule.rule == "nonzero" else find_background(voxels)
        outside = outside if outside is not None and outside.any() else None
        inside = voxels if outside is None else voxels[~outside]
        low, high = np.percentile(inside, PERCENTILES) if inside.size else (0.0, 0.0)
    around = None if outside is None else torch.from_numpy(outside).view(image.shape).to(image.device)
    return Levels(around, float(low), float(high), rule)


def doubt(image: Tensor, normalisation: Normalisation, channel: str = "") -> str:
    """Return the reason why a rule may not fit a scan; "" if there is none.

    Args:
        image: Raw intensities (I, J, K).
        normalisation: The rule; never `auto`.
        channel: Name of the image in dataset.json.
    """
    usual = Normalisation().for_channel(channel)
    if channel and (usual.window is None) != (normalisation.window is None):
        return (
            f"dataset.json calls its image {channel!r}, which would be normalised by the rule {usual}; the model's own "
            f"rule is used, {normalisation}"
        )
    voxels = image.detach().to("cpu", torch.float32).numpy()
    if normalisation.window is not None and float(voxels.min()) >= normalisation.window[0]:
        return (
            f"no intensity lies below {normalisation.window[0]:g}, the low end of normalisation.window; is it a CT in "
            "Hounsfield units?"
        )
    if normalisation.rule == "nonzero":
        zero, around = voxels == 0, find_background(voxels)
        if (zero != around).any() if around is not None else zero.any():
            return (
                "what lies around its body is not 0, but the model takes 0 for that (normalisation.rule=nonzero); "
                "train it again, with the rule of this version"
            )
    return ""


def find_background(voxels: _Image) -> _Mask | None:
    """Return the background around the body.

    Almost all voxels along the twelve edges of a scan are background. What they show -> what is background:

    - One common value, the lowest of the scan (0 around most MR, padding around CT) -> every voxel of this value.
    - One common value that is not the lowest -> voxels of this value that are connected to the border.
    - Noise that reaches down to 0, as in magnitude MR -> voxels that are exactly 0.
    - Noise around another level, or inside padding below 0 -> voxels not above the noise, if it is clearly darkest.
    - Intensities below 0, as in CT -> also slices at an end that hold only one further value.

    Args:
        voxels: (I, J, K) float32.

    Returns:
        Bool, (I, J, K); None if there is no background.
    """
    edges = along_edges(voxels)
    common = _framed_by(voxels, edges)
    outside: _Mask = np.zeros(voxels.shape, bool) if common is None else voxels == common
    if common is not None and common > voxels.min():
        outside = _from_border(outside)
    _add_slabs(outside, voxels)
    if not outside.any():
        return np.asarray(voxels == 0) if _reaches_zero(voxels, edges) else _noise(voxels, edges)
    if voxels[outside].min() >= 0 and common is not None:
        return outside
    rest = ~outside
    air = _noise(voxels[rest], voxels[_beside(outside)])
    if air is not None:
        outside[rest] = air
    return outside


def find_frame(voxels: _Image) -> _Mask | None:
    """Return the voxels of the value that frames a scan (I, J, K) and that touch its border; None without a frame."""
    common = _framed_by(voxels, along_edges(voxels))
    outside = np.zeros(voxels.shape, bool) if common is None else _from_border(voxels == common)
    _add_slabs(outside, voxels)
    return outside if outside.any() else None


def _framed_by(voxels: _Image, edges: _Image) -> np.float32 | None:
    """Return the single value of the background; None if it has no single value."""
    values, counts = np.unique(edges, return_counts=True)
    lowest = voxels.min()
    if values[0] == lowest and counts[0] >= LOWEST_SHARE * len(edges):
        return np.float32(lowest)
    return np.float32(values[counts.argmax()]) if counts.max() >= ANY_SHARE * len(edges) else None


def _add_slabs(outside: _Mask, voxels: _Image) -> None:
    """Add slices at the ends of a scan that hold one value besides the background: a second kind of padding."""
    if not voxels.size or voxels.min() >= 0:
        return
    framed = outside.copy()  # so that the order of axes does not matter
    for axis in range(3):
        for end in (1, -1):
            planes = (np.moveaxis(array, axis, 0)[::end] for array in (voxels, framed, outside))
            padding = None
            for plane, without, added in zip(*planes, strict=True):
                held = plane[~without]
                if held.size:
                    padding = held[0] if padding is None else padding
                    if held.size < max(LOWEST_SHARE * plane.size, 2) or (held != padding).any():
                        break
                added[...] = True
    edges = along_edges(voxels)
    rest = edges[along_edges(outside.astype(np.float32)) == 0]
    # a frame beside another one, as around a circle
    if outside.any() and rest.size >= SMALLEST_NOISE_SHARE * len(edges):
        second = _framed_by(voxels[~outside], rest)
        if second is not None:
            outside |= _from_border(voxels == second)


def _reaches_zero(voxels: _Image, edges: _Image) -> bool:
    middle, spread = _level(edges)
    return bool(voxels.min() >= 0 and middle <= SPREADS * spread)


def _level(sample: _Image) -> tuple[float, float]:
    """Return the median of a sample, and a robust estimate of its standard deviation."""
    middle = float(np.median(sample))
    return middle, 1.4826 * float(np.median(np.abs(sample - middle)))


def _noise(voxels: _Image, sample: _Image) -> _Mask | None:
    """Return the voxels of a noisy background, given a sample of it; None if the sample is no background."""
    if not sample.size or not voxels.size:
        return None
    middle, spread = _level(sample)
    top = middle + SPREADS * spread
    low, high = np.percentile(voxels, PERCENTILES)
    dark = voxels <= top
    clear = top - low <= DARK_SHARE * (high - low) and dark.mean() >= SMALLEST_NOISE_SHARE
    return np.asarray(dark) if clear else None


def is_ct(channel: str) -> bool:
    """Return whether the name of a channel means CT, by the rule of nnU-Net."""
    return channel.strip().casefold() == "ct"


def along_edges(voxels: _Image) -> _Image:
    """Return the voxels along the twelve edges of a scan. Voxels at corners occur three times."""
    lines = []
    for axis in range(3):
        along = np.moveaxis(voxels, axis, 0)
        lines.append(along[:, :: max(1, along.shape[1] - 1), :: max(1, along.shape[2] - 1)].ravel())
    return np.concatenate(lines)


def _from_border(mask: _Mask) -> _Mask:
    """Return the part of a mask that is connected to the border of the scan, by faces of voxels."""
    parts = cc3d.connected_components(mask, connectivity=6)
    reach = np.zeros(int(parts.max()) + 1, dtype=bool)
    for axis in range(3):
        for end in (0, -1):
            reach[np.unique(parts.take(end, axis))] = True
    reach[0] = False
    return np.asarray(reach[parts])


def _beside(mask: _Mask) -> _Mask:
    """Return the voxels outside of a mask that share a face with it."""
    grown = np.zeros_like(mask)
    for axis in range(mask.ndim):
        one, other = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        one[axis], other[axis] = slice(1, None), slice(None, -1)
        grown[tuple(one)] |= mask[tuple(other)]
        grown[tuple(other)] |= mask[tuple(one)]
    return grown & ~mask
