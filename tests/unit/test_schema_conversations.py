"""Rows of every schema become the same conversations, and unusable ones say why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spice_select.data.conversation import Conversation, Message
from spice_select.data.schema import Schema, detect_schemas, normalised_messages, to_conversation, unusable_reason
from spice_select.data.sources import load_rows
from tests.support import shared_path

PAIR = Schema("pair", {role: role for role in ("prompt", "response", "context", "system", "history", "tools")})
CHAT = Schema("messages", {"messages": "messages", "tools": "tools", "system": "system"})
SHARE = Schema("conversations", {"messages": "conversations", "tools": "tools", "system": "system"})
TEXT = Schema("text", {"text": "text"})


def _read(row: dict[str, Any], schema: Schema) -> Conversation:
    found = to_conversation(row, schema)
    assert found is not None
    assert unusable_reason(row, schema) is None
    return found


def _turns(conversation: Conversation) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.trained) for message in conversation.messages]


def test_pair_joins_instruction_and_input_by_a_blank_line() -> None:
    found = _read({"prompt": " Do.\n", "context": "this ", "response": " Done ü\n"}, PAIR)
    assert _turns(found) == [("user", " Do.\n\n\nthis ", False), ("assistant", " Done ü\n", True)]
    assert found.kind == "pair"
    for empty in ("", "  ", None):
        assert _read({"prompt": "Do.", "context": empty, "response": "x"}, PAIR).messages[0].content == "Do."
    assert _read({"prompt": "", "context": "this", "response": "x"}, PAIR).messages[0].content == "this"


def test_pair_with_system_history_and_tools() -> None:
    row = {"prompt": "c", "response": "d", "system": "s", "history": [["a", "b"]], "tools": '[{"name": "f"}]'}
    found = _read(row, PAIR)
    assert _turns(found) == [
        ("system", "s", False), ("user", "a", False), ("assistant", "b", True), ("user", "c", False),
        ("assistant", "d", True),
    ]  # fmt: skip
    assert found.tools == [{"name": "f"}]
    assert _read({**row, "history": json.dumps(row["history"])}, PAIR) == found
    assert len(_read({**row, "history": []}, PAIR).messages) == 3


def test_numbers_are_text() -> None:
    assert [m.content for m in _read({"prompt": 12, "response": 0.5}, PAIR).messages] == ["12", "0.5"]
    assert _read({"prompt": "q", "response": False}, PAIR).messages[1].content == "false"


def test_conversational_prompt_and_completion() -> None:
    prompt = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}
    ]  # fmt: skip
    found = _read({"prompt": prompt, "response": [{"role": "assistant", "content": "d"}]}, PAIR)
    assert [turn[2] for turn in _turns(found)] == [False, False, False, True]
    assert _read({"prompt": prompt, "response": "d"}, PAIR) == found


def test_sharegpt_roles_and_tool_calls() -> None:
    call = {"name": "f", "arguments": {"x": [1, None]}}
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "{}"},
        {"from": "gpt", "value": "a"},
    ]
    found = _read({"conversations": turns, "tools": [{"name": "f"}], "system": "ignored"}, SHARE)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m.trained for m in found.messages] == [False, False, True, False, True]
    assert found.messages[2] == Message("assistant", "", None, [{"type": "function", "function": call}], True)
    assert found.tools == [{"name": "f"}]
    assert normalised_messages(found)[2:4] == [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "{}"},
    ]


def test_function_call_that_is_no_json_stays_text() -> None:
    turns = [{"from": "user", "value": "q"}, {"from": "function_call", "value": "call f!"}]
    found = _read({"conversations": turns}, SHARE)
    assert found.messages[1] == Message("assistant", "call f!", None, None, True)


def test_system_column_of_sharegpt() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert _read({"conversations": turns, "system": "s"}, SHARE).messages[0] == Message("system", "s", trained=False)
    assert len(_read({"conversations": turns, "system": ""}, SHARE).messages) == 2


def test_native_messages() -> None:
    turns = [
        {"role": "developer", "content": "s", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "c"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "content": {"y": 2}, "name": "f"},
        {"role": "assistant", "content": "done", "tool_calls": None},
    ]
    found = _read({"messages": turns}, CHAT)
    assert _turns(found) == [
        ("system", "s", False), ("user", "ab", False), ("assistant", "no", False), ("user", "c", False),
        ("assistant", "", True), ("tool", '{"y": 2}', False), ("assistant", "done", True),
    ]  # fmt: skip
    assert found.messages[1].name == "Ann"
    assert found.messages[4].tool_calls == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert _read({"messages": json.dumps(turns)}, CHAT) == found


def test_text() -> None:
    assert _read({"text": " all of it\n"}, TEXT) == Conversation((Message("assistant", " all of it\n"),), None, "text")


USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
UNUSABLE = [
    ({"prompt": "q", "response": None}, PAIR, "the response is null"),
    ({"prompt": "q", "response": " \n"}, PAIR, "the response is empty"),
    ({"prompt": "q", "response": ["a"]}, PAIR, "the response is no text"),
    ({"prompt": None, "response": "a"}, PAIR, "the prompt is null"),
    ({"prompt": " ", "context": "", "response": "a"}, PAIR, "the prompt is empty"),
    ({"prompt": "q", "response": "a", "history": [["x"]]}, PAIR, "the history is no list of pairs"),
    ({"messages": None}, CHAT, "the messages are null"),
    ({"messages": []}, CHAT, "there are no turns"),
    ({"messages": [USER]}, CHAT, "there is no assistant turn"),
    ({"messages": [USER, ANSWER, USER]}, CHAT, "the last turn is the user's"),
    ({"messages": [USER, ANSWER, {"role": "tool", "content": "x"}]}, CHAT, "the last turn is the tool's"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, CHAT, "the response is empty"),
    ({"messages": [USER, {"role": "assistant", "content": "a", "weight": 0}]}, CHAT, "the response is empty"),
    ({"messages": [USER, {"content": "a"}]}, CHAT, "a turn of the messages lacks its role or its text"),
    ({"messages": [USER, {"role": "narrator", "content": "a"}]}, CHAT, "the role 'narrator' is unknown"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, CHAT, "a turn holds more than text"),
    ({"messages": [USER, {**ANSWER, "tool_calls": ["f"]}]}, CHAT, "a tool call is no object"),
    ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}]}, CHAT, "a tool call has no name"),
    ({"text": ""}, TEXT, "the text is empty"),
    ({"text": None}, TEXT, "the text is null"),
]


@pytest.mark.parametrize(("row", "schema", "reason"), UNUSABLE, ids=[reason for _, _, reason in UNUSABLE])
def test_unusable_rows_say_why(row: dict[str, Any], schema: Schema, reason: str) -> None:
    assert to_conversation(row, schema) is None
    assert unusable_reason(row, schema) == reason


@pytest.mark.parametrize("tools", [None, "", "[]", "not json", "[1]", [], 5])
def test_tools_that_offer_nothing(tools: Any) -> None:
    assert _read({"prompt": "q", "response": "a", "tools": tools}, PAIR).tools is None


def test_shared_tool_calls_are_all_understood() -> None:
    rows = load_rows([shared_path("data", "train", "glaive_toolcall_en_demo.json")])
    schema = detect_schemas(rows)[0]
    called = 0
    for row in rows:
        found = _read(row, schema)
        assert [m.content for m in found.messages if not m.tool_calls] == [
            turn["value"] for turn in row["conversations"] if turn["from"] != "function_call"
        ]
        assert found.tools == (json.loads(row["tools"]) or None)
        called += sum(bool(m.tool_calls) for m in found.messages)
    assert called == sum(turn["from"] == "function_call" for row in rows for turn in row["conversations"])
