"""`mois journal`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def journal(sessions: list[Path], out: Path | None = None, lesions: bool = True) -> None:
    """Count the clicks and seconds of sessions, by lesion and by scan.

    Args:
        sessions: Folders of sessions, or their journals, such as [DIR, DIR].
        out: File for the table (CSV); none by default.
        lesions: Whether to list each lesion, too.

    Raises:
        ValueError: If there is no session, or a journal is missing or damaged.
    """
    from mois.files.atomic import write_text
    from mois.files.csv_tables import csv_text
    from mois.session.journal import read_journal
    from mois.session.time_and_motion import motion_rows, time_and_motion

    if not sessions:
        raise ValueError("sessions is empty; give the folders of one or more sessions.")
    rows = motion_rows([time_and_motion(read_journal(path)) for path in sessions], lesions=lesions)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if out is not None:
        write_text(out, csv_text(rows[0], rows[1:]))
