"""`mois evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

SHOWN = {
    "unprompted Dice": ("unprompted", "dice"),
    "unprompted F1": ("unprompted", "f1"),
    "false lesions per scan": ("unprompted", "fp_per_scan"),
    "  apart from any lesion": ("unprompted", "false_apart"),
    "  fragments of one": ("unprompted", "fragments"),
    "prompted Dice": ("prompted", "dice"),
    "scan Dice": ("scan_dice",),
    "right": ("conditioning", "right"),
    "wrong": ("conditioning", "wrong"),
    "no exemplars": ("conditioning", "no_exemplars"),
}


def evaluate(
    data: Path,
    out: Path,
    bundle: Path | None = None,
    predictions: Path | None = None,
    split: Literal["train", "val", "test", "all"] = "test",
    prompted: int = 5,
    clicks: int = 1,
    counts: tuple[int, ...] = (0, 1, 3, 5, 10, 20),
    curve_clicks: tuple[int, ...] = (),
    reader: Literal["random", "largest", "spread"] = "random",
    noise_mm: float = 0.0,
    miss: float = 0.0,
    masks: Literal["predicted", "true"] = "predicted",
    target_class: int | None = None,
    surface_mm: float = 2.0,
    bins_ml: tuple[float, ...] = (0.5, 2.0, 10.0),
    protocol: Literal["ours", "paper"] = "ours",
    robustness: bool = False,
    prompted_masks: Path | None = None,
    kind: Literal["semantic", "instance"] = "semantic",
    subjects: list[str] | None = None,
    fold: int | None = None,
    channel: int = 0,
    instances: bool = True,
    seed: int = 0,
    device: str = "auto",
    backbone_weights: Path | None = None,
    trust: list[str] | None = None,
    title: str = "",
) -> None:
    """Score a model, or another system's predictions, on labelled scans.

    An evaluation that was stopped goes on where it was, with the same command.
    `torchrun --nproc_per_node=N -m mois.cli evaluate ...` shares the scans out to N processes, with the same results.

    Args:
        data: Dataset in nnU-Net's raw layout.
        out: Folder of the results: metrics.json, tables, predictions, overlays, report.html.
        bundle: Folder that a training left; or give predictions.
        predictions: Folder of maps SUBJECT.nii.gz, or SUBJECT_class1.nii.gz and so on, on the scans' own grids.
        split: Which scans; those of the training where the bundle was trained on this dataset.
        prompted: Lesions of a class that the simulated reader prompts.
        clicks: Clicks on each of them.
        counts: Numbers of prompted lesions for the curves; [] for no curves.
        curve_clicks: Numbers of clicks for the curves, such as [1,3]; clicks alone by default.
        reader: Who chooses the lesions.
        noise_mm: How far clicks fall from where they were meant, standard deviation.
        miss: Share of the lesions that the reader overlooks.
        masks: What becomes an exemplar: what the clicks gave, or the truth.
        target_class: The class to score; all of them by default.
        surface_mm: Tolerance of the surface Dice; mois doctor proposes one for very small lesions.
        bins_ml: Volumes between the bins of lesions by size, such as [0.5,2,10].
        protocol: With paper, the rules of arXiv 2509.19277 beside ours.
        robustness: Score the scans also with bias field, noise, motion, gamma, ghosting and coarser pixels.
        prompted_masks: With predictions: folder prompted of another run, whose prompted lesions are given to them.
        kind: With predictions: whether their numbers are classes or lesions.
        subjects: Names of the scans, instead of a split.
        fold: Which fold train and val are of, as in data.init_args.fold.
        channel: The image to use, the number in its file's name.
        instances: Take lesions from the maps of lesion ids, where there are any.
        seed: Of reader, bootstrap and changes.
        device: Such as cpu or cuda; auto takes an accelerator where there is one, each process its own.
        backbone_weights: Where the bundle's backbone lies, if not where it was at training.
        trust: Modules of others whose classes the bundle may name, such as my_module.
        title: Of the report.

    Raises:
        ValueError: If neither or both of bundle and predictions are given, or a scan cannot be scored.
    """
    if (bundle is None) == (predictions is None):
        raise ValueError("give one of --bundle (a model) and --predictions (another system's maps).")
    if prompted_masks is not None and predictions is None:
        raise ValueError("--prompted_masks belongs to --predictions; a bundle prompts by itself.")
    if robustness and predictions is not None:
        raise ValueError("--robustness needs a model to run on changed scans; give --bundle instead of --predictions.")

    from mois.cli.evaluations import choose_scans
    from mois.cli.terminal import PlainConsole
    from mois.evaluation.reader import Reader
    from mois.evaluation.run import evaluate_scans
    from mois.evaluation.settings import ProtocolSettings
    from mois.evaluation.sources import Common, of_bundle, of_maps
    from mois.files.folder_lock import locked
    from mois.inference.execution import chosen_device
    from mois.machine.processes import joined
    from mois.report.evaluation_page import write_pages

    settings = ProtocolSettings(
        prompted=prompted,
        clicks=clicks,
        masks=masks,
        reader=Reader(reader, seed, noise_mm, miss),
        counts=tuple(counts),
        curve_clicks=tuple(curve_clicks),
        target_class=target_class,
        surface_mm=surface_mm,
        bins_ml=tuple(bins_ml),
        rules=protocol,
    )
    base = Common(settings, channel, instances, robustness, seed, title)
    with joined() as processes, locked(out) if processes.first else nullcontext():
        if predictions is not None:
            scans, _ = choose_scans(data, split, subjects, fold, {}, channel, target_class)
            evaluation = of_maps(base, predictions, prompted_masks, kind, scans)
        else:
            from mois.sharing.bundle import Bundle

            where = chosen_device(device, processes.local_rank)
            made = Bundle.load(str(bundle), where, trust or (), backbone_weights)
            scans, trained_on = choose_scans(data, split, subjects, fold, made.provenance, channel, target_class)
            evaluation = of_bundle(base, made, trained_on)
        console = PlainConsole(stderr=True) if processes.first else None
        metrics = evaluate_scans(evaluation, scans, out, console, processes)
        if processes.first:
            write_pages(evaluation, scans, out)
            _show(metrics, out)


def _show(metrics: Mapping[str, Any], out: Path) -> None:
    from rich.table import Table

    from mois.cli.terminal import PlainConsole
    from mois.report.evaluation_page import other_system
    from mois.sharing.remarks import COMPARED, remarks, told_worse

    summary = metrics["summary"]
    table = Table(title=f"{summary['n_subjects']} scans of {summary['n_patients']} patients")
    for column in ("", "mean", "95 % interval", "scans"):
        table.add_column(column, justify="left" if not column else "right")
    for name, path in SHOWN.items():
        leaf = summary
        for part in path:
            leaf = leaf[part]
        mean, ends = leaf["mean"], leaf["ci95"]
        interval = "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        table.add_row(name, "-" if mean is None else f"{mean:.3f}", interval, str(leaf["n"]))
    console = PlainConsole()
    console.print(table)
    words = summary["conditioning"]
    said = [] if other_system(metrics) else remarks(*(words[name]["mean"] for name in COMPARED))
    said += [f"the model's own validation: {sentence}" for sentence in told_worse(metrics["provenance"])]
    for remark in said:
        console.print(remark, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
