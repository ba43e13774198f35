"""Losses, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mois.training.losses import dice_loss, focal_loss, mask_loss, masked_average, soft_iou


def test_focal_loss_of_undecided_pixels() -> None:
    logits, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    # both pixels: probability 0.5, cross entropy ln 2, miss 0.5; weights 0.25 and 0.75
    assert focal_loss(logits, target).item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2) / 2)


def test_dice_loss_of_one_hit_one_miss_and_one_false_pixel() -> None:
    logits = torch.tensor([[50.0, 50.0, -50.0]])
    target = torch.tensor([[1.0, 0.0, 1.0]])
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_an_empty_answer_to_an_empty_picture_costs_nothing() -> None:
    logits, target = torch.full((1, 4, 4), -50.0), torch.zeros(1, 4, 4)
    assert mask_loss(logits, target).item() == pytest.approx(0, abs=1e-6)


def test_iou_of_two_of_three_pixels_and_of_two_empty_pictures() -> None:
    logits = torch.tensor([[[5.0, 5.0, 5.0]], [[-5.0, -5.0, -5.0]]])
    target = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]])
    assert soft_iou(logits, target).tolist() == pytest.approx([2 / 3, 1])


def test_the_average_over_ranks_is_the_average_over_the_batch() -> None:
    values, keep = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([True, False, True, True])
    ranks = [masked_average(values[part], keep[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.stack(ranks).mean().item() == pytest.approx(masked_average(values, keep).item())
