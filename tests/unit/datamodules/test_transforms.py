"""How patches are varied: images and masks alike."""

import math

import torch

from datamodules.transforms import Augmentation, augment


def test_masks_move_with_their_images():
    torch.manual_seed(0)
    masks = torch.zeros(6, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:40, 12:30] = True
    images = masks[:, 0].float()
    moved, shifted = augment(
        images, masks, torch.tensor([0, 1, 2, 3, 4, 4]), Augmentation(0, 0, 0, 0, 0, flip=0.5, affine=1)
    )
    assert ((moved > 0.5) != shifted[:, 0]).float().mean() < 0.01
    assert torch.equal(moved[4], moved[5])  # slices of a clip
    assert not torch.equal(moved[0], images[0])
    assert 0.6 < shifted.sum() / masks.sum() < 1.5


def test_what_is_only_mirrored_keeps_every_bit():
    images, masks = torch.rand(3, 32, 32), torch.rand(3, 2, 32, 32) > 0.5
    before = images.clone(), masks.clone()
    moved, shifted = augment(images, masks, torch.tensor([0, 1, 1]), Augmentation(0, 0, 0, 0, 0, flip=1, affine=0))
    assert torch.equal(moved, images.flip(-1, -2))
    assert torch.equal(shifted, masks.flip(-1, -2))
    assert torch.equal(images, before[0])  # what was given is as it was
    assert torch.equal(masks, before[1])


def test_only_patches_that_are_turned_are_sampled_and_then_mirrored(monkeypatch):
    sampled = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        torch.nn.functional,
        "grid_sample",
        lambda *given, **how: sampled.append(given[0].shape[1]) or sample(*given, **how),
    )
    images, masks = torch.rand(40, 32, 32), torch.zeros(40, 3, 32, 32, dtype=torch.bool)
    masks[:, 0, 12:20, 12:20] = True
    torch.manual_seed(0)
    moved, _ = augment(images, masks, torch.arange(40), Augmentation(0, 0, 0, 0, 0, flip=0, affine=0.5))
    turned = (moved != images).flatten(1).any(1)
    assert 10 < turned.sum() < 30
    assert sampled == [1, 1] * int(turned.sum())  # a patch, and of its three masks the one that is not empty


def test_a_turn_is_that_of_the_affine_grid():
    """Sample where torch's own `affine_grid` does, a mirror after the turn."""
    images = torch.rand(1, 1, 32, 32)
    masks = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    masks[..., 8:24, 8:24] = True
    settings = Augmentation(0, 0, 0, 0, 0, flip=1, affine=1, degrees=30, zoom=0.1)
    torch.manual_seed(3)
    torch.rand(5), torch.rand(1, 2), torch.rand(1)  # what is drawn before
    angle, zoom = math.radians(30) * (2 * torch.rand(1).item() - 1), 1 + 0.1 * (2 * torch.rand(1).item() - 1)
    torch.manual_seed(3)
    moved, _ = augment(images[0], masks, torch.zeros(1, dtype=torch.int64), settings)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = torch.tensor([[[-cos, sin, 0.0], [-sin, -cos, 0.0]]])
    grid = torch.nn.functional.affine_grid(turn, [1, 1, 32, 32], align_corners=False)
    wanted = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(moved, wanted[0], atol=1e-4, rtol=0)


def test_a_tiny_mask_is_not_lost():
    masks = torch.zeros(8, 2, 32, 32, dtype=torch.bool)
    masks[:, 0, 1, 1] = True  # in the corner, where a rotation takes it out of the picture
    _, shifted = augment(
        torch.rand(8, 32, 32), masks, torch.arange(8), Augmentation(0, 0, 0, 0, 0, affine=1, degrees=45)
    )
    assert (shifted[:, 0].flatten(1).any(1)).all()


def test_intensities_change_alike_and_the_outside_stays_zero():
    torch.manual_seed(1)
    images = torch.rand(4, 32, 32) + 0.2
    images[:, :8] = 0
    masks = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    changed, _ = augment(images, masks, torch.arange(4), Augmentation(1, 1, 1, 1, 1, flip=0, affine=0))
    assert not changed[:, :8].any()
    assert not torch.allclose(changed[:, 8:], images[:, 8:], atol=1e-2)
    assert ((changed >= 0) & (changed <= 2)).all()
    unchanged, _ = augment(images, masks, torch.arange(4), Augmentation.none())
    assert torch.equal(unchanged, images)
