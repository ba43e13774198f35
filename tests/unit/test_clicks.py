"""Clicks lie where they should, and a reader's choices are fixed by the seed."""

import numpy as np
import pytest
import torch

from mois.clicks import central_pixel, correct, first_click, sample_pixel
from mois.evaluation.reader import Reader
from mois.records import Prompts


def disc(size: int, row: int, column: int, radius: float) -> torch.Tensor:
    """Return a disc (size, size), bool."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_sampled_pixels_are_uniform_in_the_mask() -> None:
    mask = torch.zeros(4000, 8, 8, dtype=torch.bool)
    mask[:, 2, 5] = mask[:, 7, 0] = True
    points = sample_pixel(mask, torch.rand(len(mask), generator=torch.Generator().manual_seed(0)))
    first = (points == torch.tensor([5.0, 2.0])).all(1)  # x = 5, y = 2
    second = (points == torch.tensor([0.0, 7.0])).all(1)
    assert (first | second).all()
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_an_empty_mask_gives_the_centre_as_padding() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, 3, 4] = True
    prompts = first_click(mask, torch.zeros(len(mask)))
    assert prompts.points.tolist() == [[[4.0, 4.0]], [[4.0, 3.0]]]
    assert prompts.labels.tolist() == [[-1], [1]]
    assert prompts.labels.dtype == torch.int32


def test_central_pixel_is_the_middle_of_a_disc_and_of_the_thick_end() -> None:
    club = disc(32, 20, 8, 6)
    club[20, 8:31] = True  # a thin handle
    points = central_pixel(torch.stack([disc(32, 12, 18, 7), club]))
    assert points[0].tolist() == [18.0, 12.0]
    assert (points[1] - torch.tensor([8.0, 20.0])).abs().max() <= 2


def test_central_pixel_of_a_ring_lies_on_the_ring() -> None:
    ring = disc(32, 16, 16, 12) & ~disc(32, 16, 16, 8)
    x, y = central_pixel(ring.unsqueeze(0))[0].long().tolist()
    assert ring[y, x]


def test_correction_is_positive_where_more_is_missing() -> None:
    truth = torch.zeros(3, 16, 16, dtype=torch.bool)
    truth[0, :8, :8] = True  # answered with nothing: 64 px are missing
    truth[2, :8] = True  # answered exactly
    logits = torch.full((3, 4, 4), -10.0)
    logits[1] = 10.0  # answered with everything, the truth is empty
    logits[2, :2] = 10.0
    prompts = Prompts(torch.zeros(3, 1, 2), torch.ones(3, 1, dtype=torch.int32))
    corrected = correct(prompts, logits, truth, torch.full((len(truth),), 0.5))
    assert corrected.labels.tolist() == [[1, 1], [1, 0], [1, -1]]
    x, y = corrected.points[0, 1].tolist()
    assert max(x, y) < 8
    assert corrected.mask_logits is not None
    assert corrected.mask_logits.shape == (3, 1, 4, 4)


def test_hold_out_halves_the_lesions_and_both_halves_hold_big_ones() -> None:
    volumes = {lesion: float(lesion) for lesion in range(1, 11)}
    promptable, never = Reader(seed=3).hold_out(volumes)
    assert len(promptable) == len(never) == 5
    assert sorted(promptable + never) == list(range(1, 11))
    assert (9 in never) != (10 in never)  # the two largest are a pair
    assert (promptable, never) == Reader(seed=3).hold_out(volumes)
    assert any(Reader(seed=seed).hold_out(volumes) != (promptable, never) for seed in range(5))


@pytest.mark.parametrize(("count", "least_never"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_hold_out_of_few_lesions(count: int, least_never: int) -> None:
    promptable, never = Reader().hold_out(dict.fromkeys(range(1, count + 1), 1.0))
    assert len(promptable) + len(never) == count
    assert len(never) >= least_never
    assert bool(promptable) == (count > 0)


@pytest.mark.parametrize("strategy", ["random", "largest", "spread"])
def test_fewer_prompts_are_the_beginning_of_more(strategy: str) -> None:
    volumes = {7: 1.0, 8: 5.0, 9: 3.0, 10: 2.0, 11: 4.0}
    reader = Reader(strategy, seed=1)  # type: ignore[arg-type]
    whole = reader.choose_lesions(volumes, 10)
    assert sorted(whole) == [7, 8, 9, 10, 11]
    for count in range(6):
        assert reader.choose_lesions(volumes, count) == whole[:count]
    if strategy == "largest":
        assert whole == [8, 11, 9, 10, 7]
    if strategy == "spread":
        assert whole[0] == 9  # 3 ml, the middle of 1..5


def test_an_unknown_strategy_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"reader.strategy='best' is unknown; choose random"):
        Reader("best")  # type: ignore[arg-type]


def test_chance_runs_through_the_pixels_of_a_mask_in_reading_order() -> None:
    mask = torch.tensor([[[False, True, False], [True, False, True], [False, False, False]]])
    picked = [sample_pixel(mask, torch.tensor([chance]))[0].tolist() for chance in (0.0, 0.34, 0.99)]
    assert picked == [[1, 0], [0, 1], [2, 1]]


def test_a_noisy_hand_misses_by_millimetres_and_stays_on_the_patch() -> None:
    prompts = Prompts(torch.full((4000, 2, 2), 100.0), torch.ones(4000, 2, dtype=torch.int32))
    shaken = Reader(noise_mm=3.0).shake(prompts, 0.5, 200, torch.Generator().manual_seed(0))
    off_mm = (shaken.points[:, 1] - 100) * 0.5
    assert off_mm.std().item() == pytest.approx(3.0, rel=0.05)
    assert off_mm.mean().abs() < 0.15
    assert (shaken.points[:, 0] == 100).all()  # only the last click is new
    assert (prompts.points == 100).all()
    edge = Reader(noise_mm=99.0).shake(prompts, 0.5, 101, torch.Generator().manual_seed(0))
    assert edge.points.min() == 0
    assert edge.points.max() == 100


def test_a_perfect_hand_changes_nothing_and_draws_nothing() -> None:
    prompts, generator = Prompts(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.int32)), torch.Generator()
    before = generator.get_state()
    assert Reader().shake(prompts, 1.0, 9, generator) is prompts
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("strategy", ["random", "largest", "spread"])
def test_a_reader_overlooks_a_share_whatever_the_strategy(strategy: str) -> None:
    volumes = {lesion: float(lesion) for lesion in range(1, 11)}
    reader = Reader(strategy, seed=5, miss=0.3)  # type: ignore[arg-type]
    whole = reader.choose_lesions(volumes, 10)
    assert len(whole) == len(set(whole)) == 7
    assert reader.choose_lesions(volumes, 3) == whole[:3]
    assert set(whole) == set(Reader("largest", seed=5, miss=0.3).choose_lesions(volumes, 10))
    assert len(Reader(miss=0.99).choose_lesions(volumes, 10)) == 1  # one is always seen
    assert Reader(miss=0.99).choose_lesions({}, 10) == []


def test_a_reader_clicks_the_largest_slice_or_any_that_shows_enough_of_a_lesion() -> None:
    area = np.array([0, 2, 3, 10, 9, 4, 1, 0])  # at least 30 % of 10: slices 2 to 5
    assert {Reader(seed=seed).choose_slice(4, area) for seed in range(40)} == {3}
    assert {Reader(seed=seed, slices="any").choose_slice(4, area) for seed in range(40)} == {2, 3, 4, 5}
    assert {Reader(slices="any").choose_slice(lesion, area) for lesion in range(40)} == {2, 3, 4, 5}
    assert len({Reader(seed=8, slices="any").choose_slice(4, area) for _ in range(9)}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_mm": -1.0}, r"reader.noise_mm=-1.0"),
        ({"miss": 1.0}, r"reader.miss=1.0"),
        ({"slices": "middle"}, r"reader.slices='middle' is unknown; choose largest or any"),
    ],
)
def test_a_reader_that_cannot_be_is_refused(change: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reader(**change)  # type: ignore[arg-type]
