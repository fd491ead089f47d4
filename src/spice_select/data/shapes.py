"""What values look like, and what a schema says about columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spice_select.data.conversation import Kind

DEEPEST = 100
"""Levels of lists and objects within each other: readers of parquet follow no more, and no row of use has as many."""

ROLES = ("messages", "prompt", "response", "context", "system", "history", "tools", "text")


@dataclass(frozen=True)
class Schema:
    """What the columns of a source mean.

    Attributes:
        kind: ``messages`` (role, content), ``conversations`` (from, value), ``pair`` (prompt and response) or ``text``.
        columns: Column of each role that is used.
    """

    kind: Kind
    columns: Mapping[str, str]

    def describe(self) -> str:
        """One line: the kind, and each column with its role."""
        parts = [name if name == role else f"{name} as {role}" for role, name in self.columns.items()]
        return f"{self.kind}: {', '.join(parts)}"


def chat_kind(value: Any) -> Kind | None:
    """``messages`` or ``conversations`` for a list of turns, or JSON text of one; None for anything else."""
    turns = parse_json(value)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    if all("role" in turn for turn in turns):
        return "messages"
    if all("from" in turn and "value" in turn for turn in turns):
        return "conversations"
    return None


def parse_json(value: Any) -> Any:
    """Objects and lists that a column holds as JSON text (CSV files do); any other value is returned as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return value if too_deep(parsed) else parsed
    return value


def too_deep(value: Any) -> bool:
    """Whether lists and objects lie within each other more than ``DEEPEST`` deep."""
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        depth += 1
        if depth > DEEPEST:
            return True
    return False


def _inside(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def is_scalar(value: Any) -> bool:
    """Whether a value can stand as the text of a turn: text, a number or a truth value."""
    return isinstance(value, str | int | float)
