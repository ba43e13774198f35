"""The first line of a journal: scan, model and settings of a session. They are compared when a session is loaded."""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch

from mois.errors import DataError, as_text
from mois.files.json_records import as_record
from mois.geometry import SliceAxis, SliceGrid
from mois.inference.execution import resolve_precision
from mois.inference.settings import InferenceSettings
from mois.intensities import FIRST
from mois.records import Volume
from mois.scans.channels import channels_of, rule_of_channels
from mois.scans.labels import array_of
from mois.scans.volumes import read_images
from mois.session.journal import Journal, time_stamp
from mois.sharing.bank import ExemplarBank
from mois.sharing.calibration import Calibration
from mois.sharing.identity import ModelIdentity
from mois.sharing.lesion_model import LesionModel

_NOT_RECORDED: dict[str, Any] = {
    "channels": [], "level": "fixed", "clicks": "model", "window": "off", "rejections": "exemplars",
}  # fmt: skip
"""Values of settings that a session does not record, as earlier versions had none of these settings."""

_EARLIER_DEFAULTS: dict[str, Any] = {"precision": "32", "normalisation": FIRST.as_dict()} | _NOT_RECORDED
"""Values of settings that earlier versions did not have. Any other missing setting has today's default."""

_FOLLOWED = ("overlap", "threshold", "peak_threshold", "clicks", "level", "rejections", "split_prominence_mm")
"""Settings of the shipped model. Each version may have other values, and goes on with a session by those of then."""


def about_session(
    settings: InferenceSettings,
    device: torch.device,
    volume: Volume,
    identity: ModelIdentity,
    calibration: Calibration | None,
    track_memory: int | None,
) -> dict[str, Any]:
    """Return what the voxels of a session depend on besides its actions, as JSON.

    Args:
        settings: Inference settings of the model.
        device: Device of the model.
        volume: The scan.
        identity: Identity of the model.
        calibration: Calibration of the confidence of found lesions, or None.
        track_memory: Value of `inference.track_memory` with this backbone; None before the model is loaded.
    """
    kept = {name: value for name, value in asdict(settings).items() if name != "memory_gib"}
    kept["precision"] = resolve_precision(device, settings.precision)  # `auto` differs by device
    rule = rule_of_channels(settings.normalisation, settings.channels, volume.channel)  # `auto` differs by scan
    kept["normalisation"] = rule.as_dict()
    kept["track_memory"] = settings.track_memory if track_memory is None else track_memory
    if kept["track_memory"] is None:
        del kept["track_memory"]
    kept["channels"] = list(settings.channels)
    kept = {name: value for name, value in kept.items() if name not in _NOT_RECORDED or value != _NOT_RECORDED[name]}
    return {
        "subject": volume.subject,
        "patient": volume.patient,
        "path": _place(volume.path),
        **({"channel_files": _channel_files(volume)} if volume.further else {}),
        "scan_sha256": scan_digest(volume, settings.channels),
        "one_slice": _is_one_slice(volume, settings.slice_axis),
        "model": identity.as_dict(),
        "inference": kept,
        "calibration": None if calibration is None else calibration.as_dict(),
    }


def scan_digest(volume: Volume, channels: Sequence[str]) -> str:
    """Return the SHA-256 of the voxels and the grid of a scan.

    Args:
        volume: The scan.
        channels: Names of the channels that a model sees; none for one image of any name.
    """
    images = {id(channel.image): channel.image for channel, _ in channels_of(volume, channels)}
    digest = hashlib.sha256()
    for image in images.values():
        digest.update(np.ascontiguousarray(array_of(image)).tobytes())
    digest.update(volume.affine.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _channel_files(volume: Volume) -> dict[str, str]:
    """Return the file of each channel by its name, in their order."""
    return {volume.channel: _place(volume.path)} | {one.name: _place(one.path) for one in volume.further}


def _place(path: str) -> str:
    """Return the absolute path of a file, since later commands may start in another folder; "" for no file."""
    return as_text(str(Path(path).absolute())) if path else ""


def about_model(model: LesionModel, volume: Volume) -> dict[str, Any]:
    """Return what `about_session` returns, for a model that is loaded."""
    segmenter = model.segmenter
    return about_session(
        segmenter.settings, segmenter.device, volume, model.identity, model.calibration, segmenter.tracking.maps
    )


def model_digest(about: dict[str, Any]) -> str:
    """Return a digest of what the voxels depend on besides scan and actions: model, settings and calibration.

    Args:
        about: What `about_model` returned.
    """
    kept = {name: about[name] for name in ("model", "inference", "calibration")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_scan(header: dict[str, Any]) -> Volume:
    """Read the scan of a session from the paths in the first line.

    Raises:
        DataError: If a file is missing or cannot be used.
    """
    path, subject, patient = (str(header[key]) for key in ("path", "subject", "patient"))
    named = {str(name): Path(file) for name, file in header.get("channel_files", {}).items()}
    if not path:
        raise DataError(f"the session of {subject} does not say the file of its scan; give the scan.")
    files = named or {"": Path(path)}
    if missing := [file for file in files.values() if not file.exists()]:
        cure = "put it back there" if missing[0].is_absolute() else f"it was not in {Path.cwd()}; start where it was"
        raise DataError(f"{missing[0]}: the scan of the session of {subject} is missing; {cure}.")
    return read_images(files, subject=subject, patient=patient)


def new_header(model: LesionModel, volume: Volume, type: str = "") -> dict[str, Any]:
    """Return the first line of a new session's journal. A first type without a name is not written."""
    first = {"type": type} if type else {}
    return about_model(model, volume) | first | {"session": uuid.uuid4().hex, "started": time_stamp()}


def settings_of_session(settings: InferenceSettings, header: dict[str, Any]) -> InferenceSettings:
    """Return settings with those of `_FOLLOWED` that a session was made with, as far as this version knows them."""
    hints = get_type_hints(InferenceSettings)
    made = {name: _recorded(header, name) for name in _FOLLOWED}
    unknown = {name for name in made if get_origin(hints[name]) is Literal and made[name] not in get_args(hints[name])}
    return replace(settings, **{name: value for name, value in made.items() if name not in unknown})


def of_session(model: LesionModel, header: dict[str, Any]) -> LesionModel:
    """Return a model as it goes on with a session: with its settings, if it follows (`follows_sessions`)."""
    if not model.follows_sessions:
        return model
    settings = settings_of_session(model.segmenter.settings, header)
    return replace(model, segmenter=model.segmenter.with_settings(settings))


def checked_origin(
    journal: Journal, model: LesionModel, further: Mapping[str, LesionModel] | None, volume: Volume | None
) -> tuple[LesionModel, dict[str, LesionModel], Volume]:
    """Return models and scan of a session, once the first model and the scan are checked against its journal.

    A model that follows sessions (`LesionModel.follows_sessions`) gets the settings that the session was made with, a
    further one if the journal used it with them.

    Args:
        journal: Journal of the session.
        model: The model to go on with.
        further: Models of further types, by type.
        volume: The scan. None reads it from the path that the journal states.

    Raises:
        ValueError: If the session is of another scan, model or settings, or its first line is damaged.
    """
    check_about(journal.header)
    volume = volume if volume is not None else read_scan(journal.header)
    followed = of_session(model, journal.header)
    check_origin(journal.header, about_model(followed, volume))
    if followed.segmenter.settings != model.segmenter.settings:
        _warn_of_settings(followed.segmenter.settings, model.segmenter.settings, volume.subject)
    used = {(action.arguments["type"], action.arguments["model"]) for action in journal.actions if action.name == "use"}
    models = {}
    for name, now in (further or {}).items():
        then = of_session(now, journal.header)
        models[name] = then if (name, model_digest(about_model(then, volume))) in used else now
    return followed, models, volume


def _warn_of_settings(then: InferenceSettings, now: InferenceSettings, subject: str) -> None:
    """Warn that a session goes on by settings that are not those of now."""
    changed = [
        f"{name}={getattr(then, name)} (now {getattr(now, name)})"
        for name in _FOLLOWED
        if getattr(then, name) != getattr(now, name)
    ]
    warnings.warn(
        f"the session of {subject} goes on by the settings it was made with: inference.{', '.join(changed)}; begin a "
        "new session for those of now",
        stacklevel=3,
    )


def _recorded(header: dict[str, Any], name: str) -> Any:
    """Return a setting of a session. One that is newer than the session has its default, or that of before."""
    default = _EARLIER_DEFAULTS[name] if name in _EARLIER_DEFAULTS else getattr(InferenceSettings, name)
    return header["inference"].get(name, default)


def _is_one_slice(volume: Volume, slice_axis: SliceAxis) -> bool:
    """Return whether slices lie across an axis only because the axis has one voxel."""
    by_spacing = SliceGrid.of((2, 2, 2), volume.affine, slice_axis)
    return SliceGrid.of(volume.shape, volume.affine, slice_axis).order != by_spacing.order


@dataclass(frozen=True)
class About:
    """The first line of a journal, checked key by key; see `about_session`.

    Attributes:
        session: Unique name of the session.
        started: Time of the start, ISO 8601.
        one_slice: Whether a scan of one slice is one picture. Earlier versions cut it into lines.
        channel_files: File of each channel by its name, for a scan of several channels.
        type: Type of lesions with which the session began.
    """

    subject: str
    patient: str
    path: str
    scan_sha256: str
    model: ModelIdentity
    inference: dict[str, Any]
    calibration: Calibration | None
    session: str
    started: str
    one_slice: bool = False
    channel_files: dict[str, str] = field(default_factory=dict)
    type: str = ""


def check_about(header: dict[str, Any]) -> None:
    """Refuse a first line that lacks a key, or has a key or value that no session writes.

    Args:
        header: The first line, with its format.

    Raises:
        DataError: If it does; the message names the key.
    """
    plain = {key: value for key, value in header.items() if key not in ("format", "format_version")}
    later = ("model.arguments", "model.behaviour", "one_slice") if header["format_version"] == 1 else ()
    as_record(plain, About, "the session's first line", "begin a new session", later=(*later, "channel_files", "type"))


def scan_name(about: dict[str, Any]) -> str:
    """Return the part of exemplar keys that stands for the scan. Two scans may have one name, so it is a digest."""
    return str(about["scan_sha256"])[:8]


def check_origin(header: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a session on another scan, model or settings.

    Args:
        header: First line of the session's journal, with its format.
        now: The same for the scan and model at hand, as `about_session` returns it.

    Raises:
        ValueError: If something differs; the message names it.
    """
    check_about(header)
    where = f"the session of {header['subject']}"
    if header["scan_sha256"] != now["scan_sha256"]:
        raise ValueError(f"{where} is of another scan than {now['subject']}; give the scan that it was made on.")
    for name in ("subject", "patient"):  # exemplars carry both
        if header[name] != now[name]:
            raise ValueError(f"{where} has {name}={header[name]}, now it is {now[name]}; give the same {name}.")
    if now["one_slice"] and not header.get("one_slice"):
        raise ValueError(f"{where} was made when a scan of one slice was cut into lines; begin a new session.")
    made, given = (ModelIdentity.from_dict(about["model"]) for about in (header, now))
    if different := made.differences(given):
        raise ValueError(
            f"{where} was made by another model: {' and '.join(different)}; use the bundle it was made with."
        )
    if unknown := sorted(header["inference"].keys() - InferenceSettings.__dataclass_fields__.keys()):
        raise ValueError(
            f"{where} was made with inference.{unknown[0]}, which this version lacks; update this program."
        )
    for name, value in (_NOT_RECORDED | now["inference"]).items():
        if (before := _recorded(header, name)) != value:
            raise ValueError(
                f"{where} was made with inference.{name}={before}, now it is {value}; use the same setting."
            )
    if header["calibration"] != now["calibration"]:
        raise ValueError(f"{where} was made with another calibration; use the bundle it was made with.")


def bank_name(bank: ExemplarBank) -> str:
    """Return a name for a bank, made from its content."""
    digest = hashlib.sha256()
    for item in bank:
        digest.update(repr((item.key, item.negative, item.weight)).encode())
        for name, token in sorted(item.tokens.items()):
            digest.update(name.encode() + token.numpy().tobytes())
    return digest.hexdigest()[:16]
