"""`mois dataset from-sessions`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say
from mois.errors import counted


def from_sessions(sessions: list[str], out: Path) -> None:
    """Make a dataset of the lesions that readers judged in sessions.

    Prompted, accepted and locked lesions become lesions. Rejected ones become the class `rejected`: a training shows
    them as exemplars of what must not be found, and nothing scores them. Found lesions that nobody judged become
    background, and a line says how many.

    Args:
        sessions: Folders of sessions, each on another scan.
        out: Dataset to write, in nnU-Net's raw layout; it must not exist.

    Raises:
        ValueError: If a folder holds no session or its scan is missing, or no lesion was judged.
    """
    from collections import Counter

    from mois.scans.dataset_description import REJECTED
    from mois.session.dataset_export import patients_of_equal_names, read_judged, write_judged

    if out.exists():
        raise ValueError(f"out={out} is there already; choose another folder, or remove it.")
    scans = [read_judged(Path(folder)) for folder in sessions]
    names = write_judged(out, scans)
    for scan in scans:
        if scan.open:
            say(f"{scan.folder}: {scan.open} found lesions were not judged and are background; accept or reject them")
    for patient, alike in patients_of_equal_names(scans, names).items():
        say(f"{', '.join(alike)} have patient {patient}; correct subjects.csv if they are of several patients")
    counts = Counter(kind for scan in scans for kind in scan.types.values())
    text = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts, key=lambda kind: (kind == REJECTED, kind)))
    say(f"{counted(len(scans), 'scan')} in {out}: {text}; adapt with: mois adapt --data {out} --out BUNDLE")
