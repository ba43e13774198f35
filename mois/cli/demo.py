"""`mois demo`."""

from __future__ import annotations

from pathlib import Path


def demo(out: Path = Path("runs/demo"), seed: int = 0, training: str = "demo") -> None:
    """Adapt the bundled nano to a new lesion type, and compare before and after.

    Args:
        out: Folder of the run; an interrupted demo goes on where it was.
        seed: Seed of phantoms, training and simulated reader.
        training: Config of the training: a file, or the name of a shipped config.

    Raises:
        ValueError: If the folder holds a demo of another seed or config, or another process writes into it.
    """
    import numpy as np

    from datamodules.phantoms.lesion_types import draw_lesion_types
    from datamodules.phantoms.phantom import write_dataset
    from mois.cli.demo_steps import claim_demo, run_demo
    from mois.cli.shipped_configs import config_path
    from mois.files.folder_lock import locked

    config = config_path(training)
    with locked(out):
        claim_demo(out, seed, config)
        if not (out / "data" / "dataset.json").is_file():
            types = draw_lesion_types(np.random.default_rng(seed), 2, held_back=True)
            write_dataset(out / "data", subjects=12, test_subjects=12, seed=seed, types=types, lesions=(20, 60))
        run_demo(out, seed, config)
