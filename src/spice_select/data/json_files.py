"""JSON in its three forms (a list, an object that holds one, one object a line) to Arrow tables.

Strict JSON, but for two things: ``NaN`` counts as missing, since that is what pandas writes for a missing value, and
half of a surrogate pair is replaced. A key that stands twice in an object is an error, as one of its values would be
lost.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spice_select.data.columns import concat_tables, to_array, whole_characters
from spice_select.data.shapes import DEEPEST, too_deep
from spice_select.errors import DataError

CHUNK_ROWS = 4096
MOST_PACKED = 200
"""Bytes of text that a byte of a gzip file may stand for, beyond the first ``FREELY_UNPACKED``."""
FREELY_UNPACKED = 1 << 28


class _Rows:
    """Collects JSON objects into Arrow chunks."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[dict[str, Any]] = []
        self._chunks: list[pa.Table] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        columns = [to_array([row.get(name) for row in self._rows]) for name in names]
        # A table of no columns would forget its rows, which then are objects without keys.
        if not names:
            names, columns = ["_"], [pa.nulls(len(self._rows))]
        self._chunks.append(pa.Table.from_arrays(columns, names=names))
        self._rows = []

    def table(self) -> pa.Table:
        if self._rows:
            self._flush()
        return concat_tables(self._chunks)[0] if self._chunks else pa.table({})


class _Fault(ValueError):
    """Something that JSON allows, or Python's reader, and rows do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if not "".join(found).isascii():
        pairs = [(whole_characters(name), value) for name, value in pairs]
        found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"the key {twice!r} twice in one object")
    return found


def _constant(text: str) -> None:
    if text != "NaN":
        raise _Fault(f"{text}, which is no JSON")


def _shallow(value: Any) -> Any:
    """A value as it is, unless it is nested deeper than readers of parquet follow."""
    if too_deep(value):
        raise _Fault(f"values nested more than {DEEPEST} deep")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _broken(path: Path, line: int, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(
            f"{path}, line {line}: broken JSON ({error.msg}, column {error.colno}); mend or remove that line."
        )
    if isinstance(error, _Fault):
        return DataError(f"{path}, line {line}: the JSON holds {error}; mend or remove that row.")
    return DataError(f"{path}, line {line}: JSON that cannot be read ({str(error)[:80]}); mend or remove that row.")


def _need_row(path: Path, where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    kind = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
    raise DataError(f"{path}, {where}: {kind} stands where a row (a JSON object) is needed; all rows must be objects.")


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    """The error of a file that is no UTF-8."""
    byte = error.object[error.start]
    return DataError(
        f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8, so this is binary data or text in another encoding; "
        "save it as UTF-8."
    )


class _Unpacked(io.RawIOBase):
    """A gzip file that is refused where it unpacks to more than anyone would have packed into it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.GzipFile(path, "rb")
        self._left = max(FREELY_UNPACKED, MOST_PACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise DataError(
                f"{self._path} unpacks to more than {MOST_PACKED} times its size, as no file of rows does; if it is "
                "one all the same, unpack it and give the file."
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> Any:
    """A file open for reading bytes, decompressed where its name says so."""
    return io.BufferedReader(_Unpacked(path), 1 << 20) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Generator[tuple[int, str], None, None]:
    """Numbered lines that are not blank; only the line feed ends a line, as JSON text may hold other separators."""
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, error) from None
            if "\x00" in text:
                raise DataError(f"{path}, line {number}: a NUL byte, so this is binary data; give JSON text.")
            if text.strip():
                yield number, text


def read_jsonl(path: Path, limit: int | None) -> pa.Table:
    """One object a line; a list under this name is read as one."""
    rows = _Rows()
    for number, text in _lines(path):
        if rows.count == 0 and text.lstrip().startswith("["):
            return _read_document(path, limit)
        try:
            value = _shallow(_DECODER.decode(text))
        except (ValueError, RecursionError) as error:
            raise _broken(path, number, error) from None
        rows.add(_need_row(path, f"line {number}", value))
        if rows.count == limit:
            break
    return rows.table()


def read_json(path: Path, limit: int | None) -> pa.Table:
    """An array, an object with one list of rows, or lines of objects under this name, as many files hold."""
    lines = _lines(path)
    first = next(lines, None)
    second = next(lines, None)
    lines.close()
    if first is not None and second is not None and first[1].lstrip().startswith("{"):
        try:
            _DECODER.decode(first[1])
        except (ValueError, RecursionError):
            return _read_document(path, limit)
        return read_jsonl(path, limit)
    return _read_document(path, limit)


def _read_document(path: Path, limit: int | None) -> pa.Table:
    with open_bytes(path) as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw.count(b"\n", 0, error.start) + 1, error) from None
    del raw
    start = _skip(text, 0)
    if start == len(text):
        return pa.table({})
    if text[start] == "[":
        return _read_array(path, text, start, limit)
    try:
        value = _shallow(_DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        raise _broken(path, getattr(error, "lineno", 1), error) from None
    value = _need_row(path, "line 1", value)
    lists = {
        name: item for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)
    }
    if len(lists) != 1:
        found = f"has {len(lists)} ({', '.join(map(repr, lists))})" if lists else "has none"
        raise DataError(
            f"{path} is one JSON object and not a list of rows: exactly one of its values must be a list of objects, "
            f"and it {found}; keep one list, or write one row a line as .jsonl."
        )
    rows = _Rows()
    name, items = next(iter(lists.items()))
    for index, item in enumerate(items[:limit]):
        rows.add(_need_row(path, f"row {index} of {name!r}", item))
    return rows.table()


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _read_array(path: Path, text: str, at: int, limit: int | None) -> pa.Table:
    """One row after the other, so that only the text and the columns are held."""
    rows = _Rows()
    at = _skip(text, at + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            value, end = _DECODER.raw_decode(text, at)
            _shallow(value)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, error) from None
        except (ValueError, RecursionError) as error:
            raise _broken(path, text.count("\n", 0, at) + 1, error) from None
        rows.add(
            _need_row(path, f"line {text.count(chr(10), 0, at) + 1}" if not isinstance(value, dict) else "", value)
        )
        if rows.count == limit:
            return rows.table()
        at = _skip(text, end)
        mark = text[at : at + 1]
        closed = mark == "]"
        if not closed:
            if mark != ",":
                error = json.JSONDecodeError("Expecting ',' or ']'", text, at)
                raise _broken(path, error.lineno, error)
            at = _skip(text, at + 1)
    rest = _skip(text, at + 1)
    if rest < len(text):
        error = json.JSONDecodeError("Extra data after the list", text, rest)
        raise _broken(path, error.lineno, error)
    return rows.table()
