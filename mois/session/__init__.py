"""The session of a reader and a model on one scan: prompts, propagation, corrections, and a journal of them."""

from mois.session.advice import Influence, Suggestion
from mois.session.interactive import InteractiveSession
from mois.session.output_files import LesionRow
from mois.session.state import Preview, State

__all__ = ["Influence", "InteractiveSession", "LesionRow", "Preview", "State", "Suggestion"]
