"""Gradient rows in, an ordered subset out: SPICE's greedy selection, exactly (arXiv 2601.23155)."""

from spice_select.selection.api import select, select_gram
from spice_select.selection.budget import Budget, resolve_budget
from spice_select.selection.fisher import FisherName, log_det, make_information
from spice_select.selection.options import LoopName, NormalizeName, PenaltyName, ReferenceName
from spice_select.selection.quotas import proportional
from spice_select.selection.result import Selection, StopReason
from spice_select.selection.rows import Rows

__all__ = [
    "Budget",
    "FisherName",
    "LoopName",
    "NormalizeName",
    "PenaltyName",
    "ReferenceName",
    "Rows",
    "Selection",
    "StopReason",
    "log_det",
    "make_information",
    "proportional",
    "resolve_budget",
    "select",
    "select_gram",
]
