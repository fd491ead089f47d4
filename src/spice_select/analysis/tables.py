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
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{max(digits - 2, 1)}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1 - math.ceil(math.log10(abs(value))) if value else 1
    decimals = max(digits - whole, 0) if abs(value) >= 1 else digits + whole - 2 if value else 0
    return f"{value:,.{min(decimals, 8)}f}"


def percent(share: float | None) -> str:
    """A share with one decimal."""
    return "-" if share is None else f"{share:.1%}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, but for those of words.

    Text is made printable: control characters, which a terminal would obey, become replacement characters.

    Args:
        head: Names of the columns.
        lines: Cells; each line as long as the head.
        indent: What every line begins with.
    """
    cells = [[_printable(cell, WIDEST_NAME if place == 0 else 24) for place, cell in enumerate(line)] for line in lines]
    table = [list(head), *cells]
    widths = [max(_width(line[column]) for line in table) for column in range(len(head))]
    words = [
        all(not any(character.isdigit() for character in line[column]) for line in cells) for column in range(len(head))
    ]
    shown = []
    for line in table:
        parts = [
            cell + " " * (width - _width(cell)) if place == 0 or words[place] else " " * (width - _width(cell)) + cell
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append((indent + "  ".join(parts)).rstrip())
    return shown


def _printable(text: str, most: int) -> str:
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    if _width(clean) <= most:
        return clean
    while _width(clean) > most - 1:
        clean = clean[:-1]
    return clean + "\N{HORIZONTAL ELLIPSIS}"


def _width(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
