"""A training that was cut off goes on with the episodes that an uninterrupted one sees."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.support.small_data import module_of


class Listener(LightningModule):
    """Remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.heard = []

    def training_step(self, episode, batch_idx):
        self.heard.append(episode.chance[:, 0].tolist())
        return (self.weight * episode.query_images.mean()).sum()

    def validation_step(self, volume, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(root, folder, stop_after, resume=None, num_workers=0, accumulate=1, batch_size=2):
    """Train two epochs of four steps, validating every second one; save after each step."""
    listener = Listener()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        max_steps=stop_after,
        val_check_interval=2 * accumulate,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
    )
    given = {"train_subjects": ["p0"], "val_subjects": ["p1"], "num_workers": num_workers, "batch_size": batch_size}
    data = module_of(root, **given)
    trainer.fit(listener, data, ckpt_path=resume)
    return listener.heard


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_was_cut_off_anywhere_sees_the_same_episodes(make_dataset, tmp_path, num_workers):
    root = make_dataset()
    whole = run(root, tmp_path / "whole", 8, num_workers=num_workers)
    assert len(whole) == len({str(batch) for batch in whole}) == 8
    for done in (1, 2, 3, 4, 5, 7) if num_workers == 0 else (3, 4):
        resume = tmp_path / "whole" / f"step={done}.ckpt"
        assert run(root, tmp_path / f"from{done}", 8, resume=resume, num_workers=num_workers) == whole[done:]


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_with_as_many_episodes_a_step_in_more_or_fewer_batches(make_dataset, tmp_path):
    """Steps of 2 episodes: whole, and as 2 batches of 1; from within an epoch, its end, and a validation."""
    root = make_dataset()
    run(root, tmp_path / "whole", 8)
    singly = run(root, tmp_path / "singly", 8, accumulate=2, batch_size=1)
    whole = run(root, tmp_path / "again", 8)
    assert [[*singly[n], *singly[n + 1]] for n in range(0, 16, 2)] == whole
    for done in (1, 2, 3, 4, 5, 7):
        resume = tmp_path / "whole" / f"step={done}.ckpt"
        assert run(root, tmp_path / f"a{done}", 8, resume, accumulate=2, batch_size=1) == singly[2 * done :]
        resume = tmp_path / "singly" / f"step={done}.ckpt"
        assert run(root, tmp_path / f"b{done}", 8, resume) == whole[done:]
    with pytest.raises(ValueError, match="with 2 episodes a step, this run has 4; set data"):
        run(root, tmp_path / "c", 8, tmp_path / "whole" / "step=1.ckpt", accumulate=2)
