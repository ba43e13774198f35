"""`mois compare`."""

from __future__ import annotations

from pathlib import Path


def compare(runs: list[Path], out: Path = Path("comparison"), names: list[str] | None = None, seed: int = 0) -> None:
    """Compare results on the same scans: paired differences per patient, with tests.

    Args:
        runs: Two or more folders with metrics.json, or folders of tested trainings; the words after `mois compare`.
        out: Folder for compare.json and compare.html.
        names: A name for each folder; by default the parts of the paths that differ.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If a folder holds no results, or no scan is in all of them.
    """
    from rich.table import Table

    from mois.cli.terminal import PlainConsole
    from mois.files.folder_lock import locked
    from mois.report.charts import in_words
    from mois.report.comparison import FIGURES, named_results, p_text, pair, signed, write_comparison
    from mois.report.results import Estimate

    given = named_results(runs, names)
    with locked(out):
        comparison = write_comparison(out, given, seed=seed)
    figures = Table(title=f"{len(comparison['scans'])} scans of {comparison['patients']} patients")
    figures.add_column("")
    for name in comparison["runs"]:
        figures.add_column(name, justify="right", overflow="fold")
    for figure in FIGURES:
        means = [run[figure]["mean"] for run in comparison["runs"].values()]
        figures.add_row(in_words(figure), *("-" if mean is None else f"{mean:.3f}" for mean in means))
    tests = Table(title="differences per patient: 95 % interval; p by Wilcoxon, corrected by Holm")
    tests.add_column("", overflow="fold")
    tests.add_column("difference", justify="right", no_wrap=True)
    tests.add_column("p", justify="right", no_wrap=True)
    for figure in FIGURES:
        tests.add_row(in_words(figure), style="bold")
        for entry in (entry for entry in comparison["comparisons"] if entry["figure"] == figure):
            tests.add_row(pair(entry), signed(Estimate.of(entry)), p_text(entry["p_holm"]))
    console = PlainConsole()
    console.print(figures)
    console.print(tests)
    for remark in comparison["remarks"]:
        console.print(remark, soft_wrap=True, markup=False)
    for key, values in comparison["protocol_differences"].items():
        console.print(f"protocols differ in {key}: {values}", soft_wrap=True, markup=False)
    console.print(f"report: {out / 'compare.html'}", soft_wrap=True)
