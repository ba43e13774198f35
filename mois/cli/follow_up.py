"""`mois follow_up`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def follow_up(
    scans: list[Path], images: list[str] | None = None, patient: str | None = None, out: Path = Path("follow_up.csv")
) -> None:
    """Compare the lesions of two time points of a patient: same, new and gone.

    Each has its volumes, before and now. Scans on different grids are registered first (rigid). Lesions whose place the
    other scan does not show are `outside`.

    Args:
        scans: The earlier and the later time point: folders of saved sessions, or label maps with lesion ids; the words
            after `mois follow_up`.
        images: Images of both scans, in the same order. Label maps need them.
        patient: Name of the patient. By default the scans must state the same name.
        out: File for the table (CSV).

    Raises:
        ValueError: If there are not two scans, a file cannot be used, or the scans are of two patients.
    """
    from mois.session.follow_up import compare_time_points, comparison_rows, read_time_point, write_comparison

    if len(scans) != 2 or len(images or scans) != 2:
        raise ValueError("scans: give two time points, the earlier first (and two images, or none).")
    files = [Path(image) for image in images] if images else [None, None]
    earlier, now = (read_time_point(scan, file, patient) for scan, file in zip(scans, files, strict=True))
    if images and not patient:
        now = now._replace(volume=now.volume._replace(patient=earlier.volume.patient))
    comparison = compare_time_points(earlier, now)
    write_comparison(comparison, out)
    for row in comparison_rows(comparison):
        say(_line(row))
    if comparison.registered:
        say(f"the scans lie on different grids: registered, {comparison.moved_mm:.0f} mm apart")
    say(f"table in {out}")


def _line(row: dict[str, str]) -> str:
    """Return a row of the table as a line."""
    names = f"{row['earlier'] or '-'} -> {row['lesions'] or '-'}" if row["outside_percent"] else ""
    before, now = (f"{float(row[name]):9.2f} ml" if row[name] else f"{'-':>9}   " for name in ("ml_before", "ml_now"))
    change = f"{float(row['change_percent']):+.0f} %" if row["change_percent"] else ""
    if row["earlier"] and row["lesions"] and not change:
        change = f"cut off: {float(row['outside_percent']):.0f} % outside the other scan"
    return f"{row['status'].replace('_', ' '):13} {names:14} {before} {now} {change}".rstrip()
