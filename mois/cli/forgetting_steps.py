"""The steps of `mois forgetting`: phantoms with types held back, then each bundle on each dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import write_dataset
from mois.cli.choose_scans import ScanChoice
from mois.cli.evaluated_model import channels_of, evaluation_on, load_evaluated
from mois.cli.messages import say_working
from mois.cli.terminal import PlainConsole
from mois.errors import DataError
from mois.evaluation.evaluate_scans import evaluate_scans, stored_reports
from mois.evaluation.figures import SubjectReport
from mois.evaluation.reader import Reader
from mois.evaluation.scored_systems import EvaluationOptions
from mois.evaluation.settings import ProtocolSettings
from mois.report.comparison import short_names
from mois.report.forgetting import TypeOf
from mois.scans.datasets import read_dataset
from mois.sharing.bundle_record import SHIPPED, is_shipped, read_description

HELD_BACK = "held-back phantoms"


class Asked(NamedTuple):
    """What a user asks of `mois forgetting`; see its arguments."""

    bundles: Sequence[str]
    data: Sequence[Path]
    out: Path
    split: str
    phantoms: int
    prompted: int
    seed: int
    device: str
    trust: Sequence[str]


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        reports: Reports on the scans of a dataset, by the names of bundle and dataset.
        bundles: Names of the bundles.
        types: Types of all datasets.
        notes: Sentences on what was not measured, and on scans that a bundle was trained on.
    """

    reports: dict[tuple[str, str], list[SubjectReport]]
    bundles: list[str]
    types: list[TypeOf]
    notes: list[str]


def measure(asked: Asked) -> Measured:
    """Score each bundle on each dataset. Scans that are scored already are skipped.

    Raises:
        ValueError: If there is nothing to measure on, or a bundle or dataset cannot be used.
    """
    datasets, names = _datasets(asked), _names(asked.bundles)
    types = [
        TypeOf(name, kind, number) for name, root in datasets.items() for number, kind in sorted(_classes(root).items())
    ]
    measured = Measured({}, list(names), types, [])
    protocol = ProtocolSettings(prompted=asked.prompted, reader=Reader(seed=asked.seed))
    base = EvaluationOptions(protocol, 0, True, False, asked.seed, "")
    for bundle, given in names.items():
        pixel_mm = _pixel_mm(asked) if is_shipped(given) else None
        model = load_evaluated(given, pixel_mm, asked.device, asked.trust)
        for name, root in datasets.items():
            split = "test" if name == HELD_BACK else asked.split
            try:
                scans, evaluation = evaluation_on(base, root, ScanChoice(split), model)
            except DataError as error:
                if not channels_of(model):
                    raise
                measured.notes.append(f"{bundle} was not measured on {name}: {error}")
                continue
            say_working(f"{bundle} on {name}")
            folder = asked.out / "results" / _as_folder(bundle) / _as_folder(name)
            evaluate_scans(evaluation, scans, folder, PlainConsole(stderr=True))
            measured.reports[bundle, name] = stored_reports(evaluation, scans, folder)
            if trained := evaluation.provenance.get("trained_on"):
                measured.notes.append(f"{bundle} was trained on {len(trained)} of the {len(scans)} scans of {name}.")
    return measured


def _datasets(asked: Asked) -> dict[str, Path]:
    """Return the folder of each dataset by its name; the phantoms are written if they are missing."""
    if len({root.resolve() for root in asked.data}) < len(asked.data):
        raise ValueError("--data: the same dataset is given twice; leave one out.")
    datasets = dict(zip(short_names(asked.data), asked.data, strict=True)) if asked.data else {}
    if asked.phantoms < 0 or not (asked.phantoms or datasets):
        raise ValueError(f"--phantoms={asked.phantoms}: there is nothing to measure on; give --data, or more than 0.")
    if asked.phantoms:
        root = asked.out / "phantoms"
        types = draw_lesion_types(np.random.default_rng(asked.seed), 2, held_back=True)
        write_dataset(root, subjects=1, test_subjects=asked.phantoms, seed=asked.seed, types=types, lesions=(20, 40))
        datasets[HELD_BACK] = root
    return datasets


def _names(bundles: Sequence[str]) -> dict[str, str]:
    """Return each bundle as it was given, by a short name."""
    folders = [Path(one) for one in bundles if not is_shipped(one)]
    if len({*bundles}) < len(bundles) or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("the same bundle is given twice; it is not compared with itself.")
    short = dict(zip(map(str, folders), short_names(folders), strict=True)) if folders else {}
    return {short.get(str(Path(one)), SHIPPED): one for one in bundles}


def _classes(root: Path) -> dict[int, str]:
    return {number: name for scan in read_dataset(root) for number, name in scan.lesion_classes.items()}


def _pixel_mm(asked: Asked) -> float | None:
    """Return the pixel size of the shipped model: that of the first bundle, if there is one."""
    folders = [Path(one) for one in asked.bundles if not is_shipped(one)]
    return read_description(folders[0]).inference.pixel_mm if folders else None


def _as_folder(name: str) -> str:
    return name.replace("/", "_").replace(" ", "_")
