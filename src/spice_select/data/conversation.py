"""What a row says, whatever columns it came in: messages with roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["messages", "conversations", "pair", "text"]


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``; other roles are handed to the template as they are.
        content: The text; empty for a turn that only calls tools.
        name: Name of the speaker or of the tool that answers.
        tool_calls: Calls of an assistant turn, as ``{"type": "function", "function": {"name": ..., "arguments":
            {...}}}``.
        trained: False keeps an assistant turn out of the loss, whatever ``train_on`` says.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | list[Mapping[str, Any]] | None = None
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """The turns of one row.

    Attributes:
        messages: The turns in order. Of kind ``text``, one assistant message that holds the whole text.
        tools: JSON schemas of the tools that the conversation may call.
        kind: The schema that the row was read by; ``text`` knows no template and is trained whole.
    """

    messages: tuple[Message, ...]
    tools: list[Mapping[str, Any]] | None = None
    kind: Kind = "messages"
