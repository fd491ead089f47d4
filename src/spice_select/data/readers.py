"""Files of rows to Arrow tables, with errors that name the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from spice_select.data.columns import concat_tables, to_array
from spice_select.errors import DataError

CHUNK_ROWS = 4096
_CSV_BLOCK = 64 << 20

_SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXT = {"json", "jsonl", "csv"}
KNOWN_FORMATS = "json, jsonl, csv, parquet or arrow (text also as .gz)"


def file_format(path: Path) -> str | None:
    """Format that a file's name says, or None where it says none that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        found = _SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return found if found in _TEXT else None
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def read_file(path: Path, limit: int | None = None) -> pa.Table:
    """All rows of a file, or its first ``limit``, in the order of the file.

    Rows are never all held as Python objects, and lines of JSON are read one by one. JSON takes the shape of its values
    (``NaN`` counts as missing); CSV values stay the text that they are.

    Raises:
        DataError: The file is missing, empty, damaged, or holds no rows.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path} is of no format that is read; give {KNOWN_FORMATS}.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with at least one row.")
        table = _READERS[kind](path, limit)
    except PermissionError:
        raise DataError(f"{path} may not be read by this user; change its permissions.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path} is not a whole gzip file; compress it again, or give it uncompressed.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice; rename one of the two.")
    if len(table) == 0:
        raise DataError(f"{path} has no rows; give a file with at least one.")
    return table if limit is None else table.slice(0, limit)


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
        self._chunks.append(pa.Table.from_arrays(columns, names=[_clean(name) for name in names]))
        self._rows = []

    def table(self) -> pa.Table:
        if self._rows:
            self._flush()
        return concat_tables(self._chunks)[0] if self._chunks else pa.table({})


def _clean(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


class _Fault(ValueError):
    """Something that JSON allows, or Python's reader, and rows do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"the key {twice!r} twice in one object")
    return found


def _constant(text: str) -> None:
    if text != "NaN":
        raise _Fault(f"{text}, which is no JSON")


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


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8, so this is binary data or text in another encoding; "
        "save it as UTF-8."
    )


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Generator[tuple[int, str], None, None]:
    """Numbered lines that are not blank; only the line feed ends a line, as JSON text may hold other separators."""
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None
            if "\x00" in text:
                raise DataError(f"{path}, line {number}: a NUL byte, so this is binary data; give JSON text.")
            if text.strip():
                yield number, text


def _read_jsonl(path: Path, limit: int | None) -> pa.Table:
    rows = _Rows()
    for number, text in _lines(path):
        if rows.count == 0 and text.lstrip().startswith("["):
            return _read_document(path, limit)
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise _broken(path, number, error) from None
        rows.add(_need_row(path, f"line {number}", value))
        if rows.count == limit:
            break
    return rows.table()


def _read_json(path: Path, limit: int | None) -> pa.Table:
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
        return _read_jsonl(path, limit)
    return _read_document(path, limit)


def _read_document(path: Path, limit: int | None) -> pa.Table:
    with _open(path) as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw.count(b"\n", 0, error.start) + 1, error) from None
    del raw
    start = _skip(text, 0)
    if start == len(text):
        return pa.table({})
    if text[start] == "[":
        return _read_array(path, text, start, limit)
    try:
        value = _DECODER.decode(text)
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


def _read_csv(path: Path, limit: int | None) -> pa.Table:
    with _open(path) as stream:
        raw = stream.read()
    try:
        head = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw.count(b"\n", 0, error.start) + 1, error) from None
    if "\x00" in head:
        line = head.count("\n", 0, head.index("\x00")) + 1
        raise DataError(f"{path}, line {line}: a NUL byte, so this is binary data; give CSV text.")
    first = head.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count) if first.count(",") == 0 else ","
    header = next(csv.reader(io.StringIO(head.lstrip("\r\n")), delimiter=delimiter), [])
    del head
    _check_header(path, header)
    try:
        table = pa_csv.read_csv(
            io.BytesIO(raw.removeprefix(b"\xef\xbb\xbf")),
            read_options=pa_csv.ReadOptions(block_size=max(_CSV_BLOCK, 1), use_threads=False),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        detail = str(error).split(": ", 1)[-1].splitlines()[0][:120]
        raise DataError(
            f"{path}: rows of unequal length ({detail}); quote values that hold a comma, a quote or a line break."
        ) from None
    return table if limit is None else table.slice(0, limit)


def _check_header(path: Path, header: list[str]) -> None:
    cells = [cell.strip() for cell in header]
    fault = ""
    if any(not cell for cell in cells) and len(cells) > 1:
        fault = "an empty name"
    elif len(set(cells)) < len(cells):
        fault = "a name twice"
    elif long := next((cell for cell in cells if len(cell) > 100 or "\n" in cell), None):
        fault = f"the text {long[:40]!r}..."
    elif number := next((cell for cell in cells if cell.replace(".", "", 1).lstrip("-").isdigit()), None):
        fault = f"the number {number}"
    if fault:
        raise DataError(
            f"{path} has no header line: its first line holds {fault}; add a first line with the names of the columns."
        )


def _read_parquet(path: Path, limit: int | None) -> pa.Table:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            if limit is None:
                return file.read()
            groups: list[pa.Table] = []
            for index in range(file.num_row_groups):
                groups.append(file.read_row_group(index))
                if sum(map(len, groups)) >= limit:
                    break
            return pa.concat_tables(groups) if groups else file.read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path} is no whole parquet file ({_first(error)}); write or fetch it again.") from None


def _read_arrow(path: Path, limit: int | None) -> pa.Table:
    """Both Arrow forms, memory-mapped: the file form, and the stream form that ``datasets`` writes."""
    del limit
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
    try:
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError) as error:
        raise DataError(f"{path} is no whole arrow file ({_first(error)}); write or fetch it again.") from None


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:120] if str(error) else type(error).__name__


_READERS: dict[str, Callable[[Path, int | None], pa.Table]] = {
    "json": _read_json,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
