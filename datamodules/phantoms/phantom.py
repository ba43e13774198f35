"""Synthetic whole-body MRI: bodies with lesions of given types, small slabs of them, and nnU-Net raw datasets.

Everything is drawn from the generator that is passed in: same seed, same voxels; same files, byte by byte.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.body import DISTRACTORS, BodyGrid, draw_place, make_anatomy
from datamodules.phantoms.lesion_types import HELD_BACK, NAMED_TYPES, LesionType, draw_lesion_type, draw_lesion_types
from datamodules.phantoms.painting import Float, Triple, paint_lesion, smooth_field
from datamodules.phantoms.scene import PlannedLesion, Scene, add_blobs, draw_volume_ml, fill, follow_up
from datamodules.phantoms.second_sequence import alike, second_signal, sequence_names
from mois.files.atomic import write_bytes
from mois.files.json_records import read_record

__all__ = [
    "DISTRACTORS",
    "HELD_BACK",
    "NAMED_TYPES",
    "LesionType",
    "Phantom",
    "draw_lesion_type",
    "draw_lesion_types",
    "make_patient",
    "make_phantom",
    "make_slab",
    "paint_lesion",
    "write_dataset",
]

Int = NDArray[np.int32]


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan with known lesions.

    Attributes:
        image: (S, H, W) float32, 0 or more, in units of the scanner.
        instances: (S, H, W) int32, lesion ids, 0 is background.
        classes: Class of each lesion id; 1 is the first type.
        distractors: (S, H, W) int32, values of DISTRACTORS: what may look like a lesion and is none.
        spacing_mm: Distance between slices, rows and columns.
        gain: Signal of the scan for a signal of 1 (about that of fluid).
        second: (S, H, W) float32, a second sequence; None for one sequence.
    """

    image: Float
    instances: Int
    classes: dict[int, int]
    distractors: Int
    spacing_mm: tuple[float, float, float]
    gain: float = 1.0
    second: Float | None = None


def _acquire(rng: np.random.Generator, signal: Float, spacing_mm: Triple) -> tuple[Float, float]:
    """Return the signal with bias field, uneven slices and Rician noise of a scanner, and its gain."""
    bias = np.exp(np.float32(rng.uniform(0.04, 0.16)) * smooth_field(rng, signal.shape, spacing_mm, 170.0))
    uneven = 1 + rng.uniform(0.0, 0.03) * rng.standard_normal((signal.shape[0], 1, 1), dtype=np.float32)
    sigma = np.float32(rng.uniform(0.012, 0.04))
    real = signal * bias * uneven.astype(np.float32)
    real += sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    gain = float(rng.uniform(0.6, 1.8))
    image: Float = np.float32(gain) * np.sqrt(real * real + imaginary * imaginary)
    return image, gain


def _whole_body(rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: Triple) -> BodyGrid:
    """Return the grid of a whole scan: the body in the middle, from above the crown to about the knees."""
    depth_mm, height_mm, width_mm = (n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    scale = min(depth_mm / 255, height_mm / 1080, width_mm / 600) * float(rng.uniform(0.82, 1.0))
    aside_mm = width_mm * (float(rng.uniform(-0.02, 0.02)) - 0.5)
    return BodyGrid(shape, spacing_mm, (-depth_mm / 2, -height_mm * float(rng.uniform(0.01, 0.04)), aside_mm), scale)


def make_phantom(
    rng: np.random.Generator,
    types: Sequence[LesionType],
    *,
    shape: tuple[int, int, int] = (28, 256, 160),
    spacing_mm: tuple[float, float, float] = (7.8, 3.0, 3.0),
    lesions: tuple[int, int] = (5, 60),
) -> Phantom:
    """Draw a body with lesions of these types.

    Args:
        rng: Source of all random numbers.
        types: Types of the classes 1, 2, ...
        shape: Number of slices, rows and columns.
        spacing_mm: Distance between slices, rows and columns.
        lesions: Smallest and largest number of lesions; two or more of each type, if possible.
    """
    return make_patient(rng, types, sessions=1, shape=shape, spacing_mm=spacing_mm, lesions=lesions)[0]


def make_patient(
    rng: np.random.Generator,
    types: Sequence[LesionType],
    *,
    sessions: int = 2,
    shape: tuple[int, int, int] = (28, 256, 160),
    spacing_mm: tuple[float, float, float] = (7.8, 3.0, 3.0),
    lesions: tuple[int, int] = (5, 60),
    channels: int = 1,
) -> list[Phantom]:
    """Draw several scans of one body over time.

    With two channels, all types have the look of the first type in the first sequence, and differ in the second.

    From scan to scan, lesions grow or shrink, and up to three new lesions appear. Bias, noise and gain are new.
    A lesion keeps its id. A lesion without room has resolved.

    Raises:
        ValueError: If there is no type, no session, or no lesion to draw.
    """
    if not types or sessions < 1 or not 1 <= lesions[0] <= lesions[1]:
        raise ValueError(
            f"{len(types)} types, sessions={sessions}, lesions={lesions}: need 1 or more, lesions as (fewest, most)."
        )
    drawn_types = types if channels == 1 else alike(types)
    anatomy = make_anatomy(rng, _whole_body(rng, shape, spacing_mm))
    add_blobs(anatomy, drawn_types, rng, int(rng.integers(4, 13)), spacing_mm)
    count = round(math.exp(rng.uniform(math.log(lesions[0]), math.log(lesions[1]))))
    shares = rng.dirichlet(np.full(len(types), 3.0))
    kinds = [1 + i % len(types) for i in range(min(count, 2 * len(types)))]
    kinds += [1 + int(kind) for kind in rng.choice(len(types), count - len(kinds), p=shares)]
    scans: list[Phantom] = []
    planned_lesions: list[PlannedLesion] = []
    for session in range(sessions):
        scene = Scene(anatomy, drawn_types, spacing_mm)
        if session == 0:
            planned_lesions = fill(scene, rng, kinds, [draw_volume_ml(rng, spacing_mm) for _ in kinds])
        else:
            planned_lesions = follow_up(scene, rng, planned_lesions, len(types), spacing_mm)
        image, gain = _acquire(rng, scene.image, spacing_mm)
        classes = {planned.lesion: planned.kind for planned in planned_lesions}
        second = None
        if channels == 2:
            signal = second_signal(anatomy.image, scene.instances, classes, len(types))
            second = _acquire(rng, signal, spacing_mm)[0]
        scans.append(Phantom(image, scene.instances, classes, anatomy.distractors.copy(), spacing_mm, gain, second))
    if len(scans[0].classes) < count:
        raise ValueError(
            f"shape={shape} at {spacing_mm} mm has room for {len(scans[0].classes)} of {count} lesions; lower lesions."
        )
    return scans


def _resampling(count: int, mm: float, into: int, into_mm: float) -> tuple[Float, NDArray[np.intp]]:
    """Return how `count` pixels are resampled to `into` pixels. The outer edges of the first pixels align.

    Returns:
        Matrix (into, count) of linear interpolation, and index (into,) of the nearest pixel.
    """
    place = np.clip((np.arange(into) + 0.5) * into_mm / mm - 0.5, 0, count - 1)
    low = np.minimum(place.astype(np.intp), max(count - 2, 0))
    matrix = np.zeros((into, count), np.float32)
    matrix[np.arange(into), low] = 1 - (place - low)
    matrix[np.arange(into), np.minimum(low + 1, count - 1)] += place - low
    return matrix, np.floor(place + 0.5).astype(np.intp)


def make_slab(
    rng: np.random.Generator,
    types: Sequence[LesionType],
    *,
    slices: int = 3,
    height_px: int = 160,
    width_px: int = 160,
    pixel_mm: float = 1.5,
    gap_mm: float = 7.8,
    lesions_per_type: tuple[int, int] = (2, 6),
    acquired_mm: float = 3.0,
) -> Phantom:
    """Draw a small piece of a body with lesions, faster than a whole body.

    Args:
        rng: Source of all random numbers.
        types: Types of the classes 1, 2, ...
        slices: Number of slices.
        height_px: Rows of the result.
        width_px: Columns of the result.
        pixel_mm: Edge of a pixel of the result, in millimetres.
        gap_mm: Distance between slices in millimetres.
        lesions_per_type: Smallest and largest number of lesions of each type.
        acquired_mm: Pixel that everything is drawn at, to look as a scan of `make_phantom` does after resampling to
            `pixel_mm`; `pixel_mm` where that is larger.

    Returns:
        A phantom with fewer lesions than asked for where there is little body to put them in.
    """
    acquired_mm = max(acquired_mm, pixel_mm)
    rows, columns = (max(1, math.ceil(px * pixel_mm / acquired_mm)) for px in (height_px, width_px))
    shape, spacing_mm = (slices, rows, columns), (gap_mm, acquired_mm, acquired_mm)
    scale = float(rng.uniform(0.65, 1.0))
    origin = [scale * at - n * mm / 2 for at, n, mm in zip(draw_place(rng), shape, spacing_mm, strict=True)]
    anatomy = make_anatomy(rng, BodyGrid(shape, spacing_mm, (origin[0], origin[1], origin[2]), scale))
    add_blobs(anatomy, types, rng, int(rng.integers(4)), spacing_mm)
    scene = Scene(anatomy, types, spacing_mm)
    fewest, most = lesions_per_type
    kinds = [1 + i for i in range(len(types)) for _ in range(rng.integers(fewest, most + 1))]
    planned_lesions = fill(scene, rng, kinds, [draw_volume_ml(rng, spacing_mm, 30.0) for _ in kinds])
    image, gain = _acquire(rng, scene.image, spacing_mm)
    to_rows, row = _resampling(rows, acquired_mm, height_px, pixel_mm)
    to_columns, column = _resampling(columns, acquired_mm, width_px, pixel_mm)
    instances, distractors = (map_[:, row][:, :, column] for map_ in (scene.instances, anatomy.distractors))
    classes = {planned.lesion: planned.kind for planned in planned_lesions}
    resampled: Float = np.matmul(to_rows, image) @ to_columns.T
    return Phantom(resampled, instances, classes, distractors, (gap_mm, pixel_mm, pixel_mm), gain)


def write_dataset(
    out: Path,
    *,
    subjects: int,
    seed: int,
    types: Sequence[LesionType] | None = None,
    test_subjects: int = 0,
    sessions: int = 1,
    shape: tuple[int, int, int] = (28, 256, 160),
    spacing_mm: tuple[float, float, float] = (7.8, 3.0, 3.0),
    lesions: tuple[int, int] = (5, 60),
    progress: Callable[[int, int], None] | None = None,
    channels: int = 1,
) -> None:
    """Write phantoms as an nnU-Net raw dataset, with instance maps, distractor maps and subjects.csv.

    Scan i depends on (seed, i) alone, so that a larger dataset begins with the scans of a smaller one.

    Args:
        out: Folder; it is made if it is missing. A folder with phantoms of the same settings gets the same bytes again.
        subjects: Number of training scans, in imagesTr, labelsTr, instancesTr, distractorsTr.
        seed: Seed of all scans. The same seed gives the same bytes.
        types: Types of the classes 1, 2, ...; None takes the four named types.
        test_subjects: Number of test scans, in imagesTs, labelsTs, instancesTs, distractorsTs.
        sessions: Number of scans of each patient.
        shape: Number of slices, rows and columns of a scan.
        spacing_mm: Distance between slices, rows and columns.
        lesions: Smallest and largest number of lesions of a scan.
        progress: Called after each scan, with the number of written scans and the number of all scans.
        channels: 1, or 2 for a second sequence in which alone the types differ.

    Raises:
        ValueError: If a patient would stand on both sides, there is nothing to write, or `out` holds other scans.
    """
    counts = {"subjects": subjects, "test_subjects": test_subjects, "sessions": sessions}
    _check_counts(counts, channels)
    types = list(NAMED_TYPES.values()) if types is None else list(types)
    labels = {"background": 0} | {kind.name: 1 + i for i, kind in enumerate(types)}
    if len(labels) != 1 + len(types):
        raise ValueError(f"types={[kind.name for kind in types]}: a name stands twice; give every lesion type its own.")
    described = {kind.name: {"class": 1 + i, **asdict(kind)} for i, kind in enumerate(types)}
    drawn = {"seed": seed, "shape": shape, "spacing_mm": spacing_mm, "lesions": lesions, "types": described}
    if channels > 1:
        drawn["channels"] = channels
    _check_same_phantoms(out, counts | drawn)
    rows = ["subject,patient,session,site"]
    for patient in range((subjects + test_subjects) // sessions):
        rng = np.random.default_rng([seed, patient])
        scans = make_patient(
            rng, types, sessions=sessions, shape=shape, spacing_mm=spacing_mm, lesions=lesions, channels=channels
        )
        for session, scan in enumerate(scans):
            index = patient * sessions + session
            name = f"phantom_{index:04d}"
            _write_scan(out, "Tr" if index < subjects else "Ts", name, scan)
            rows.append(f"{name},patient_{patient:04d},{session},phantom")
            if progress is not None:
                progress(index + 1, subjects + test_subjects)
    about = {
        "channel_names": sequence_names(channels),
        "labels": labels,
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    write_bytes(out / "subjects.csv", ("\n".join(rows) + "\n").encode())
    write_bytes(out / "lesion_types.json", (json.dumps(described, indent=2) + "\n").encode())
    write_bytes(out / "dataset.json", (json.dumps(about, indent=2) + "\n").encode())


def _check_counts(counts: dict[str, int], channels: int) -> None:
    """Refuse numbers of scans and sequences that no dataset of phantoms can have."""
    for name, least in (("subjects", 1), ("test_subjects", 0), ("sessions", 1)):
        if counts[name] < least:
            raise ValueError(f"{name}={counts[name]} must be {least} or more.")
    if counts["subjects"] % counts["sessions"] or counts["test_subjects"] % counts["sessions"]:
        raise ValueError(
            f"subjects={counts['subjects']}, test_subjects={counts['test_subjects']} must be multiples of "
            f"sessions={counts['sessions']}."
        )
    if channels not in (1, 2):
        raise ValueError(f"channels={channels}: phantoms have 1 or 2 sequences; choose one of them.")


def _check_same_phantoms(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings of the phantoms into their folder. Refuse a folder with other scans: they would stay there."""
    path = out / "phantom.json"
    if not path.is_file():
        if (out / "dataset.json").is_file() or any(out.glob("images*/[!.]*")):
            raise ValueError(f"out={out} holds other scans; choose another folder.")
        write_bytes(path, (json.dumps(settings, indent=2) + "\n").encode())
        return
    theirs, ours = read_record(path, dict[str, Any], "choose another folder"), json.loads(json.dumps(settings))
    different = [
        name if name == "types" else f"{name} ({theirs.get(name)} there, {ours[name]} now)"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    if different:
        raise ValueError(
            f"out={out} holds phantoms of other settings: {', '.join(different)}; choose another folder, or delete "
            "this one."
        )


def _write_scan(out: Path, part: str, name: str, scan: Phantom) -> None:
    """Write a scan and its maps into the folders of one part, Tr or Ts."""
    classes = np.zeros(max(scan.classes, default=0) + 1, np.uint8)
    classes[list(scan.classes)] = list(scan.classes.values())
    sequences = [scan.image] if scan.second is None else [scan.image, scan.second]
    for number, image in enumerate(sequences):
        file = out / f"images{part}" / f"{name}_{number:04d}.nii.gz"
        _write_nifti(file, np.rint(500 * image).astype(np.int16), scan.spacing_mm)
    for folder, stack in (
        ("labels", classes[scan.instances]),
        ("instances", scan.instances),
        ("distractors", scan.distractors),
    ):
        _write_nifti(out / f"{folder}{part}" / f"{name}.nii.gz", stack, scan.spacing_mm)


def _write_nifti(path: Path, stack: NDArray[np.generic], spacing_mm: tuple[float, float, float]) -> None:
    """Write a stack as a coronal scan. The axes of the file run to the left, to the head and to the back."""
    depth_mm, row_mm, column_mm = spacing_mm
    array = np.ascontiguousarray(stack[:, ::-1, :].transpose(2, 1, 0))
    affine = np.array([[-column_mm, 0, 0, 0], [0, 0, -depth_mm, 0], [0, row_mm, 0, 0], [0, 0, 0, 1.0]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(array.shape) - 1) / 2)
    file = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    file.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    file.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    file.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    # the header of gzip would hold the time of writing, so that bytes differ (test_same_seed_same_bytes)
    write_bytes(path, gzip.compress(file.to_bytes(), compresslevel=3, mtime=0))
