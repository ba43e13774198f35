"""Features of frozen encoders on disk: the same to the bit, bounded, and never in the way."""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import Frozen, Full, Lora, Placement
from mois.backbones import SAM2
from mois.interfaces import Adapter, Backbone
from mois.propagation import Similarity
from mois.records import Features
from mois.testing import example_patches, nano_backbone
from mois.training.feature_cache import CachedEncoder, CacheSettings

LATE = Placement(parts=["trunk"], stages=[4])


def encoder(folder: Path, adapter: Adapter | None = None) -> CachedEncoder:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    (adapter or Frozen()).attach(backbone, propagation)
    return CachedEncoder(backbone, CacheSettings(folder))


def same(one: Features, other: Features) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip((*one.levels, one.position), (*other.levels, other.position), strict=True)
    )


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond this size, as a full disk would (Python turns the signal into an OSError)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("bf16", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "adapter",
    [Frozen(), Lora(placement=LATE), Lora(placement=Placement(parts=["neck"]))],
    ids=["all", "trunk.4", "neck"],
)
def test_hits_and_misses_are_the_same_to_the_bit_and_close_to_what_is_not_kept(
    tmp_path: Path, adapter: Adapter, bf16: bool
) -> None:
    images, _ = example_patches(3, 64)
    encode = encoder(tmp_path, adapter)
    keys = encode.keys(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        missed = encode(images, keys)
        assert encode.hits == 0
        plain = encode.backbone.encode(images)
        hit = encode(images.flip(0), keys[::-1])  # together with others, in another order
        assert encode.hits == 1
    assert same(missed, hit.select(torch.tensor([2, 1, 0])))
    for ours, theirs in zip((*hit.levels, hit.position), (*plain.levels, plain.position), strict=True):
        assert torch.allclose(ours.flip(0).float(), theirs.float(), atol=0.2 if bf16 else 0.02)
    assert torch.equal(plain.image, missed.image)


def test_a_second_run_finds_everything_and_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = example_patches(2, 64)
    first = encoder(tmp_path)
    before = first(images, first.keys(images))
    second = encoder(tmp_path)
    monkeypatch.setattr(SAM2, "encode", lambda *_: pytest.fail("the encoder ran"))
    assert same(before, second(images, second.keys(images)))


def test_it_says_how_long_it_was_waited_for_without_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, now = example_patches(2, 64)[0], [0.0]
    encode = encoder(tmp_path)

    def slow(seconds: float, method: Any) -> Any:
        def slowed(*arguments: Any) -> Any:
            now[0] += seconds
            return method(*arguments)

        return slowed

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(encode.cache, "read", slow(1, encode.cache.read))
    monkeypatch.setattr(encode.cache, "write", slow(10, encode.cache.write))
    monkeypatch.setattr(encode.backbone, "encode_frozen", slow(100, encode.backbone.encode_frozen))
    for waited_s in (22, 24):  # 2 images: read and written, then read
        encode(images, encode.keys(images))
        assert encode.waited_s == waited_s
    assert now == [224]


def test_a_late_adapter_still_learns_and_what_is_before_it_runs_without_graph(tmp_path: Path) -> None:
    images, _ = example_patches(1, 64)
    encode = encoder(tmp_path, Lora(placement=LATE))
    sum(level.sum() for level in encode(images, encode.keys(images)).levels).backward()
    trained = [value for value in encode.backbone.parameters() if value.requires_grad]
    assert trained
    assert all(value.grad is not None for value in trained)
    kept = torch.cat([value.grad.flatten() for value in trained])
    for value in trained:
        value.grad = None
    sum(level.sum() for level in encode.backbone.encode(images).levels).backward()
    assert torch.allclose(kept, torch.cat([value.grad.flatten() for value in trained]), rtol=0.02, atol=1e-2)


def test_a_key_is_of_the_image_the_shape_the_weights_the_frozen_part_and_the_precision(tmp_path: Path) -> None:
    images, _ = example_patches(1, 64)
    one = encoder(tmp_path)
    others = [
        one.keys(images + 1e-6),
        one.keys(images.view(1, 32, 128)),
        one.keys(images, "bf16-mixed"),
        encoder(tmp_path, Lora(placement=LATE)).keys(images),
        CachedEncoder(nano_backbone(seed=1), CacheSettings(tmp_path)).keys(images),
    ]
    assert len({key for keys in (one.keys(images), *others) for key in keys}) == 6
    assert encoder(tmp_path).keys(images.clone()) == one.keys(images)


class OtherStatistics(SAM2):
    """The same weights, on intensities that are normalised otherwise."""

    def __init__(self) -> None:
        super().__init__("nano", "bundled")
        self.pixel_std.fill_(1)


class Doubled(SAM2):
    """The same weights, and other features."""

    def encode(self, images: torch.Tensor) -> Features:
        features = super().encode(images)
        return features._replace(levels=tuple(2 * level for level in features.levels))


class Whole(SAM2):
    """The same weights; all that `encode` gives is kept."""

    frozen_part = Backbone.frozen_part
    encode_frozen = Backbone.encode_frozen
    encode_rest = Backbone.encode_rest


@pytest.mark.parametrize("other", [OtherStatistics, Doubled, partial(Whole, "nano", "bundled")])
def test_backbones_of_the_same_weights_that_see_otherwise_share_nothing(
    tmp_path: Path, other: Callable[[], SAM2]
) -> None:
    images, _ = example_patches(1, 64)
    ours = CachedEncoder(SAM2("nano", "bundled"), CacheSettings(tmp_path))
    theirs = CachedEncoder(other(), CacheSettings(tmp_path))
    ours(images, ours.keys(images))
    seen = theirs(images, theirs.keys(images))
    assert theirs.hits == 0
    plain = theirs.backbone.encode(images)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(seen.levels, plain.levels, strict=True))


def test_a_key_is_of_what_is_frozen_as_it_stands_and_of_the_form_of_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = example_patches(1, 64)
    keys = encoder(tmp_path).keys(images)
    assert (
        encoder(tmp_path, Lora(placement=Placement(parts=["decoder"]))).keys(images) == keys
    )  # which trains nothing of the encoder
    tuned = nano_backbone().requires_grad_(False)
    tuned.parts()["trunk"].patch_embed.proj.weight.mul_(2)  # as an earlier adapter would that is merged
    assert CachedEncoder(tuned, CacheSettings(tmp_path)).keys(images) != keys
    seen = SAM2.encode_frozen
    monkeypatch.setattr(SAM2, "encode_frozen", lambda self, images: seen(self, images)[:2])
    assert encoder(tmp_path).keys(images) != keys


@pytest.mark.parametrize(("trained", "now"), [(True, r"trunk\.3"), (False, "encoder")], ids=["freed", "frozen"])
def test_parts_that_are_freed_or_frozen_on_the_way_are_refused(tmp_path: Path, trained: bool, now: str) -> None:
    images, _ = example_patches(1, 64)
    encode = encoder(tmp_path, Lora(placement=LATE))
    encode(images, encode.keys(images))
    parts = encode.backbone.parts()
    parts["decoder"].transformer.requires_grad_(True)  # no part of the encoder
    encode(images, encode.keys(images))
    (parts["trunk"].blocks[3] if trained else parts["trunk"]).requires_grad_(trained)
    with pytest.raises(ValueError, match=rf"frozen as far as {now} now, not as far as trunk\.4; leave model"):
        encode(images, encode.keys(images))


def test_a_damaged_entry_is_made_anew_and_reported_once(tmp_path: Path) -> None:
    images, _ = example_patches(3, 64)
    encode = encoder(tmp_path)
    keys = encode.keys(images)
    good = encode(images, keys)
    cut, flipped, header = (tmp_path / key[:2] / f"{key}.safetensors" for key in keys)
    cut.write_bytes(cut.read_bytes()[:1000])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    header.write_bytes(b"no header" * 20)
    with pytest.warns(UserWarning, match="entry of the feature cache is damaged") as said:
        assert same(good, encode(images, keys))
    assert len(said) == 1
    assert encode.hits == 0
    assert same(good, encode(images, keys))
    assert encode.hits == 1


@pytest.mark.parametrize("part", ["encoder", "trunk.4"])
def test_what_no_encoder_makes_is_not_taken_though_its_digest_is_right(tmp_path: Path, part: str) -> None:
    images, _ = example_patches(1, 64)
    wide = torch.nn.functional.pad(images, (0, 64, 0, 64))
    encode = encoder(tmp_path, None if part == "encoder" else Lora(placement=LATE))
    for pictures in (images, wide):
        (key,) = encode.keys(pictures)
        good = encode(pictures, [key])
        right = encode.cache.read(key)
        assert right is not None
        (other,) = encode.keys(wide if pictures is images else images)
        encode(wide if pictures is images else images, [other])
        elsewhere = encode.cache.read(other)
        assert elsewhere is not None
        for wrong in (
            [torch.full_like(one, torch.nan) for one in right],
            [torch.full_like(one, torch.inf) for one in right],
            [one.float() for one in right],
            [one[..., :1] for one in right],
            [one.flatten() for one in right],
            right[:-1],
            (*right, right[0].clone()),
            elsewhere,
            [],
        ):
            encode.cache.write(key, wrong)
            fresh = encoder(tmp_path, None if part == "encoder" else Lora(placement=LATE))
            with pytest.warns(UserWarning, match="this entry of the feature cache is damaged"):
                assert same(good, fresh(pictures, [key]))
            assert fresh.hits == 0


def test_a_full_disk_is_said_once_and_nothing_is_lost(tmp_path: Path) -> None:
    images, _ = example_patches(3, 64)
    encode = encoder(tmp_path)
    keys = encode.keys(images)
    first = encode(images[:1], keys[:1])
    with full_disk(1024), pytest.warns(UserWarning, match="takes no more features") as said:
        late = encode(images, keys)
    assert len(said) == 1
    assert same(first, late.select(slice(0, 1)))
    assert [path.name for path in tmp_path.glob("*/*") if path.is_file()] == [f"{keys[0]}.safetensors"]
    with warnings.catch_warnings(action="error"):
        assert same(late, encode(images, keys))
    assert encode.hits == pytest.approx(1 / 3)


def test_features_beyond_half_precision_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder(tmp_path)
    seen = SAM2.encode_frozen
    monkeypatch.setattr(SAM2, "encode_frozen", lambda self, images: tuple(1e6 * part for part in seen(self, images)))
    images, _ = example_patches(1, 64)
    with pytest.raises(ValueError, match=r"too large for half precision; set model\.cache\.folder=null"):
        encode(images, encode.keys(images))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_trained_encoder_and_a_folder_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this one is trained from its first layer on; leave model\.cache out"):
        encoder(tmp_path, Full())
    with pytest.raises(ValueError, match="is trained from its first layer on"):
        encoder(tmp_path, Lora(placement=Placement(stages=[1, 2, 3, 4])))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"model.cache.folder=.*file/deeper cannot be made \(Not a directory\)"):
        encoder(tmp_path / "file" / "deeper")
    with pytest.raises(ValueError, match="gib=0 leaves no room"):
        CacheSettings(tmp_path, gib=0)


def test_a_backbone_of_others_is_kept_whole(tmp_path: Path) -> None:
    images, _ = example_patches(2, 64)
    encode = CachedEncoder(Whole("nano", "random"), CacheSettings(tmp_path))
    missed = encode(images, encode.keys(images))
    assert same(missed, encode(images, encode.keys(images)))
    assert encode.hits == 1
    plain = encode.backbone.encode(images)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(missed.levels, plain.levels, strict=True))
    encode.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match="is trained from its first layer on"):
        CachedEncoder(encode.backbone, CacheSettings(tmp_path))
