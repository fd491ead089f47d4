"""The chosen rows of a run as trainers read them: turns and tools, or plain text, without the original columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from spice_select.data.columns import column_values
from spice_select.export.tables import read_chosen

Turn = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """One chosen conversation.

    Attributes:
        messages: Turns with role and content; further keys only where they have a value.
        tools: Schemas of the tools on offer; None without.
    """

    messages: list[Turn]
    tools: list[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Chosen:
    """The chosen rows in order of choice: all of them conversations, or all of them text.

    Attributes:
        chats: The conversations; empty where the rows are text.
        texts: The texts; empty where the rows are conversations.
    """

    chats: tuple[Chat, ...] = ()
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chats) + len(self.texts)


def read_trained(data: Path) -> Chosen:
    """What a run's rows train on, in order of choice.

    Args:
        data: The run's ``data`` folder.

    Raises:
        StoreError: There is no selection, or it cannot be read.
    """
    return trained_columns(read_chosen(data))


def trained_columns(table: pa.Table) -> Chosen:
    """The columns of a run's table that are trained on: ``messages`` and ``tools``, or else ``text``."""
    if "messages" not in table.column_names:
        return Chosen(texts=tuple(column_values(table.column("text"))))
    tools = column_values(table.column("tools")) if "tools" in table.column_names else [None] * len(table)
    return Chosen(
        chats=tuple(
            Chat([_turn(turn) for turn in turns], _tools(offered))
            for turns, offered in zip(column_values(table.column("messages")), tools, strict=True)
        )
    )


def _turn(turn: Mapping[str, Any]) -> Turn:
    """A turn with the keys that it has: Arrow fills absent ones with null, and a turn of calls alone has no content."""
    kept = {key: value for key, value in turn.items() if value is not None}
    return {"role": turn["role"], "content": turn.get("content") or "", **kept}


def _tools(value: Any) -> list[Mapping[str, Any]] | None:
    parsed = json.loads(value) if isinstance(value, str) and value else value
    return list(parsed) if parsed else None
