"""Checks whether this machine can train: packages, accelerator, disk, W&B. Each finding has a cure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from mois.cli.arguments import as_options
from mois.errors import counted, listed
from mois.tracking.wandb_server import SERVER_TIMEOUT_S, choose, logged_in_key, wandb_server, why_unreachable

DISK_NEEDED_GB = 5.0
MEMORY_NEEDED_GB = 4.0


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        topic: Topic in one word.
        good: Whether a training can work with it.
        text: The finding; if it is not good, also the cure.
    """

    topic: str
    good: bool
    text: str


def examine(folder: Path) -> Iterator[Finding]:
    """Check the machine, and yield the findings. Nothing is changed.

    Args:
        folder: Folder for runs.
    """
    yield packages()
    yield from devices()
    yield disk(folder)
    yield tracking()


def packages() -> Finding:
    """Compare the installed packages with the requirements of this package."""
    faults = []
    try:
        wanted = [Requirement(line) for line in requires("mois") or []]
    except PackageNotFoundError:
        return Finding("packages", False, "mois itself is not installed; run `make setup`, or `pip install -e .`")
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            faults.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    if faults:
        return Finding("packages", False, f"{'; '.join(faults)}; run `make setup`")
    return Finding("packages", True, f"{len(wanted)} as asked for, torch {version('torch')}, sam2 {version('sam2')}")


def devices() -> Iterator[Finding]:
    """Check for accelerators. A machine with only a processor works, but slowly."""
    import torch

    from mois.inference.execution import unused_gpu

    if why := unused_gpu():
        yield Finding("device", False, f"trainings run on the processor: {why}")
    elif not torch.cuda.is_available():
        kind = "mps" if torch.backends.mps.is_available() else f"{os.cpu_count()} processor cores"
        cure = "no CUDA device: the demo and small adaptations run, large backbones are slow"
        yield Finding("device", True, f"{kind}, precision 32-true; {cure}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory_gb = device.total_memory / 1e9
        bf16 = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        text = f"{device.name}, {memory_gb:.0f} GB, precision {bf16}"
        if memory_gb < MEMORY_NEEDED_GB:
            text += "; its memory is small, choose a nano or tiny backbone (model.backbone.init_args.size)"
        yield Finding("device", memory_gb >= MEMORY_NEEDED_GB, text)


def disk(folder: Path, needed_gb: float = DISK_NEEDED_GB) -> Finding:
    """Check the free space for runs.

    Args:
        folder: Folder for runs; it need not exist.
        needed_gb: Space that is enough, in GB.
    """
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    if not os.access(there, os.W_OK):  # also False on a read-only file system
        cure = "ask for the right to it, or set trainer.default_root_dir to another folder"
        return Finding("disk", False, f"{there} cannot be written to; {cure}")
    free_gb = shutil.disk_usage(there).free / 1e9
    if free_gb < needed_gb:
        cure = f"make room, or set trainer.default_root_dir to another disk ({needed_gb:g} GB will do)"
        return Finding("disk", False, f"{free_gb:.1f} GB free in {folder}; {cure}")
    return Finding("disk", True, f"{free_gb:.0f} GB free in {folder}")


def tracking() -> Finding:
    """Check whether W&B would record online or offline."""
    choice = choose()
    asked = f" (WANDB_MODE={mode})" if (mode := os.environ.get("WANDB_MODE")) else ""
    if choice.reason:
        return Finding("tracking", False, f"W&B offline, because {choice.reason}")
    if choice.mode == "disabled":
        return Finding("tracking", True, f"W&B disabled{asked}")
    if choice.mode == "offline":
        way = "WANDB_MODE=online, since there is a key of `wandb login`," if logged_in_key() else "WANDB_API_KEY"
        cure = "" if asked else f"; set {way} to record online"
        return Finding("tracking", True, f"W&B offline{asked}, in the run's folder{cure}")
    reason = why_unreachable(wandb_server(), choice.key, SERVER_TIMEOUT_S)
    if reason is None:
        return Finding("tracking", True, f"W&B online at {wandb_server()}")
    return Finding("tracking", False, f"W&B offline, because {reason}; mend it, or set WANDB_MODE=offline")


def dataset(root: Path) -> Iterator[Finding]:
    """Read every scan of an nnU-Net raw dataset. Yield the faults by file, then a summary."""
    from mois.errors import DataError

    try:
        from mois.cli.dataset_survey import survey

        found = survey(root)
    except DataError as error:
        yield Finding("data", False, as_options(str(error), root="--root"))
        return
    from mois.scans.dataset_facts import describe
    from mois.scans.layouts.bids import is_bids, scans_without_mask

    yield from (Finding("data", False, fault) for fault in found.faults)
    lesions = sum(len(each.classes) for each in found.facts)
    faults = len(found.faults)
    train = sum(not scan.held_out for scan in found.scans)
    text = (
        f"{counted(train, 'scan')} to train on, {len(found.scans) - train} held out, {counted(lesions, 'lesion')}, "
        f"{counted(faults, 'fault')} to mend"
    )
    yield Finding("data", faults == 0 and lesions > 0, text + ("" if lesions else "; annotate some lesions"))
    if is_bids(root) and (omitted := scans_without_mask(root)):
        without = f"{counted(len(omitted), 'scan')} without a mask of lesions"
        text = f"{without}: {listed(omitted)}; add one, all 0 if it has no lesion"
        yield Finding("left out", True, text)
    lines = describe(found.facts, found.description) if found.facts else ()
    yield from (Finding(topic, True, text) for topic, text in lines)
