"""Which columns mean what: found from names and values, printed, and overridable by a mapping of roles to columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spice_select.data.columns import table_rows
from spice_select.data.messages import normalised_messages, to_conversation, unusable_reason
from spice_select.data.rows import RowSet
from spice_select.data.shapes import ROLES, Schema, chat_kind, is_scalar, parse_json
from spice_select.errors import ConfigError, DataError

__all__ = [
    "Schema",
    "detect_schema",
    "detect_schemas",
    "normalised_messages",
    "to_conversation",
    "unusable_reason",
]

CHAT_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("instruction", "prompt", "question", "query", "problem")
RESPONSE_COLUMNS = ("output", "response", "answer", "completion", "solution", "target")
OPTIONAL_COLUMNS = {
    "context": ("input", "context"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
}
# Where several responses stand beside a prompt (a solution and its final answer), the customary partner goes first.
_PARTNER = {"prompt": "completion", "question": "answer", "query": "response", "problem": "solution"}
_SAMPLE_ROWS = 64


def detect_schema(rows: RowSet, source: int, mapping: Mapping[str, str] | None = None) -> Schema:
    """Find the schema of one source.

    Looked for in this order, by column name (letter case aside) and by the values of the first rows: messages;
    conversations; a pair of a prompt and a response column; text. A mapping is laid over what is found: a role that it
    names gets that column, and an empty name takes a role away. A column that only other sources have is passed over.

    Args:
        rows: All rows.
        source: Number of the source.
        mapping: Role to column.

    Raises:
        ConfigError: The mapping names an unknown role, or a column that no source has.
        DataError: No schema fits.
    """
    table = rows.tables[source]
    columns = table.column_names
    mapped = _check_mapping(mapping or {}, columns, rows.columns)
    sample = table_rows(table.slice(0, _SAMPLE_ROWS))
    found = _Finder(columns, sample, mapped).find()
    if found is None:
        raise _no_schema(rows, source)
    return found


def detect_schemas(rows: RowSet, mapping: Mapping[str, str] | None = None) -> tuple[Schema, ...]:
    """The schema of every source, in order."""
    return tuple(detect_schema(rows, source, mapping) for source in range(len(rows.sources)))


def _check_mapping(mapping: Mapping[str, str], here: Sequence[str], anywhere: Sequence[str]) -> dict[str, str]:
    for role, column in mapping.items():
        if role not in ROLES:
            raise ConfigError(
                f"data.columns.{role} is no role{_nearest(role, ROLES)}; the roles are {', '.join(ROLES)}."
            )
        if column and column not in anywhere:
            raise ConfigError(
                f"data.columns.{role} is {column!r}, which is no column{_nearest(column, anywhere)}; "
                f"the columns are {', '.join(anywhere)}."
            )
    kept = {role: column for role, column in mapping.items() if not column or column in here}
    forms = [name for name in ("messages", "text") if kept.get(name)] + (
        ["prompt/response"] if kept.get("prompt") or kept.get("response") else []
    )
    if len(forms) > 1:
        raise ConfigError(f"data.columns maps {' and '.join(forms)}, which exclude each other; keep one of them.")
    return kept


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


class _Finder:
    """The search for one source's schema."""

    def __init__(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]], mapped: Mapping[str, str]) -> None:
        self._sample = sample
        self._mapped = mapped
        self._names = {name.lower(): name for name in reversed(columns)} | {name: name for name in columns}

    def find(self) -> Schema | None:
        if self._mapped.get("text"):
            return Schema("text", {"text": self._mapped["text"]})
        if not (self._mapped.get("prompt") or self._mapped.get("response")):
            chat = self._chat()
            if chat is not None or self._mapped.get("messages"):
                return chat
        pair = self._pair()
        if pair is not None or self._mapped.get("prompt") or self._mapped.get("response"):
            return pair
        text = self._first("text", ("text",), is_scalar)
        return None if text is None else Schema("text", {"text": text})

    def _chat(self) -> Schema | None:
        wanted = ("messages", "conversations")
        for kind in wanted:
            column = self._first("messages", CHAT_COLUMNS, lambda value, kind=kind: chat_kind(value) == kind)
            if column is not None:
                return Schema(kind, {"messages": column, **self._optional("system", "tools")})
        return None

    def _pair(self) -> Schema | None:
        for prompt in self._candidates("prompt", PROMPT_COLUMNS, _is_side):
            partner = _PARTNER.get(prompt.lower())
            order = sorted(RESPONSE_COLUMNS, key=lambda name: name != partner)
            response = self._first("response", order, _is_side, other=prompt)
            if response is not None:
                optional = self._optional("context", "system", "history", "tools", taken={prompt, response})
                return Schema("pair", {"prompt": prompt, "response": response, **optional})
        return None

    def _optional(self, *roles: str, taken: Iterable[str] = ()) -> dict[str, str]:
        checks: dict[str, Callable[[Any], bool]] = {
            "context": lambda value: isinstance(value, str),
            "system": lambda value: isinstance(value, str),
            "history": lambda value: isinstance(parse_json(value), list),
            "tools": lambda value: isinstance(value, str | list),
        }
        found = {role: self._first(role, OPTIONAL_COLUMNS[role], checks[role]) for role in roles}
        return {role: column for role, column in found.items() if column is not None and column not in set(taken)}

    def _first(
        self, role: str, names: Sequence[str], check: Callable[[Any], bool], other: str | None = None
    ) -> str | None:
        return next((name for name in self._candidates(role, names, check) if name != other), None)

    def _candidates(self, role: str, names: Sequence[str], check: Callable[[Any], bool]) -> list[str]:
        """Columns that may have the role: the one mapped, or those of a known name whose values fit (all null fits)."""
        if role in self._mapped:
            column = self._mapped[role]
            # Which kind of chat a mapped column holds is told by its values alone.
            fits = column and (role != "messages" or self._fits(column, check))
            return [column] if fits else []
        present = dict.fromkeys(self._names[name] for name in names if name in self._names)
        return [column for column in present if self._fits(column, check)]

    def _fits(self, column: str, check: Callable[[Any], bool]) -> bool:
        values = [value for row in self._sample if (value := row.get(column)) is not None]
        return 2 * sum(map(check, values)) >= len(values) if values else True


def _is_side(value: Any) -> bool:
    return is_scalar(value) or chat_kind(value) is not None


def _no_schema(rows: RowSet, source: int) -> DataError:
    seen = rows.sources[source]
    shown = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in seen.columns[:12])
    more = f" and {len(seen.columns) - 12} more" if len(seen.columns) > 12 else ""
    header = " if the file has a header line" if "csv" in seen.format else ""
    return DataError(
        f"{seen.origin} has the columns {shown}{more}, of which none are messages (role, content), conversations "
        f"(from, value), a pair of {{{', '.join(PROMPT_COLUMNS)}}} with {{{', '.join(RESPONSE_COLUMNS)}}}, or text; "
        f"name yours with --set data.columns.prompt=COLUMN --set data.columns.response=COLUMN "
        f"(or messages, or text){header}."
    )
