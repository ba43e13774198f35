"""Channels: the 1 to 3 co-registered sequences of a scan that a model sees, by name.

A channel is called as its sequence in dataset.json, such as "FLAIR". With "@-1" or "@+1" behind the name it is the
slice before or after each slice (2.5-D). The first channel is drawn in reports, and lesions are measured on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mois.errors import DataError
from mois.geometry import SliceGrid, resample_stack
from mois.intensities import Normalisation, normalise
from mois.records import Channel, Volume

MOST_CHANNELS = 3
"""SAM2 has three inputs."""

_NEIGHBOUR = re.compile(r"(?P<name>.*)@(?P<step>[+-]\d+)")


class WantedChannel(NamedTuple):
    """A channel of a model: the name of a sequence, and how many slices further to look (0 for the slice itself)."""

    name: str
    step: int = 0


def wanted_channels(names: Sequence[str], key: str = "channels") -> tuple[WantedChannel, ...]:
    """Read the names of a model's channels, such as ["FLAIR", "T2"] or ["T2", "T2@-1", "T2@+1"].

    Args:
        names: The names; none for a model that takes one image, whatever its name.
        key: Name of the setting, for messages.

    Raises:
        ValueError: If there are more than three, two are equal, or the first is a neighbouring slice.
    """
    said = f"{key}={list(names)}"
    if len(names) > MOST_CHANNELS:
        raise ValueError(f"{said} are {len(names)} channels; a model sees 1 to {MOST_CHANNELS}; leave some out.")
    wanted = []
    for text in names:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{said}: a channel needs a name; write it as in channel_names of dataset.json.")
        parts = _NEIGHBOUR.fullmatch(text.strip())
        wanted.append(WantedChannel(parts["name"], int(parts["step"])) if parts else WantedChannel(text.strip()))
    if len({(_one_form(one.name), one.step) for one in wanted}) < len(wanted):
        raise ValueError(f"{said} names a channel twice; name each once.")
    if wanted and wanted[0].step:
        raise ValueError(f"{said} begins with a neighbouring slice; put the slice itself first: {wanted[0].name}.")
    return tuple(wanted)


def same_channels(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether two models see the same channels in the same order; upper and lower case are one."""
    first, second = ([(_one_form(one.name), one.step) for one in wanted_channels(each)] for each in (names, others))
    return first == second


def sequence_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sequences that channels need, each once, in the order of the channels."""
    return tuple({_one_form(one.name): one.name for one in wanted_channels(names)}.values())


def sequence_of_each(names: Sequence[str]) -> tuple[int, ...]:
    """Return the number of the sequence of each channel. Channels of one sequence are neighbouring slices of it."""
    sequences = [_one_form(name) for name in sequence_names(names)]
    return tuple(sequences.index(_one_form(one.name)) for one in wanted_channels(names))


def channel_numbers(names: Sequence[str], declared: Mapping[int, str], where: str) -> list[int]:
    """Return the numbers of the sequences that channels need, in a dataset.

    Args:
        names: Names of the channels.
        declared: Number and name of each sequence in dataset.json.
        where: Name of the dataset or scan, for messages.

    Raises:
        DataError: If dataset.json does not name a sequence, or gives two sequences its name.
    """
    numbers = []
    for name in sequence_names(names):
        found = [number for number, other in declared.items() if _one_form(other) == _one_form(name)]
        if len(found) != 1:
            there = ", ".join(declared.values()) or "no sequence"
            cure = "take another dataset, or correct channel_names" if not found else "give each its own name"
            raise DataError(f"{where}: channel {name} is needed, but dataset.json names {there}; {cure}.")
        numbers.append(found[0])
    return numbers


def channels_of(volume: Volume, names: Sequence[str]) -> list[tuple[Channel, int]]:
    """Return the sequence of a scan for each channel of a model, and how many slices further to look.

    Args:
        volume: The scan.
        names: Names of the model's channels; none for a model that takes one image. One image without a name is taken
            for the only sequence of a model.

    Raises:
        DataError: If the scan lacks a channel, or has several and the model names none.
    """
    there = [Channel(volume.channel, volume.image, volume.levels), *volume.further]
    if not names:
        if len(there) > 1:
            raise DataError(
                f"scan {volume.subject} has the channels {_listed(there)}, the model takes one image without a name; "
                "give one image, or a model that was trained with channels (data.init_args.channels)."
            )
        return [(there[0], 0)]
    if len(there) == 1 and not there[0].name and len(sequence_names(names)) == 1:
        there = [there[0]._replace(name=sequence_names(names)[0])]
    by_name = {_one_form(channel.name): channel for channel in there}
    wanted = wanted_channels(names)
    if missing := [name for name in sequence_names(names) if _one_form(name) not in by_name]:
        raise DataError(
            f"scan {volume.subject} has no channel {' and '.join(missing)}, only {_listed(there)}; the model sees "
            f"{', '.join(sequence_names(names))}; give all of them by name, such as --image {missing[0]}=FILE."
        )
    return [(by_name[_one_form(one.name)], one.step) for one in wanted]


def normalised_stack(
    volume: Volume,
    grid: SliceGrid,
    pixel_mm: float,
    normalisation: Normalisation | None = None,
    names: Sequence[str] = (),
) -> Tensor:
    """Return a scan as slices with square pixels, as a model sees it.

    Each sequence has its own levels. With the rule `auto`, each has the rule of its name.

    Args:
        volume: The scan, with raw intensities.
        grid: How it is cut into slices.
        pixel_mm: Edge of a pixel in millimetres.
        normalisation: Rule of the intensities; None is `auto`.
        names: Names of the model's channels.

    Returns:
        (S, h, w) float32 for one channel, (C, S, h, w) for C channels.
    """
    stacks: dict[str, Tensor] = {}
    seen = []
    for channel, step in channels_of(volume, names):
        if channel.name not in stacks:
            image = normalise(channel.image.float().cpu(), normalisation, channel.name, channel.levels)
            stacks[channel.name] = resample_stack(grid.to_stack(image), grid, pixel_mm)
        seen.append(neighbours(stacks[channel.name], step))
    return seen[0] if len(seen) == 1 else torch.stack(seen)


def named_images(given: Sequence[str], names: Sequence[str], option: str = "--image") -> dict[str, Path]:
    """Read which file is which channel, such as ["T2=b.nii.gz", "FLAIR=a.nii.gz"].

    Args:
        given: A file, or NAME=FILE for each channel, in any order.
        names: Names of the model's channels.
        option: The option that takes the files, for messages.

    Returns:
        Name to file, in the order of the model's channels; "" for a file without a name.

    Raises:
        DataError: If a channel of the model is missing or named twice, or a file is no channel of the model.
    """
    wanted = sequence_names(names)
    if len(given) == 1 and len(wanted) < 2 and (Path(given[0]).exists() or "=" not in given[0]):
        return {wanted[0] if wanted else "": Path(given[0])}
    files: dict[str, Path] = {}
    said = f"{option} {' '.join(given)}"
    sees = f"the model sees {', '.join(wanted)}" if wanted else "the model takes one image without a name"
    for one in given:
        name, equals, file = one.partition("=")
        match = next((other for other in wanted if _one_form(other) == _one_form(name)), None)
        if not equals or match is None or match in files:
            cure = " ".join(f"{option} {other}=FILE" for other in wanted) or f"{option} FILE"
            raise DataError(f"{said}: {one} is none of its channels, or one twice; {sees}; give {cure}.")
        files[match] = Path(file)
    if missing := [name for name in wanted if name not in files]:
        raise DataError(f"{said}: channel {missing[0]} is missing; {sees}; add {option} {missing[0]}=FILE.")
    return {name: files[name] for name in wanted}


def neighbours(stack: Tensor, step: int) -> Tensor:
    """Return for each slice of a stack (S, h, w) the slice `step` further; beyond the ends, the last slice there is."""
    if not step:
        return stack
    return stack[(torch.arange(len(stack)) + step).clamp(0, len(stack) - 1)]


def rule_of_channels(normalisation: Normalisation, names: Sequence[str], channel: str = "") -> Normalisation:
    """Return the rule of a model's channels: `auto` is settled, unless it means another rule for another channel.

    Args:
        normalisation: The rule.
        names: Names of the channels.
        channel: Name of the image, for a model whose channels have no name.
    """
    rules = {normalisation.for_channel(name) for name in sequence_names(names) or (channel,)}
    return rules.pop() if len(rules) == 1 else normalisation


def _one_form(name: str) -> str:
    return name.strip().casefold()


def _listed(channels: Sequence[Channel]) -> str:
    return ", ".join(channel.name or "one without a name" for channel in channels)
