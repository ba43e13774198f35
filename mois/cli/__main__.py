"""`python -m mois.cli`."""

from mois.cli import script

script()
