"""`mois bank ls | show | merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mois.cli.messages import say

if TYPE_CHECKING:
    from mois.sharing.identity import ModelIdentity


def list_banks(places: list[Path]) -> None:
    """List exemplar banks: number of exemplars and scans, and the model of each.

    Args:
        places: Bank files, or folders in which to look for them, such as folders of sessions.

    Raises:
        ValueError: If a file is no bank, or no bank is found.
    """
    from mois.sharing.bank import ExemplarBank

    rows = []
    for file in _files(places):
        bank = ExemplarBank.read(file)
        negatives = sum(item.negative for item in bank)
        rows.append(
            [
                str(file),
                str(len(bank) - negatives),
                str(negatives),
                str(len({item.scan for item in bank})),
                str(len({item.patient for item in bank})),
                f"{bank.pixel_mm:g}",
                ", ".join(bank.channels) or "one image",
                _model(bank.identity),
            ]
        )
    _print(["bank", "positive", "negative", "scans", "patients", "pixel mm", "channels", "model"], rows)


def show_bank(file: Path) -> None:
    """Show an exemplar bank: its model, and each of its exemplars.

    Args:
        file: File of the bank, such as bank.safetensors of a session.

    Raises:
        ValueError: If the file is no bank.
    """
    from mois.sharing.bank import ExemplarBank

    bank = ExemplarBank.read(file)
    say(
        f"{file}: {len(bank)} exemplars at {bank.pixel_mm:g} mm a pixel, on {', '.join(bank.channels) or 'one image'}, "
        f"normalised by the rule {bank.normalisation}, version {bank.version}\nmodel: {_model(bank.identity)}"
    )
    rows = [
        [
            item.key,
            item.scan,
            item.patient,
            "negative" if item.negative else "positive",
            f"{item.weight:g}",
            f"{item.area_mm2:.0f}",
            f"{item.mean_intensity:.2f}",
            f"{item.contrast:+.2f}",
            ", ".join(f"{place:.1f}" for place in item.position_lps_mm),
        ]
        for item in bank
    ]
    _print(["key", "scan", "patient", "shows", "weight", "mm2", "intensity", "contrast", "LPS mm"], rows)


def merge_bank_files(banks: list[Path], out: Path) -> None:
    """Merge exemplar banks of one model into one bank.

    An exemplar that is there more than once is taken once.

    Args:
        banks: Two or more bank files; the words after `mois bank merge`.
        out: File of the new bank.

    Raises:
        ValueError: If a file is no bank or is named twice, the banks belong to different models, pixel sizes or
            channels, or `out` exists.
    """
    from mois.sharing.bank import ExemplarBank
    from mois.sharing.merged_banks import merge_banks

    if len(banks) < 2:
        raise ValueError(f"banks={banks[0] if banks else '[]'}: merge takes two or more banks.")
    if out.exists():
        raise ValueError(f"out={out} exists already; choose another name, or move it away.")
    places = [file.resolve() for file in banks]
    for number, (file, place) in enumerate(zip(banks, places, strict=True)):
        if (first := places.index(place)) != number:
            raise ValueError(f"banks: {banks[first]} and {file} are one file; name each bank once.")
    merged, left_out = merge_banks({str(file): ExemplarBank.read(file) for file in banks})
    out.parent.mkdir(parents=True, exist_ok=True)
    merged.save(out)
    twice = f"; left out, since they are there already: {left_out}" if left_out else ""
    say(f"{out}: {len(merged)} exemplars of {len({item.scan for item in merged})} scans{twice}")


def _files(places: Sequence[Path]) -> list[Path]:
    """Return the bank files that were named or lie in named folders.

    Raises:
        ValueError: If a folder holds no bank.
    """
    files = []
    for place in places:
        found = sorted(place.rglob("bank*.safetensors")) if place.is_dir() else [place]
        if not found:
            raise ValueError(f"{place} holds no exemplar bank (bank*.safetensors); give the folder of a session.")
        files += found
    return files


def _model(identity: ModelIdentity) -> str:
    """Return the model of a bank in a few words."""
    weights, propagation = identity.backbone, identity.propagation.rpartition(".")[2]
    digests = identity.adapter_sha256[:8], identity.propagation_sha256[:8]
    return f"{weights.name} ({weights.source}) {digests[0]}, {propagation} {digests[1]}"


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain columns, which other programs can read too."""
    widths = [max(len(line[column]) for line in [columns, *rows]) for column in range(len(columns))]
    for line in [columns, *rows]:
        say("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
