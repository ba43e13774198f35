"""`mois try`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mois.cli.messages import say, say_working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mois.evaluation.actions.pixel_trials import Annotated, PixelTrial
    from mois.records import Volume
    from mois.sharing.lesion_model import LesionModel

COLUMNS = (
    "pixel_mm", "prompted", "found", "volume_ml", "seconds", "prompted_dice", "unprompted_dice", "lesion_f1",
    "false_lesions",
)  # fmt: skip


def try_bundle(
    bundle: Path,
    scan: list[str] | str,
    prompts: Path | None = None,
    labels: Path | None = None,
    target_class: int | None = None,
    pixel_mm: list[float] | None = None,
    count: int = 5,
    out: Path = Path("try"),
    device: str = "auto",
    trust: list[str] | None = None,
) -> None:
    """Show what a model finds in a scan at a few pixel sizes, before any training.

    Args:
        bundle: Folder of the bundle; the word shipped stands for the model that ships with the package.
        scan: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series. For a model of several channels
            NAME=FILE for each, in any order: mois try BUNDLE FLAIR=a.nii.gz T2=b.nii.gz.
        prompts: Prompt file, as for mois segment.
        labels: Label map of the scan. By default the one beside its first channel: instancesTr and labelsTr of its
            dataset, NAME_seg, NAME_label, NAME_mask or NAME_dseg in its folder, or the mask of lesions among the
            derivatives of its BIDS dataset. Some of its lesions are clicked, and the others are to be found.
        target_class: Class of the labels whose lesions are clicked; by default the class with most lesions.
        pixel_mm: Pixel sizes to try, in mm. By default that of the bundle, its half and its double; with labels also
            the size at which the median lesion is 12 pixels across.
        count: Number of lesions that are clicked, with labels; at most half of them.
        out: Folder for try.png and try.csv.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name, such as my_module.

    Raises:
        ValueError: If there are neither prompts nor labels, a file cannot be used, or `count` is below 1.
    """
    from mois.cli.trial_files import read_labelled
    from mois.evaluation.actions.pixel_trials import click_annotated, try_pixel_size
    from mois.files.atomic import write_text
    from mois.files.csv_tables import csv_text
    from mois.report.trial_picture import draw_trials
    from mois.scans.channels import named_images
    from mois.serve.shipped_model import served_model
    from mois.session.prompts.prompt_file import read_prompts

    if count < 1:
        raise ValueError(f"count={count} must be 1 or more.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file; name a folder.")
    if target_class is not None and prompts is not None and labels is None:
        raise ValueError(f"target_class={target_class} is a class of labels; give --labels MAP, or leave it out.")
    entries = None if prompts is None else read_prompts(prompts)
    model = served_model(bundle, None, device, trust or ())
    given = [scan] if isinstance(scan, str) else scan
    images = named_images(given, model.segmenter.settings.channels, "--scan")
    volume, chosen = read_labelled(images, labels, needed=prompts is None, target_class=target_class)
    annotated = None if prompts is not None else click_annotated(volume, chosen, count)
    asked = entries if entries is not None else annotated.entries if annotated is not None else ()
    sizes = pixel_mm or _sizes(model, volume, chosen)
    for size in sizes:
        replace(model.segmenter.settings, pixel_mm=size)  # refuses what is no size, before the first trial
    out.mkdir(parents=True, exist_ok=True)
    trials = []
    for size in sizes:
        say_working(f"{size:g} mm per pixel: clicking, and looking for others")
        trials.append(try_pixel_size(model, volume, size, asked, annotated))
        say(_line(trials[-1]))
    write_text(out / "try.csv", csv_text(COLUMNS, [_row(trial) for trial in trials]))
    picture = draw_trials(out / "try.png", volume, trials, annotated)
    if annotated is not None:
        say(_judgement(trials, annotated))
    say(f"{picture} and {out / 'try.csv'}")


def _sizes(model: LesionModel, volume: Volume, chosen: int) -> list[float]:
    """Return the pixel sizes to try, ascending."""
    from mois.scans.dataset_facts import ScanFacts, proposal_for

    own = model.segmenter.settings.pixel_mm
    if not chosen:
        return [own / 2, own, 2 * own]
    proposed = proposal_for([ScanFacts.of(volume, instances=True)]).pixel_mm
    return sorted({own, proposed / 2, proposed, 2 * proposed})


def _judgement(trials: Sequence[PixelTrial], annotated: Annotated) -> str:
    """Return in words at which pixel size the lesions that were not clicked are found best."""

    def score(trial: PixelTrial) -> float:
        value = math.nan if trial.figures is None else trial.figures.unprompted_dice
        return 0.0 if math.isnan(value) else value

    if not {*annotated.lesions[annotated.lesions > 0].tolist()} - {*annotated.clicked}:
        return "each lesion of the class was clicked, so nothing says which pixel size finds others"
    best = max(trials, key=score)
    if not score(best):
        return "none of the others is found at any of these pixel sizes, before any training"
    return f"{best.pixel_mm:g} mm per pixel finds the others best (Dice {score(best):.2f}), before any training"


def _row(trial: PixelTrial) -> list[object]:
    found = len({*trial.found[trial.found > 0].tolist()})
    first = [trial.pixel_mm, len(trial.prompted), found, round(trial.volume_ml, 3), round(trial.seconds, 1)]
    if trial.figures is None:
        return [*first, None, None, None, None]
    figures = trial.figures
    measured = (figures.prompted_dice, figures.unprompted_dice, figures.lesion_f1)
    return [*first, *(None if math.isnan(value) else round(value, 3) for value in measured), figures.false_lesions]


def _line(trial: PixelTrial) -> str:
    """Return a row of the table in words."""
    cells = zip(COLUMNS[1:], _row(trial)[1:], strict=True)
    return f"{trial.pixel_mm:g} mm: " + ", ".join(f"{name} {value}" for name, value in cells if value is not None)


try_bundle.__name__ = "try"  # a word of Python, so no function can be called so
