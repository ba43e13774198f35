from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.command_lines import train


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that has to end with code 2, and return the one line that it says."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*arguments)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run
