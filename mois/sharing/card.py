"""The README of a bundle: content, origin and use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mois.files.atomic import write_text
from mois.sharing.identity import dotted
from mois.sharing.remarks import COMPARED, remarks

CARD = """# {title}

A lesion segmentation model for `mois`: click a few lesions of a scan, and all others that look like them are found.
For research. Not a medical device; nobody has shown that it helps a patient.

## Use

```
mois segment SCAN.nii.gz --bundle {name} --prompts prompts.json --out result{trust}
mois evaluate --bundle {name} --data DATASET --split test --out result{trust}
```
{foreign}
```python
from mois.sharing.bundle import Bundle

segmenter = Bundle.load("{name}"{trust_argument}).segmenter()
```

The backbone's own weights are not in this folder: {backbone}.

## What it is

| part | class | settings |
|---|---|---|
{parts}

A scan is resampled to {pixel_mm} mm per pixel in plane. A voxel belongs to a lesion from a probability of {threshold};
a lesion is kept if one of its voxels reaches {peak_threshold}. {calibration}{channels}

## What it was measured at

{figures}

## What made it

| | |
|---|---|
{provenance}

`bundle.json` holds all settings, the versions of the packages, and a sha256 of every file.
"""

FOREIGN = """
Parts of it are classes of {modules}, which this project does not bring along: put that on PYTHONPATH, and trust it only
if you know who wrote it.
"""


def write_card(path: Path, name: str, content: Mapping[str, Any], modules: Sequence[str] = ()) -> None:
    """Write the card of a bundle.

    Args:
        path: File of the card.
        name: Name of the bundle's folder.
        content: Content of bundle.json.
        modules: Modules outside this project whose classes the bundle names.
    """
    model, inference, provenance = content["model"], content["inference"], content["provenance"]
    identity = content["identity"]["backbone"]
    write_text(
        path,
        CARD.format(
            title=f"{model['adapter']['class_path'].rpartition('.')[2]} and "
            f"{model['propagation']['class_path'].rpartition('.')[2]} on SAM2 {identity['name']}",
            name=name,
            trust=f" --trust {','.join(modules)}" if modules else "",
            trust_argument=f", trust={list(modules)}" if modules else "",
            foreign=FOREIGN.format(modules=", ".join(modules)) if modules else "",
            backbone=f"{identity['name']} ({identity['source']}), sha256 `{identity['sha256']}`",
            parts=_rows({part: (f"`{model[part]['class_path']}`", _settings(model[part])) for part in model}),
            channels=_channels(inference.get("channels") or ()),
            pixel_mm=inference["pixel_mm"],
            threshold=inference["threshold"],
            peak_threshold=f"{inference['peak_threshold']:.3g}",
            calibration=_calibration(content["calibration"]),
            figures=_figures(content["figures"], provenance.get("made_worse") or ()),
            provenance=_rows({key: (_cell(provenance.get(key)),) for key in _made_it(provenance)}),
        ),
    )


def _made_it(provenance: Mapping[str, Any]) -> Sequence[str]:
    """Return the keys of the provenance that the card shows. Bundles of earlier versions lack the last one."""
    return [key for key in ("code", "data", "seed", "delivered") if key != "delivered" or key in provenance]


def _calibration(plain: Mapping[str, Any] | None) -> str:
    if plain is None:
        return "Its confidences are not calibrated: no validation found anything to fit them on."
    return (
        f"Confidences were fitted on {plain['candidates']} candidates of validation scans, of which {plain['hits']} "
        "were lesions; with few of them they are rough."
    )


def _figures(figures: Mapping[str, float | None], made_worse: Sequence[str]) -> str:
    measured = {name: (f"{value:.3f}",) for name, value in figures.items() if value is not None}
    if not measured:
        return "No validation of these weights is recorded."
    head = "| validation | mean over scans |\n|---|---|\n"
    notes = [*remarks(*(figures.get(name) for name in COMPARED)), *made_worse]
    paragraphs = "".join(f"\n\n{note}" for note in notes)
    flatter = "The checkpoint was chosen by this validation, so that its figures flatter."
    return f"{head}{_rows(measured)}{paragraphs}\n\n{flatter}"


def _settings(spec: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_cell(value)}" for name, value in dotted(spec["init_args"]).items()) or "-"


def _channels(names: Sequence[str]) -> str:
    return f" It sees the channels {', '.join(names)}, which are found by name." if names else ""


def _rows(cells: Mapping[str, tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join((name, *row))} |" for name, row in cells.items())


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "/").split())
