"""The folder of the feature cache: bounded, shared by processes, cleared of what was left."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mois.inference.feature_store import GIB
from mois.training import feature_cache
from mois.training.feature_cache import LOOKS, FeatureCache

ENTRY = 8 * 1024  # bytes of the tensors below


def numbers(start: float) -> tuple[torch.Tensor, ...]:
    return (torch.full((4096,), start, dtype=torch.float16),)


def in_turn(cache: FeatureCache, keys: list[str]) -> float:
    """Ask for all of them, as an epoch does; return the share that was there."""
    hits = 0
    for key in keys:
        if cache.read(key) is None:
            cache.write(key, numbers(0))
        else:
            hits += 1
    return hits / len(keys)


def random_keys(count: int) -> list[str]:
    return [hashlib.blake2b(number.to_bytes(2, "little"), digest_size=20).hexdigest() for number in range(count)]


@pytest.mark.parametrize(("room", "least"), [(0.5, 0.4), (0.95, 0.85)])
def test_room_for_a_part_of_what_is_read_in_turn_serves_nearly_that_part(
    tmp_path: Path, room: float, least: float
) -> None:
    keys, others = random_keys(800)[:400], random_keys(800)[400:]
    entry = len(save({"0": numbers(0)[0]}, {"digest": "0" * 40}))
    for run in range(2):  # the second run finds what the first one left
        cache = FeatureCache(tmp_path, gib=room * len(keys) * entry / GIB)
        epochs = [in_turn(cache, keys) for _ in range(4)]
        assert min(epochs[1 - run :]) > least
    cache = FeatureCache(tmp_path, gib=room * len(keys) * entry / GIB)  # of a run that needs others
    assert [in_turn(cache, others) for _ in range(4)][-1] > least
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 1.05 * room * len(keys) * entry


@pytest.mark.parametrize("writers", [16, 64])
def test_it_stays_bounded_however_many_write_and_is_seldom_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    room, looks, look = 256, 0, FeatureCache._make_room
    entry = len(save({"0": numbers(0)[0]}, {"digest": "0" * 40}))

    def counted(cache: FeatureCache) -> None:
        nonlocal looks
        looks += 1
        look(cache)

    monkeypatch.setattr(FeatureCache, "_make_room", counted)
    caches = [FeatureCache(tmp_path, gib=room * entry / GIB) for _ in range(writers)]
    most = 0
    for number in range(5 * room):  # in turn, as ranks write in step
        key = hashlib.blake2b(bytes([number % 256, number // 256]), digest_size=20).hexdigest()
        caches[number % writers].write(key, numbers(0))
        if number % 16 == 0:
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*/*")))
    assert 0.85 * room * entry < most < 1.1 * room * entry
    assert looks < 1.5 * 5 * LOOKS  # a quarter of the writes, of so few entries


def test_an_entry_of_another_user_is_read_and_one_that_cannot_be_read_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    cache = FeatureCache(tmp_path, gib=1)
    cache.write("aa", numbers(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        assert cache.read("aa")[0][0] == 1
    monkeypatch.setattr(feature_cache, "read_regular", refuse)
    with pytest.warns(UserWarning, match=r"damaged \(Operation not permitted\); it is made anew"):
        assert cache.read("aa") is None


def test_two_processes_may_write_and_clear_one_cache(tmp_path: Path) -> None:
    children = []
    for child in range(2):
        pid = os.fork()
        if pid == 0:
            good = False
            try:
                cache = FeatureCache(tmp_path, gib=24 * ENTRY / GIB)
                for number in range(120):
                    key = f"{number * (7 + 4 * child) % 60:02}"
                    found = cache.read(key)
                    if found is None:
                        cache.write(key, numbers(int(key)))
                    elif found[0][0] != int(key):
                        break
                else:
                    good = not cache._reported and cache._writes
            finally:
                os._exit(0 if good else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 26 * ENTRY
    assert not list(tmp_path.glob("*/.*"))


def test_files_of_killed_processes_are_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "aa" / ".aa.safetensors.0.part"
    left.parent.mkdir()
    left.touch()
    os.utime(left, (0, 0))
    FeatureCache(tmp_path, gib=16 * ENTRY / GIB).write("bb", numbers(1))
    assert not left.exists()
