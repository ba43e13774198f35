"""Lesions of two time points of a patient: which are the same, new or gone, and how their volumes change."""

from mois.session.follow_up.alignment import Alignment, align, labels_on, picture_on
from mois.session.follow_up.changes import Change, Comparison, Status
from mois.session.follow_up.matching import compare_time_points
from mois.session.follow_up.table import columns, comparison_rows, write_comparison
from mois.session.follow_up.time_points import HasLesions, TimePoint, read_time_point, time_point_of

__all__ = [
    "Alignment",
    "Change",
    "Comparison",
    "HasLesions",
    "Status",
    "TimePoint",
    "align",
    "columns",
    "compare_time_points",
    "comparison_rows",
    "labels_on",
    "picture_on",
    "read_time_point",
    "time_point_of",
    "write_comparison",
]
