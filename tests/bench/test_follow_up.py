"""`make bench`: what the exemplars of one scan are worth on the patient's next one. Nothing can fail here.

The bundled nano, unadapted; patients with two held-back lesion types and two scans. In the first one three lesions of a
type are clicked and propagated, and the bank is kept. In the second one it is used without any click, and three clicks
without a bank are made for comparison; both are scored on the same lesions, those that were not clicked.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch

from adapters import Frozen
from datamodules.lesion_types import draw_lesion_types
from datamodules.phantom import make_patient
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.evaluation.truth import Truth
from mois.geometry import SliceGrid
from mois.inference import InferenceSettings, VolumeSegmenter
from mois.interfaces import Volume
from mois.metrics import Overlap, bootstrap_interval, dilate_in_plane
from mois.prompts import central_pixel
from mois.propagation import Similarity
from mois.session import InteractiveSession

pytestmark = pytest.mark.bench
CLICKED = 3
PATIENTS = 10


def click(session: InteractiveSession, grid: SliceGrid, truth: Truth, lesions: list[int]) -> None:
    """Click each lesion in its middle, on the slice on which it is largest."""
    for lesion in lesions:
        slice_index = truth.largest_slice(lesion)
        column, row = central_pixel(torch.from_numpy(truth.only([lesion])[slice_index] > 0).unsqueeze(0))[0].tolist()
        (point,) = grid.to_lps_mm(torch.tensor([[float(slice_index), row, column]])).tolist()
        with suppress(ValueError):  # what an earlier click gave covers this lesion too
            session.click(point)


def unprompted_dice(session: InteractiveSession, grid: SliceGrid, truth: Truth, target: int, out: list[int]) -> float:
    """Return the Dice on the lesions of a class, those to leave out being taken out of truth and answer."""
    scored = [lesion for lesion in truth.of_class(target) if lesion not in out]
    taken_out = dilate_in_plane(truth.only(out) > 0, 2)
    found = grid.to_stack(session.label_map()).contiguous().numpy().astype(np.int32)
    return Overlap.of(found, truth.only(scored), taken_out).dice()


def test_a_bank_on_the_next_scan_of_the_patient() -> None:
    torch.set_num_threads(1)
    backbone, propagation = SAM2(), Similarity(weights="bundled")
    propagation.build(backbone)
    Frozen().attach(backbone, propagation)
    segmenter = VolumeSegmenter(backbone.eval(), propagation.eval(), InferenceSettings(overlap=0.25))
    banks, clicks, nothing = [], [], []
    for patient in range(PATIENTS):
        rng = np.random.default_rng([77, patient])
        types = draw_lesion_types(rng, 2, held_back=True)
        first, second = (as_volume(scan, f"p{patient}") for scan in make_patient(rng, types, lesions=(30, 60)))

        def opened(volume: Volume) -> tuple[InteractiveSession, SliceGrid, Truth]:
            shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
            grid = SliceGrid.of(shape, volume.affine)
            return InteractiveSession(segmenter, volume), grid, Truth.of(volume, grid)

        session, grid, truth = opened(first)
        ours = sorted(truth.of_class(1), key=truth.volumes_ml.__getitem__, reverse=True)
        click(session, grid, truth, ours[1 : 1 + CLICKED])
        session.propagate()
        bank = session.bank
        second_clicked: list[int] = []
        for arm in (banks, clicks, nothing):
            session, grid, truth = opened(second)
            now = sorted(truth.of_class(1), key=truth.volumes_ml.__getitem__, reverse=True)
            second_clicked = now[1 : 1 + CLICKED]
            if arm is banks:
                session.use_bank(bank)
            elif arm is clicks:
                click(session, grid, truth, second_clicked)
            session.propagate()
            arm.append(
                unprompted_dice(session, grid, truth, [n for n in now if n not in second_clicked], second_clicked)
            )
    patients = [str(patient) for patient in range(PATIENTS)]
    for name, values in (("bank, no click", banks), (f"{CLICKED} clicks, no bank", clicks), ("neither", nothing)):
        kept = [(value, patient) for value, patient in zip(values, patients, strict=True) if not np.isnan(value)]
        interval = bootstrap_interval([value for value, _ in kept], [patient for _, patient in kept])
        mean = np.mean([value for value, _ in kept])
        print(f"\nnext scan, {name}: unprompted Dice {mean:.3f} {interval}, {len(kept)} patients")
