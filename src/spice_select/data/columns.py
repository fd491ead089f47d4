"""Arrow columns from Python values and back, without loss: what has no plain Arrow type is kept as JSON.

A column whose values all have one shape becomes the plain type. Objects whose keys differ from row to row would be
padded with nulls by a struct type, and chat templates tell an absent key from a null one; such columns, and those of
mixed types, get Arrow's JSON type (``arrow.json``), which ``datasets`` reads back as the very objects.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from spice_select.data.shapes import DEEPEST, too_deep

JSON_TYPE: pa.DataType = pa.json_(pa.string())

_INT64 = (-(2**63), 2**63 - 1)
_EXACT_IN_DOUBLE = 2**53
# Readers of JSON columns stop at 64 bits; longer runs of digits are looked at more closely.
_LONG_DIGITS = re.compile(r"\d{19}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def infer_type(values: Iterable[Any]) -> pa.DataType | None:
    """The plain Arrow type that holds all values exactly, null if there are none, or None where only JSON does."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if not kinds:
        return pa.null()
    if kinds == {str}:
        return pa.string()
    if kinds == {bool}:
        return pa.bool_()
    if kinds <= {int, float}:
        return _number_type(present, kinds)
    if kinds == {list}:
        child = infer_type(item for value in present for item in value)
        return None if child is None else pa.list_(child)
    if kinds == {dict}:
        return _struct_type(present)
    return None


def _number_type(values: Sequence[int | float], kinds: set[type]) -> pa.DataType | None:
    if kinds == {float}:
        return pa.float64()
    integers = [value for value in values if isinstance(value, int)]
    low, high = min(integers), max(integers)
    if kinds == {int}:
        return pa.int64() if _INT64[0] <= low and high <= _INT64[1] else None
    return pa.float64() if low >= -_EXACT_IN_DOUBLE and high <= _EXACT_IN_DOUBLE else None


def _struct_type(values: Sequence[dict[str, Any]]) -> pa.DataType | None:
    names = values[0].keys()
    if not names or any(value.keys() != names for value in values):
        return None
    fields = []
    for name in names:
        child = infer_type(value[name] for value in values)
        if child is None:
            return None
        fields.append(pa.field(name, child))
    return pa.struct(fields)


def to_array(values: Sequence[Any]) -> pa.Array:
    """A column of Python values as they came from JSON; surrogates that stand alone become U+FFFD."""
    kind = infer_type(values)
    try:
        return json_array(values) if kind is None else pa.array(values, kind)
    except UnicodeEncodeError:
        return to_array([_without_surrogates(value) for value in values])


def json_array(values: Sequence[Any]) -> pa.Array:
    """A JSON column; JSON text in a plain string column where an integer is longer than JSON readers take."""
    texts = [None if value is None else dump(value) for value in values]
    storage = pa.array(texts, pa.string())
    if any(text and _LONG_DIGITS.search(text) and _has_long_integer(json.loads(text)) for text in texts):
        return storage
    return pa.ExtensionArray.from_storage(JSON_TYPE, storage)


def dump(value: Any) -> str:
    """JSON text of a value; bytes as base64, dates and other types as text, numbers that are no JSON as null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_other)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_other)


def canonical(row: dict[str, Any]) -> bytes:
    """One line, the same for rows with the same values whatever the format or order of columns; nulls are absent."""
    kept = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(kept, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_other)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _other(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _has_long_integer(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_long_integer(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_long_integer(item) for item in value)
    return isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]


def whole_characters(text: str) -> str:
    """Text in which each half of a surrogate pair that stands alone is U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


def unify_types(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    """The type that holds the values of both unchanged, or None where only JSON does."""
    if first is None or second is None or first == second:
        return first if first == second else None
    if pa.types.is_dictionary(first):
        return unify_types(first.value_type, second)
    if pa.types.is_dictionary(second) or pa.types.is_null(first):
        return unify_types(second, first)
    if pa.types.is_null(second):
        return first
    if _is_text(first) and _is_text(second):
        return pa.large_string()
    if _is_number(first) and _is_number(second):
        return _wider(first, second)
    if _is_list(first) and _is_list(second):
        child = unify_types(first.value_type, second.value_type)
        return None if child is None else pa.list_(child)
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        return _unify_structs(first, second)
    return None


def _unify_structs(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if {field.name for field in first} != {field.name for field in second}:
        return None
    fields = []
    for field in first:
        child = unify_types(field.type, second.field(field.name).type)
        if child is None:
            return None
        fields.append(pa.field(field.name, child))
    return pa.struct(fields)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _wider(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(first) != pa.types.is_integer(second):
        return pa.float64()
    if pa.types.is_floating(first):
        return first if first.bit_width >= second.bit_width else second
    if pa.types.is_signed_integer(first) == pa.types.is_signed_integer(second):
        return first if first.bit_width >= second.bit_width else second
    return None if pa.uint64() in (first, second) else pa.int64()


def decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns JSON inside a value of this type back into objects; None where there is none."""
    if isinstance(kind, pa.JsonType):
        return _decoded
    if _is_list(kind):
        item = decoder(kind.value_type)
        return None if item is None else lambda values: [None if value is None else item(value) for value in values]
    if pa.types.is_struct(kind):
        fields = {field.name: found for field in kind if (found := decoder(field.type)) is not None}
        if fields:
            return lambda value: {
                name: fields[name](item) if name in fields and item is not None else item
                for name, item in value.items()
            }
    return None


def _decoded(text: str) -> Any:
    value = json.loads(text)
    if text.count("[") + text.count("{") > DEEPEST and too_deep(value):
        raise ValueError(f"JSON values are nested more than {DEEPEST} deep")
    return value


def column_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Python values of a column, JSON decoded."""
    decode = decoder(column.type)
    values = column.to_pylist()
    return values if decode is None else [None if value is None else decode(value) for value in values]


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table as dicts, JSON decoded."""
    names = table.column_names
    columns = [column_values(column) for column in table.columns]
    return (
        [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)] if names else [{}] * len(table)
    )


def cast_column(column: pa.ChunkedArray, kind: pa.DataType | None) -> pa.ChunkedArray:
    """A column under another type found by :func:`unify_types`; None is JSON."""
    if kind is None:
        if isinstance(column.type, pa.JsonType):
            return column
        return pa.chunked_array([json_array(column_values(column))])
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([pa.array(column_values(column), kind)])


def concat_tables(tables: Sequence[pa.Table]) -> tuple[pa.Table, tuple[str, ...]]:
    """Tables one below the other over the union of their columns, and the names of the columns that had to become JSON.

    A column that a table lacks is null there. Integers that a double would round make their column JSON.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    rows = sum(len(table) for table in tables)
    columns: list[pa.ChunkedArray] = []
    conflicts: list[str] = []
    for name in names:
        parts = [
            table.column(name) if name in table.column_names else pa.chunked_array([pa.nulls(len(table))])
            for table in tables
        ]
        column = _concat_column(parts)
        mixed = {part.type for part in parts if not pa.types.is_null(part.type)}
        if (
            len(mixed) > 1
            and (isinstance(column.type, pa.JsonType) or _is_text(column.type))
            and not all(map(_is_text, mixed))
        ):
            conflicts.append(name)
        columns.append(column)
    assert all(len(column) == rows for column in columns)
    return pa.Table.from_arrays(columns, names=names), tuple(conflicts)


def _concat_column(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    kind: pa.DataType | None = pa.null()
    for part in parts:
        kind = unify_types(kind, part.type)
    try:
        cast = [cast_column(part, kind) for part in parts]
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        cast = [cast_column(part, None) for part in parts]
    if len({part.type for part in cast}) > 1:  # JSON whose integers are too long for readers is text, then all of it is
        cast = [_as_json_text(part) for part in cast]
    return pa.chunked_array([chunk for part in cast for chunk in part.chunks], type=cast[0].type)


def _as_json_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks]
    return pa.chunked_array(chunks, type=pa.string())
