"""The bundled model's sessions, voxel by voxel: replayed, loaded half-way, with features in memory or in a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mois.inference.segmenter import VolumeSegmenter
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from tests.support.session_fakes import bundled_nano, lps, three_lesions


@pytest.fixture(scope="module")
def model():
    return bundled_nano()


def test_replayed_and_resumed_sessions_are_the_same_bit_by_bit(model, tmp_path):
    scan = three_lesions()
    steps = [
        lambda s: s.click(lps(scan, 2, 20, 20)),
        lambda s: s.click(lps(scan, 3, 22, 22), lesion=1),
        lambda s: s.propagate(),
        lambda s: s.click(lps(scan, 2, 30, 20), lesion=1, positive=False),
        lambda s: s.undo(),
        lambda s: s.click(lps(scan, 3, 46, 32)),
        lambda s: s.propagate(),
    ]
    whole = InteractiveSession(model, scan, tmp_path / "whole")
    seen = []
    for step in steps:
        step(whole)
        seen.append(whole.label_map())
    assert len(whole.state.lesions) > 1
    assert all(int((seen[-1] == lesion).sum()) for lesion in whole.state.lesions)
    apart = model.segmenter
    settings = replace(apart.settings, memory_gib=0.0)
    on_disk = LesionModel.of(VolumeSegmenter(apart.backbone, apart.propagation, settings))
    again = InteractiveSession.replay(tmp_path / "whole", on_disk, scan)
    half = InteractiveSession(model, scan, tmp_path / "half")
    for step in steps[:3]:
        step(half)
    half.close()
    resumed = InteractiveSession.load(tmp_path / "half", on_disk, scan)  # nothing is encoded yet
    for number, step in enumerate(steps[3:], start=3):
        step(resumed)
        assert torch.equal(resumed.label_map(), seen[number])
    for other in (again, resumed):
        assert torch.equal(other.label_map(), whole.label_map())
        assert other.lesions() == whole.lesions()
        for key, exemplar in whole.state.exemplars.items():
            for name, token in exemplar.tokens.items():
                assert torch.equal(token, other.state.exemplars[key].tokens[name])
    tiles = len(whole._bench.encoded.places)
    assert again._bench.encoded.store.encoded == again._bench.encoded.store.rows_in_file == tiles


def test_lazy_features_give_the_answers_of_eager_ones_up_to_half_precision(model):
    scan, segmenter = three_lesions(), model.segmenter
    eager, lazy = segmenter.encode(scan), segmenter.encode(scan, lazy=True)
    assert lazy.store.encoded == 0
    one, two = (segmenter.propagate(encoded) for encoded in (eager, lazy))
    assert (one - two).abs().max() < 0.02
