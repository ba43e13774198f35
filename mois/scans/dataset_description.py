"""dataset.json of nnU-Net's raw layout: classes, channels and the ending of the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mois.errors import DataError
from mois.files.text import read_json

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_MOST = 2**31 - 1


class DatasetDescription(NamedTuple):
    """What a dataset says of its files.

    Attributes:
        classes: Label values above 0 and their names.
        file_ending: Of images and label maps, such as ".nii.gz".
        channels: Number of an image and what it is called, such as {0: "T2"}; empty where the dataset does not say.
    """

    classes: dict[int, str]
    file_ending: str
    channels: dict[int, str]


def read_description(path: Path) -> DatasetDescription:
    """Read a dataset.json.

    Raises:
        DataError: Naming the key that cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; set data.init_args.root to the folder of an nnU-Net raw dataset.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {_kind(content)}; it needs an object with labels and file_ending.")
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
    close = f".{ending}".replace("..", ".").lower() if isinstance(ending, str) else ""
    cure = f"write {close!r}" if close in FILE_ENDINGS else f"use one of {', '.join(FILE_ENDINGS)}"
    raise DataError(f"{path}: file_ending {ending!r} cannot be read; {cure}.")


def _classes(path: Path, labels: Any) -> dict[int, str]:
    if not isinstance(labels, Mapping):
        raise DataError(
            f'{path}: labels is {_kind(labels)}; write an object of names and numbers: {{"background": 0, "lesion": '
            "1}."
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
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
            raise DataError(f"{path}: label {name!r} is {json.dumps(value)}; {_whole(value)}.")
        if value in classes:
            raise DataError(
                f"{path}: labels {classes[value]!r} and {name!r} are both {value}; give each class its own number."
            )
        if value:
            classes[value] = str(name)
    return classes


def _whole(value: Any) -> str:
    """Return how a label's number is to be written."""
    try:
        meant = float(value)
    except (TypeError, ValueError):
        meant = -1.0
    if not isinstance(value, bool) and meant.is_integer() and 0 <= meant <= _MOST:
        return f"write {int(meant)}"
    return f"write a whole number, 0 to {_MOST}"


def _channels(path: Path, names: Any) -> dict[int, str]:
    example = '{"0": "T2"}'
    if not isinstance(names, Mapping):
        raise DataError(f"{path}: channel_names is {_kind(names)}; write numbers and names: {example}.")
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


def _kind(value: Any) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
