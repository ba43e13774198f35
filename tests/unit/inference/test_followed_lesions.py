"""Lesions that are followed from slice to slice: where they fade or end, and what `followed` and `near` change."""

import pytest
import torch

from mois.inference.followed_lesions import LEAST_STEP, MOST_RADII, RISE, WAIST, FollowedLesion
from mois.inference.matched_masks import BOUNDED, FOLLOWED, LIMIT, MATCHED, NEAR, MaskRules
from tests.support.cell_pictures import dice, disc, logits, picture


def test_a_lesion_is_followed_until_the_picture_shows_it_no_more() -> None:
    lesion = FollowedLesion(picture(disc(6)), logits(disc(6)), gap_cells=2)
    smaller = lesion.follow(picture(disc(5)), logits(disc(12)).unsqueeze(0))
    assert smaller is not None
    assert dice((smaller > 0).numpy(), disc(5)) > 0.9
    assert float(smaller.min()) >= -9
    assert float(smaller[0, 0]) == -LIMIT  # far from the slice before
    assert lesion.follow(picture(), logits(disc(5)).unsqueeze(0)) is None


def test_a_lesion_does_not_go_on_in_a_neighbour_beside_it() -> None:
    lesion = FollowedLesion(picture(disc(4, 8, 8)), logits(disc(4, 8, 8)), gap_cells=1)
    assert lesion.follow(picture(disc(4, 20, 20)), logits(disc(4, 20, 20)).unsqueeze(0)) is None


def test_bounded_a_lesion_may_grow_to_twice_its_area_as_beside_its_end_it_does() -> None:
    start, grown = disc(6), disc(7.9)
    assert MATCHED.most_growth < (grown.sum() - 4) / start.sum() < BOUNDED.most_growth
    follow = [
        FollowedLesion(picture(start), logits(start), 2, rules).follow(picture(grown), logits(grown).unsqueeze(0))
        for rules in (MATCHED, BOUNDED)
    ]
    assert follow[0] is None
    assert follow[1] is not None
    assert dice((follow[1] > 0).numpy(), grown) > 0.9


def faded(level: float) -> float:
    """Return the level of a disc with a share of the contrast of 0.8 to the ground of 0.2."""
    return 0.2 + level * 0.6


@pytest.mark.parametrize(("rules", "expected"), [(BOUNDED, False), (FOLLOWED, True)])
def test_followed_a_lesion_keeps_its_size_while_it_fades(rules: MaskRules, expected: bool) -> None:
    lesion = FollowedLesion(picture(disc(6)), logits(disc(6)), 1, rules)
    found = [lesion.follow(picture(disc(6), level=faded(0.7**n)), logits(disc(6)).unsqueeze(0)) for n in range(1, 4)]
    assert all(mask is not None and dice((mask > 0).numpy(), disc(6)) > 0.9 for mask in found) == expected


@pytest.mark.parametrize("gap_cells", [1, 4])
def test_followed_a_lesion_fades_where_slices_are_thin_and_by_small_steps_alone(gap_cells: float) -> None:
    def follow(share: float, rules: MaskRules) -> torch.Tensor | None:
        lesion = FollowedLesion(picture(disc(6)), logits(disc(6)), gap_cells, rules)
        return lesion.follow(picture(disc(6), level=faded(share)), logits(disc(6)).unsqueeze(0))

    def same(share: float) -> bool:
        first, second = follow(share, BOUNDED), follow(share, FOLLOWED)
        return first is second or (first is not None and second is not None and torch.equal(first, second))

    assert same(0.6) == (gap_cells == 4)
    assert same(LEAST_STEP - 0.1)


@pytest.mark.parametrize(("rules", "slices"), [(BOUNDED, 8), (FOLLOWED, 5)])
def test_followed_a_round_lesion_ends_at_a_waist(rules: MaskRules, slices: int) -> None:
    radii = [8, 7, 5.5, 4, 4, 5, 6, 7]  # the sixth area is 81 cells, and the waist 49
    assert disc(5).sum() > RISE * disc(4).sum() + 4
    assert disc(4).sum() < WAIST * disc(8).sum()
    assert followed_slices(radii, 0.5, rules) == slices
    assert followed_slices(radii, 2.5, rules) == 8  # between thick slices a lesion changes too much


def test_followed_a_lesion_that_brightens_or_grows_is_seen_as_it_is() -> None:
    start, grown = disc(5), disc(6)
    for level in (0.5, 0.6):  # fainter, as if it faded; but it grows, so only what is seen as it is may be larger
        masks = []
        for rules in (BOUNDED, FOLLOWED):
            lesion = FollowedLesion(picture(start, level=0.6), logits(start), 1, rules)
            masks.append(lesion.follow(picture(grown, level=level), logits(grown).unsqueeze(0)))
        assert masks[0] is not None
        assert masks[1] is not None
        assert torch.equal(masks[0], masks[1])


def test_followed_a_lesion_that_was_clicked_near_its_end_has_no_waist_there() -> None:
    assert followed_slices([4, 5, 6, 7, 8, 7, 6, 4], 0.5, FOLLOWED) == 8


@pytest.mark.parametrize(("gap_cells", "ends"), [(2.0, True), (2.5, False)])
def test_near_a_lesion_ends_three_radii_from_its_click_where_slices_are_thin_for_it(
    gap_cells: float, ends: bool
) -> None:
    """A disc of radius 4 has 49 cells, as one of radius 3.9: the sixth slice away is at 12 cells, beyond 11.8."""
    assert MOST_RADII == 3
    radii = [4.0] * 12
    assert followed_slices(radii, gap_cells, FOLLOWED) == 12
    assert followed_slices(radii, gap_cells, NEAR) == (6 if ends else 12)


def test_near_the_largest_slice_says_how_far_a_lesion_reaches() -> None:
    """Clicked at its end, of radius 4; its widest slice of radius 7 has 149 cells, so it reaches 20.7 cells."""
    assert followed_slices([4, 5, 6, 7, *[7] * 8, *[6] * 10], 1.5, NEAR) == 14


def followed_slices(radii: list[float], gap_cells: float, rules: MaskRules) -> int:
    """Return on how many slices a lesion of these radii is followed, from the first of them."""
    lesion = FollowedLesion(picture(disc(radii[0])), logits(disc(radii[0])), gap_cells, rules)
    for count, radius in enumerate(radii[1:], start=1):
        if lesion.follow(picture(disc(radius)), logits(disc(radius)).unsqueeze(0)) is None:
            return count
    return len(radii)
