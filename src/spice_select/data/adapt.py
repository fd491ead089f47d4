"""Conversations in the forms that chat templates take.

Templates differ in what they refuse: a system turn, two turns of one role in a row, tool arguments as an object, a
missing content. Each form that loses nothing is tried in a fixed order, so that the outcome for a row never depends on
other rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from spice_select.data.conversation import Conversation
from spice_select.data.sentinels import PRIVATE, PRIVATE_FIRST, PRIVATE_LAST
from spice_select.data.shapes import parse_json
from spice_select.data.tokens import StringSet

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Turn:
    """One turn, its strings free of control tokens."""

    role: str
    content: str
    trained: bool
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A conversation whose control-token strings are private characters.

    Attributes:
        turns: The turns.
        tools: Tools, or None.
        literals: What each private character stands for.
        private: All private characters of the data, these and its own.
        stripped: Whether a special-token string at the end of a response was removed.
    """

    turns: tuple[Turn, ...]
    tools: list[Any] | None
    literals: Mapping[str, str]
    private: str
    stripped: bool


@dataclass(frozen=True)
class Form:
    """How a conversation is handed to a template.

    Attributes:
        folded: The system turn is part of the next user turn.
        merged: Neighbouring turns of one role are one.
        text_arguments: Arguments of tool calls are JSON text instead of objects.
        no_content: The empty content of a turn that calls tools is None instead of an empty string.
        call_ids: Calls and answers have ids.
        calls_as_text: Calls of tools are JSON in the content, one a line.
    """

    folded: bool = False
    merged: bool = False
    text_arguments: bool = False
    no_content: bool = False
    call_ids: bool = False
    calls_as_text: bool = False


@dataclass
class Cleaner:
    """Replaces control-token strings in data by private characters.

    Attributes:
        special: Special tokens: never control tokens in any data.
        controls: These, and the added tokens that the template writes: never control tokens in what the model reads.
    """

    special: StringSet
    controls: StringSet
    _literals: dict[str, str] = field(default_factory=dict)
    _own: set[str] = field(default_factory=set)

    def clean(self, conversation: Conversation) -> Prepared:
        """Make a conversation safe to render; responses lose special-token strings at their end."""
        # The data's own private characters must be known before one is given a meaning.
        self._own = set()
        self._literals = {}
        for message in conversation.messages:
            self._own.update(PRIVATE.findall(message.content))
        calls_and_tools = [conversation.tools, *(message.tool_calls for message in conversation.messages)]
        if any(calls_and_tools):
            self._own.update(PRIVATE.findall(json.dumps(calls_and_tools, ensure_ascii=False, default=str)))
        stripped = False
        turns = []
        for message in conversation.messages:
            content = message.content
            assistant = message.role == "assistant"
            if assistant:
                content, lost = self._strip(content)
                stripped = stripped or lost
            strings = self.special if assistant else self.controls
            calls = tuple(self._call(call) for call in message.tool_calls or ()) if assistant else ()
            if calls and not content.strip():
                content = ""
            turns.append(
                Turn(
                    message.role,
                    self._text(content, strings),
                    trained=assistant and message.trained and bool(content.strip() or calls),
                    name=self._text(message.name, strings) if message.name else None,
                    tool_calls=calls,
                )
            )
        tools = [self._plain(tool, self.controls) for tool in conversation.tools] if conversation.tools else None
        private = "".join(self._own) + "".join(self._literals)
        return Prepared(tuple(turns), tools, dict(self._literals), private, stripped)

    def _strip(self, content: str) -> tuple[str, bool]:
        """Remove special-token strings at the end of a response, and the white space behind each."""
        bare, lost = content.rstrip(), False
        while (ending := self.special.at_end(bare)) is not None:
            content = bare[: -len(ending)]
            bare, lost = content.rstrip(), True
        return content, lost

    def _text(self, text: str, strings: StringSet) -> str:
        if not text.isascii() and _SURROGATE.search(text):
            # Half a character: no tokenizer can read it.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return strings.pattern.sub(self._literal, text)

    def _literal(self, match: re.Match[str]) -> str:
        string = match.group()
        known = next((mark for mark, literal in self._literals.items() if literal == string), None)
        if known is not None:
            return known
        code = PRIVATE_LAST
        while chr(code) in self._own or chr(code) in self._literals:
            code -= 1
        assert code > PRIVATE_FIRST
        self._literals[chr(code)] = string
        return chr(code)

    def _plain(self, value: Any, strings: StringSet) -> Any:
        """JSON types only: a template is code of strangers."""
        if isinstance(value, str):
            return self._text(str(value), strings)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self._text(str(key), strings): self._plain(item, strings) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(item, strings) for item in value]
        return self._text(str(value), strings)

    def _call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call.get("function", call)
        function = function if isinstance(function, Mapping) else {"name": str(function)}
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            parsed = parse_json(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        made: dict[str, Any] = {
            "type": "function",
            "function": {"name": function.get("name", ""), "arguments": arguments},
        }
        if call.get("id"):
            made["id"] = call["id"]
        return self._plain(made, self.special)


def forms(prepared: Prepared) -> Iterator[Form]:
    """The forms in which a conversation can be handed over, the plainest first."""
    roles = [turn.role for turn in prepared.turns]
    has_system = "system" in roles
    repeats = any(a == b and a != "tool" for a, b in pairwise(roles))
    bases = [Form()]
    if has_system:
        bases.append(Form(folded=True))
    if repeats:
        bases.append(Form(merged=True))
    if has_system and len(roles) > 1:
        bases.append(Form(folded=True, merged=True))
    calls = any(turn.tool_calls for turn in prepared.turns)
    for base in bases:
        yield base
        if calls:
            yield replace(base, text_arguments=True)
            yield replace(base, no_content=True)
            yield replace(base, no_content=True, text_arguments=True)
            yield replace(base, call_ids=True)
            yield replace(base, calls_as_text=True)


def shaped(prepared: Prepared, form: Form) -> tuple[Turn, ...]:
    """The turns in a form, before they become messages."""
    turns = list(prepared.turns)
    if form.calls_as_text:
        turns = [_with_written_calls(turn) for turn in turns]
    if form.folded:
        turns = _fold(turns)
    if form.merged:
        turns = _merge(turns)
    return tuple(turns)


def messages(turns: Sequence[Turn], form: Form, parts: bool) -> list[dict[str, Any]]:
    """Turns as templates read them.

    Args:
        turns: The turns.
        form: The form.
        parts: Contents as lists of one text part.
    """
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for number, turn in enumerate(turns):
        content: Any = [{"type": "text", "text": turn.content}] if parts else turn.content
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.name:
            message["name"] = turn.name
        if turn.tool_calls:
            calls = []
            for place, call in enumerate(turn.tool_calls):
                function = dict(call["function"])
                if form.text_arguments and not isinstance(function["arguments"], str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                made_call = {**call, "function": function}
                if form.call_ids:
                    made_call["id"] = f"c{number % 10_000:04d}{place % 10_000:04d}"
                    waiting.append(made_call["id"])
                calls.append(made_call)
            message["tool_calls"] = calls
            if form.no_content and not turn.content.strip():
                message["content"] = None
        if turn.role == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)
        made.append(message)
    return made


def _with_written_calls(turn: Turn) -> Turn:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.tool_calls]
    return replace(turn, content="\n".join([turn.content] * bool(turn.content) + calls), tool_calls=())


def _fold(turns: list[Turn]) -> list[Turn]:
    folded: list[Turn] = []
    held: list[str] = []
    for turn in turns:
        if turn.role == "system":
            held.append(turn.content)
        elif turn.role == "user" and held:
            folded.append(replace(turn, content="\n\n".join([*held, turn.content])))
            held = []
        elif held and turn.role == "assistant":
            # No user turn between them: the system's text is then what the model answers to.
            folded += [Turn("user", "\n\n".join(held), trained=False), turn]
            held = []
        else:
            folded.append(turn)
    return folded


def _merge(turns: list[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        before = merged[-1] if merged else None
        if before is not None and before.role == turn.role and turn.role != "tool":
            texts = [text for text in (before.content, turn.content) if text]
            merged[-1] = replace(
                before,
                content="\n\n".join(texts),
                trained=before.trained and turn.trained,
                tool_calls=(*before.tool_calls, *turn.tool_calls),
            )
        else:
            merged.append(turn)
    return merged
