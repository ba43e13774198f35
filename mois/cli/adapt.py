"""`mois adapt`."""

from __future__ import annotations

from pathlib import Path


def adapt(
    data: Path,
    out: Path,
    minutes: float | None = None,
    start_from: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    trust: list[str] | None = None,
    channels: list[str] | None = None,
) -> None:
    """Adapt the bundled nano to the lesions of a dataset, and write a bundle.

    The figures of the model before the training and of the bundle are compared at the end. The bundle is never worse
    on the scans that validate: if nothing better was found, it is the model before the training, and a line says so.
    An adaptation that was stopped goes on where it was, with the same command.

    Args:
        data: Dataset in nnU-Net's raw layout, with some annotated scans.
        out: Folder of the bundle; it must not exist. The training lies beside it, in OUT_training.
        minutes: Minutes that the training may take, its validations included; by default as long as the plan says.
        start_from: Bundle to begin with, instead of the bundled nano: adapts it further. A bundle of named channels
            needs them in the dataset, by name. The word shipped is the bundled nano, too.
        seed: Seed of data and training.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle of `start_from` may name, such as my_module.
        channels: Up to three channels that are used together, by their names in dataset.json, such as [T2,FLAIR].
            None takes the one in which lesions stand out most, or those of the bundle to begin with.

    Raises:
        ValueError: If the folder `out` exists or cannot be written to, the dataset has a fault or lacks a channel, the
            bundle to begin with sees other channels, or this bundle names a class that is not trusted.
    """
    from mois.cli.adaptation import Request, run_adaptation
    from mois.sharing.bundle_record import is_shipped

    begins_with = None if is_shipped(start_from) else start_from
    run_adaptation(Request(data, out, minutes, begins_with, seed, device, trust or (), channels or ()))
