"""Plain tables and numbers for a terminal of eighty columns."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

WIDEST_NAME = 30


def number(value: float | None, *, digits: int = 4) -> str:
    """A number of about so many significant digits, with thousands set apart; ``-`` for none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{max(digits - 2, 1)}e}"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def percent(share: float | None) -> str:
    """A share with one decimal."""
    return "-" if share is None else f"{share:.1%}"


def aligned(
    head: Sequence[str], lines: Sequence[Sequence[str]], *, words: Sequence[int] = (0,), indent: str = "  "
) -> list[str]:
    """Lines of a table: columns of words to the left, those of numbers to the right.

    Text is made printable: control characters, which a terminal would obey, become replacement characters.

    Args:
        head: Names of the columns.
        lines: Cells; each line as long as the head.
        words: Columns of words.
        indent: What every line begins with.
    """
    table = [list(head), *([printable(cell) for cell in line] for line in lines)]
    widths = [max(_width(line[column]) for line in table) for column in range(len(head))]
    shown = []
    for line in table:
        parts = []
        for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - _width(cell))
            parts.append(cell + space if column in words else space + cell)
        shown.append((indent + "  ".join(parts)).rstrip())
    return shown


def printable(text: str, most: int = WIDEST_NAME) -> str:
    """Text that a terminal shows as it is, in at most so many columns."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    if _width(clean) <= most:
        return clean
    kept = ""
    for character in clean:
        if _width(kept + character) >= most:
            break
        kept += character
    return kept + "\N{HORIZONTAL ELLIPSIS}"


def _width(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
