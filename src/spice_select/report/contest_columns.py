"""A column of a table that has a line for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spice_select.analysis.contest import MethodLine


@dataclass(frozen=True)
class Column:
    """One column of a table with a line for every method.

    Attributes:
        title: Its head.
        short: Its head where there is little room.
        cell: What stands in it.
    """

    title: str
    short: str
    cell: Callable[[MethodLine], str]
