"""Each file that cannot be read gets one sentence that names it and says what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from spice_select.data.sources import load_rows
from spice_select.errors import ConfigError, DataError


def _message(*sources: Path | str, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(sources, **options)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


BROKEN = [
    ("empty.jsonl", b"", ["is empty"]),
    ("blank.jsonl", b"\n \n", ["has no rows"]),
    ("none.json", b"[]", ["has no rows"]),
    ("space.json", b"  \n", ["has no rows"]),
    ("binary.jsonl", b"\x80\x81\x00\xff" * 9, ["line 1", "0x80", "UTF-8"]),
    ("nul.jsonl", b'{"a": "\x00"}', ["line 1", "NUL"]),
    ("nul.csv", b"a,b\n1,\x00\n", ["line 2", "NUL"]),
    ("latin.jsonl", b'{"a": 1}\n{"a": "\xe9t\xe9"}\n', ["line 2", "0xe9", "UTF-8"]),
    ("latin.json", b'[{"a": 1},\n{"a": "\xe9"}]\n', ["line 2", "UTF-8"]),
    ("latin.csv", b"q,a\nx,\xe9\n", ["line 2", "UTF-8"]),
    ("third.jsonl", b'{"a": 1}\n\n{"a": \n', ["line 3", "broken JSON"]),
    ("array.json", b'[{"a": 1},\n {"a": 2}\n {"a": 3}]', ["line 3", "broken JSON", "Expecting ','"]),
    ("cut.json", b'[{"a": 1},\n {"a":', ["line 2", "broken JSON"]),
    ("more.json", b'[{"a": 1}] tail', ["line 1", "Extra data"]),
    ("object.json", b'{"a": {"b": 1},\n "c": }', ["line 2", "broken JSON"]),
    ("scalar.jsonl", b'{"a": 1}\n[1, 2]\n', ["line 2", "a list", "object"]),
    ("text.json", b'[{"a": 1}, "two"]', ["line 1", "a text"]),
    ("number.json", b"5", ["a number"]),
    ("deep.jsonl", b'{"a": 1}\n{"a": ' + b'{"b": ' * 300 + b"1" + b"}" * 301 + b"\n", ["line 2", "nested"]),
    ("deep.json", b'[{"a": 1},\n{"a": ' + b"[" * 300 + b"]" * 300 + b"}]", ["line 2", "nested"]),
    ("prose.csv", b"a" * 200_000, ["no header line", "longer"]),
    ("open.csv", b'prompt,"response' + b"a" * 200_000, ["no header line", "quotation mark"]),
    ("blank.csv", b"\n\n", ["has no rows"]),
    ("lists.json", b'{"x": [{"a": 1}], "y": [{"a": 1}]}', ["exactly one", "'x', 'y'"]),
    ("norows.json", b'{"x": 1}', ["exactly one", "none"]),
    ("twice.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', ["line 2", "'a' twice"]),
    ("infinite.jsonl", b'{"a": Infinity}\n', ["line 1", "Infinity"]),
    ("deep.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["line 1"]),
    ("digits.jsonl", b'{"a": ' + b"1" * 5000 + b"}", ["line 1"]),
    ("noheader.csv", b"12,What is 2+2?\n13,What is 3+3?\n", ["header"]),
    ("twice.csv", b"a,a\n1,2\n", ["header", "twice"]),
    ("unnamed.csv", b"a,\n1,2\n", ["header", "empty"]),
    ("long.csv", b"a," + b"word " * 40 + b"\n1,2\n", ["header"]),
    ("ragged.csv", b"a,b\n1,2\n3,4,5\n", ["unequal", "3"]),
    ("only.csv", b"a,b\n", ["has no rows"]),
    ("garbage.parquet", b"PAR1 is not enough", ["parquet"]),
    ("garbage.arrow", b"ARROW1 is not enough", ["arrow"]),
    ("garbage.jsonl.gz", b"plain text", ["gzip"]),
    ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 500)[:-20], ["gzip"]),
    ("notes.txt", b"hello", ["no format", "jsonl"]),
    ("archive.gz", b"hello", ["no format"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_damaged_file(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    text = _message(path)
    assert name in text
    for part in parts:
        assert part in text


def test_no_source_and_no_rows_asked() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources"):
        load_rows([])
    with pytest.raises(ConfigError, match=r"data\.limit"):
        load_rows(["x.jsonl"], limit=0)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train_rows.jsonl").write_text("{}", encoding="utf-8")
    text = _message(tmp_path / "train_row.jsonl")
    assert "train_rows.jsonl" in text
    assert "did you mean" in text


def test_missing_folder_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    text = _message(tmp_path / "corpsu" / "train.jsonl")
    assert "there is no folder" in text
    assert str(tmp_path / "corpus") in text


@pytest.mark.parametrize("given", ["nothing", "./owner/name", "a/b/c", "rows/train.jsonl", "~/no/where"])
def test_what_is_a_path_is_no_hub_id(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cannot be found" in _message(given)


def test_folder_without_rows(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Rows", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "holds no file of rows" in _message(tmp_path)


def test_column_twice(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert "'a' twice" in _message(tmp_path / "x.arrow")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": 1}), encoding="utf-8")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "permissions" in _message(path)
