"""`mois evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mois.cli.evaluate_options import OutputOptions, ProtocolOptions, ReaderOptions, protocol_settings
from mois.tracking.settings import TrackingSettings

if TYPE_CHECKING:
    from mois.evaluation.evaluate_scans import Evaluation
    from mois.scans.datasets import SubjectFiles

SplitName = Literal["train", "val", "test", "all"]

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
    split: SplitName = "test",
    subjects: list[str] | None = None,
    fold: int | None = None,
    channel: int = 0,
    instances: bool = True,
    prompted_masks: Path | None = None,
    kind: Literal["semantic", "instance"] = "semantic",
    reader: ReaderOptions = ReaderOptions(),  # noqa: B008 (frozen)
    protocol: ProtocolOptions = ProtocolOptions(),  # noqa: B008 (frozen)
    output: OutputOptions = OutputOptions(),  # noqa: B008 (frozen)
    seed: int = 0,
    device: str = "auto",
    backbone_weights: Path | None = None,
    trust: list[str] | None = None,
    log: bool = False,
    tracking: TrackingSettings = TrackingSettings(),  # noqa: B008
    score_processes: int | None = None,
    pixel_mm: float | None = None,
) -> None:
    """Score a model, or another system's predictions, on labelled scans.

    An evaluation that was stopped goes on where it was, with the same command.
    `torchrun --nproc_per_node=N -m mois.cli evaluate ...` shares the scans out to N processes, with the same results.

    Args:
        data: Dataset in nnU-Net's raw layout.
        out: Folder of the results: metrics.json, tables, predictions, overlays, report.html.
        bundle: The model: folder that a training left, or the word shipped for the model that ships with the package.
            Give a bundle or predictions.
        predictions: Folder of maps SUBJECT.nii.gz, or SUBJECT_class1.nii.gz and so on, on the scans' own grids.
        split: Which scans to score; by the training's own splits if the bundle was trained on this dataset.
        subjects: Names of the scans to score, instead of a split.
        fold: Fold that train and val belong to, as in data.init_args.split.fold.
        channel: The image to use: the number in its file's name. A model with named channels finds them by name.
        instances: Take lesions from maps of lesion ids, if the dataset has them.
        prompted_masks: With predictions: folder `prompted` of another run, whose prompted lesions are given to them.
        kind: With predictions: whether their numbers are classes or lesions.
        reader: Options of the simulated reader.
        protocol: Options of the scoring.
        output: Options of the results.
        seed: Seed of the reader's choices, of the bootstrap and of the changes to scans.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one. With auto and cuda, each process
            has its own device.
        backbone_weights: Weights of the bundle's backbone, if they lie elsewhere than at training.
        trust: Modules of others whose classes the bundle may name, such as my_module.
        log: Record figures, lesions and pictures with W&B, as a training does.
        tracking: What W&B records, with `--log`.
        score_processes: Number of processes that score finished scans while the model goes on with the next scan; 0
            scores each scan before the next. By default, the cores that are left, up to 4, and only for large scans.
        pixel_mm: Pixel size of the shipped model, by default 1.5 mm: the median lesion should be ten pixels across or
            more. A bundle has its own.

    Raises:
        ValueError: If neither or both of bundle and predictions are given, or a scan cannot be scored.
    """
    _refuse_contradictions(bundle, predictions, prompted_masks, output, (pixel_mm, backbone_weights))
    _refuse_options(predictions, reader, protocol, score_processes)
    from mois.cli.choose_scans import ScanChoice, choose_scans
    from mois.cli.evaluated_model import evaluation_on, load_evaluated
    from mois.cli.terminal import PlainConsole
    from mois.evaluation.evaluate_scans import evaluate_scans
    from mois.evaluation.scored_systems import EvaluationOptions, evaluation_of_maps
    from mois.files.folder_lock import locked
    from mois.inference.execution import chosen_device
    from mois.machine.processes import joined

    asked = protocol_settings(reader, protocol, seed)
    base = EvaluationOptions(asked, channel, instances, output.robustness, seed, output.title)
    choice = ScanChoice(split, subjects, fold, channel, protocol.target_class)
    with joined() as processes, locked(out) if processes.first else nullcontext():
        if predictions is not None:
            scans, _ = choose_scans(data, choice, {})
            evaluation = evaluation_of_maps(base, predictions, prompted_masks, kind, scans)
        else:
            at = str(chosen_device(device, processes.local_rank))
            model = load_evaluated(bundle or "", pixel_mm, at, trust, backbone_weights)
            scans, evaluation = evaluation_on(base, data, choice, model)
        console = PlainConsole(stderr=True) if processes.first else None
        metrics = evaluate_scans(evaluation, scans, out, console, processes, score_processes)
        if processes.first:
            _present(evaluation, scans, metrics, out, tracking if log else None, [data, bundle, predictions])


def _present(
    evaluation: Evaluation,
    scans: Sequence[SubjectFiles],
    metrics: Mapping[str, Any],
    out: Path,
    tracking: TrackingSettings | None,
    paths: Sequence[Path | None],
) -> None:
    """Write the report, record the results with W&B if asked for, and print the figures."""
    from mois.report.evaluation_page import write_evaluation_report

    write_evaluation_report(evaluation, scans, out)
    if tracking is not None:
        from mois.cli.log_evaluation import log_evaluation

        log_evaluation(evaluation, scans, metrics, out, tracking, [path for path in paths if path is not None])
    show_figures(metrics, out)


def _refuse_contradictions(
    bundle: Path | None,
    predictions: Path | None,
    prompted_masks: Path | None,
    output: OutputOptions,
    of_a_model: tuple[float | None, Path | None],
) -> None:
    if (bundle is None) == (predictions is None):
        raise ValueError("give one of --bundle (a model) and --predictions (another system's maps).")
    for option, value in zip(("--pixel_mm", "--backbone_weights"), of_a_model, strict=True):
        if predictions is not None and value is not None:
            raise ValueError(f"{option} belongs to a model; leave it out, or give --bundle instead of --predictions.")
    if prompted_masks is not None and predictions is None:
        raise ValueError("--prompted_masks belongs to --predictions; a bundle prompts by itself.")
    if output.robustness and predictions is not None:
        raise ValueError(
            "--output.robustness needs a model to run on changed scans; give --bundle instead of --predictions."
        )


def _refuse_options(
    predictions: Path | None, reader: ReaderOptions, protocol: ProtocolOptions, score_processes: int | None
) -> None:
    """Refuse options out of range, and those that need a session with a model, if predictions are scored."""
    if score_processes is not None and score_processes < 0:
        raise ValueError(f"--score_processes={score_processes} must be 0 or more.")
    for option, asked in (
        (f"--reader.strategy={reader.strategy}", reader.strategy in ("suggested", "corrects")),
        ("--protocol.actions", bool(protocol.actions)),
    ):
        if asked and predictions is not None:
            raise ValueError(f"{option} needs a model to work with; give --bundle instead of --predictions.")


def show_figures(metrics: Mapping[str, Any], out: Path) -> None:
    """Print the figures of all scans with their intervals, and remarks on them."""
    from rich.table import Table

    from mois.cli.terminal import PlainConsole
    from mois.report.evaluation_page import other_system
    from mois.sharing.remarks import COMPARED, remarks, stored_made_worse

    summary = metrics["summary"]
    table = Table(title=f"{summary['n_subjects']} scans of {summary['n_patients']} patients")
    for column in ("", "mean", "95 % interval", "scans"):
        table.add_column(column, justify="left" if not column else "right")
    for name, path in SHOWN.items():
        estimate = summary
        for part in path:
            estimate = estimate[part]
        mean, ends = estimate["mean"], estimate["ci95"]
        interval = "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        table.add_row(name, "-" if mean is None else f"{mean:.3f}", interval, str(estimate["n"]))
    console = PlainConsole()
    console.print(table)
    words = summary["conditioning"]
    said = [] if other_system(metrics) else remarks(*(words[name]["mean"] for name in COMPARED))
    said += [f"the model's own validation: {sentence}" for sentence in stored_made_worse(metrics["provenance"])]
    for remark in said:
        console.print(remark, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
