"""Files of rows to Arrow tables, with errors that name the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from spice_select.data.json_files import not_utf8, open_bytes, read_json, read_jsonl
from spice_select.data.stamps import Stamp
from spice_select.errors import DataError

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
_MEANWHILE = "while it was read"
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
        DataError: The file is missing, empty, damaged, holds no rows, or was written into meanwhile.
    """
    return read_stamped(path, limit)[0]


def read_stamped(path: Path, limit: int | None = None) -> tuple[pa.Table, tuple[Stamp, ...]]:
    """As :func:`read_file`, with what tells later whether the rows are still those: of a file that stays mapped alone.

    Raises:
        DataError: As there.
    """
    try:
        stamp = Stamp.of(path)
    except OSError:
        # What is wrong with it is told by whoever opens it.
        return _read_file(path, limit), ()
    try:
        table = _read_file(path, limit)
    except DataError:
        # Half of what is being written there looks damaged.
        stamp.require_unchanged(_MEANWHILE)
        raise
    stamp.require_unchanged(_MEANWHILE)
    return table, (stamp,) if file_format(path) == "arrow" else ()


def _read_file(path: Path, limit: int | None) -> pa.Table:
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path} is of no format that is read; give {KNOWN_FORMATS}.")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with at least one row.")
        if not path.is_file():
            raise DataError(f"{path} is no file that holds its rows, but a pipe or a device; write the rows to a file.")
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


def _read_csv(path: Path, limit: int | None) -> pa.Table:
    with open_bytes(path) as stream:
        raw = stream.read()
    try:
        head = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw.count(b"\n", 0, error.start) + 1, error) from None
    if "\x00" in head:
        line = head.count("\n", 0, head.index("\x00")) + 1
        raise DataError(f"{path}, line {line}: a NUL byte, so this is binary data; give CSV text.")
    first = head.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count) if first.count(",") == 0 else ","
    try:
        # A line that a carriage return alone ends, as old files have it, is a line to Arrow as well.
        header = next(csv.reader(io.StringIO(head.lstrip("\r\n"), newline=""), delimiter=delimiter), [])
    except csv.Error:
        raise DataError(
            f"{path} has no header line: its first line is longer than any names of columns, or its quotation mark is "
            "never closed; add a first line with the names of the columns."
        ) from None
    if not header:
        raise DataError(f"{path} has no rows; give a file with at least one.")
    del head
    _check_header(path, header)
    try:
        table = pa_csv.read_csv(
            io.BytesIO(raw.removeprefix(b"\xef\xbb\xbf")),
            read_options=pa_csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False),
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
    if any(not cell for cell in cells[1:]):  # pandas leaves the first empty, above the numbers of the rows
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
            _plausible(path, file)
            if limit is None:
                return _sound(file.read())
            groups: list[pa.Table] = []
            for index in range(file.num_row_groups):
                groups.append(file.read_row_group(index))
                if sum(map(len, groups)) >= limit:
                    break
            return _sound(pa.concat_tables(groups) if groups else file.read())
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path} is no whole parquet file ({_first(error)}); write or fetch it again.") from None


def _read_arrow(path: Path, limit: int | None) -> pa.Table:
    """Both Arrow forms, memory-mapped: the file form, and the stream form that ``datasets`` writes."""
    del limit
    source = pa.memory_map(str(path))
    try:
        return _sound(pa.ipc.open_file(source).read_all())
    except pa.ArrowInvalid:
        source.seek(0)
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path} is no whole arrow file ({_first(error)}); write or fetch it again.") from None
    try:
        return _sound(pa.ipc.open_stream(source).read_all())
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path} is no whole arrow file ({_first(error)}); write or fetch it again.") from None


_BROKEN = (pa.ArrowException, ValueError, LookupError, TypeError, EOFError, MemoryError, RecursionError, SystemError)
"""What Arrow's readers raise of files that are damaged; lengths that are nonsense ask for memory that nobody has."""
_ROWS_A_BYTE = 100
"""The most rows that one byte of a parquet file may stand for: more are no text that anyone wrote."""


def _plausible(path: Path, file: pq.ParquetFile) -> None:
    """Refuse a small file that unpacks to more rows than there can be."""
    if file.metadata.num_rows > 10_000_000 and file.metadata.num_rows > _ROWS_A_BYTE * path.stat().st_size:
        raise ValueError(f"it says that it has {file.metadata.num_rows:,} rows")


def _sound(table: pa.Table) -> pa.Table:
    """A table whose lengths and offsets fit its bytes: Arrow itself trusts them."""
    # By place, as a name may stand twice; whoever reads a file says so.
    for field in table.schema:
        field.name.encode()
        if _has_empty_struct(field.type):
            raise ValueError(f"column {field.name!r} holds objects without fields, which no parquet file can")
    table.validate(full=True)
    return table


def _has_empty_struct(kind: pa.DataType) -> bool:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not fields) or any(_has_empty_struct(field.type) for field in fields)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:120] if str(error) else type(error).__name__


_READERS: dict[str, Callable[[Path, int | None], pa.Table]] = {
    "json": read_json,
    "jsonl": read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
