"""How a model is run: precisions agree, a failed compilation is survived, and no loop waits for the device."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters import Frozen, Lora
from mois.backbones import SAM2
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.settings import ProtocolSettings
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.execution import CPU_CACHE_PX, Compiled, autocast, tiles_at_once
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.inference.shared_work import SharedWork
from mois.interfaces import Propagation
from mois.propagation import Attention, Prototype, Similarity
from mois.records import Episode, Features, MaskPrediction, Prompts
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from mois.testing import example_patches, nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names
from mois.training.module import ExemplarSegmenter
from tests.support.example_episodes import example_episode
from tests.support.pretended_gpu import pretended_gpu
from tests.support.session_fakes import lps, three_lesions

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(pixel_mm=0.75, tile_px=96, batch_size=8, peak_threshold=0.4)


@pytest.fixture(scope="module")
def segmenter() -> VolumeSegmenter:
    backbone, propagation = SAM2(size="nano", weights="bundled"), Similarity(weights="bundled")
    propagation.build(backbone)
    return VolumeSegmenter(backbone.eval(), propagation.eval(), SETTINGS)


def on_the_gpu(propagation: Propagation | None = None) -> VolumeSegmenter:
    backbone, propagation = nano_backbone(), propagation or Similarity()
    propagation.build(backbone)
    return VolumeSegmenter(backbone.to("cuda"), propagation.eval().to("cuda"), replace(SETTINGS, precision="32"))


def compiling_module() -> ExemplarSegmenter:
    """A model of two propagations that takes the 12 tiles of `three_lesions` at once."""
    inference = replace(SETTINGS, batch_size=32, compile=True)
    module = ExemplarSegmenter(nano_backbone(), Frozen(), Similarity(), [Prototype()], inference=inference)
    return module.eval()


def two_clicks(segmenter: VolumeSegmenter, encoded: EncodedVolume) -> tuple[np.ndarray, MaskPrediction]:
    tiles = [encoded.tiles.best_tile(*place) for place in ((40.0, 40.0), (92.0, 64.0))]
    rows = np.array([segmenter.row(encoded, index, tile) for index, tile in zip((2, 3), tiles, strict=True)])
    corners = torch.tensor([encoded.corner(tile) for tile in tiles])
    points = (torch.tensor([[40.0, 40.0], [92.0, 64.0]]) - corners).flip(1).unsqueeze(1)
    return rows, segmenter.answer(encoded, rows, Prompts(points, torch.ones(2, 1, dtype=torch.int32)))


def test_the_semantic_pass_waits_for_the_answers_alone_once_a_batch() -> None:
    with pretended_gpu() as waits:
        segmenter = on_the_gpu()
        encoded = segmenter.encode(three_lesions())
        rows, _ = two_clicks(segmenter, encoded)
        exemplars = segmenter.describe(encoded, rows, torch.ones(2, 96, 96))
        waits.clear()
        segmenter.propagate(encoded, exemplars)
    assert len(encoded.places) == 12
    assert waits == {"cuda to cpu": 2}  # 12 tiles, at most 8 at once


def test_tracking_waits_once_a_step() -> None:
    with pretended_gpu() as waits:
        segmenter = on_the_gpu()
        encoded = segmenter.encode(three_lesions())
        rows, answer = two_clicks(segmenter, encoded)
        segmenter.track(encoded, rows, answer)  # the first time, tables are made and copied
        waits.clear()
        tracked = segmenter.track(encoded, rows, answer)
    assert len(tracked.rows) == 12  # 2 lesions on 6 slices, clicked on slices 2 and 3
    assert waits == {"cuda to cpu": 3 + 1}  # which lesions go on, once for each of the 3 steps; and the masks


def test_a_training_step_never_waits_before_its_losses() -> None:
    with pretended_gpu() as waits:
        segmenter = on_the_gpu()
        episode = Episode(*(part.to("cuda") for part in example_episode(batch=2)))
        for _ in range(2):  # the first time, tables are made and copied
            waits.clear()
            learn(segmenter.backbone, names([segmenter.propagation]), episode, EpisodeLearning(), 1)
    assert waits == {}


def test_neither_tracking_nor_attention_makes_a_training_step_wait() -> None:
    with pretended_gpu() as waits, torch.no_grad():
        segmenter = on_the_gpu(Attention())
        segmenter.backbone.requires_grad_(True)  # so that clips are tracked
        episode = Episode(*(part.to("cuda") for part in example_episode(batch=2)))
        for _ in range(2):  # the first time, tables are made and copied
            waits.clear()
            outcome = learn(segmenter.backbone, names([segmenter.propagation]), episode, EpisodeLearning(), 1)
    assert "track" in outcome.losses
    assert waits == {}


def test_on_a_cpu_what_goes_through_at_once_fits_its_cache() -> None:
    assert CPU_CACHE_PX == 8 * 128**2
    assert [tiles_at_once(CPU, edge, 32) for edge in (32, 128, 512, 1024)] == [32, 8, 1, 1]
    assert tiles_at_once(torch.device("cuda"), 1024, 32) == 32


def test_auto_computes_in_float32_on_a_cpu() -> None:
    def product(precision: str) -> torch.dtype:
        with autocast(CPU, precision):  # type: ignore[arg-type]
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert [product(each) for each in ("auto", "32", "bf16")] == [torch.float32, torch.float32, torch.bfloat16]


def test_bfloat16_gives_nearly_the_answers_of_float32(segmenter: VolumeSegmenter) -> None:
    scan = three_lesions()
    half = VolumeSegmenter(segmenter.backbone, segmenter.propagation, replace(SETTINGS, precision="bf16"))
    found, label_maps = [], []
    for each in (segmenter, half):
        session = InteractiveSession(LesionModel.of(each), scan)
        session.click(lps(scan, 2, 20, 20))
        session.click(lps(scan, 3, 46, 32))
        label_maps.append(session.label_map())
        encoded = each.encode(scan)
        rows, answer = two_clicks(each, encoded)
        exemplars = each.describe(
            encoded, rows, (answer.logits > 0).float().repeat_interleave(4, 1).repeat_interleave(4, 2)
        )
        found.append(each.propagate(encoded, exemplars))
        assert found[-1].dtype == torch.float32
    assert 0 < (found[0] - found[1]).abs().max() < 0.2
    one, two = (label_map > 0 for label_map in label_maps)
    assert 2 * int((one & two).sum()) / int(one.sum() + two.sum()) > 0.9


def test_a_session_made_before_a_setting_existed_was_made_with_its_default(
    segmenter: VolumeSegmenter, tmp_path: Any
) -> None:
    scan, model = three_lesions(), LesionModel.of(segmenter)
    session = InteractiveSession(model, scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    session.close()
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"precision": "32", ', ""))
    assert InteractiveSession.replay(journal, model, scan).state.lesions
    half = VolumeSegmenter(segmenter.backbone, segmenter.propagation, replace(SETTINGS, precision="bf16"))
    with pytest.raises(ValueError, match=r"made with inference\.precision=32, now it is bf16"):
        InteractiveSession.replay(journal, LesionModel.of(half), scan)


def test_an_encoder_that_cannot_be_compiled_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_of_a_machine_without_compiler(_: Callable[[Tensor], Features]) -> Callable[[Tensor], Features]:
        def fail(_: Tensor) -> Features:
            raise RuntimeError("InvalidCxxCompiler: No C++ compiler\nSet TORCHDYNAMO_VERBOSE=1")

        return fail

    monkeypatch.setattr(torch, "compile", compile_of_a_machine_without_compiler)
    backbone, (images, _) = nano_backbone(), example_patches(1, 64)
    encode = Compiled(backbone.encode)
    said = "inference.compile=true: the encoder cannot be compiled here (InvalidCxxCompiler: No C++ compiler)"
    encode(images)  # the first call is not compiled anyway
    with pytest.warns(UserWarning, match=re.escape(said)):
        features = encode(images)
    assert torch.equal(features.levels[0], backbone.encode(images).levels[0])
    encode(images)  # said once


def eager(graph: Any, given: Any) -> Any:  # inductor's own minute is not ours
    return graph.forward


def test_of_scans_of_one_batch_all_but_the_first_are_encoded_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    fast: list[int] = []

    def counting(encode: Callable[[Tensor], Features]) -> Callable[[Tensor], Features]:
        def compiled(images: Tensor) -> Features:
            fast.append(len(images))
            return encode(images)

        return compiled

    monkeypatch.setattr(torch, "compile", counting)
    module = compiling_module()
    for scan in [three_lesions()] * 3:
        shared = SharedWork()
        for propagation in module.propagations.values():
            evaluate_volume(module.segmenter(propagation), scan, ProtocolSettings(prompted=1), shared=shared)
    assert fast == [12, 12]


def encoded_compiled(module: ExemplarSegmenter) -> Tensor:
    """What a model that was compiled sees, after a comparison with what it sees uncompiled."""
    images, _ = example_patches(2, 64)
    with torch.inference_mode():
        for _ in range(2):
            level = module.segmenter()._see(images).levels[-1]
        torch.testing.assert_close(level, module.backbone.encode(images).levels[-1], atol=1e-4, rtol=1e-4)
    return level.clone()


def train_all(module: nn.Module, name: str = "") -> None:
    with torch.no_grad():
        for parameter in (each for full, each in module.named_parameters() if name in full):
            parameter.mul_(1.2).add_(0.05)


@pytest.mark.ci
def test_what_was_compiled_sees_what_was_trained_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=eager))
    module = compiling_module()
    seen = [encoded_compiled(module)]
    train_all(module.backbone)
    seen.append(encoded_compiled(module))
    Lora().attach(module.backbone, module.propagation)
    train_all(module.backbone, "lora_")
    seen.append(encoded_compiled(module))
    assert all((one - next_).abs().max() > 0.01 for one, next_ in pairwise(seen))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(
    copied: Callable[[ExemplarSegmenter], ExemplarSegmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=eager))
    module = compiling_module()
    names = module.state_dict().keys()
    before = encoded_compiled(module)
    other = copied(module)
    assert other.state_dict().keys() == names
    train_all(module.backbone)
    torch.testing.assert_close(encoded_compiled(other), before)


def test_an_encoder_is_compiled_once_for_several_images_and_once_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def counting(graph: Any, given: Any) -> Any:
        compiled.append(len(given))
        return eager(graph, given)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    backbone = nano_backbone()
    encode = Compiled(backbone.encode)
    with torch.inference_mode():
        for count in (4, 4, 3, 2, 1, 4, 1):
            images, _ = example_patches(count, 64)
            for level, plain in zip(encode(images).levels, backbone.encode(images).levels, strict=True):
                torch.testing.assert_close(level, plain, atol=1e-4, rtol=1e-4)
    assert encode._fast is not None
    assert len(compiled) == 2
