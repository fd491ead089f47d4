"""Columns of the output: originals untouched, chat messages beside them, and what a trainer must not see.

TRL's SFTTrainer decides by column names how to read a row. Beside ``messages`` it would take ``prompt`` and
``completion`` for the example, rename ``conversations`` over the messages, take ``input_ids`` for a finished encoding,
and so on (trl 1.16, ``SFTTrainer._prepare_dataset``). Such columns stay in the files, and the card's default
configuration leaves them out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from spice_select.data.columns import column_values, json_array
from spice_select.data.conversation import Conversation
from spice_select.data.messages import normalised_messages

# Each of these, by its mere presence, makes SFTTrainer read something else than the messages.
MISREAD = (
    "prompt", "completion", "chosen", "rejected", "conversations", "image", "images",
    "input_ids", "labels", "completion_mask", "assistant_masks", "seq_lengths",
)  # fmt: skip
PREFIX = "spice_"
_PLAIN = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True)
class Prepared:
    """The chosen rows as they are written, without the numbers of the selection.

    Attributes:
        table: Original columns, then ``messages`` and, where they had to be added, ``tools`` or ``text``.
        hidden: Columns that the card's default configuration leaves out.
        notes: Sentences on columns that were replaced, renamed or hidden.
    """

    table: pa.Table
    hidden: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_columns(
    original: pa.Table, conversations: Sequence[Conversation], special_tokens: Sequence[str] = ()
) -> Prepared:
    """Lay chat messages beside the original columns, so that a trainer reads what the proxy measured.

    Args:
        original: Original columns of the chosen rows.
        conversations: What each of those rows says.
        special_tokens: Strings that the encoder strips from the end of a response; they go from ``messages`` as well.
    """
    columns = _Columns(original)
    columns.drop_earlier_results()
    if conversations and all(conversation.kind == "text" for conversation in conversations):
        columns.lay("text", pa.array([conversation.messages[0].content for conversation in conversations], pa.string()))
    else:
        turns = [_stripped(normalised_messages(conversation), special_tokens) for conversation in conversations]
        columns.lay_messages(turns)
        columns.lay_tools([conversation.tools for conversation in conversations])
    return columns.finish()


class _Columns:
    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._hidden: list[str] = []
        self._notes: list[str] = []

    def drop_earlier_results(self) -> None:
        earlier = [name for name in self._table.column_names if name.startswith(PREFIX)]
        if earlier:
            self._table = self._table.drop_columns(earlier)
            self._notes.append(f"The input had the columns {', '.join(earlier)} of an earlier run; they are replaced.")

    def lay(self, name: str, values: pa.Array | pa.ChunkedArray) -> None:
        """Put a column in, unless the original of that name says the same in every row."""
        if name in self._table.column_names:
            if column_values(self._table.column(name)) == column_values(values):
                return
            self._set_aside(name)
        self._table = self._table.append_column(name, values)

    def lay_messages(self, turns: Sequence[list[dict[str, Any]]]) -> None:
        """Native messages stay as they are where they say the same; absent keys stay absent."""
        name = "messages"
        if name not in self._table.column_names:
            self._table = self._table.append_column(name, messages_array(turns))
            return
        native = [_native(value) for value in column_values(self._table.column(name))]
        same = [given is not None and _says_same(given, wanted) for given, wanted in zip(native, turns, strict=True)]
        kept = [given if keep and given else wanted for given, wanted, keep in zip(native, turns, same, strict=True)]
        if any(given is not None and not keep for given, keep in zip(native, same, strict=True)):
            self._set_aside(name)
            self._table = self._table.append_column(name, messages_array(kept))
        else:
            place = self._table.column_names.index(name)
            self._table = self._table.set_column(place, name, messages_array(kept))

    def lay_tools(self, tools: Sequence[Sequence[Mapping[str, Any]] | None]) -> None:
        """Keep a ``tools`` column that SFTTrainer reads as these tools; else add one of JSON text."""
        if "tools" in self._table.column_names:
            read = [_tools_as_read(value) for value in column_values(self._table.column("tools"))]
            if all(found == (wanted or None) for found, wanted in zip(read, tools, strict=True)):
                return
            self._set_aside("tools")
        if any(tools):
            texts = [None if not wanted else json.dumps(wanted, ensure_ascii=False) for wanted in tools]
            self._table = self._table.append_column("tools", pa.array(texts, pa.string()))

    def _set_aside(self, name: str) -> None:
        names = self._table.column_names
        fresh = f"{name}_original"
        while fresh in names:
            fresh += "_"
        self._table = self._table.rename_columns([fresh if found == name else found for found in names])
        self._notes.append(f"The original column {name!r} is now {fresh!r}, as {name!r} is what is trained on.")

    def finish(self) -> Prepared:
        names = self._table.column_names
        self._hidden += [name for name in names if name in MISREAD]
        if "chat_template_kwargs" in names and not all(
            isinstance(value, dict) for value in column_values(self._table.column("chat_template_kwargs"))
        ):
            self._hidden.append("chat_template_kwargs")
        if self._hidden:
            self._notes.append(
                f"The default configuration of the data set leaves out {', '.join(map(repr, self._hidden))}, which a "
                "trainer would take for the example; the configuration 'all' has every column."
            )
        return Prepared(self._table, tuple(self._hidden), tuple(self._notes))


def messages_array(conversations: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Array:
    """A column of turns under one type whatever keys they have.

    Role and content alone make a plain struct. A struct would fill other keys with nulls, which many templates take for
    present, so any further key makes the column JSON, which ``datasets`` reads back with the keys that each turn has.
    """
    plain = all(
        turn.keys() == {"role", "content"} and isinstance(turn["content"], str) and isinstance(turn["role"], str)
        for turns in conversations
        for turn in turns
    )
    if plain:
        return pa.array([list(turns) for turns in conversations], _PLAIN)
    return json_array([list(turns) for turns in conversations])


def _native(value: Any) -> list[dict[str, Any]] | None:
    """The turns of a value as a trainer needs them: keys without a value are absent, but for the content."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return []
    return [{key: item for key, item in turn.items() if item is not None or key == "content"} for turn in value]


def _says_same(native: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> bool:
    return len(native) == len(wanted) and all(
        given.get("role") == turn["role"]
        and (given.get("content") or "") == turn["content"]
        and (given.get("tool_calls") or None) == turn.get("tool_calls")
        for given, turn in zip(native, wanted, strict=True)
    )


def _tools_as_read(value: Any) -> Any:
    """What SFTTrainer makes of a tools value; text that is no JSON would stop it."""
    if isinstance(value, str):
        try:
            return json.loads(value) or None
        except ValueError:
            return value
    return value or None


def _stripped(turns: list[dict[str, Any]], special_tokens: Sequence[str]) -> list[dict[str, Any]]:
    for turn in turns:
        if turn["role"] == "assistant":
            turn["content"] = _without_ending(turn["content"], special_tokens)
    return turns


def _without_ending(content: str, special_tokens: Sequence[str]) -> str:
    bare = content.rstrip()
    while ending := next((token for token in special_tokens if token and bare.endswith(token)), None):
        content = bare.removesuffix(ending).rstrip()
        bare = content
    return content
