"""Text from rows made safe to look at: what steers a terminal or a page becomes a visible mark."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

PREVIEW_CHARACTERS = 140
"""Shown of a row before it is opened."""
ROW_CHARACTERS = 3000
"""Kept of a row in all. 200 rows of nothing but quotation marks, five bytes each once escaped, stay within 3 MB."""

_BIDIRECTIONAL = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_LINE_BREAKS = {0x0B, 0x0C, 0x85, 0x2028, 0x2029}


def plain(text: object) -> str:
    """Text without control, direction or invisible tag characters; each is shown by a mark in its place."""
    lines = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(_visible(character) for character in lines)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or 0x20 <= code < 0x7F:
        return character
    if code in _LINE_BREAKS:
        return "\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code in _BIDIRECTIONAL or code == 0xFEFF or 0xE0000 <= code <= 0xE007F:
        return f"[U+{code:04X}]"
    # Lone surrogates can't be encoded, and C1 controls and non-characters have no look.
    if unicodedata.category(character) in {"Cc", "Cs"} or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return "\ufffd"
    return character


def markup(text: object) -> Markup:
    """Text ready for a page: made plain, then escaped."""
    return escape(plain(text))


@dataclass(frozen=True)
class Turn:
    """One message of a row as the page shows it.

    Attributes:
        role: Who speaks.
        text: What is shown.
        left_out: Characters that are not shown.
    """

    role: str
    text: str
    left_out: int


def shown_turns(messages: Iterable[tuple[str, str]], limit: int = ROW_CHARACTERS) -> tuple[Turn, ...]:
    """Messages cut to ``limit`` characters in all; the last gets what the others leave, and at least a third.

    Args:
        messages: Role and text of every message.
        limit: Characters kept.
    """
    given = [(str(role), str(text)) for role, text in messages]
    turns: list[Turn] = []
    left = limit
    for place, (role, text) in enumerate(given):
        remaining = len(given) - place
        # A long prompt must not hide the response, which is what is trained.
        allowed = left if remaining == 1 else min(left, max(0, left - limit // 3))
        # Marks are longer than what they stand for, so the cut is made on what is shown.
        kept = plain(text[:allowed])[:allowed]
        turns.append(Turn(plain(role[:40]), kept, max(0, len(text) - allowed)))
        left -= len(kept)
    return tuple(turns)


def preview(turns: Sequence[Turn], limit: int = PREVIEW_CHARACTERS) -> str:
    """The beginning of a row in one line."""
    words = " ".join(" ".join(turn.text[: 4 * limit].split()) for turn in turns if turn.role != "system")
    words = words or " ".join(" ".join(turn.text[: 4 * limit].split()) for turn in turns)
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "\u2026"
