"""A model for sessions that can be computed by hand, and a scan for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mois.backbones import SAM2
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import Similarity
from mois.records import Features, MaskPrediction, Prompts, Volume
from mois.sharing.lesion_model import LesionModel
from tests.support.fake_model import TYPE_A, TYPE_B, FakeBackbone, FakePropagation, box, make_scan

SETTINGS = InferenceSettings(pixel_mm=1.5, tile_px=32, batch_size=5, track_mm=100.0)
A1 = box((1, 4), (16, 24), (16, 24))
A2 = box((3, 5), (40, 52), (28, 36))
B1 = box((2, 3), (36, 44), (8, 16))


class Clickable(FakeBackbone):
    """Segments all pixels of the intensity of the first positive click, less 8 x 8 pixels around each negative one."""

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        if prompts is None:
            return super().decode(features, None)
        if prompts.mask_logits is not None and bool((prompts.labels < 0).all()):  # a mask instead of clicks
            inside = functional.interpolate(prompts.mask_logits, scale_factor=4)[0, 0] > 0
            place = torch.nonzero(inside)[len(torch.nonzero(inside)) // 2].flip(0).float()
            return super().decode(features, Prompts(place.view(1, 1, 2), torch.ones(1, 1, dtype=torch.int32)))
        positive = prompts.labels[0] > 0
        if bool(positive.any()):
            chosen = prompts.points[:, positive]
            if 2 in prompts.labels:
                chosen = prompts.points[:, prompts.labels[0] >= 2].mean(1, keepdim=True)
            answer = super().decode(features, Prompts(chosen, prompts.labels[:, : chosen.shape[1]]))
        else:
            answer = super().decode(features, None)
        logits = answer.logits.clone()
        for x, y in prompts.points[0, prompts.labels[0] == 0].long().tolist():
            hit = torch.zeros_like(features.image[:1, 0])
            hit[0, max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = 1
            logits[functional.max_pool2d(hit, 4) > 0] = -10.0
        return answer._replace(logits=logits)


def make_segmenter(**changes: object) -> VolumeSegmenter:
    torch.manual_seed(0)
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return VolumeSegmenter(Clickable(), FakePropagation(), settings)


def make_model(**changes: object) -> LesionModel:
    return LesionModel.of(make_segmenter(**changes))


class OtherPropagation(FakePropagation):
    """Another class, so another identity."""


def other_model(**changes: object) -> LesionModel:
    """Another model, for another type of lesions."""
    torch.manual_seed(0)
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return LesionModel.of(VolumeSegmenter(Clickable(), OtherPropagation(), settings))


def bundled_nano() -> LesionModel:
    """The bundled model, at a scale at which it sees the lesions of `three_lesions`."""
    backbone, propagation = SAM2(size="nano", weights="bundled"), Similarity(weights="bundled")
    propagation.build(backbone)
    settings = InferenceSettings(pixel_mm=0.75, tile_px=96, batch_size=8, peak_threshold=0.4)
    return LesionModel.of(VolumeSegmenter(backbone.eval(), propagation.eval(), settings))


def three_lesions() -> Volume:
    return make_scan([(TYPE_A, A1), (TYPE_A, A2), (TYPE_B, B1)])


def lps(scan: Volume, slice_index: float, row: float, column: float) -> tuple[float, float, float]:
    """Where a voxel of `make_scan` lies: 1.5 mm pixels, slices 5 mm apart, towards left, back and head."""
    return (1.5 * column, 1.5 * row, 5.0 * slice_index)


def as_stack(labels: Tensor) -> np.ndarray:
    """The stack of a volume of `make_scan`: voxel axes are column, row, slice."""
    return labels.permute(2, 1, 0).numpy()


def journal_of(session, folder):
    session.save(folder)
    return folder


def count(session, lesion):
    return int((session.label_map() == lesion).sum())


def cells(where):
    """Voxels of a box as decoded at a quarter of the resolution: its four corner pixels are lost on every slice."""
    slices, rows, columns = (part.stop - part.start for part in where)
    return slices * (rows * columns - 4)


def key_of(session, lesion):
    return f"{session.volume.subject}:{lesion}@{session._history.header['scan_sha256'][:8]}"
