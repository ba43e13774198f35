"""What a command tells the user."""

from __future__ import annotations

import sys

from mois.shown_text import shown


def say(line: str) -> None:
    """Write a line to the terminal at once."""
    sys.stdout.write(shown(line) + "\n")
    sys.stdout.flush()
