"""Tables and lines on a terminal. Names are shown as they are, without markup."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from mois.errors import without_control_codes


class PlainConsole(Console):
    """Console that shows every text as it is, also in tables: without markup, emoji and control codes."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text in the form in which the console shows it."""
        return super().render_str(without_control_codes(text), **options)


def accept_all_signs() -> None:
    """Write escape codes for signs that the terminal's encoding lacks, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
