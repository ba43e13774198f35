"""`python -m mois`."""

from mois.cli import script

script()
