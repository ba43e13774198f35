"""Tiny scans whose names and folder must not leave the machine."""

from __future__ import annotations

from pathlib import Path

from tests.support.datasets import write_dataset

SCANS = ("meier_anna_2019", "okafor_john_2020", "lindqvist_eva_2021")
PATIENTS = ("hospitalnumber71", "hospitalnumber72", "hospitalnumber73")
FOLDER = "ClinicOfSecrets"


def write_named_scans(parent: Path, count: int = 3) -> Path:
    """Write `count` scans of as many patients below a folder with a telling name; return the dataset's folder."""
    root = write_dataset(parent / FOLDER / "Dataset001_Cubes", subjects=count)
    for number, scan in enumerate(SCANS[:count]):
        (root / "imagesTr" / f"p{number}_0000.nii.gz").rename(root / "imagesTr" / f"{scan}_0000.nii.gz")
        (root / "labelsTr" / f"p{number}.nii.gz").rename(root / "labelsTr" / f"{scan}.nii.gz")
    lines = ["subject,patient", *(f"{scan},{patient}" for scan, patient in zip(SCANS, PATIENTS, strict=True))]
    (root / "subjects.csv").write_text("\n".join(lines[: count + 1]) + "\n", encoding="utf-8")
    return root


def found_in(folder: Path) -> dict[str, list[str]]:
    """Return which of these names stand in which files below a folder: in their bytes, also across block borders."""
    found: dict[str, list[str]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes().lower()
        for name in (*SCANS, *PATIENTS, FOLDER):
            if name.lower().encode() in content or name.lower() in str(file.relative_to(folder)).lower():
                found.setdefault(name, []).append(str(file.relative_to(folder)))
    return found
