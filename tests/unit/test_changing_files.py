"""Files of rows that are written into while a command reads them, or between two readings of one command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spice_select.data import readers
from spice_select.data.sources import load_rows
from spice_select.errors import DataError

ROWS = [{"prompt": f"question {number}", "response": f"answer {number}"} for number in range(50)]
SENTENCE = r"was written into while it was read; wait until whoever writes it has ended, and run again"


def written(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Rows in the format that a file's name says."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    return path


def into(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write into a file as it lies, at another time than it was made."""
    content = change(path.read_bytes())
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(1, 1))


def meanwhile(monkeypatch: pytest.MonkeyPatch, kind: str, act: Callable[[], Any], *, first: bool) -> None:
    """Have something happen to a file once it was looked at, before it is read or after."""
    real = readers._READERS[kind]

    def read(path: Path, limit: int | None) -> pa.Table:
        if first:
            act()
        table = real(path, limit)
        if not first:
            act()
        return table

    monkeypatch.setitem(readers._READERS, kind, read)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_is_written_into_while_it_is_read_is_named(
    kind: str, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / f"rows.{kind}")
    meanwhile(monkeypatch, kind, lambda: into(path, lambda old: old.replace(b"answer", b"anders")), first=False)
    with pytest.raises(DataError, match=rf"rows\.{kind} {SENTENCE}"):
        load_rows([tmp_path if folder else path])


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_half_of_what_is_being_written_is_not_told_as_damage(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / f"rows.{kind}")
    meanwhile(monkeypatch, kind, lambda: into(path, lambda old: old[: len(old) // 2 - 3] + b'"'), first=True)
    with pytest.raises(DataError, match=SENTENCE):
        load_rows([path])


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_file_that_another_replaces_is_read_as_it_was_or_as_it_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = written(tmp_path / f"rows.{kind}"), written(tmp_path / f"new.{kind}", ROWS[:20])
    before, after = load_rows([path]), load_rows([other])
    meanwhile(monkeypatch, kind, lambda: os.replace(other, path), first=False)
    found = load_rows([path])
    assert found.fingerprint == before.fingerprint != after.fingerprint
    assert list(found) == list(before)
    found.require_unchanged()


def test_a_mapped_file_is_known_to_have_changed_and_others_are_in_memory(tmp_path: Path) -> None:
    kinds = ["jsonl", "json", "csv", "parquet", "arrow"]
    paths = [written(tmp_path / f"rows.{kind}") for kind in kinds]
    rows = [load_rows([path]) for path in paths]
    known = [list(one) for one in rows]
    for path in paths:
        into(path, lambda old: old.replace(b"answer", b"anders"))
    for kind, one, before in zip(kinds, rows, known, strict=True):
        if kind == "arrow":
            with pytest.raises(DataError, match=r"rows\.arrow was written into since it was read; wait until"):
                one.subset([1, 2]).require_unchanged()
        else:
            one.require_unchanged()
            assert list(one) == before
