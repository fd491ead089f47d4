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
from dataclasses import dataclass, replace
from typing import Any

from spice_select.data.sentinels import Marked, Sentinels, Span, Turn, as_content
from spice_select.data.templates import ChatTemplate, TemplateFailure


@dataclass(frozen=True)
class Located:
    """A rendering and the responses in it.

    Attributes:
        text: What the template rendered.
        spans: Start and end of each trained response in it, in order.
        strategy: ``generation``, ``prefix``, ``sentinel`` or ``last-turn``.
        ended: Whether each response ends with a special token.
        lost: How many trained turns are not written, or not with the tools that they call.
    """

    text: str
    spans: tuple[Span, ...]
    strategy: str
    ended: bool
    lost: int = 0


class ResponseFinder:
    """Finds the responses in the renderings of one template.

    Args:
        template: The template.
        special: Pattern of the special tokens' strings.
    """

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
        self.free = free
        self.sentinels = Sentinels(finder.template, len(self.turns) + 1, free)

    def run(self) -> Located:
        plain = self.render(self.turns)
        marked = self.sentinels.like(self.turns, self.tools, plain)
        if self.template.has_generation and marked is not None:
            located = self.by_blocks(plain, marked)
            if located is not None:
                return replace(located, lost=self.lost(marked))
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
        return Located(plain, tuple(spans), strategy, ended, self.lost(marked))

    def lost(self, marked: Marked | None) -> int:
        """How many trained turns are not written, or not with the tools that they call."""
        if marked is None or not marked.complete:
            return 0
        whole = [
            turn in marked.ends and (turn in marked.called or not self.turns[turn].get("tool_calls"))
            for turn in self.trained
        ]
        return len(whole) - sum(whole)

    def render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        return self.template.render(turns, self.tools, generation_prompt=prompt)

    def by_blocks(self, plain: str, marked: Marked) -> Located | None:
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

    def by_prefix(self, turn: int, plain: str, marked: Marked | None) -> _Found | None:
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

    def by_sentinel(self, turn: int, plain: str, marked: Marked | None) -> _Found | None:
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
            search = _Search(self.finder, turns, self.tools, [turn], self.free)
            plain = search.render(turns)
            marked = search.sentinels.like(turns, self.tools, plain)
            found = search.by_prefix(turn, plain, marked) or search.by_sentinel(turn, plain, marked)
            if found is not None and found.spans:
                return Located(plain, found.spans, "last-turn", found.ended, len(self.trained) - 1)
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

    def finish(self, turn: int, start: int, plain: str, marked: Marked | None) -> _Found | None:
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

    def own(self, turn: int, start: int, end: int, closed: bool, plain: str, marked: Marked) -> _Found | None:
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

    def close(self, turn: int, plain: str, marked: Marked) -> tuple[int, bool]:
        """What closes a turn whose content's end is known: length after that end, and whether it is a special token."""
        end = marked.ends[turn]
        border = marked.next_border(end)
        tail = plain[end:border]
        key = None
        if not self.turns[turn].get("tool_calls") and self.sentinels.style in ("outside", "inside") and len(tail) < 200:
            key = (tail, None if turn == len(self.turns) - 1 else str(self.turns[turn + 1].get("role")))
            if key in self.finder._tails:
                return self.finder._tails[key]
        other: str | None = None
        follow = self.turns[: turn + 1]
        if turn == len(self.turns) - 1:
            follow = [*follow, self.follow_up(turn)]
        try:
            again = self.sentinels.rendered(follow, self.tools, self.sentinels.style)
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


def _call_name(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""
