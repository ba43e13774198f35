"""Mixes episodes of the pretraining into a training, in which only the exemplars say what to find."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.chance import draw_chance
from datamodules.episodes import EpisodeMix, EpisodeSettings
from datamodules.pretraining import NewTypeEpisodes
from datamodules.transforms import Augmentation
from mois.records import Episode

MIX = EpisodeMix(1.0, 0.0, 0.15, lesion_free=0.05, background=0.1, together=0.8)
AUGMENTATION = Augmentation(bias=0.0, noise=0.1, ghosting=0.0, motion=0.0, affine=0.3)
PICTURES = 0.6
"""Share of the replayed episodes that show pictures of anything; the others show pieces of phantoms."""

_REPLAY = 5  # part of the seed of the choice
_MARGIN_PX = 96  # a piece is wider than a patch by this much, so that patches differ


class WithReplay(Dataset[Episode]):
    """Episodes of one's own scans, and a share of episodes with new lesion types as in the pretraining.

    In scans with one lesion class, the exemplars of every episode look alike. A model can learn this class by heart,
    and take the exemplars of another patient for something else. In a replayed episode, only the exemplars say what
    to find.

    Seed, epoch and index decide an episode, and whether it is replayed.

    Args:
        own: Episodes of one's own scans.
        settings: How episodes are drawn. Replayed ones have the same sizes, with the mix and the augmentation of the
            pretraining.
        share: Share of replayed episodes, 0 to 1.
        seed: Seed of the replayed episodes and of the choice.
        views: Number of epochs after which the same patches come again, as in `EpisodeDataset`.
        channels: Number C of channels of one's own images. Replayed images have the same picture in each channel.
    """

    def __init__(
        self,
        own: Dataset[Episode],
        settings: EpisodeSettings,
        share: float,
        seed: int,
        views: int = 0,
        channels: int = 1,
    ) -> None:
        self.own = own
        self.share = share
        self.seed = seed
        self.views = views
        self.channels = channels
        sizes = EpisodeSettings(settings.patch_px, settings.exemplars, settings.clip, MIX, AUGMENTATION)
        piece_px = max(224, settings.patch_px + _MARGIN_PX)
        self.replayed = NewTypeEpisodes(sizes, seed, piece_px=piece_px, pictures=PICTURES)

    def is_replayed(self, epoch: int, index: int) -> bool:
        """Return whether an episode is replayed."""
        view = epoch % self.views if self.views else epoch
        return bool(np.random.default_rng([self.seed, _REPLAY, view, index]).random() < self.share)

    def __getitem__(self, key: tuple[int, int]) -> Episode:
        epoch, index = key
        if not self.is_replayed(epoch, index):
            return self.own[key]
        episode = self.replayed[epoch % self.views if self.views else epoch, index]
        if self.channels > 1:
            episode = episode._replace(
                support_images=self._in_each_channel(episode.support_images),
                query_images=self._in_each_channel(episode.query_images),
                track_images=self._in_each_channel(episode.track_images),
            )
        return episode._replace(chance=draw_chance(np.random.default_rng([self.seed, _REPLAY, 1, epoch, index])))

    def _in_each_channel(self, images: Tensor) -> Tensor:
        """Return images (..., P, P) as (..., C, P, P)."""
        return images.unsqueeze(-3).repeat_interleave(self.channels, -3)
