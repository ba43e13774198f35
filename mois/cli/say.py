"""What a command tells the user."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Write a line to the terminal at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
