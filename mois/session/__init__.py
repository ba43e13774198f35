"""The session of a reader and a model on one scan: prompts, propagation, corrections, and a journal of them."""

from mois.session.advice import Influence, Suggestion
from mois.session.follow_up import Change, Comparison, TimePoint, read_time_point, write_comparison
from mois.session.interactive import InteractiveSession
from mois.session.output_files import LesionRow
from mois.session.state import Preview, State

__all__ = [
    "Change",
    "Comparison",
    "Influence",
    "InteractiveSession",
    "LesionRow",
    "Preview",
    "State",
    "Suggestion",
    "TimePoint",
    "read_time_point",
    "write_comparison",
]
