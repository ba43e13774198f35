"""The rules around SAM 2.1's network: what they allow, who records them, and what a slice attends to by them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from adapters import Frozen, Full
from mois.backbones import SAM2
from mois.backbones.rules import FIRST, SAM2Rules
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Memory, TrackingRules
from mois.propagation import Prototype, Similarity
from mois.records import Features
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle, write_bundle
from mois.sharing.bundle_record import ModelSpec
from mois.sharing.identity import ModelIdentity
from mois.sharing.lesion_model import LesionModel
from mois.testing import nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names
from mois.training.feature_cache import CachedEncoder, CacheSettings
from mois.training.module import ExemplarSegmenter
from tests.support.example_episodes import example_episode
from tests.support.fake_model import TYPE_A, FakeBackbone, FakePropagation, box, make_scan
from tests.support.paths import FIXTURES
from tests.support.session_fakes import bundled_nano, lps, three_lesions

RULES = SAM2Rules()
FORMAT_1 = FIXTURES / "format_1"


def slice_memory(number: int) -> Memory:
    """The memory of slice `number`: a map and a pointer of that number."""
    maps = torch.full((1, 1, 2, 3, 3), float(number))
    return Memory(maps, maps, torch.full((1, 1, 4), float(number)))


def told(memory: Memory) -> tuple[list[tuple[int, int, bool]], list[tuple[int, int]]]:
    """Number, distance and flag of each map; number and distance of each pointer."""
    maps = zip(memory.maps[0, :, 0, 0, 0].int().tolist(), memory.distance, memory.clicked, strict=True)
    return list(maps), list(zip(memory.pointers[0, :, 0].int().tolist(), memory.pointer_steps, strict=True))


def walked(rules: TrackingRules, steps: int) -> list[Memory]:
    """What is kept of slices 1 to `steps`, clicked being slice 0."""
    latest: list[Memory] = []
    for number in range(1, steps + 1):
        latest = rules.keep(slice_memory(number), latest)
    return latest


def test_maps_and_pointers_are_remembered_apart() -> None:
    rules = TrackingRules(maps=2, pointers=3)
    memory = rules.gather([(6, slice_memory(0))], walked(rules, 5), slices=9)
    assert told(memory) == ([(0, 6, True), (5, 1, False), (4, 2, False)], [(0, 6), (5, 1), (4, 2), (3, 3)])
    assert memory.slices == 9


def test_more_maps_than_pointers() -> None:
    rules = TrackingRules(maps=2, pointers=1)
    memory = rules.gather([(3, slice_memory(0))], walked(rules, 2))
    assert told(memory) == ([(0, 3, True), (2, 1, False), (1, 2, False)], [(0, 3), (2, 1)])


def test_without_a_number_pointers_are_those_of_the_maps() -> None:
    rules = TrackingRules(maps=1)
    memory = rules.gather([(4, slice_memory(0)), (-2, slice_memory(9))], walked(rules, 3))
    assert memory.pointer_distance is None  # as backbones know it that were written before the two were apart
    assert told(memory) == ([(0, 4, True), (9, -2, True), (3, 1, False)], [(0, 4), (9, -2), (3, 1)])


def test_pointers_of_slices_ahead_can_be_left_out() -> None:
    rules = TrackingRules(maps=1, pointers=1, past_pointers=True)
    memory = rules.gather([(4, slice_memory(0)), (-2, slice_memory(9))], [])
    assert told(memory) == ([(0, 4, True), (9, -2, True)], [(0, 4)])


def test_nothing_but_clicked_slices_can_be_remembered() -> None:
    rules = TrackingRules(maps=0)
    assert told(rules.gather([(4, slice_memory(0))], walked(rules, 3))) == ([(0, 4, True)], [(0, 4)])


def test_a_backbone_that_knows_no_rules_tracks_by_the_first_ones() -> None:
    """FakeBackbone has `remember` alone, and makes a Memory of three fields."""
    segmenter = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(tile_px=32))
    assert segmenter.tracking == TrackingRules() == FIRST.tracking
    session = InteractiveSession(LesionModel.of(segmenter), make_scan([(TYPE_A, box((0, 5), (16, 24), (16, 24)))]))
    session.click(lps(three_lesions(), 2, 20, 20))
    assert [(1, True)] in segmenter.backbone.attended  # type: ignore[operator]
    assert [(2, True), (1, False)] in segmenter.backbone.attended  # type: ignore[operator]


def test_the_number_of_maps_can_be_set_and_pointers_stay() -> None:
    backbone = SAM2("nano", "random", patch_px=64, rules=RULES)
    assert InferenceSettings().tracking(backbone) == TrackingRules(6, 15, True, True)
    assert InferenceSettings(track_memory=2).tracking(backbone) == TrackingRules(2, 15, True, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": 7}, r"backbone.rules.maps=7 must be 0 to 6"),
        ({"maps": -1}, r"backbone.rules.maps=-1 must be 0 to 6"),
        ({"pointers": -1}, r"backbone.rules.pointers=-1 must be at least 0, or null"),
        ({"pointers": None}, r"past_pointers=true needs backbone.rules.pointers"),
        ({"mask_limit": 0.0}, r"backbone.rules.mask_limit=0.0 must be a number above 0, or null"),
        ({"intensity_limit": float("nan")}, r"backbone.rules.intensity_limit=nan must be a number above 0, or null"),
    ],
)
def test_rules_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RULES, **change)


@pytest.mark.parametrize("plain", [{"maps": 3}, {**asdict(RULES), "more": 1}, {**asdict(RULES), "maps": True}])
def test_records_of_rules_that_are_none_are_refused_in_one_line(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^the backbone's rules[^\n]*$"):
        nano_backbone().behave(plain)


def test_rules_come_from_a_config_and_what_it_does_not_name_is_metas() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SAM2, "backbone")
    given = ["--backbone.weights=random", "--backbone.patch_px=64", "--backbone.rules.maps=3"]
    made = parser.instantiate_classes(parser.parse_args(given)).backbone
    assert made.rules == replace(RULES, maps=3)


def nano(rules: SAM2Rules | None) -> SAM2:
    return SAM2("nano", "random", patch_px=64, rules=rules)


PLAIN = {
    "backbone": {"class_path": "mois.backbones.SAM2", "init_args": {"weights": "random", "patch_px": 64}},
    "adapter": {"class_path": "adapters.Frozen", "init_args": {}},
    "propagation": {"class_path": "mois.propagation.Prototype", "init_args": {}},
}


@pytest.mark.parametrize("rules", [None, RULES, replace(RULES, maps=2, hard_clicks=False)])
def test_a_bundle_records_the_rules_whatever_its_arguments_say(tmp_path: Path, rules: SAM2Rules | None) -> None:
    backbone = nano(rules)
    write_bundle(tmp_path / "b", ModelSpec.of(PLAIN), backbone, Frozen(), Prototype(), InferenceSettings())
    made = Bundle.load(tmp_path / "b")
    assert made.backbone.rules == backbone.rules  # type: ignore[union-attr]
    assert made.segmenter().tracking == backbone.tracking


def test_a_bundle_that_records_no_rules_is_of_the_first_ones_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mois.backbones.sam2.FIRST", RULES)  # as if the nano were of Meta's sizes
    assert nano(None).rules == RULES
    with pytest.warns(UserWarning, match="unverified: format 1"):
        made = Bundle.load(FORMAT_1 / "bundle")
    assert made.backbone.rules == FIRST  # type: ignore[union-attr]


def test_another_rule_is_another_model() -> None:
    first, other = (ModelIdentity.of(nano(rules), Prototype()) for rules in (None, RULES))
    assert first.differences(first) == []
    (said,) = first.differences(other)
    assert said == "the backbone's rules (the first ones instead of maps=6, pointers=15, past_pointers=True, ...)"
    third = ModelIdentity.of(nano(replace(RULES, maps=5)), Prototype())
    assert third.differences(other) == ["the backbone's rules (maps=5 instead of maps=6)"]
    assert ModelIdentity.from_dict({k: v for k, v in first.as_dict().items() if k != "behaviour"}) == first


def test_a_session_goes_on_under_the_same_rules_alone(tmp_path: Path) -> None:
    model, scan = bundled_nano(), three_lesions()
    backbone, propagation, settings = model.segmenter.backbone, model.segmenter.propagation, model.segmenter.settings
    session = InteractiveSession(model, scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    session.close()
    InteractiveSession.load(tmp_path, model, scan).close()
    same, fewer = (
        LesionModel.of(VolumeSegmenter(backbone, propagation, replace(settings, track_memory=count)))
        for count in (1, 0)
    )
    InteractiveSession.load(tmp_path, same, scan).close()  # what null stands for
    with pytest.raises(ValueError, match=r"was made with inference.track_memory=1, now it is 0"):
        InteractiveSession.load(tmp_path, fewer, scan)
    backbone.behave(asdict(RULES))
    with pytest.raises(ValueError, match=r"the backbone's rules \(the first ones instead of maps=6"):
        InteractiveSession.load(tmp_path, LesionModel.of(model.segmenter), scan)


def test_features_are_kept_apart_by_the_rules(tmp_path: Path) -> None:
    images = torch.rand(1, 64, 64)
    keys = {CachedEncoder(nano(rules), CacheSettings(tmp_path)).keys(images)[0] for rules in (None, FIRST, RULES)}
    assert len(keys) == 2


def checkpoint_of(module: ExemplarSegmenter) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_without_rules_is_of_the_first_ones(tmp_path: Path) -> None:
    module = ExemplarSegmenter(nano(RULES), Frozen(), Similarity(), cache=CacheSettings(tmp_path))
    checkpoint, keys = checkpoint_of(module), module.encoder.keys(torch.zeros(1, 64, 64))  # type: ignore[union-attr]
    module.on_load_checkpoint(checkpoint)
    assert module.backbone.behaviour() == asdict(RULES)
    del checkpoint["backbone"]["behaviour"]
    module.on_load_checkpoint(checkpoint)
    assert module.backbone.behaviour() == {}
    assert module.encoder.keys(torch.zeros(1, 64, 64)) != keys  # type: ignore[union-attr]


def test_a_checkpoint_of_other_rules_is_refused() -> None:
    module = ExemplarSegmenter(nano(RULES), Frozen(), Similarity())
    checkpoint = checkpoint_of(module)
    with pytest.raises(ValueError, match=r"^[^\n]*set model.backbone.init_args.rules"):
        ExemplarSegmenter(nano(None), Frozen(), Similarity()).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(("maps", "pointers"), [(1, None), (2, None), (2, 3), (6, 15)])
def test_clips_are_tracked_by_the_rules_of_whole_volumes(
    monkeypatch: pytest.MonkeyPatch, maps: int, pointers: int | None
) -> None:
    seen: list[tuple[int, int]] = []
    attend = SAM2.attend

    def listening(self: SAM2, features: Features, memory: Memory) -> Features:
        seen.append((memory.maps.shape[1], memory.pointers.shape[1]))
        return attend(self, features, memory)

    monkeypatch.setattr(SAM2, "attend", listening)
    backbone, propagation = nano_backbone(), Prototype()
    Full().attach(backbone, propagation)
    rules = TrackingRules(maps, pointers)
    episode = example_episode(batch=1, exemplars=1, clip=9, patch_px=64)
    learn(backbone, names([propagation]), episode, EpisodeLearning(), 0, tracking=rules)
    kept = [min(step, maps) for step in range(4)]
    assert seen == [(1 + k, 1 + (k if pointers is None else min(step, pointers))) for step, k in enumerate(kept)]


def gradients(rules: SAM2Rules) -> dict[str, Tensor | None]:
    backbone, propagation = nano(rules), Similarity()
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    episode = example_episode(batch=1, exemplars=1, clip=5, patch_px=64)
    outcome = learn(backbone, names([propagation]), episode, EpisodeLearning(), 2, tracking=backbone.tracking)
    torch.stack(list(outcome.losses.values())).sum().backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_under_metas_rules_the_same_tensors_learn() -> None:
    without = [{name for name, grad in gradients(rules).items() if grad is None} for rules in (FIRST, RULES)]
    assert without[0] == without[1] == set()


def test_a_mask_smaller_than_a_cell_is_not_lost() -> None:
    backbone = nano(RULES)
    masks = torch.zeros(3, 64, 64)
    masks[0, 20, 20] = 0.3  # of a pixel
    masks[1, 20:22, 20:22] = 1.0
    answer = backbone.adopt(backbone.encode(torch.rand(3, 64, 64)), masks)
    assert [(one > 0).sum().item() for one in answer.logits] == [1, 1, 0]
    assert answer.logits[0, 5, 5] > 0
    assert answer.presence.tolist() == [10.0, 10.0, -10.0]
    assert torch.equal(answer.pointer[2], backbone.sam.no_obj_ptr[0])
