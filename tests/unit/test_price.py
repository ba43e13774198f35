"""The price of a session: calls are counted with their shapes, and cost what the network's sizes say."""

from __future__ import annotations

import sys

import pytest
import torch

from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import Similarity
from mois.records import Prompts, Volume
from mois.testing import nano_backbone
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.run`, and installed nowhere
from tests.bench import price
from tests.bench.price import Call, Calls


def test_calls_are_counted_by_image_and_a_propagation_counts_once() -> None:
    backbone, propagation = nano_backbone().eval(), Similarity()
    propagation.build(backbone)
    segmenter = VolumeSegmenter(backbone, propagation.eval(), InferenceSettings(tile_px=64, overlap=0.0))
    image = torch.rand(64, 128, 2) + 0.2
    none = torch.zeros(image.shape, dtype=torch.int32)
    affine = torch.diag(torch.tensor([1.5, 1.5, 6.0, 1.0], dtype=torch.float64))
    calls = Calls()
    with calls.of(segmenter), torch.inference_mode():
        encoded = segmenter.encode(Volume("a", "a", image, affine, none, {}))
        segmenter.find(encoded)
        features = encoded.select(encoded.row_of.reshape(-1)[:3])
        click = Prompts(torch.full((3, 1, 2), 32.0), torch.ones(3, 1, dtype=torch.int32))
        answer = backbone.decode(features, click)
        memory = backbone.remember_slice(features, answer.logits, answer.pointer, answer.presence)
        backbone.decode(backbone.attend(features, memory), None)
        backbone.attend_on(features, torch.tensor([0, 2, 2, 1, 0]), memory.pick(torch.tensor([0, 2, 2, 1, 0])))
    # 2 slices of 2 tiles; a tile of 64 pixels has 4 x 4 cells
    assert {call: times for call, times in calls.counts.items() if call.part != "semantic"} == {
        Call("encode", 4): 4,
        Call("decode", 4): 6,
        Call("remember", 4): 3,
        Call("attend", 4, 1, 4, 1): 3,
        Call("attend_image", 4): 3,
        Call("attend_object", 4, 1, 4, 1): 5,
    }
    assert calls.total("semantic") == 4


def test_the_same_millimetres_have_more_cells_at_base_plus() -> None:
    assert price.large(Call("attend", 8, 2, 32, 2)) == Call("attend", 16, 2, 64, 2)


@pytest.mark.ci
def test_calls_cost_what_was_measured_of_the_reference() -> None:
    # GFLOP of SAM 2.1 base_plus at 1024 px, forward, measured with sam2's own classes on meta tensors
    assert 1000 * price.tflop(Call("encode", 64)) == pytest.approx(647, rel=0.002)
    assert 1000 * price.tflop(Call("decode", 64)) == pytest.approx(3.6, rel=0.02)
    assert 1000 * price.tflop(Call("remember", 64)) == pytest.approx(11.6, rel=0.01)
    assert 1000 * price.tflop(Call("sam2_attends", 64, 1, 64, 1)) == pytest.approx(186, rel=0.002)
    assert 1000 * price.tflop(Call("sam2_attends", 64, 7, 64, 16)) == pytest.approx(606, rel=0.002)
    # objects on one image share the self-attention of the first layer
    shared, own = price.tflop(Call("attend_image", 64)), price.tflop(Call("attend_object", 64, 2, 64, 2))
    assert shared + own == pytest.approx(price.tflop(Call("attend", 64, 2, 64, 2)), rel=1e-6)
    assert 0 < shared < own
    assert 0.01 < price.tflop(Call("semantic", 64, exemplars=16)) < 0.02
    # a window of a quarter of the side has a sixteenth of the queries and of the keys
    assert price.tflop(Call("attend", 16, 2, 16, 2)) < price.tflop(Call("attend", 64, 2, 64, 2)) / 16
    # 31 slices, 20 lesions, 3 clicks: about 2400 TFLOP
    assert price.reference_tflop(31) == pytest.approx(2400, rel=0.02)
