"""The steps of `mois adapt`: plan and checks, training, bundle, comparison of before and after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mois.cli.arguments import command_line
from mois.cli.doctor_checks import disk
from mois.cli.messages import say
from mois.cli.planned import AS_ASKED, asked_channels, check_channels, plan_dataset
from mois.cli.train import MoisCLI, quieten
from mois.files.atomic import write_text
from mois.files.text import read_text
from mois.inference.execution import chosen_device
from mois.machine.interrupts import GIVE_COMMAND_AGAIN, HOW_TO_GO_ON
from mois.planning.config_text import config_text
from mois.planning.plan import Plan
from mois.report.adaptation_page import Adaptation, write_adaptation_page
from mois.scans.channels import same_channels, wanted_channels
from mois.sharing.bundle import check_trust, copy_bundle
from mois.sharing.bundle_record import BundleRecord, read_description

DISK_NEEDED_GB = 0.5
"""Space for the checkpoints of the nano, its predictions and pictures."""

PLAN = "plan.yaml"
DEVICES = ("auto", "cpu", "cuda", "gpu", "mps")
"""Kinds of devices that a training takes; `gpu` is any accelerator of Lightning."""


class Request(NamedTuple):
    """What a user asks of `mois adapt`; see its arguments."""

    data: Path
    out: Path
    minutes: float | None
    start_from: Path | None
    seed: int
    device: str
    trust: Sequence[str]
    channels: Sequence[str] = ()

    @property
    def training(self) -> Path:
        """Folder of the training."""
        return self.out.with_name(f"{self.out.name}_training")


def run_adaptation(request: Request) -> None:
    """Plan, train, and write the bundle with a comparison of before and after.

    Raises:
        ValueError: If the folder of the bundle exists or cannot be written to, the dataset has a fault or lacks a
            channel, the bundle to begin with sees other channels, or a class of this bundle is not trusted.
    """
    _check_out(request)
    _check_device(request.device)
    if request.minutes is not None and not request.minutes > 0:
        raise ValueError(f"minutes={request.minutes:g}: a training needs time; choose more than 0.")
    start = _start(request)
    channels, reason = _channels(request, start)
    plan = plan_dataset(request.data, "--data").seeing(channels, reason)
    for line in [*plan.summary(), *_what_follows(plan)]:
        say(line)
    file = _write_plan(request, plan, start)
    arguments = _arguments(request, file)
    os.environ.setdefault(HOW_TO_GO_ON, f"{GIVE_COMMAND_AGAIN}: the adaptation goes on where it was")
    quieten()
    with command_line(arguments):
        trained = MoisCLI(arguments)
    bundle = request.training / "bundle"
    record = read_description(bundle)
    result = Adaptation(
        plan.summary(),
        dict(getattr(trained.model, "step_0", {})),
        {name: value for name, value in record.figures.items() if value is not None},
        str(record.provenance.get("delivered", "")),
        record.calibration,
        trained.model.global_step,
    )
    page = write_adaptation_page(request.training / "adaptation.html", result, request.training)
    copy_bundle(bundle, request.out)
    for line in result.lines():
        say(line)
    say(f"report: {page}")
    say(f"bundle: {request.out}; use it with: mois segment SCAN --bundle {request.out} --prompts F --out RESULT")


def _start(request: Request) -> BundleRecord | None:
    """Return the bundle that the adaptation begins with, once its classes are trusted; None without one.

    Raises:
        ValueError: If the bundle names a class that is neither of this project nor of a trusted module.
    """
    if request.start_from is None:
        return None
    start = read_description(request.start_from)
    for role in ("backbone", "adapter", "propagation"):
        check_trust(getattr(start.model, role), role, request.trust, request.start_from)
    return start


def _channels(request: Request, start: BundleRecord | None) -> tuple[Sequence[str], str]:
    """Return the names of the channels, none for the one that the plan chooses, and where they come from.

    Raises:
        ValueError: If names are no channels, or the bundle to begin with sees others.
        DataError: If a scan lacks one; no image is read.
    """
    asked = asked_channels(request.channels)
    if start is None:
        check_channels(request.data, "--data", request.channels, asked)
        return request.channels, AS_ASKED
    channels = start.inference.channels
    wanted_channels(request.channels, "--channels")
    if request.channels and not same_channels(request.channels, channels):
        seen = f"sees the channels {', '.join(channels)}" if channels else "sees one image"
        raise ValueError(f"{asked}: the bundle of --start_from={request.start_from} {seen}; leave --channels out.")
    given = f"--start_from={request.start_from} sees the channels {', '.join(channels)}"
    check_channels(request.data, "--data", channels, given)
    return channels, "those of the bundle that the training begins with"


def _check_out(request: Request) -> None:
    """Refuse a folder that exists, and a disk that cannot take the training."""
    if request.out.exists():
        raise ValueError(f"out={request.out} is there already; choose another folder, or remove it.")
    space = disk(request.out.parent, DISK_NEEDED_GB)
    if not space.good:
        raise ValueError(f"out={request.out}: {space.text}.".replace("set trainer.default_root_dir to", "choose"))


def _check_device(device: str) -> None:
    """Refuse a device that this machine lacks, before anything is written.

    Raises:
        ValueError: If there is no such device.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device} is unknown; choose {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.")
    if device == "cuda" or (device == "gpu" and not torch.backends.mps.is_available()):
        chosen_device("cuda")


def _what_follows(plan: Plan) -> list[str]:
    """Return what follows from the scans for what can be known of the result."""
    split = plan.split
    if plan.scans == 1:
        return ["one scan: it trains and validates, so nothing is known of other patients; look at results yourself"]
    if split.val_slab:
        return ["the scans that validate also train, on other slices; nothing is known of other patients"]
    return []


def _write_plan(request: Request, plan: Plan, start: BundleRecord | None) -> Path:
    """Write the config of the training, unless the same adaptation began before; return its path."""
    file = request.training / PLAN
    text = config_text(plan, file, None if start is None else start.model)
    if file.is_file():
        if read_text(file) != text:
            raise ValueError(
                f"{request.training} holds another adaptation (other scans or settings); choose another --out, or "
                "remove it."
            )
        say(f"going on with the training in {request.training}")
    else:
        write_text(file, text)
    return file


def _arguments(request: Request, file: Path) -> list[str]:
    """Return the words of `mois` for the training."""
    arguments = ["fit", "--config", str(file), "--trainer.default_root_dir", str(request.training)]
    arguments += ["--seed_everything", str(request.seed), "--trainer.accelerator", request.device]
    arguments += ["--ckpt_path", "last"]  # the start, if there is none
    if request.minutes is not None:
        arguments += ["--minutes", str(request.minutes)]
    if request.start_from is not None:
        arguments += ["--start_from", str(request.start_from)]
    return arguments
