"""Reads dataset.json of the nnU-Net raw layout: classes, channels and the ending of the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mois.errors import DataError
from mois.files.text import read_json

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
REJECTED = "rejected"
"""Name of the class of places that a reader rejected. They are no lesions: a training shows them as wrong exemplars."""

_LARGEST_LABEL = 2**31 - 1


class DatasetDescription(NamedTuple):
    """The content of dataset.json.

    Attributes:
        classes: Label values above 0 and their names.
        file_ending: Ending of images and label maps, such as ".nii.gz".
        channels: Number and name of each image channel, such as {0: "T2"}; empty if the dataset names none.
    """

    classes: dict[int, str]
    file_ending: str
    channels: dict[int, str]


def read_description(path: Path) -> DatasetDescription:
    """Read a dataset.json.

    Raises:
        DataError: If a key cannot be used; the message names the key.
    """
    if not path.exists():
        if any(path.parent.glob("sub-*")):
            raise DataError(
                f"{path.parent}: holds sub-* as in BIDS, but no dataset_description.json; add it, such as "
                '{"Name": "x", "BIDSVersion": "1.9.0"}.'
            )
        raise DataError(f"{path}: no such file; set data.init_args.root to the folder of an nnU-Net raw dataset.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {_json_type(content)}; it needs an object with labels and file_ending.")
    if missing := [key for key in ("labels", "file_ending") if key not in content]:
        raise DataError(f"{path}: lacks {' and '.join(missing)}; it needs labels and file_ending, as in nnU-Net.")
    return DatasetDescription(
        _classes(path, content["labels"]),
        _ending(path, content["file_ending"]),
        _channels(path, content.get("channel_names", content.get("modality", {}))),
    )


def _ending(path: Path, ending: Any) -> str:
    if ending in FILE_ENDINGS:
        return str(ending)
    similar = f".{ending}".replace("..", ".").lower() if isinstance(ending, str) else ""
    cure = f"write {similar!r}" if similar in FILE_ENDINGS else f"use one of {', '.join(FILE_ENDINGS)}"
    raise DataError(f"{path}: file_ending {ending!r} cannot be read; {cure}.")


def _classes(path: Path, labels: Any) -> dict[int, str]:
    if not isinstance(labels, Mapping):
        raise DataError(
            f"{path}: labels is {_json_type(labels)}; write an object of names and numbers: "
            '{"background": 0, "lesion": 1}.'
        )
    classes: dict[int, str] = {}
    for name, value in labels.items():
        if name.isdecimal() and isinstance(value, str):
            raise DataError(
                f"{path}: label {name!r} is {value!r}, as in nnU-Net's first version; swap name and number: "
                f"{json.dumps({value: int(name)})}."
            )
        if isinstance(value, list) or name == "ignore":
            raise DataError(
                f"{path}: label {name!r} must be one whole number; regions and ignored voxels are not supported."
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_LABEL:
            raise DataError(f"{path}: label {name!r} is {json.dumps(value)}; {_advice_for_label(value)}.")
        if value in classes:
            raise DataError(
                f"{path}: labels {classes[value]!r} and {name!r} are both {value}; give each class its own number."
            )
        if value:
            classes[value] = str(name)
    return classes


def _advice_for_label(value: Any) -> str:
    """Return how to write the number of a label, for a message."""
    try:
        meant = float(value)
    except (TypeError, ValueError):
        meant = -1.0
    if not isinstance(value, bool) and meant.is_integer() and 0 <= meant <= _LARGEST_LABEL:
        return f"write {int(meant)}"
    return f"write a whole number, 0 to {_LARGEST_LABEL}"


def _channels(path: Path, names: Any) -> dict[int, str]:
    example = '{"0": "T2"}'
    if not isinstance(names, Mapping):
        raise DataError(f"{path}: channel_names is {_json_type(names)}; write numbers and names: {example}.")
    channels: dict[int, str] = {}
    for number, name in names.items():
        if not number.isdecimal() and str(name).isdecimal():
            swapped = json.dumps({str(name): number})
            raise DataError(f"{path}: channel_names says {number!r}: {name}; swap number and name: {swapped}.")
        if not number.isdecimal() or not isinstance(name, str):
            raise DataError(
                f"{path}: channel_names says {number!r}: {json.dumps(name)}; write numbers and names: {example}."
            )
        channels[int(number)] = name
    return channels


def _json_type(value: Any) -> str:
    """Return the JSON type of a value in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
