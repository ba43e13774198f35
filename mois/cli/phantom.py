"""`mois phantom`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say
from mois.errors import counted


def phantom(
    out: Path,
    subjects: int = 8,
    seed: int = 0,
    test_subjects: int = 0,
    sessions: int = 1,
    types: list[str] | None = None,
    channels: int = 1,
) -> None:
    """Write synthetic whole-body MRI with lesions as an nnU-Net raw dataset.

    Args:
        out: Folder to write; made if it is missing, refused if it holds other scans.
        subjects: Number of training scans.
        seed: Same seed, same bytes.
        test_subjects: Number of test scans.
        sessions: Scans of each patient over time.
        types: Names of lesion types, separated by commas (ring,dark). Each type becomes a class. By default all four.
        channels: 1, or 2 for a second sequence (T1) of each scan. Then the types differ in T1 alone: in T2, the first
            sequence, all have the look of the first type.

    Raises:
        ValueError: If a lesion type is unknown, there is nothing to write, or the folder holds other scans.
    """
    from datamodules.phantoms.lesion_types import NAMED_TYPES
    from datamodules.phantoms.phantom import write_dataset
    from mois.files.folder_lock import locked

    unknown = [name for name in types or [] if name not in NAMED_TYPES]
    if unknown:
        raise ValueError(f"types={', '.join(unknown)}: no such lesion type; there is {', '.join(NAMED_TYPES)}")
    chosen = None if types is None else [NAMED_TYPES[name] for name in types]
    with locked(out):
        write_dataset(
            out,
            subjects=subjects,
            seed=seed,
            types=chosen,
            test_subjects=test_subjects,
            sessions=sessions,
            channels=channels,
        )
    say(f"{counted(subjects + test_subjects, 'scan')} in {out}")
