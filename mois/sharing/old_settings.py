"""Settings of a training that have another name now; files of earlier versions hold the old names.

Read here are the `data` settings in a config, a checkpoint or a bundle. The command line reads options in
`mois.cli.old_options`, with the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPLIT = {
    "fold": "split.fold",
    "splits": "split.file",
    "train_subjects": "split.train_subjects",
    "val_subjects": "split.val_subjects",
    "test_subjects": "split.test_subjects",
    "val_slab": "split.val_slab",
}
"""Arguments of `datamodules.NiftiDataModule` that became fields of its argument `split`: old name to new name."""

SPLIT_CLASSES = ("datamodules.NiftiDataModule", "datamodules.nifti.NiftiDataModule")
"""Import paths of the class that `SPLIT` belongs to."""


def with_split(init_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `NiftiDataModule`, under old or new names, under the new names.

    Raises:
        ValueError: If an old name and its new name are both there.
    """
    current = {name: value for name, value in init_args.items() if name not in SPLIT}
    old = {name: value for name, value in init_args.items() if name in SPLIT}
    if not old:
        return current
    split = dict(current.get("split") or {})
    for name, value in old.items():
        field = SPLIT[name].partition(".")[2]
        if field in split:
            raise ValueError(f"data.init_args.{name} and data.init_args.{SPLIT[name]} are the same; leave out {name}.")
        split[field] = value
    return {**current, "split": split}


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training under their current names."""
    data = config.get("data")
    if not isinstance(data, Mapping) or data.get("class_path") not in SPLIT_CLASSES:
        return dict(config)
    init_args = data.get("init_args")
    return (
        {**config, "data": {**data, "init_args": with_split(init_args)}}
        if isinstance(init_args, Mapping)
        else {**config}
    )


def current_name(key: str, data_class: str | None) -> str:
    """Return the current name of a dotted setting such as `data.init_args.fold`.

    Args:
        key: The setting, under its old or current name.
        data_class: Import path of the datamodule; None if unknown.
    """
    place, _, name = key.rpartition(".")
    if place in ("data.init_args", "data") and data_class in SPLIT_CLASSES and name in SPLIT:
        return f"data.init_args.{SPLIT[name]}"
    return key
