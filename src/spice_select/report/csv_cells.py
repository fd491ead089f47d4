"""Cells of comma-separated tables that people open in a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")
"""What a spreadsheet takes a text that begins with it for: a formula, which may call programs and send what it sees.

The full-width forms of the four signs are among them: some spreadsheets read them as the plain ones.
"""


def cell(value: Any) -> Any:
    """A value that no spreadsheet computes: before a text that begins as a formula, an apostrophe; numbers stay.

    A carriage return becomes a line feed: Python's writer leaves it without quotes, and readers end the line there.

    Args:
        value: What the cell holds.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if value.lstrip(" ").startswith(_FORMULA) else text


def cells(line: Mapping[str, Any]) -> dict[str, Any]:
    """All cells of a line, by the names of their columns."""
    return {cell(name): cell(value) for name, value in line.items()}
