"""A name may hold anything: it is shown as it is on a terminal and in a picture, and never ends a program."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.table import Table

from mois.cli import main
from mois.cli.messages import one_line_errors, say
from mois.cli.terminal import PlainConsole
from mois.errors import without_control_codes
from mois.report import charts
from mois.report.results import Estimate
from tests.support.paths import FIXTURES

FIRST = FIXTURES / "format_1" / "evaluated"
NAMES = ["a[/x]b", "[bold]", "$x_{y$", "\x1b[31mred", "a\x07b", "\u202egnp.exe", "\ud800", ":smile:", "=cmd()"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_command_to_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    out = capsys.readouterr().out
    assert all(sign.isprintable() for sign in out.rstrip("\n"))
    console = PlainConsole()
    console.file = io.StringIO()
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(name, soft_wrap=True)
    console.print(table)
    written = console.file.getvalue()
    assert without_control_codes(name) in written
    assert "\x1b[31m" not in written
    assert "\x07" not in written
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError(f"out={name} is taken")
    assert capsys.readouterr().err == f"error: out={without_control_codes(name)} is taken\n"


@pytest.mark.parametrize("name", ["a[/x]b", "$x_{y$", "=cmd()", "[bold]", "\x1b[31mred"])
def test_results_of_any_name_are_compared_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("one", f"x{number_free(name)}")):
        shutil.copytree(FIRST, tmp_path / folder / str(number))
    main(["compare", "one/0", f"x{number_free(name)}/1", "--out", f"to{number_free(name)}"])
    said = capsys.readouterr().out
    assert "\x1b[31m" not in said
    assert (tmp_path / f"to{number_free(name)}" / "compare.html").is_file()


def number_free(name: str) -> str:
    """Return a name as a folder may have it."""
    return name.replace("/", "\N{FRACTION SLASH}")


def test_a_dollar_in_a_chart_is_a_dollar() -> None:
    drawn = {"$x_{y$": {"$\\frac$": Estimate(0.5, 0.4, 0.6, 3)}}
    assert charts.bars(drawn, "$Dice_{").startswith("data:image")
