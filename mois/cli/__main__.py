"""`python -m mois.cli`."""

from mois.cli import main

main()
