"""Rows in the forms of trainers: TRL's, LLaMA-Factory's and axolotl's (docs/export.md names the documentation).

Each function takes the chosen rows and gives rows of JSON. What a form cannot hold is counted and said.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from spice_select.export.chosen import Chat, Chosen, Turn

Row = dict[str, Any]


class Format(StrEnum):
    """What ``--format`` takes."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    TRL_MESSAGES = "trl-messages"
    TRL_PROMPT_COMPLETION = "trl-prompt-completion"
    LLAMA_FACTORY = "llama-factory"
    AXOLOTL = "axolotl"


TABLES = (Format.JSONL, Format.JSON, Format.CSV, Format.PARQUET)
FOLDERS = (Format.LLAMA_FACTORY, Format.AXOLOTL)


@dataclass(frozen=True)
class Converted:
    """Rows in the form of a trainer.

    Attributes:
        rows: One JSON object a row, in order of choice.
        notes: Sentences that say what is good to know.
        warning: One sentence that counts what the form could not hold; empty where it held everything.
    """

    rows: list[Row]
    notes: tuple[str, ...] = ()
    warning: str = ""


_WEIGHED = "with a turn of weight 0, which is trained all the same"


def trl_messages(chosen: Chosen) -> Converted:
    """TRL's language modelling form: ``messages`` with ``tools`` as JSON text, or ``text``."""
    if chosen.texts:
        return Converted([{"text": text} for text in chosen.texts])
    offered = any(chat.tools for chat in chosen.chats)
    rows = [{"messages": chat.messages, **_tools_text(chat, offered)} for chat in chosen.chats]
    lost = Counter({_WEIGHED: sum(any(map(_untrained, chat.messages)) for chat in chosen.chats)})
    return Converted(rows, (), _warning("TRL's messages form", lost))


def trl_prompt_completion(chosen: Chosen) -> Converted:
    """TRL's prompt-completion form: the last assistant turn is the completion, all before it is the prompt.

    A text has no prompt and is all completion. In a conversation something has to come before the completion; a row in
    which nothing does cannot be held.
    """
    if chosen.texts:
        return Converted([{"prompt": "", "completion": text} for text in chosen.texts])
    offered = any(chat.tools for chat in chosen.chats)
    rows, lost, earlier = [], Counter[str](), 0
    for chat in chosen.chats:
        prompt, completion = chat.messages[:-1], chat.messages[-1:]
        if not prompt:
            lost["left out, as nothing comes before the response"] += 1
            continue
        earlier += any(turn["role"] == "assistant" for turn in prompt)
        lost[_WEIGHED] += _untrained(completion[0])
        rows.append({"prompt": prompt, "completion": completion, **_tools_text(chat, offered)})
    notes = (
        f"{_rows(earlier)} {'has' if earlier == 1 else 'have'} earlier assistant turns, which are part of the prompt"
        " and not trained in this form; trl-messages trains them.",
    )
    return Converted(rows, notes if earlier else (), _warning("TRL's prompt-completion form", lost))


def llama_factory(chosen: Chosen) -> Converted:
    """LLaMA-Factory's ShareGPT form: ``conversations`` of from and value, ``system`` and ``tools`` beside them.

    Its loader skips rows whose turns do not alternate between question (human, observation) and answer (gpt,
    function_call), so those are left out here and counted.
    """
    if chosen.texts:
        return Converted([{"text": text} for text in chosen.texts])
    rows, lost = [], Counter[str]()
    for chat in chosen.chats:
        turns = list(chat.messages)
        system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        said = [_sharegpt(turn) for turn in turns]
        if not said or len(said) % 2 or any(turn["from"] not in _SIDES[place % 2] for place, turn in enumerate(said)):
            lost["left out, as question and answer do not alternate"] += 1
            continue
        lost["without the text that stands beside a tool call"] += any(
            turn.get("tool_calls") and turn["content"] for turn in turns
        )
        lost["without keys of turns other than role, content and tool_calls"] += any(
            turn.keys() - _HELD for turn in chat.messages
        )
        lost[_WEIGHED] += any(map(_untrained, turns))
        tools = [tool.get("function", tool) for tool in chat.tools or ()]
        rows.append({"conversations": said, "system": system, "tools": _dump(tools) if tools else ""})
    return Converted(rows, (), _warning("LLaMA-Factory's form", lost))


_HELD = {"role", "content", "tool_calls", "weight"}
_SIDES = (("human", "observation"), ("gpt", "function_call"))
_FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}


def _sharegpt(turn: Turn) -> dict[str, str]:
    if calls := turn.get("tool_calls"):
        inner = [call.get("function", call) for call in calls]
        said = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in inner]
        return {"from": "function_call", "value": _dump(said[0] if len(said) == 1 else said)}
    role = str(turn["role"])
    return {"from": _FROM.get(role, role), "value": turn["content"]}


def axolotl(chosen: Chosen, *, last_only: bool = False) -> Converted:
    """Axolotl's chat_template form: OpenAI's messages, with arguments and parameters of tools as JSON text.

    Args:
        chosen: The rows.
        last_only: Mark the last turn of each row as the only one that is trained.

    Every turn has a key ``train`` where not all assistant turns are trained (:func:`marks_turns`).
    """
    marked = marks_turns(chosen, last_only=last_only)
    if chosen.texts:
        return Converted([{"text": text} for text in chosen.texts])
    rows = []
    offered = any(chat.tools for chat in chosen.chats)
    for chat in chosen.chats:
        messages = [_text_arguments(turn) for turn in chat.messages]
        if marked:
            final = len(messages) - 1
            messages = [
                {**turn, "train": _trained(turn) and (place == final or not last_only)}
                for place, turn in enumerate(messages)
            ]
        tools = [_text_parameters(tool) for tool in chat.tools or ()]
        rows.append({"messages": messages, **({"tools": tools or None} if offered else {})})
    wrapped = sum(any("function" not in tool for tool in chat.tools or ()) for chat in chosen.chats)
    note = (
        f"The tools of {_rows(wrapped)} stand under a key 'function' now, as axolotl reads them; a template may write"
        " them otherwise than when the rows were chosen."
    )
    return Converted(rows, (note,) if wrapped else ())


def marks_turns(chosen: Chosen, *, last_only: bool = False) -> bool:
    """Whether the turns that are trained must be marked one by one, as some assistant turns are not."""
    return last_only or any(_untrained(turn) for chat in chosen.chats for turn in chat.messages)


def _trained(turn: Turn) -> bool:
    return turn["role"] == "assistant" and not _untrained(turn)


def _untrained(turn: Turn) -> bool:
    """Whether an assistant turn was kept out of the loss when the rows were chosen."""
    return turn["role"] == "assistant" and turn.get("weight") in (0, 0.0)


def _text_arguments(turn: Turn) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        inner = dict(call.get("function", call))
        arguments = inner.get("arguments", {})
        inner["arguments"] = arguments if isinstance(arguments, str) else _dump(arguments)
        outer = {key: call[key] for key in ("id", "index") if key in call and "function" in call}
        calls.append({**outer, "type": "function", "function": inner})
    return {**turn, "tool_calls": calls}


def _text_parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(tool.get("function", tool))
    if "parameters" in function and not isinstance(function["parameters"], str):
        function["parameters"] = _dump(function["parameters"])
    return {"type": "function", "function": function}


def _tools_text(chat: Chat, offered: bool) -> Row:
    """Tools as JSON text, which the loader of a file keeps as it is; the same keys in every row."""
    return {"tools": _dump(chat.tools) if chat.tools else None} if offered else {}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _warning(form: str, lost: Mapping[str, int]) -> str:
    found: Sequence[str] = [f"{_rows(count)} {what}" for what, count in lost.items() if count]
    return f"{form} cannot hold everything: {'; '.join(found)}." if found else ""
