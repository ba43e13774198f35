"""Tables and lines on a terminal, in which a name is a name."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from mois.shown_text import shown


class PlainConsole(Console):
    """A console that shows every text, also in tables, as it is: no markup, no emoji, no control codes."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return what stands for a text."""
        return super().render_str(shown(text), **options)
