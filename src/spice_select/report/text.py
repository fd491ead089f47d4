"""Text from rows made safe to look at: what steers a terminal or a page becomes a visible mark."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

PREVIEW_CHARACTERS = 140
"""Shown of a row before it is opened."""
ROW_CHARACTERS = 3000
"""Kept of a row in all."""
ROW_BYTES = 5000
"""Kept of a row in all as it is written: what must be escaped, and what is no ASCII, takes more."""
SNIPPET_CHARACTERS, SNIPPET_BYTES = 400, 420
"""Kept of a row that is a point of the map."""
_ESCAPED_LETTERS = "<>&\"'\\"
_ESCAPED = re.compile(f"[{re.escape(_ESCAPED_LETTERS)}]")
_ESCAPED_BYTES = 6

_BIDIRECTIONAL = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
_LINE_BREAKS = {0x0B, 0x0C, 0x85, 0x2028, 0x2029}


def plain(text: object) -> str:
    """Text without control, direction or invisible tag characters; each is shown by a mark in its place."""
    return _UNUSUAL.sub(lambda found: _visible(found[0]), _lines(text))


def _lines(text: object) -> str:
    return str(text).replace("\r\n", "\n").replace("\r", "\n")


def _visible(character: str) -> str:
    code = ord(character)
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


def shown_turns(
    messages: Iterable[tuple[str, str]], limit: int = ROW_CHARACTERS, weight: int = ROW_BYTES
) -> tuple[Turn, ...]:
    """Messages cut to ``limit`` characters in all; the last gets what the others leave, and at least a third.

    Args:
        messages: Role and text of every message.
        limit: Characters kept.
        weight: Bytes kept, as they are written.
    """
    given = [(str(role), str(text)) for role, text in messages]
    turns: list[Turn] = []
    left, bytes_left = limit, weight
    for place, (role, text) in enumerate(given):
        remaining = len(given) - place
        # A long prompt must not hide the response, which is what is trained.
        allowed = left if remaining == 1 else min(left, max(0, left - limit // 3))
        heavy = bytes_left if remaining == 1 else min(bytes_left, max(0, bytes_left - weight // 3))
        kept, left_out = _cut(text, allowed, heavy)
        turns.append(Turn(plain(role[:40])[:40], kept, left_out))
        left -= len(kept)
        bytes_left -= _weight(kept)
    return tuple(turns)


def snippet(messages: Iterable[tuple[str, str]]) -> str:
    """The beginning of each message, in a few lines: a row as a point of the map shows it."""
    turns = shown_turns(messages, SNIPPET_CHARACTERS, SNIPPET_BYTES)
    said = []
    for turn in turns:
        words = " ".join(turn.text.split()) + (" \u2026" if turn.left_out else "")
        if words:
            said.append(f"{turn.role}: {words}")
    return "\n".join(said)


def _weight(text: str) -> int:
    """Bytes of a text as it is written, at most."""
    return len(text.encode()) + (_ESCAPED_BYTES - 1) * len(_ESCAPED.findall(text))


def _cut(text: str, most: int, heaviest: int) -> tuple[str, int]:
    """The longest beginning that is within both limits once made plain, and how many characters follow it."""
    lines = _lines(text)
    head = lines[:most]
    if not _UNUSUAL.search(head) and _weight(head) <= heaviest:
        return head, len(lines) - len(head)
    kept: list[str] = []
    for place, character in enumerate(lines):
        unusual = _UNUSUAL.match(character) is not None
        shown = _visible(character) if unusual else character
        most -= len(shown)
        heaviest -= _weight(shown) if unusual else _ESCAPED_BYTES if character in _ESCAPED_LETTERS else 1
        if most < 0 or heaviest < 0:
            return "".join(kept), len(lines) - place
        kept.append(shown)
    return "".join(kept), 0


def escape_markdown(text: object) -> str:
    """Text on one line in which nothing is markup or HTML."""
    line = " ".join(plain(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&$@!])", r"\\\1", line)


def preview(turns: Sequence[Turn], limit: int = PREVIEW_CHARACTERS) -> str:
    """The beginning of a row in one line."""
    spoken = [turn for turn in turns if turn.role != "system"] or list(turns)
    said = [" ".join(turn.text[: 4 * limit].split()) for turn in spoken]
    words = " \u2192 ".join(text for text in said if text)
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "\u2026"
