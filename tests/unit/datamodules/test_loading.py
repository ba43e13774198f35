"""How episodes are shared out to ranks and steps, and gone on with in the middle of an epoch."""

import pytest
import torch

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings
from datamodules.loading import EpisodeBatches, EpisodeLoader
from datamodules.transforms import Augmentation
from tests.support.episode_stacks import ONE_CLASS, PATCH, TWO_CLASSES, painter, stack


def test_two_ranks_see_what_one_process_with_twice_the_batch_sees():
    alone = list(EpisodeBatches(17, 4))
    ranks = [list(EpisodeBatches(17, 2, rank, 2)) for rank in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 4
    for step, batch in enumerate(alone):
        assert sorted(ranks[0][step] + ranks[1][step]) == batch
    assert [key for batch in alone for key in batch] == [(0, index) for index in range(16)]


def test_ranks_draw_from_different_subjects_at_every_step():
    subjects = [stack(ONE_CLASS, name=str(number)) for number in range(4)]
    dataset = EpisodeDataset(subjects, EpisodeSettings(PATCH))
    ranks = [{dataset.subject_of(*key) for batch in EpisodeBatches(16, 2, rank, 2) for key in batch} for rank in (0, 1)]
    assert not ranks[0] & ranks[1]
    assert ranks[0] | ranks[1] == {0, 1, 2, 3}
    orders = {tuple(dataset.subject_of(epoch, index) for index in range(4)) for epoch in range(10)}
    assert len(orders) > 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(num_workers):
    settings = EpisodeSettings(PATCH, 2, 1, EpisodeMix(), Augmentation.none())
    dataset = EpisodeDataset([stack(ONE_CLASS)], settings, 0, painter)

    def loader():
        return EpisodeLoader(dataset, batch_size=2, episodes_per_epoch=6, num_workers=num_workers)

    whole = loader()
    seen = [batch.chance[:, 0].tolist() for _ in range(2) for batch in whole]
    assert len(seen) == 6
    assert len({number for batch in seen for number in batch}) == 12

    broken = loader()
    steps = iter(broken)
    [next(steps) for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(broken.state_dict())
    assert [batch.chance[:, 0].tolist() for batch in resumed][:1] == seen[2:3]
    assert resumed.state_dict()["consumed"] == 5
    with pytest.raises(ValueError, match="2 episodes a step, this run has 3"):
        EpisodeLoader(dataset, batch_size=3, episodes_per_epoch=6).load_state_dict(broken.state_dict())


def test_an_epoch_is_whole_steps_where_gradients_are_accumulated():
    keys = [key for batch in EpisodeBatches(10, 4) for key in batch]  # 2 steps of 4
    accumulated = list(EpisodeBatches(10, 2, accumulate=2))  # not 5 batches, the last of which would step alone
    assert [len(batch) for batch in accumulated] == [2, 2, 2, 2]
    assert [key for batch in accumulated for key in batch] == keys


def test_with_views_patches_come_again_and_chance_does_not():
    settings = EpisodeSettings(PATCH, 3, 3)
    new, again = (EpisodeDataset([stack(TWO_CLASSES)], settings, 1, painter, views) for views in (0, 2))
    for index in range(3):
        first, second, third = (again[(epoch, index)] for epoch in range(3))
        assert all(map(torch.equal, first, new[(0, index)]))
        assert all(map(torch.equal, first._replace(chance=third.chance), third))
        assert torch.equal(third.chance, new[(2, index)].chance)
        assert not torch.equal(first.chance, third.chance)
        assert not torch.equal(first.query_images, second.query_images)
