"""The script of `mois completion`, run by bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mois.cli import main as mois_main

pytestmark = pytest.mark.usefixtures("work_elsewhere")


@pytest.fixture(scope="module")
def script() -> str:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("mois.cli.completion.say", lines.append)
        mois_main(["completion", "bash"])
    return "\n".join(lines)


def completed(script: str, *words: str) -> set[str]:
    """Return what bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _mois; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return set(run.stdout.split())


def test_commands_options_configs_and_files_are_completed(script: str) -> None:
    Path("mine.yaml").touch()
    assert completed(script, "mois", "con") == {"configs"}
    assert {"fit", "bank", "demo"} <= completed(script, "mois", "")
    assert {"ls", "show", "merge"} <= completed(script, "mois", "bank", "")
    assert completed(script, "mois", "bank", "merge", "--o") == {"--out"}
    assert completed(script, "mois", "fit", "--trainer.max_s") == {"--trainer.max_steps"}
    assert completed(script, "mois", "fit", "--config", "de") == {"demo"}
    assert completed(script, "mois", "fit", "--config", "mi") == {"mine.yaml"}
    assert completed(script, "mois", "segment", "--bun") >= {"--bundle"}


def test_zsh_gets_the_same_after_what_it_needs_to_run_it(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    mois_main(["completion", "zsh"])
    said = capsys.readouterr().out
    assert said.startswith("autoload")
    assert said.rstrip().endswith(script)


def test_another_shell_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mois_main(["completion", "fish"])
    assert capsys.readouterr().err == "error: shell=fish is not allowed; give bash, zsh\n"
