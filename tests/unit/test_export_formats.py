"""Rows in the forms of trainers: checked against what the trainers document, and nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, Json, TypeAdapter, model_validator

from spice_select.errors import ConfigError, OutputError
from spice_select.export.chosen import Chat, Chosen, read_trained
from spice_select.export.formats import Format, axolotl, llama_factory, trl_messages, trl_prompt_completion
from spice_select.export.trainers import dataset_name, write_axolotl, write_llama_factory, write_trl
from tests.unit.test_export_dataset import pool, write

CALL = {"type": "function", "function": {"name": "sky", "arguments": {"town": "Oslo", "days": 2}}}
OTHER = {"type": "function", "function": {"name": "time", "arguments": {"town": 7}}}
TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object", "properties": {"town": {}}}}}


def turn(role: str, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


PLAIN = Chat([turn("user", "q ü😀\n\u2028"), turn("assistant", "a")])
LONG = Chat([turn("system", "Be brief."), turn("user", "1"), turn("assistant", "2"), turn("user", "3"),
             turn("assistant", "4")])  # fmt: skip
CALLS = Chat(
    [turn("system", "s"), turn("user", "w?"), turn("assistant", tool_calls=[CALL]), turn("tool", "blue", name="sky"),
     turn("assistant", "Blue.")], [TOOL],
)  # fmt: skip
TWO = Chat([turn("user", "w?"), turn("assistant", tool_calls=[CALL, OTHER])], [TOOL, {"name": "time"}])
THINKS = Chat([turn("user", "w?", name="Ann"), turn("assistant", "Let me see.", tool_calls=[CALL])], [TOOL])
AT_ONCE = Chat([turn("user", "w?"), turn("assistant", tool_calls=[CALL, OTHER]), turn("tool", "1"), turn("tool", "2"),
                turn("assistant", "So.")])  # fmt: skip
ALONE = Chat([turn("assistant", "Once.")])
CHOSEN = Chosen((PLAIN, LONG, CALLS, TWO))
ODD = Chosen((THINKS, AT_ONCE, ALONE, PLAIN))
TEXTS = Chosen(texts=("Once", "upon"))


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


# What LLaMA-Factory documents of dataset_info.json and of ShareGPT rows (data/README.md).
class Columns(Closed):
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str | None = None
    messages: str = "conversations"
    system: str | None = None
    tools: str | None = None


class Tags(Closed):
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


class Entry(Closed):
    file_name: str = Field(pattern=r"^[^/\\]+\.(json|jsonl|csv|parquet|arrow)$")
    formatting: Literal["alpaca", "sharegpt"] = "alpaca"
    columns: Columns = Columns()
    tags: Tags = Tags()


class Call(Closed):
    name: str
    arguments: dict[str, Any]


class Said(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    by: str = Field(alias="from")
    value: str

    @model_validator(mode="after")
    def calls_are_json(self) -> Said:
        if self.by == "function_call":
            TypeAdapter(Json[Call | list[Call]]).validate_python(self.value)
        return self


class ShareGPT(Closed):
    conversations: list[Said]
    system: str = ""
    tools: str = ""

    @model_validator(mode="after")
    def sides_alternate(self) -> ShareGPT:
        assert self.conversations and len(self.conversations) % 2 == 0
        for place, said in enumerate(self.conversations):
            assert said.by in (("human", "observation"), ("gpt", "function_call"))[place % 2]
        if self.tools:
            assert all("name" in tool for tool in json.loads(self.tools))
        return self


# What axolotl documents of chat_template data sets (docs/dataset-formats/conversation.qmd).
class Function(BaseModel):
    name: str
    arguments: Json[dict[str, Any]] | None = None
    parameters: Json[dict[str, Any]] | None = None


class ToolCall(Closed):
    id: str | None = None
    type: Literal["function"]
    function: Function


class Tool(Closed):
    type: Literal["function"]
    function: Function


class OpenAITurn(Closed):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    weight: float | None = None
    train: bool | None = None


class OpenAI(Closed):
    messages: list[OpenAITurn] = Field(min_length=1)
    tools: list[Tool] | None = None


class ChatTemplate(Closed):
    path: str
    ds_type: Literal["json", "csv", "parquet", "arrow", "text"]
    type: Literal["chat_template"]
    field_messages: str = "messages"
    field_tools: str = "tools"
    message_property_mappings: dict[str, str] = {"role": "role", "content": "content"}
    roles_to_train: list[str] = ["assistant"]
    train_on_eos: Literal["all", "turn", "last"] = "turn"
    message_field_training: str | None = None


def lines(path: Path) -> list[dict[str, Any]]:
    # Lines end in \n alone: splitlines() would cut at U+2028.
    return [json.loads(line) for line in path.read_text("utf-8").rstrip("\n").split("\n")]


def test_trl_messages_hold_everything() -> None:
    made = trl_messages(CHOSEN)
    assert made.warning == "" and made.notes == ()
    for row, chat in zip(made.rows, CHOSEN.chats, strict=True):
        assert row["messages"] == chat.messages
        assert (json.loads(row["tools"]) if row["tools"] else None) == chat.tools
    assert trl_messages(TEXTS).rows == [{"text": "Once"}, {"text": "upon"}]
    assert "tools" not in trl_messages(Chosen((PLAIN,))).rows[0]


def test_the_completion_is_the_last_assistant_turn() -> None:
    made = trl_prompt_completion(CHOSEN)
    for row, chat in zip(made.rows, CHOSEN.chats, strict=True):
        assert row["prompt"] + row["completion"] == chat.messages
        assert [said["role"] for said in row["completion"]] == ["assistant"]
    assert len(made.notes) == 1 and made.notes[0].startswith("2 rows have earlier assistant turns")
    assert trl_prompt_completion(TEXTS).rows == [{"prompt": "", "completion": "Once"},
                                                 {"prompt": "", "completion": "upon"}]  # fmt: skip
    odd = trl_prompt_completion(ODD)
    assert len(odd.rows) == 3
    assert odd.warning.endswith("1 row left out, as nothing comes before the response.")


def sharegpt_back(row: dict[str, Any]) -> list[dict[str, Any]]:
    turns = [turn("system", row["system"])] if row["system"] else []
    for said in row["conversations"]:
        if said["from"] == "function_call":
            calls = json.loads(said["value"])
            calls = calls if isinstance(calls, list) else [calls]
            turns.append(turn("assistant", tool_calls=[{"type": "function", "function": call} for call in calls]))
        else:
            turns.append(turn({"human": "user", "gpt": "assistant"}.get(said["from"], "tool"), said["value"]))
    return turns


def test_llama_factory_rows_follow_its_documentation_and_come_back() -> None:
    made = llama_factory(CHOSEN)
    assert made.warning.endswith(": 1 row without keys of turns other than role, content and tool_calls.")
    for row, chat in zip(made.rows, CHOSEN.chats, strict=True):
        ShareGPT.model_validate(row)
        unnamed = [{key: value for key, value in said.items() if key != "name"} for said in chat.messages]
        assert sharegpt_back(row) == unnamed
        offered = [tool.get("function", tool) for tool in chat.tools or ()]
        assert (json.loads(row["tools"]) if row["tools"] else []) == offered


def test_what_llama_factory_cannot_hold_is_counted_in_one_sentence() -> None:
    made = llama_factory(ODD)
    assert [ShareGPT.model_validate(row) for row in made.rows] and len(made.rows) == 2
    assert "2 rows left out, as question and answer do not alternate" in made.warning
    assert "1 row without the text that stands beside a tool call" in made.warning
    assert "1 row without keys of turns other than role, content and tool_calls" in made.warning
    assert made.warning.count(".") == 1


@pytest.mark.parametrize("last_only", [False, True])
def test_axolotl_rows_follow_its_documentation_and_come_back(last_only: bool) -> None:
    made = axolotl(CHOSEN, last_only=last_only)
    assert made.warning == ""
    assert len(made.notes) == 1 and "1 row" in made.notes[0]
    for row, chat in zip(made.rows, CHOSEN.chats, strict=True):
        read = OpenAI.model_validate(row)
        back = read.model_dump(exclude_none=True)
        trained = [said.pop("train") for said in back["messages"] if "train" in said]
        assert trained == ([False] * (len(chat.messages) - 1) + [True] if last_only else [])
        assert back["messages"] == chat.messages
        wanted = [tool if "function" in tool else {"type": "function", "function": tool} for tool in chat.tools or ()]
        assert back.get("tools", []) == wanted
    assert CALL["function"]["arguments"] == {"town": "Oslo", "days": 2}  # the rows themselves are left alone


def test_a_turn_of_weight_0_is_marked_or_counted(tmp_path: Path) -> None:
    weighed = Chosen((Chat([turn("user", "1"), turn("assistant", "no", weight=0), *LONG.messages[-2:]]), PLAIN))
    for make in (trl_messages, llama_factory):
        assert "1 row with a turn of weight 0, which is trained all the same" in make(weighed).warning
    assert trl_prompt_completion(weighed).warning == ""  # the turn is part of a prompt there
    made = axolotl(weighed)
    assert [[said["train"] for said in OpenAI.model_validate(row).model_dump()["messages"]] for row in made.rows] == [
        [False, False, False, True],
        [False, True],
    ]
    _, stanza = write_axolotl(weighed, tmp_path, "picked")
    read = ChatTemplate.model_validate(yaml.safe_load(stanza)["datasets"][0])
    assert read.roles_to_train == [] and read.message_field_training == "train"


def test_axolotl_folder_has_the_rows_and_a_stanza_to_paste(tmp_path: Path) -> None:
    written, stanza = write_axolotl(CHOSEN, tmp_path / "out", "picked")
    assert (tmp_path / "out" / "picked.yaml").read_text("utf-8") == stanza
    (entry,) = yaml.safe_load(stanza)["datasets"]
    read = ChatTemplate.model_validate(entry)
    assert Path(read.path) == written.files[0] and len(lines(Path(read.path))) == 4
    assert read.roles_to_train == ["assistant"] and entry["field_tools"] == "tools"
    assert set(read.message_property_mappings) == {"role", "content", "name", "tool_calls"}
    _, stanza = write_axolotl(CHOSEN, tmp_path / "last", "picked", last_only=True)
    read = ChatTemplate.model_validate(yaml.safe_load(stanza)["datasets"][0])
    assert read.roles_to_train == [] and read.message_field_training == "train"
    _, stanza = write_axolotl(TEXTS, tmp_path / "texts", "picked")
    assert yaml.safe_load(stanza)["datasets"][0].items() >= {"type": "completion", "field": "text"}.items()


def test_llama_factory_entry_joins_those_that_are_there(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    theirs = {"alpaca_en": {"hf_hub_url": "x/y", "unknown": [1]}, "ünïcode": {"file_name": "z.json"}}
    info.write_text(json.dumps(theirs), "utf-8")
    written = write_llama_factory(CHOSEN, tmp_path, "picked", last_only=True)
    assert "mask_history: true" in written.notes[-1]
    entries = json.loads(info.read_text("utf-8"))
    assert list(entries) == ["alpaca_en", "ünïcode", "picked"]
    assert {name: entries[name] for name in theirs} == theirs
    entry = Entry.model_validate(entries["picked"])
    assert (entry.formatting, entry.columns.system, entry.columns.tools) == ("sharegpt", "system", "tools")
    for row in lines(tmp_path / entry.file_name):
        assert set(row) == {entry.columns.messages, entry.columns.system, entry.columns.tools}
        used = {said[entry.tags.role_tag] for said in row[entry.columns.messages]}
        assert used <= {entry.tags.user_tag, entry.tags.assistant_tag, entry.tags.observation_tag,
                        entry.tags.function_tag}  # fmt: skip
    write_llama_factory(TEXTS, tmp_path, "texts")
    entry = Entry.model_validate(json.loads(info.read_text("utf-8"))["texts"])
    assert (entry.formatting, entry.columns.prompt) == ("alpaca", "text")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    data, info = tmp_path / "picked.jsonl", tmp_path / "dataset_info.json"
    data.write_text("mine", "utf-8")
    for call in (
        lambda **o: write_llama_factory(CHOSEN, tmp_path, "picked", **o),
        lambda **o: write_axolotl(CHOSEN, tmp_path, "picked", **o),
        lambda **o: write_trl(CHOSEN, data, Format.TRL_MESSAGES, **o),
    ):
        with pytest.raises(OutputError, match=r"picked\.jsonl exists"):
            call()
        assert data.read_text("utf-8") == "mine" and not info.exists()
        call(overwrite=True)
        assert len(lines(data)) == 4
        data.write_text("mine", "utf-8")
        info.unlink(missing_ok=True)
    data.unlink()
    info.write_text('{"picked": {"file_name": "theirs.json"}, "other": {}}', "utf-8")
    with pytest.raises(OutputError, match="another entry 'picked'"):
        write_llama_factory(CHOSEN, tmp_path, "picked")
    assert not data.exists()
    write_llama_factory(CHOSEN, tmp_path, "picked", overwrite=True)
    assert list(json.loads(info.read_text("utf-8"))) == ["picked", "other"]
    for broken in ("[1]", "{not json"):
        info.write_text(broken, "utf-8")
        with pytest.raises(OutputError, match="mend it"):
            write_llama_factory(CHOSEN, tmp_path, "fresh")
        assert info.read_text("utf-8") == broken and not (tmp_path / "fresh.jsonl").exists()


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"other": {}}', "utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Exception, match=r"disk|space"):
        write_llama_factory(CHOSEN, tmp_path, "picked")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dataset_info.json"]


def test_an_empty_form_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No row can be written as llama-factory"):
        write_llama_factory(Chosen((ALONE,)), tmp_path / "out", "picked")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OutputError, match="name one"):
        write_axolotl(CHOSEN, tmp_path / "file", "picked")
    with pytest.raises(ConfigError, match=r"must end in \.jsonl"):
        write_trl(CHOSEN, tmp_path / "x.parquet", Format.TRL_MESSAGES)


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "a\\b", "", "a\nb", "x" * 97, "/etc/x", "a\x00"])
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        dataset_name(name, Path("run"))


def test_a_name_from_the_folder_is_made_plain() -> None:
    assert dataset_name("picked-2.1_b", Path("run")) == "picked-2.1_b"
    assert dataset_name(None, Path("/x/my run: #1")) == "my-run-1"
    assert dataset_name(None, Path("/x/…")) == "selection"
    assert dataset_name(None, Path("/x/..hidden/")) == "hidden"


SOURCES = (
    [{"prompt": "p", "completion": "c<|end|>"}],
    [{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "w?"},
                        {"from": "function_call", "value": json.dumps(CALL["function"])},
                        {"from": "observation", "value": "blue"}, {"from": "gpt", "value": "Blue.<|end|>\n"}],
      "tools": json.dumps([{"name": "sky", "parameters": {}}])}],
)  # fmt: skip


def test_a_runs_rows_come_without_special_tokens_at_the_end(tmp_path: Path) -> None:
    write(tmp_path / "out", pool(tmp_path, *SOURCES), [1, 0], special_tokens=["<|end|>"])
    chosen = read_trained(tmp_path / "out" / "data")
    assert len(chosen) == 2
    assert chosen.chats[1].messages == [turn("user", "p"), turn("assistant", "c")]
    assert chosen.chats[0] == Chat(
        [turn("system", "s"), turn("user", "w?"), turn("assistant", tool_calls=[CALL]), turn("tool", "blue"),
         turn("assistant", "Blue.")], [{"name": "sky", "parameters": {}}],
    )  # fmt: skip
    for make in (trl_messages, trl_prompt_completion, llama_factory, axolotl):
        made = make(chosen)
        assert len(made.rows) == 2 and made.warning == ""
        assert "<|end|>" not in json.dumps(made.rows)
