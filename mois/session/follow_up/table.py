"""The table of a comparison of two time points."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.session.follow_up.changes import Change, Comparison, percent


def comparison_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the table of a comparison as text: a row for each entry, then the row `total`.

    A row `total_in_both` follows if a scan does not show the place of each lesion: only the lesions that both show.
    """
    rows = []
    for change in comparison.changes:
        plain = asdict(change)
        x, y, z = plain.pop("centre_lps_mm")
        numbers = {name: getattr(change, name) for name in ("ml_before", "ml_now", "change_percent")}
        if change.status == "outside":
            numbers["ml_now" if change.earlier else "ml_before"] = None
        plain |= {name: "" if value is None else f"{value:.4f}" for name, value in numbers.items()}
        plain |= {name: " ".join(map(str, plain[name])) for name in ("lesions", "earlier")}
        plain["outside_percent"] = f"{change.outside_percent:.1f}"
        rows.append(plain | {"x_lps_mm": f"{x:.4f}", "y_lps_mm": f"{y:.4f}", "z_lps_mm": f"{z:.4f}"})
    rows.append(_total("total", comparison.ml_before, comparison.ml_now))
    if not comparison.shows_the_same:
        rows.append(_total("total_in_both", *comparison.ml_in_both))
    return rows


def _total(name: str, before: float, now: float) -> dict[str, str]:
    change = percent(before, now)
    volumes = {"ml_before": f"{before:.4f}", "ml_now": f"{now:.4f}"}
    return (
        dict.fromkeys(columns(), "")
        | {"status": name, "change_percent": "" if change is None else f"{change:.4f}"}
        | volumes
    )


def columns() -> list[str]:
    """Return the columns of the table of a comparison."""
    names = [field.name for field in fields(Change) if field.name != "centre_lps_mm"]
    return [*names, "x_lps_mm", "y_lps_mm", "z_lps_mm"]


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the table of a comparison as CSV, whole or not at all."""
    write_text(path, csv_text(columns(), comparison_rows(comparison)))
