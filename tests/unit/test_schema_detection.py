"""Columns are understood by name and value, in a fixed order, and a mapping is laid over that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spice_select.data.schema import PROMPT_COLUMNS, RESPONSE_COLUMNS, Schema, detect_schema, detect_schemas
from spice_select.data.sources import load_rows
from spice_select.errors import ConfigError, DataError
from tests.support import shared_path

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def _detect(path: Path, rows: list[dict[str, Any]], **mapping: str) -> Schema:
    file = path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return detect_schema(load_rows([file]), 0, mapping)


@pytest.mark.parametrize("prompt", PROMPT_COLUMNS)
@pytest.mark.parametrize("response", RESPONSE_COLUMNS)
def test_every_pair(tmp_path: Path, prompt: str, response: str) -> None:
    found = _detect(tmp_path, [{"id": 1, response: "a", prompt: "q"}])
    assert found == Schema("pair", {"prompt": prompt, "response": response})


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": CHAT, "prompt": "q", "completion": "a"}, "messages: messages"),
        (
            {"conversations": SHARE, "tools": "[]", "system": "s"},
            "conversations: conversations as messages, system, tools",
        ),
        ({"conversations": CHAT}, "messages: conversations as messages"),
        ({"messages": SHARE}, "conversations: messages"),
        ({"messages": json.dumps(CHAT)}, "messages: messages"),
        ({"messages": "hello", "text": "t"}, "text: text"),
        ({"conversations": SHARE, "messages": CHAT}, "messages: messages"),
        (
            {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["a", "b"]]},
            "pair: instruction as prompt, output as response, input as context, system, history",
        ),
        ({"question": "q", "answers": ["a"], "text": "t"}, "text: text"),
        ({"problem": "p", "answer": "4", "solution": "so 4"}, "pair: problem as prompt, solution as response"),
        ({"question": "q", "answer": 4}, "pair: question as prompt, answer as response"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "pair: prompt, completion as response"),
        ({"instruction": ["x"], "prompt": "p", "output": "o"}, "pair: prompt, output as response"),
        ({"Question": "q", "Answer": "a"}, "pair: Question as prompt, Answer as response"),
        ({"instruction": "i", "output": None}, "pair: instruction as prompt, output as response"),
        ({"question": "q", "context": {"a": 1}, "answer": "a"}, "pair: question as prompt, answer as response"),
        ({"text": "t", "title": "x"}, "text: text"),
    ],
)
def test_order_and_values(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    assert _detect(tmp_path, [row]).describe() == line


def test_mapping_is_laid_over_what_is_found(tmp_path: Path) -> None:
    rows = [{"frage": "q", "antwort": "a", "input": "i", "output": "o", "text": "t"}]
    assert _detect(tmp_path, rows).kind == "text"
    mapped = _detect(tmp_path, rows, prompt="frage", response="antwort")
    assert mapped.columns == {"prompt": "frage", "response": "antwort", "context": "input"}
    assert _detect(tmp_path, rows, prompt="frage").columns["response"] == "output"
    assert _detect(tmp_path, rows, prompt="frage", context="").columns == {"prompt": "frage", "response": "output"}
    assert _detect(tmp_path, rows, text="frage") == Schema("text", {"text": "frage"})
    chat = [{"chat": SHARE, "prompt": "q", "output": "a"}]
    assert _detect(tmp_path, chat, messages="chat") == Schema("conversations", {"messages": "chat"})


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        ({"promt": "q"}, ["data.columns.promt", "'prompt'"]),
        ({"prompt": "qestion"}, ["data.columns.prompt", "'qestion'", "'question'"]),
        ({"text": "question", "prompt": "question"}, ["exclude"]),
    ],
)
def test_mapping_that_cannot_be(tmp_path: Path, mapping: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        _detect(tmp_path, [{"question": "q", "answer": "a"}], **mapping)
    assert all(part in str(caught.value) for part in parts)
    assert caught.value.exit_code == 2


def test_no_schema_says_what_was_seen_and_how_to_map(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _detect(tmp_path, [{"foo": "q", "bar": "a"}])
    text = str(caught.value)
    assert "'foo', 'bar'" in text
    assert "--set data.columns.prompt=COLUMN" in text
    assert caught.value.exit_code == 3
    assert "header" not in text


def test_messages_that_hold_no_turns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'chat'"):
        _detect(tmp_path, [{"chat": "no turns"}], messages="chat")


def test_csv_without_header_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("What is this?,That is it\nAnd this?,That too\n", encoding="utf-8")
    with pytest.raises(DataError, match="header"):
        detect_schema(load_rows([path]), 0)


def test_each_source_has_a_schema_and_a_mapping_needs_one_of_them(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"question": "q", "answer": "a"}', encoding="utf-8")
    second.write_text('{"ask": "q", "answer": "a"}', encoding="utf-8")
    rows = load_rows([first, second])
    found = detect_schemas(rows, {"prompt": "ask"})
    assert [schema.columns["prompt"] for schema in found] == ["question", "ask"]
    with pytest.raises(ConfigError, match="no column"):
        detect_schemas(rows, {"prompt": "nothing"})


def test_shared_files(tmp_path: Path) -> None:
    rows = load_rows([shared_path("data", "train")])
    lines = {source.name: schema.describe() for source, schema in zip(rows.sources, detect_schemas(rows), strict=True)}
    alpaca = "pair: instruction as prompt, output as response, input as context"
    assert lines == {
        "train/alpaca_1k": alpaca,
        "train/cherry_alpaca_5_percent": alpaca,
        "train/code_alpaca_2k": alpaca,
        "train/glaive_toolcall_en_demo": "conversations: conversations as messages, tools",
        "train/gsm8k_train": "pair: question as prompt, answer as response",
        "train/t0_23k": "pair: prompt, completion as response",
    }
