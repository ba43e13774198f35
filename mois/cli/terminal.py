"""Tables and lines on a terminal, in which a name is a name."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from mois.errors import without_control_codes


class PlainConsole(Console):
    """A console that shows every text, also in tables, as it is: no markup, no emoji, no control codes."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return what stands for a text."""
        return super().render_str(without_control_codes(text), **options)


def accept_all_signs() -> None:
    """Let what the terminal's encoding has no sign for be written in words, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
