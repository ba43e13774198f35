"""`mois segment`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mois.cli.messages import say, say_working
from mois.cli.typed_bundles import typed_bundles

if TYPE_CHECKING:
    from mois.inference.settings import InferenceSettings
    from mois.records import Volume
    from mois.session import InteractiveSession
    from mois.session.playing import RequestedAction
    from mois.sharing.calibration import Calibration
    from mois.sharing.identity import ModelIdentity
    from mois.sharing.lesion_model import LesionModel


def segment(
    image: list[str] | str,
    bundle: list[str] | Path,
    prompts: Path,
    out: Path,
    bank: Path | None = None,
    subject: str | None = None,
    patient: str | None = None,
    pixel_mm: float | None = None,
    device: str = "auto",
    trust: list[str] | None = None,
    backbone_weights: Path | None = None,
) -> None:
    """Find all lesions of a scan that look like the prompted lesions.

    A run that was killed goes on where it was when it is started again with the same prompts; entries that were
    appended to them are done after those that were there. Anything else that differs is refused.

    Args:
        image: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series. For a model of several channels
            NAME=FILE for each, in any order: mois segment FLAIR=a.nii.gz T2=b.nii.gz.
        bundle: The model: folder `bundle` of a training, or the word shipped for the shipped model, which was not
            trained for your lesions. Several types of lesions: --bundle TYPE=DIR, once for each.
        prompts: JSON file: {"prompts": [{"click": [x, y, z], "lesion": "a"}, {"click": [x, y, z], "lesion": "a",
            "positive": false}, {"box": [[x, y, z], [x, y, z]]}, {"mask": "a.nii.gz"}, {"scribble": [[x, y, z], ...]},
            {"lasso": [[x, y, z], ...]}, {"propagate": true}]}. Any prompt may be "positive": false. Points are LPS mm,
            {"ras": [x, y, z]} in mm, or {"voxel": [i, j, k]}; `lesion` is a name of yours and may be left out. Without
            any "propagate", there is one at the end. With several bundles, "type" says which an entry is for; without
            it, an entry is for the first, and a propagation for all.
        out: Folder for lesions.nii.gz, lesions.seg.nrrd, confidence.nii.gz, lesions.csv, lesions.png, lesions.html,
            bank.safetensors and the journal.
        bank: Exemplars of another scan, from its bank.safetensors; of the first bundle.
        subject: Name of the scan; by default the name of the file.
        patient: Name of the patient; by default the subject.
        pixel_mm: Pixel size of the shipped model, by default 1.5 mm: the median lesion should be ten pixels across or
            more. A bundle has its own.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name, such as my_module.
        backbone_weights: Weights of the bundle's backbone, if they lie elsewhere than at training.

    Raises:
        ValueError: If a file cannot be used, or the folder holds a session with other prompts or edited results.
    """
    from mois.scans.channels import named_images
    from mois.scans.image_files import name_of
    from mois.scans.volumes import read_images
    from mois.serve.shipped_model import check_shipped_options, served_model
    from mois.session.playing import play, ras_warnings, requested_actions
    from mois.session.prompts.prompt_file import read_prompts
    from mois.sharing.bank import ExemplarBank
    from mois.sharing.merged_banks import each_once

    entries, bundles = read_prompts(prompts), typed_bundles(bundle)
    types = list(bundles)
    check_shipped_options(bundles.values(), pixel_mm, backbone_weights)
    stated = _stated(bundles[types[0]], pixel_mm, device)
    about = stated.inference
    images = named_images([image] if isinstance(image, str) else image, about.channels)
    name = subject or name_of(next(iter(images.values())))
    volume = read_images(images, subject=name, patient=patient or name)
    exemplars = (
        None if bank is None else ExemplarBank.load(bank, stated.identity, about.pixel_mm, channels=about.channels)
    )
    if exemplars is not None and (twice := each_once(exemplars).left_out):
        say(f"{bank}: {len(exemplars) - twice} exemplars; {twice} more show the same as one of them and do not count")
    requested = requested_actions(entries, volume, exemplars, types)
    doubted = ras_warnings(requested, volume)
    for warning in doubted:
        say(warning)
    again = _check_out(out, stated, device, volume, requested)  # first, because making the model takes long
    say_working("loading the model")
    load = partial(served_model, pixel_mm=pixel_mm, device=device, trust=trust or (), backbone_weights=backbone_weights)
    first = {types[0]: stated.model or load(bundles[types[0]])}
    session = _open_session(first | {kind: load(bundles[kind]) for kind in types[1:]}, volume, out, again)
    for kept in play(session, requested, out, exemplars, say_working).kept:
        say(f"{kept} stays: it was done before entries were added to the prompts")
    session.save()
    _write_pages(session, out, doubted)
    session.close()


class _Stated(NamedTuple):
    """What a model says of itself.

    Attributes:
        inference: Its settings.
        identity: Its identity.
        calibration: Its calibration, or None.
        model: The shipped model: it has no description, so it is made to know the others. None for a bundle.
    """

    inference: InferenceSettings
    identity: ModelIdentity
    calibration: Calibration | None
    model: LesionModel | None = None


def _stated(bundle: Path, pixel_mm: float | None, device: str) -> _Stated:
    """Return what a model says of itself. No weights of a bundle are loaded for it."""
    from mois.serve.shipped_model import served_model
    from mois.sharing.bundle_record import is_shipped, read_description

    if is_shipped(bundle):
        model = served_model(bundle, pixel_mm, device)
        return _Stated(model.segmenter.settings, model.identity, model.calibration, model)
    with warnings.catch_warnings(action="ignore"):  # to load the bundle gives the same warnings
        record = read_description(bundle)
    return _Stated(record.inference, record.identity, record.calibration)


def _check_out(out: Path, stated: _Stated, device: str, volume: Volume, requested: Sequence[RequestedAction]) -> bool:
    """Return whether the folder holds a session that did the first of the requested actions.

    Raises:
        ValueError: If it holds another session, or other files.
    """
    from mois.inference.execution import chosen_device
    from mois.session.header import about_session, check_about, check_origin, of_session
    from mois.session.journal import NAME, has_begun, read_journal
    from mois.session.output_files import check_free, check_unchanged
    from mois.session.playing import match

    if not has_begun(out / NAME):
        check_free(out)
        return False
    journal = read_journal(out)
    try:
        check_about(journal.header)
        model = stated.model
        settings = stated.inference if model is None else of_session(model, journal.header).segmenter.settings
        now = (settings, chosen_device(device), volume, stated.identity, stated.calibration)
        check_origin(journal.header, about_session(*now, track_memory=None))
    except ValueError as error:
        raise ValueError(f"out={out}: {str(error).rstrip('.')}, or choose another --out for a new session.") from error
    match(journal.actions, requested, out, str(journal.header.get("type", "")))
    check_unchanged(out)
    return True


def _open_session(models: dict[str, LesionModel], volume: Volume, out: Path, again: bool) -> InteractiveSession:
    """Load the session of a folder, or begin a new session there with the first of the models by type."""
    from mois.session import InteractiveSession

    (first, model), *further = models.items()
    if not again:
        return InteractiveSession(model, volume, out, type=first, models=dict(further))
    session = InteractiveSession.load(out, model, volume, models=dict(further))
    say(f"going on after {len(session.actions)} actions in {out}")
    return session


def _write_pages(session: InteractiveSession, out: Path, doubted: list[str]) -> None:
    """Print the result, and write the pages with pictures."""
    from mois.report.scan_page import write_scan_page
    from mois.session.output_files import recorded_results

    rows = session.lesions()
    found_count = sum(row.origin == "found" for row in rows)
    volume_ml = sum(row.volume_ml for row in rows)
    say(f"{len(rows)} lesions ({len(rows) - found_count} prompted, {found_count} found), {volume_ml:.1f} ml")
    warned, advised = session.warnings(), []
    for each in session.suggest(1):
        click = json.dumps({"click": [round(value, 1) for value in each.point_lps_mm]})
        lesion = "" if each.lesion is None else f" (lesion {each.lesion})"
        advised.append(f"suggestion: {click}{lesion}: {each.reason}")
    for line in [*warned, *advised]:
        say(line)
    labelled = session.volume._replace(lesions=session.label_map())
    with recorded_results(out):
        pictures = write_scan_page(out, labelled, rows, [*doubted, *warned], advised)
    say(f"pictures: {' and '.join(str(file) for file in pictures)}")
    say(f"results in {out}")
