"""Private characters around the contents of a conversation, which show where a chat template puts them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spice_select.data.templates import ChatTemplate, TemplateFailure

Turn = Mapping[str, Any]
Span = tuple[int, int]

PRIVATE_FIRST, PRIVATE_LAST = 0x100000, 0x10FFFD
PRIVATE = re.compile(f"[{chr(PRIVATE_FIRST)}-{chr(PRIVATE_LAST)}]")
"""The private-use plane that sentinels are taken from, past the characters that the data itself has of it."""


# Around everything; inside the outer white space, for templates that strip; on assistant turns only, for templates that
# look at how a user's content begins; and only at the end of those, for templates that look at how theirs begins.
_STYLES = ("outside", "inside", "assistant", "end")


@dataclass(frozen=True)
class Marked:
    """A rendering with sentinels, taken apart.

    Attributes:
        text: The text without them.
        starts: Where the contents of turns begin.
        ends: Where they end, or where the last call of a tool is named if that is behind them.
        blocks: Generation blocks.
        called: Turns whose calls of tools are written.
        complete: Whether a turn without borders is known not to be written.
    """

    text: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]
    blocks: tuple[Span, ...]
    called: frozenset[int] = frozenset()
    complete: bool = True

    def next_border(self, position: int) -> int:
        """The first border of a content behind a position, or the end of the text."""
        return min((p for p in [*self.starts.values(), *self.ends.values()] if p > position), default=len(self.text))

    def previous_end(self, turn: int) -> int:
        """Where the last of the contents before a turn ends."""
        return max((end for other, end in self.ends.items() if other < turn), default=0)


class Sentinels:
    """The sentinels of one conversation.

    Args:
        template: The template.
        turns: How many turns there are at most.
        taken: Private characters that the data itself has.

    Raises:
        TemplateFailure: There are not enough private characters.
    """

    def __init__(self, template: ChatTemplate, turns: int, taken: str) -> None:
        self._template = template
        needed = 3 * (turns + 1) + 2
        marks: list[str] = []
        code = PRIVATE_FIRST
        while len(marks) < needed:
            if code > PRIVATE_LAST:
                raise TemplateFailure("it has more turns than there are private characters to tell them apart")
            if chr(code) not in taken:
                marks.append(chr(code))
            code += 1
        self._marks = marks
        self._numbers = {mark: number for number, mark in enumerate(marks)}
        self._pattern = re.compile(f"[{re.escape(''.join(marks))}]")
        self.style = "outside"
        """The style that changes nothing else in the rendering, once :meth:`like` has found it."""

    def like(self, turns: Sequence[Turn], tools: Any, plain: str) -> Marked | None:
        """The rendering with sentinels, in the first style that changes nothing else."""
        for style in _STYLES:
            try:
                marked = self.rendered(turns, tools, style)
            except TemplateFailure:
                continue
            if marked is not None and marked.text == plain:
                self.style = style
                return marked
        # Templates that change a content which holds a sentinel: what is written exactly once is still certain.
        contents = {number: text_of(turn).strip() for number, turn in enumerate(turns)}
        starts = {n: plain.find(text) for n, text in contents.items() if text and plain.count(text) == 1}
        return (
            Marked(plain, starts, {n: at + len(contents[n]) for n, at in starts.items()}, (), complete=False)
            if starts
            else None
        )

    def rendered(self, turns: Sequence[Turn], tools: Any, style: str) -> Marked | None:
        """A rendering with sentinels of a style; None where generation blocks overlap with them."""
        sealed = [self._seal(turn, number, style) for number, turn in enumerate(turns)]
        blocks = (self._marks[-2], self._marks[-1])
        text = self._template.render(sealed, tools, marks=blocks if self._template.has_generation else None)
        pieces: list[str] = []
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        calls: dict[int, int] = {}
        twice: set[int] = set()
        spans: list[Span] = []
        opened: list[int] = []
        position = done = 0
        for match in self._pattern.finditer(text):
            piece = text[done : match.start()]
            pieces.append(piece)
            position += len(piece)
            done = match.end()
            number = self._numbers[match.group()]
            if number == len(self._marks) - 2:
                opened.append(position)
            elif number == len(self._marks) - 1:
                if not opened:
                    return None
                spans.append((opened.pop(), position))
            elif number % 3 == 2:
                calls.setdefault(number // 3, position)  # an answer may name its call again
            else:
                side = ends if number % 3 else starts
                if number // 3 in side:
                    twice.add(number // 3)
                side[number // 3] = position
        pieces.append(text[done:])
        for number in twice:  # written more than once: which of them is the response cannot be told
            starts.pop(number, None)
            ends.pop(number, None)
        for number, at in calls.items():
            ends[number] = max(at, ends.get(number, at))
        return Marked("".join(pieces), starts, ends, tuple(spans), frozenset(calls))

    def _seal(self, turn: Turn, number: int, style: str) -> Turn:
        """Put sentinels around a turn's content, and one behind the name of the last tool that it calls."""
        start, end, call = self._marks[3 * number : 3 * number + 3]
        sealed = dict(turn)
        if turn.get("tool_calls"):
            *others, last = turn["tool_calls"]
            function = {**last["function"], "name": str(last["function"]["name"]) + call}
            sealed["tool_calls"] = [*others, {**last, "function": function}]
        text = text_of(turn)
        if not text or (style in ("assistant", "end") and turn.get("role") != "assistant"):
            return sealed
        lead, trail = len(text) - len(text.lstrip()), len(text.rstrip())
        if style == "outside" or lead >= trail:
            lead, trail = 0, len(text)
        marked = text[:lead] + ("" if style == "end" else start) + text[lead:trail] + end + text[trail:]
        sealed["content"] = as_content(marked, isinstance(turn["content"], list))
        return sealed


def text_of(turn: Turn) -> str:
    """The content of a turn as text, whatever form the template takes it in."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def as_content(text: str, parts: bool) -> Any:
    """Text as the content of a turn: a string, or a list of one text part for templates that take lists."""
    return [{"type": "text", "text": text}] if parts else text
