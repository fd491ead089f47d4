"""Rows to conversations, by the schema of their source, and conversations to the output's ``messages``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spice_select.data.conversation import Conversation, Message
from spice_select.data.shapes import Schema, chat_kind, is_scalar, parse_json

_ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
    "function_call": "function_call", "tool_call": "function_call",
}  # fmt: skip


class _Unusable(Exception):
    """Why a row cannot be trained."""


def to_conversation(row: Mapping[str, Any], schema: Schema) -> Conversation | None:
    """What a row says, or None where it holds no usable response (:func:`unusable_reason` says why).

    A pair becomes one user and one assistant turn, the user's of the instruction and its input joined by a blank line,
    after the turns of its history. Of a prompt that is a list of messages no turn is trained. ``function_call`` is an
    assistant turn with tool calls, ``observation`` a turn of a tool. A ``weight`` of 0 keeps a turn out of the loss.
    """
    try:
        return _convert(row, schema)
    except _Unusable:
        return None


def unusable_reason(row: Mapping[str, Any], schema: Schema) -> str | None:
    """Why :func:`to_conversation` finds nothing to train in a row, in a few words; None for a usable row."""
    try:
        _convert(row, schema)
    except _Unusable as reason:
        return str(reason)
    return None


def normalised_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Turns as plain dicts with role and content, and name and tool calls where there are any."""
    turns = []
    for message in conversation.messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            turn["name"] = message.name
        if message.tool_calls:
            turn["tool_calls"] = [dict(call) for call in message.tool_calls]
        turns.append(turn)
    return turns


def _convert(row: Mapping[str, Any], schema: Schema) -> Conversation:
    values = {role: row.get(column) for role, column in schema.columns.items()}
    if schema.kind == "text":
        text = _text(values["text"], "text")
        if not text.strip():
            raise _Unusable("the text is empty")
        return Conversation((Message("assistant", text),), None, "text")
    messages = _pair(values) if schema.kind == "pair" else _turns(values["messages"], "messages")
    system = values.get("system")
    if isinstance(system, str) and system.strip() and not (messages and messages[0].role == "system"):
        messages = [Message("system", system, trained=False), *messages]
    _check(messages)
    return Conversation(tuple(messages), _tools(values.get("tools")), schema.kind)


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise _Unusable("there are no turns")
    last = messages[-1]
    if not any(message.role == "assistant" for message in messages):
        raise _Unusable("there is no assistant turn")
    if last.role != "assistant":
        raise _Unusable(f"the last turn is the {last.role}'s")
    if not any(_says(message) and message.trained for message in messages):
        raise _Unusable("the response is empty")
    if not _says(last):
        raise _Unusable("the response is empty")


def _says(message: Message) -> bool:
    return message.role == "assistant" and bool(message.content.strip() or message.tool_calls)


def _pair(values: Mapping[str, Any]) -> list[Message]:
    prompt, response = values.get("prompt"), values.get("response")
    if chat_kind(response) is not None:
        answer = _turns(response, "response")
    else:
        answer = [Message("assistant", _text(response, "response"))]
    if chat_kind(prompt) is not None:
        # A prompt of messages is context: its assistant turns were not written for this row.
        asked = [replace(message, trained=False) for message in _turns(prompt, "prompt")]
    else:
        parts = [_text(prompt, "prompt")]
        if isinstance(values.get("context"), str):
            parts.append(values["context"])
        asked = [Message("user", "\n\n".join(part for part in parts if part.strip()), trained=False)]
        if not asked[0].content:
            raise _Unusable("the prompt is empty")
    return [*_history(values.get("history")), *asked, *answer]


def _history(value: Any) -> list[Message]:
    rounds = parse_json(value)
    if not isinstance(rounds, list):
        return []
    if chat_kind(rounds) is not None:
        return _turns(rounds, "history")
    messages = []
    for item in rounds:
        if not (isinstance(item, list | tuple) and len(item) == 2):
            raise _Unusable("the history is no list of pairs")
        messages.append(Message("user", _text(item[0], "history"), trained=False))
        messages.append(Message("assistant", _text(item[1], "history")))
    return messages


def _text(value: Any, what: str) -> str:
    if value is None:
        raise _Unusable(f"the {what} is null")
    if not is_scalar(value):
        raise _Unusable(f"the {what} is no text")
    return value if isinstance(value, str) else json.dumps(value)


def _turns(value: Any, what: str) -> list[Message]:
    turns = parse_json(value)
    if turns is None:
        raise _Unusable(f"the {what} are null" if what == "messages" else f"the {what} is null")
    kind = chat_kind(turns)
    if kind is None:
        raise _Unusable("there are no turns" if turns == [] else f"a turn of the {what} lacks its role or its text")
    read = _role_turn if kind == "messages" else _from_turn
    return [read(turn) for turn in turns]


def _role(name: Any) -> str:
    found = _ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if found is None:
        raise _Unusable(f"the role {name!r} is unknown")
    return found


def _from_turn(turn: Mapping[str, Any]) -> Message:
    return _message(_role(turn["from"]), _content(turn["value"]), turn)


def _role_turn(turn: Mapping[str, Any]) -> Message:
    return _message(_role(turn["role"]), _content(turn.get("content")), turn)


def _message(role: str, content: str, turn: Mapping[str, Any]) -> Message:
    name = turn.get("name") if isinstance(turn.get("name"), str) else None
    if role == "function_call":
        calls = _calls(content)
        return Message("assistant", "" if calls else content, name, calls)
    calls = parse_json(turn.get("tool_calls")) if role == "assistant" else None
    trained = role == "assistant" and turn.get("weight") not in (0, 0.0)
    return Message(
        role, content, name, [_call(call) for call in calls] if isinstance(calls, list) and calls else None, trained
    )


def _content(value: Any) -> str:
    """Text of a turn; parts are joined, and null is the content of a turn that only calls tools."""
    if isinstance(value, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
            raise _Unusable("a turn holds more than text")
        return "".join(part["text"] for part in value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return _text(value, "turn")


def _calls(content: str) -> list[Mapping[str, Any]] | None:
    """Tool calls that a ``function_call`` turn holds as JSON text; None where it holds something else."""
    parsed = parse_json(content)
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [
        _call({"name": call["name"], "arguments": call.get("arguments", call.get("parameters", {}))}) for call in calls
    ]


def _call(call: Any) -> Mapping[str, Any]:
    """A call in the form that templates read, its arguments parsed; keys without a value are left out."""
    if not isinstance(call, Mapping):
        raise _Unusable("a tool call is no object")
    function = call.get("function")
    inner = function if isinstance(function, Mapping) else call
    if not isinstance(inner.get("name"), str):
        raise _Unusable("a tool call has no name")
    arguments = parse_json(inner.get("arguments"))
    outer = {key: value for key, value in call.items() if key in ("id", "index") and value is not None}
    return {
        **outer,
        "type": "function",
        "function": {"name": inner["name"], "arguments": {} if arguments is None else arguments},
    }


def _tools(value: Any) -> list[Mapping[str, Any]] | None:
    """Tool schemas from a list or JSON text of one; anything else offers no tools."""
    tools = parse_json(value)
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, Mapping) for tool in tools):
        return None
    return tools
