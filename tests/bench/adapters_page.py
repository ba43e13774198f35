"""Writes docs/adapters.md and its plot from the rows that `tests.bench.adapters` measured."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mois.files.atomic import write_text
from mois.report.charts import STYLE
from tests.support.adapter_methods import METHODS

CHECKS = {
    "identity": "attached, it changes no answer (1e-5)",
    "gradient": "each trained tensor gets a gradient, in the first step and after it",
    "rest": "nothing else changes",
    "saved": "saved and loaded into a fresh backbone, it is the same to the bit",
    "off": "switched off, the backbone answers as before, to the bit",
    "merged": "merged into the backbone's weights, it gives the same answers (1e-4)",
    "ranks": "two ranks train it without a search for unused tensors",
}
"""Checks by the name of their column."""

HEAD = """# Adapters compared

Every adapter of `configs/adapters` keeps the contract of `mois.testing.check_adapter`. Choose one with
`--config configs/adapters/NAME.yaml` after your own config, or with `model.adapter` in it. `adapters.Peft` takes any
configuration class of peft.

This page is drawn by `python -m tests.bench.adapters` from the rows in `docs/adapters.json`.
"""

TRAINED = """## Trained and tested

Each row is {minutes:g} CPU minutes of training on the demo's scans, and a test on 4 others. The demo has 10 phantoms
with two lesion types that the nano has never seen.

- `right` and `wrong`: Dice of the never-prompted lesions, with exemplars of their type and of the other type.
- Share: trained tensors over those of the backbone. kB: the adapter's file. CPU-s: time of the training.
- The learning rate is the demo's for all. A method that wants another rate is at a loss here.

![Right against the size of the file](images/adapters.svg)

| adapter | right | wrong | prompted Dice | share | kB | CPU-s | steps | seeds |
|---|---|---|---|---|---|---|---|---|"""

DASH = "\N{EN DASH}"
"""What a table shows where there is nothing."""


def read_rows(file: Path) -> dict[str, Any]:
    """Return the rows and checks of a file; none if it does not exist."""
    found: dict[str, Any] = {"checks": {}, "rows": []}
    return found | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def write_rows(stored: Mapping[str, Any], file: Path) -> None:
    """Write rows and checks, each on one line, in order."""
    checks = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(stored["checks"].items())]
    ordered = sorted(stored["rows"], key=lambda row: (-row["minutes"], row["method"], row["seed"]))
    rows = [f"  {json.dumps(row)}" for row in ordered]
    write_text(file, '{{"checks": {{\n{}\n}}, "rows": [\n{}\n]}}\n'.format(",\n".join(checks), ",\n".join(rows)))


def draw(stored: Mapping[str, Any], page: Path) -> None:
    """Write the page, and its plot into images/adapters.svg beside it if there is a row."""
    longest = max((row["minutes"] for row in stored["rows"]), default=0)
    rows = _by_method([row for row in stored["rows"] if row["minutes"] == longest])
    write_text(page, "\n".join([HEAD, *_checks(stored["checks"]), *_figures(rows, longest)]).rstrip() + "\n")
    if rows:
        write_text(page.parent / "images" / "adapters.svg", _plot(rows))


def _by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the mean figures of each method over its seeds, the best by right first."""
    found: dict[str, dict[str, Any]] = {}
    for name in {row["method"] for row in rows}:
        own = [row for row in rows if row["method"] == name]
        figures = {
            key: mean(row[key] for row in own) if all(row[key] is not None for row in own) else None
            for key in ("right", "wrong", "prompted_dice", "share", "kb", "cpu_s", "steps")
        }
        found[name] = {**figures, "seeds": len(own)}
    return dict(sorted(found.items(), key=lambda item: (-(item[1]["right"] or 0), item[0])))


def _checks(found: Mapping[str, Mapping[str, bool | None]]) -> list[str]:
    """Return the section on checks."""
    if not found:
        return []
    lines = ["## Checks", "", "Checked on a nano with random weights.", ""]
    lines += [f"- `{name}`: {meaning}." for name, meaning in CHECKS.items()]
    lines += ["", f"| adapter | what | {' | '.join(CHECKS)} |", f"|{'---|' * (len(CHECKS) + 2)}"]
    for name, passed in sorted(found.items()):
        marks = ["yes" if passed[check] else DASH for check in CHECKS]
        lines.append(f"| `{name}` | {_what(name)} | {' | '.join(marks)} |")
    return [
        *lines,
        "",
        "A dash: the adapter has no such thing. What trains the backbone's own tensors cannot be switched off, and a",
        "bottleneck cannot be merged.",
        "",
        "Methods of peft that cannot adapt this backbone end in one line that says why: "
        "[decision 33](decisions/0033-methods-of-peft.md).",
        "",
    ]


def _figures(rows: Mapping[str, Mapping[str, Any]], minutes: float) -> list[str]:
    """Return the section on trainings."""
    if not rows:
        return ["## Trained and tested", "", "No row is measured yet.", ""]
    missing = sorted(METHODS.keys() - rows.keys())
    lines = TRAINED.format(minutes=minutes).split("\n")
    for name, row in rows.items():
        dice = [_short(row[key]) for key in ("right", "wrong", "prompted_dice")]
        size = [f"{100 * row['share']:.2f} %", f"{row['kb']:.0f}", f"{row['cpu_s']:.0f}", f"{row['steps']:.0f}"]
        lines.append(f"| `{name}` | {' | '.join([*dice, *size, str(row['seeds'])])} |")
    if missing:
        lines += ["", f"Not measured yet ({len(missing)}): {', '.join(missing)}."]
    return lines


def _what(name: str) -> str:
    """Return what a config says of its adapter, without the source."""
    said = METHODS[name].read_text(encoding="utf-8").splitlines()[1].removeprefix("# ").rstrip(".")
    spec = yaml.safe_load(METHODS[name].read_text(encoding="utf-8"))["model"]["adapter"]
    kind = spec.get("init_args", {}).get("config", spec)["class_path"]
    return f"{said} (`{kind}`)"


def _short(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}".removeprefix("0")


def _plot(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an SVG: right against the size of the adapter's file."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="tight")
        axes = figure.subplots()
        known = {name: row for name, row in rows.items() if row["right"] is not None}
        for number, (name, row) in enumerate(known.items()):  # the best first, so neighbours have names on both sides
            place, x, side = (max(row["kb"], 0.1), row["right"]), *((4, "left"), (-4, "right"))[number % 2]
            axes.plot(*place, "o", color="#0072B2", markersize=4)
            axes.annotate(name, place, xytext=(x, 0), textcoords="offset points", fontsize=7, ha=side, va="center")
        axes.margins(x=0.12)  # room for names
        axes.set(xscale="log", xlabel="size of the adapter's file, kB", ylabel="right: Dice of never-prompted lesions")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # STYLE switches off the maths text of powers
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
        return stream.getvalue()
