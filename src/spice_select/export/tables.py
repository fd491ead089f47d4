"""A finished run's rows as one file, for trainers that read files rather than data sets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from spice_select.data.columns import table_rows
from spice_select.errors import ConfigError, OutputError, StoreError
from spice_select.files import atomic_file, make_folder


def read_chosen(data: Path) -> pa.Table:
    """The chosen rows of a run in order of choice.

    Args:
        data: The run's ``data`` folder.

    Raises:
        StoreError: There is no selection, or it cannot be read.
    """
    files = sorted(data.glob("train-*.parquet"))
    if not files:
        raise StoreError(f"{data.parent} holds no selection; finish the run, or name another folder.")
    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"The rows in {data} cannot be read ({error}); run the selection again.") from None


def export_rows(data: Path, output: Path, *, messages_only: bool = False, overwrite: bool = False) -> int:
    """Write the chosen rows as one jsonl, json, csv or parquet file, after the ending of its name.

    Args:
        data: The run's ``data`` folder.
        output: File to write.
        messages_only: Keep the ``messages`` column (and ``tools``) alone.
        overwrite: Replace a file that is there.

    Returns:
        Rows written.

    Raises:
        ConfigError: An ending that names no format.
        StoreError: There is no selection.
        OutputError: The file exists, or cannot be written.
    """
    table_format(output)
    table = read_chosen(data)
    if messages_only:
        table = table.select([name for name in ("messages", "tools") if name in table.column_names])
    return write_table(table, output, overwrite=overwrite)


def table_format(output: Path, asked: str | None = None) -> str:
    """The format of a file of rows: what was asked for, or what the ending of its name says.

    Args:
        output: File to write.
        asked: ``jsonl``, ``json``, ``csv`` or ``parquet``.

    Raises:
        ConfigError: An ending that names no format, or another one than was asked for.
    """
    ending = output.suffix.lower().removeprefix(".")
    if asked is None and ending not in _WRITERS:
        known = ", ".join(f".{name}" for name in _WRITERS)
        raise ConfigError(f"--output {output} ends in no format that can be written; use one of {known}.")
    if asked is not None and ending != asked:
        raise ConfigError(f"--output {output} must end in .{asked} for --format {asked}; name such a file.")
    return ending


def write_table(table: pa.Table, output: Path, *, overwrite: bool = False) -> int:
    """Write rows as one file, after the ending of its name.

    Args:
        table: The rows.
        output: File to write.
        overwrite: Replace a file that is there.

    Returns:
        Rows written.

    Raises:
        ConfigError: An ending that names no format.
        OutputError: The file exists, or cannot be written.
    """
    write = _WRITERS[table_format(output)]
    if output.is_dir():
        raise OutputError(f"The output {output} is a folder; name a file.")
    if output.exists() and not overwrite:
        raise OutputError(f"The output {output} exists; name another file, or replace it with --overwrite.")
    make_folder(output.parent)
    with atomic_file(output) as file:
        write(table, file)
    return table.num_rows


def _jsonl(table: pa.Table, file: BinaryIO) -> None:
    for row in table_rows(table):
        file.write(_json(_without_nulls(row)).encode() + b"\n")


def _json_array(table: pa.Table, file: BinaryIO) -> None:
    file.write(b"[\n" + b",\n".join(_json(_without_nulls(row)).encode() for row in table_rows(table)) + b"\n]\n")


def _csv(table: pa.Table, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    for row in table_rows(table):
        writer.writerow(_json(value) if isinstance(value, list | dict) else value for value in row.values())
    text.flush()
    text.detach()


def _parquet(table: pa.Table, file: BinaryIO) -> None:
    pq.write_table(table, file)


_WRITERS: Mapping[str, Callable[[pa.Table, BinaryIO], None]] = {
    "jsonl": _jsonl,
    "json": _json_array,
    "csv": _csv,
    "parquet": _parquet,
}


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the keys that its message turns really have: Arrow fills absent ones with null."""
    messages: Sequence[Mapping[str, Any]] | None = row.get("messages")
    if not messages:
        return dict(row)
    return {**row, "messages": [{k: v for k, v in turn.items() if v is not None} for turn in messages]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
