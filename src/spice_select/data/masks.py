"""Where the responses lie in what a chat template renders.

Four ways, each used only where the ones before it fail:

1. generation blocks, where the template has them;
2. the rendered prefix: the conversation up to a turn, with the generation prompt, is the beginning of the whole
   rendering;
3. sentinels: the contents are rendered again between private characters, which show where each of them went;
4. the last turn alone, rendered without what follows it.

A response ends with the text that closes its turn, such as ``<|im_end|>``; white space after that is not part of it.
What closes a turn is not looked up by name: it is what stays the same whether or not another turn follows.
"""

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


@dataclass(frozen=True)
class Located:
    """A rendering and the responses in it.

    Attributes:
        text: What the template rendered.
        spans: Start and end of each trained response in it, in order.
        strategy: ``generation``, ``prefix``, ``sentinel`` or ``last-turn``.
        ended: Whether each response ends with a special token.
    """

    text: str
    spans: tuple[Span, ...]
    strategy: str
    ended: bool


@dataclass(frozen=True)
class _Marked:
    """A rendering with sentinels, taken apart: the text without them, and where they were."""

    text: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]
    blocks: tuple[Span, ...]
    complete: bool = True
    """Whether a turn without borders is known not to be written."""

    def next_border(self, position: int) -> int:
        return min((p for p in [*self.starts.values(), *self.ends.values()] if p > position), default=len(self.text))

    def previous_end(self, turn: int) -> int:
        return max((end for other, end in self.ends.items() if other < turn), default=0)


class ResponseFinder:
    """Finds the responses in the renderings of one template.

    Args:
        template: The template.
        special: Pattern of the special tokens' strings.
    """

    # Sentinels around everything; inside the outer white space (for templates that strip); on assistant turns only (for
    # templates that look at how a user's content begins); and only at the end of those (for templates that look at how
    # theirs begins).
    _STYLES = ("outside", "inside", "assistant", "end")

    def __init__(self, template: ChatTemplate, special: re.Pattern[str]) -> None:
        self.template = template
        self._special = special
        self._tails: dict[tuple[str, str | None], tuple[int, bool]] = {}
        self._headers: set[str] = set()

    def find(self, turns: Sequence[Turn], tools: Any, trained: Sequence[int], free: str = "") -> Located:
        """Find the trained responses.

        Args:
            turns: Messages as the template takes them.
            tools: Tools as the template takes them.
            trained: Numbers of the turns to find, in order.
            free: Private characters that the data itself has, and that can be no sentinels.

        Raises:
            TemplateFailure: The template refuses the conversation, or hides even its last response.
        """
        return _Search(self, turns, tools, trained, free).run()

    def common(self, first: str, second: str) -> int:
        """Length of the common beginning, special tokens being whole or absent."""
        low, high = 0, min(len(first), len(second))
        while low < high:
            middle = (low + high + 1) // 2
            if first[:middle] == second[:middle]:
                low = middle
            else:
                high = middle - 1
        length = low
        for text in (first, second):
            for match in self._special.finditer(text, max(0, low - 128)):
                if match.start() >= low:
                    break
                if match.end() > low:
                    length = min(length, match.start())
        return length

    def closing(self, tail: str, other: str | None, last: bool) -> tuple[int, bool]:
        """How much of ``tail``, the text after a response, closes its turn.

        Args:
            tail: Text after the response in the rendering at hand.
            other: The same with other things following, or None if unknown.
            last: Whether the turn is the last of the conversation.

        Returns:
            The length, and whether a special token is part of it.
        """
        shared = len(tail) if other is None and last else self.common(tail, other or "")
        closing = tail[:shared].rstrip()
        if self._special.search(closing):
            return len(closing), True
        # Some templates close the last turn by another token than an earlier one, so that nothing is shared. Of an
        # earlier turn the only special token before the next content opens the next turn; a closing one has another
        # behind it.
        specials = self.special_spans(tail)
        if len(specials) >= (1 if last else 2) and not tail[len(closing) : specials[0][0]].strip():
            return specials[0][1], True
        return len(closing), False

    def is_special(self, text: str) -> bool:
        """Whether a special token is in the text."""
        return self._special.search(text) is not None

    def special_spans(self, text: str) -> list[Span]:
        """Where the special tokens of a text are."""
        return [match.span() for match in self._special.finditer(text)]


@dataclass(frozen=True)
class _Found:
    """One response: its spans, several where other turns lie within it, and whether a special token ends it."""

    spans: tuple[Span, ...]
    ended: bool


class _Search:
    """One conversation being searched."""

    def __init__(self, finder: ResponseFinder, turns: Sequence[Turn], tools: Any, trained: Sequence[int], free: str):
        self.finder, self.turns, self.tools, self.trained = finder, list(turns), tools, list(trained)
        self.template = finder.template
        self.taken = set(free)
        needed = 3 * (len(self.turns) + 1) + 2
        marks: list[str] = []
        code = PRIVATE_FIRST
        while len(marks) < needed:
            if code > PRIVATE_LAST:
                raise TemplateFailure("it has more turns than there are private characters to tell them apart")
            if chr(code) not in self.taken:
                marks.append(chr(code))
            code += 1
        self.marks = marks
        self.mark_numbers = {mark: number for number, mark in enumerate(marks)}
        self.mark_pattern = re.compile(f"[{re.escape(''.join(marks))}]")
        self.style: str | None = None

    def run(self) -> Located:
        plain = self.render(self.turns)
        marked = self.marked_like(plain)
        if self.template.has_generation and marked is not None:
            located = self.by_blocks(plain, marked)
            if located is not None:
                return located
        spans: list[Span] = []
        strategy, ended = "prefix", True
        for turn in self.trained:
            found = self.by_prefix(turn, plain, marked)
            if found is None:
                found = self.by_sentinel(turn, plain, marked)
                strategy = "sentinel"
            if found is None:
                return self.last_turn_alone()
            spans += found.spans
            ended = ended and found.ended
        return Located(plain, tuple(spans), strategy, ended)

    def render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        return self.template.render(turns, self.tools, generation_prompt=prompt)

    # --- sentinels

    def marked_like(self, plain: str) -> _Marked | None:
        """The rendering with sentinels, in the first style that changes nothing else."""
        for style in ResponseFinder._STYLES:
            try:
                marked = self.marked(self.turns, style)
            except TemplateFailure:
                continue
            if marked is not None and marked.text == plain:
                self.style = style
                return marked
        # Templates that change a content which holds a sentinel: what is written exactly once is still certain.
        contents = {number: text_of(turn).strip() for number, turn in enumerate(self.turns)}
        starts = {n: plain.find(text) for n, text in contents.items() if text and plain.count(text) == 1}
        return (
            _Marked(plain, starts, {n: at + len(contents[n]) for n, at in starts.items()}, (), False)
            if starts
            else None
        )

    def marked(self, turns: Sequence[Turn], style: str) -> _Marked | None:
        sealed = [self.seal(turn, number, style) for number, turn in enumerate(turns)]
        blocks = (self.marks[-2], self.marks[-1])
        text = self.template.render(sealed, self.tools, marks=blocks if self.template.has_generation else None)
        pieces: list[str] = []
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        calls: dict[int, int] = {}
        twice: set[int] = set()
        spans: list[Span] = []
        opened: list[int] = []
        position = done = 0
        for match in self.mark_pattern.finditer(text):
            piece = text[done : match.start()]
            pieces.append(piece)
            position += len(piece)
            done = match.end()
            number = self.mark_numbers[match.group()]
            if number == len(self.marks) - 2:
                opened.append(position)
            elif number == len(self.marks) - 1:
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
        return _Marked("".join(pieces), starts, ends, tuple(spans))

    def seal(self, turn: Turn, number: int, style: str) -> Turn:
        """Put sentinels around a turn's content, and one behind the name of the last tool that it calls."""
        start, end, call = self.marks[3 * number : 3 * number + 3]
        sealed = dict(turn)
        if turn.get("tool_calls"):
            *others, last = turn["tool_calls"]
            function = {**last["function"], "name": str(last["function"]["name"]) + call}
            sealed["tool_calls"] = [*others, {**last, "function": function}]
        content = turn.get("content")
        if not content or (style in ("assistant", "end") and turn.get("role") != "assistant"):
            return sealed
        text = text_of(turn)
        lead, trail = len(text) - len(text.lstrip()), len(text.rstrip())
        if style == "outside" or lead >= trail:
            lead, trail = 0, len(text)
        marked = text[:lead] + ("" if style == "end" else start) + text[lead:trail] + end + text[trail:]
        sealed["content"] = as_content(marked, isinstance(content, list))
        return sealed

    # --- the four ways

    def by_blocks(self, plain: str, marked: _Marked) -> Located | None:
        """Generation blocks, given to the turns whose contents they hold."""
        blocks = sorted(block for block in marked.blocks if block[1] > block[0])
        owners: list[int | None] = []
        assistants = [number for number, turn in enumerate(self.turns) if turn.get("role") == "assistant"]
        for start, end in blocks:
            inside = [
                number
                for number in assistants
                if any(start <= side[number] <= end for side in (marked.starts, marked.ends) if number in side)
            ]
            owners.append(inside[0] if len(inside) == 1 else None)
        if None in owners or not owners:
            # Blocks without content of their own, as of tool calls, go by their order where each turn has one block.
            if len(blocks) == len(assistants):
                owners = list(assistants)
            elif set(assistants) == set(self.trained) and blocks:
                owners = [self.trained[0]] * len(blocks)
            else:
                return None
        spans: list[Span] = []
        ended = True
        for (start, end), owner in zip(blocks, owners, strict=True):
            if owner not in self.trained:
                continue
            text = plain[start:end]
            inner = [(marked.ends[n], n) for n in assistants if n in marked.ends and start <= marked.ends[n] <= end]
            content_end, content_turn = max(inner, default=(start, -1))
            last = max(start + len(text.rstrip()), content_end)
            closed = self.finder.is_special(plain[content_end:last])
            if inner and last == content_end:
                length, closed = self.close(content_turn, plain, marked)
                last += length
            if last > start:
                spans.append((start, last))
                ended = ended and closed
        covered = all(
            any(start <= marked.ends[n] <= end for start, end in spans) for n in self.trained if n in marked.ends
        )
        return Located(plain, tuple(spans), "generation", ended) if spans and covered else None

    def by_prefix(self, turn: int, plain: str, marked: _Marked | None) -> _Found | None:
        """The rendered prefix, where it is one, with proof that it ends where the turn begins."""
        try:
            prompt = self.render(self.turns[:turn], prompt=True)
        except TemplateFailure:
            return None
        if not plain.startswith(prompt):
            return None
        start = len(prompt)
        content = marked.starts.get(turn) if marked else None
        if content is not None and content < start:
            return None
        if not any(prompt.endswith(header) for header in self.finder._headers):
            header = self.header(turn, prompt)
            if header.strip():
                self.finder._headers.add(header)
            # Without a generation prompt, what lies before the content may be a heading that the prompt should have
            # had.
            elif content is None or plain[start:content].strip():
                return None
        return self.finish(turn, start, plain, marked)

    def by_sentinel(self, turn: int, plain: str, marked: _Marked | None) -> _Found | None:
        """The content's sentinels, and before them what the model writes between generation prompt and content."""
        if marked is None:
            return None
        content = marked.starts.get(turn)
        limit = content if content is not None else marked.ends.get(turn)
        if limit is None:
            return _Found((), True) if marked.complete else None
        start = self.after_header(turn, plain, marked.previous_end(turn), limit)
        if start is None or (content is not None and start[1] and plain[start[0] : content].strip()):
            return self.finish(turn, content, plain, marked) if content is not None else None
        return self.finish(turn, start[0], plain, marked)

    def last_turn_alone(self) -> Located:
        """The last trained turn, in the whole rendering or in one that ends with it."""
        turn = self.trained[-1]
        for turns in (self.turns, self.turns[: turn + 1]):
            search = _Search(self.finder, turns, self.tools, [turn], "".join(self.taken))
            plain = search.render(turns)
            marked = search.marked_like(plain)
            found = search.by_prefix(turn, plain, marked) or search.by_sentinel(turn, plain, marked)
            if found is not None and found.spans:
                return Located(plain, found.spans, "last-turn", found.ended)
        raise TemplateFailure("its response cannot be found in what the chat template renders")

    # --- borders--

    def header(self, turn: int, prompt: str) -> str:
        """The generation prompt of a turn: what asking for it adds to the rendering."""
        try:
            without = self.render(self.turns[:turn])
        except TemplateFailure:
            return ""
        return prompt[self.finder.common(prompt, without) :]

    def after_header(self, turn: int, plain: str, lower: int, upper: int) -> tuple[int, bool] | None:
        """Where the generation prompt ends between two positions, and whether only a part of it is there."""
        try:
            header = self.header(turn, self.render(self.turns[:turn], prompt=True))
        except TemplateFailure:
            return None
        if not header.strip():
            return None
        region = plain[lower:upper]
        whole = region.rfind(header)
        if whole >= 0:
            return lower + whole + len(header), False
        best = (0, 0)
        for at in range(len(region)):
            if region[at] == header[0]:
                length = self.finder.common(region[at:], header)
                best = max(best, (length, at + length))
        specials = self.finder.special_spans(header[: best[0]])
        if not specials:
            return None
        # What goes on from here differs from the prompt; the heading is then the line of its last special token.
        line = header.find("\n", specials[-1][1], best[0])
        return (lower + best[1] - best[0] + line + 1, False) if line >= 0 else (lower + best[1], True)

    def finish(self, turn: int, start: int, plain: str, marked: _Marked | None) -> _Found | None:
        """Find the end of a turn whose start is known."""
        if marked is None:
            return None
        end = marked.ends.get(turn)
        if end is None:  # nothing of the turn is written: there is nothing to train
            return _Found((), True) if marked.complete else None
        if end < start:
            return None
        length, closed = self.close(turn, plain, marked)
        return self.own(turn, start, end + length, closed, plain, marked)

    def own(self, turn: int, start: int, end: int, closed: bool, plain: str, marked: _Marked) -> _Found | None:
        """Leave out what other turns have within a response, such as the answers of tools before its content."""
        borders = [*marked.starts.items(), *marked.ends.items()]
        foreign = [position for number, position in borders if number != turn and start < position < end]
        if not foreign:
            return _Found(((start, end),), closed)
        content = marked.starts.get(turn)
        alone = self.render(self.turns[: turn + 1])
        if content is None or not alone.startswith(plain[:start]):
            return None
        shared = start + self.finder.common(plain[start:], alone[start:])
        if not all(shared <= position <= content for position in foreign):
            return None
        return _Found(((start, shared), (content, end)) if shared > start else ((content, end),), closed)

    def close(self, turn: int, plain: str, marked: _Marked) -> tuple[int, bool]:
        """What closes a turn whose content's end is known: length after that end, and whether it is a special token."""
        end = marked.ends[turn]
        border = marked.next_border(end)
        tail = plain[end:border]
        key = None
        if not self.turns[turn].get("tool_calls") and self.style in ("outside", "inside") and len(tail) < 200:
            key = (tail, None if turn == len(self.turns) - 1 else str(self.turns[turn + 1].get("role")))
            if key in self.finder._tails:
                return self.finder._tails[key]
        other: str | None = None
        follow = self.turns[: turn + 1]
        if turn == len(self.turns) - 1:
            follow = [*follow, self.follow_up(turn)]
        try:
            again = self.marked(follow, self.style or "outside")
            if again is not None and turn in again.ends:
                other = again.text[again.ends[turn] :]
        except TemplateFailure:
            pass
        result = self.finder.closing(tail, other, last=turn == len(self.turns) - 1)
        if key is not None:
            self.finder._tails[key] = result
        return result

    def follow_up(self, turn: int) -> Turn:
        parts = any(isinstance(message.get("content"), list) for message in self.turns)
        content = as_content("x", parts)
        calls = self.turns[turn].get("tool_calls")
        if not calls:
            return {"role": "user", "content": content}
        reply = {"role": "tool", "content": content, "name": _call_name(calls[0])}
        return {**reply, "tool_call_id": calls[0]["id"]} if "id" in calls[0] else reply


def text_of(turn: Turn) -> str:
    """The content of a turn as text, whatever form the template takes it in."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def as_content(text: str, parts: bool) -> Any:
    """Text as the content of a turn: a string, or a list of one text part for templates that take lists."""
    return [{"type": "text", "text": text}] if parts else text


def _call_name(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""
