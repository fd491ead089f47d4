"""Every format gives the same rows in the order of the file, whatever its shape."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spice_select.data.sources import load_rows
from tests.support import shared_path

ROWS = [
    {"instruction": "Sägen Sie 你好 🌶", "output": 'a "quoted", \\ value\nand a line', "input": ""},
    {"instruction": "line\u2028separator", "output": "NaN", "input": "007"},
    {"instruction": "third", "output": "", "input": "x"},
]


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")


def _jsonl(path: Path) -> None:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n", encoding="utf-8")


def _object(path: Path) -> None:
    path.write_text(json.dumps({"version": 2, "tags": ["a"], "data": ROWS}), encoding="utf-8")


def _csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=1)


def _arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _gz(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_compressed(path: Path) -> None:
        plain = path.with_suffix("")
        write(plain)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return write_compressed


def _bom(path: Path) -> None:
    _csv(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


FORMATS = [
    ("rows.json", _json), ("object.json", _object), ("lines.json", _jsonl), ("rows.jsonl", _jsonl),
    ("array.jsonl", _json), ("rows.ndjson", _jsonl), ("rows.csv", _csv), ("bom.csv", _bom), ("rows.tsv", _csv),
    ("rows.parquet", _parquet), ("file.arrow", _arrow_file), ("stream.arrow", _arrow_stream),
    ("rows.jsonl.gz", _gz(_jsonl)), ("rows.json.gz", _gz(_json)), ("rows.csv.gz", _gz(_csv)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_format_gives_the_same_rows_and_fingerprint(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path)
    reference = tmp_path / "reference.jsonl"
    _jsonl(reference)
    rows = load_rows([str(path)])
    assert list(rows) == ROWS
    assert [rows[index] for index in range(-3, 0)] == ROWS
    assert rows.fingerprint == load_rows([reference]).fingerprint
    assert rows.sources[0].rows == 3
    assert rows.sources[0].columns == ("instruction", "output", "input")


def test_limit_is_over_all_sources_and_stops_reading(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.jsonl"
    _jsonl(first)
    _json(second)
    third.write_text("{broken", encoding="utf-8")
    rows = load_rows([first, second, third], limit=5)
    assert len(rows) == 5
    assert [source.rows for source in rows.sources] == [3, 2]
    assert any("c.jsonl" in note for note in rows.notes)
    assert rows.fingerprint != load_rows([first, second]).fingerprint
    assert list(load_rows([first], limit=2)) == ROWS[:2]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "stream.arrow", "object.json"])
def test_limit_of_each_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    dict(FORMATS)[name](path)
    assert list(load_rows([path], limit=2)) == ROWS[:2]
    assert list(load_rows([path], limit=99)) == ROWS


def test_fingerprint_depends_on_values_and_order_alone(tmp_path: Path) -> None:
    def of(rows: list[dict[str, Any]], name: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return load_rows([path]).fingerprint

    same = of(ROWS, "one.jsonl")
    assert of([dict(reversed(row.items())) for row in ROWS], "two.jsonl") == same
    assert of(ROWS[::-1], "three.jsonl") != same
    assert of([*ROWS[:2], {**ROWS[2], "input": "y"}], "four.jsonl") != same


def test_json_values_survive_exactly(tmp_path: Path) -> None:
    rows = [
        {"n": 1, "mixed": 1, "nested": {"a": [1, None, {"b": {}}]}, "big": 2**70, "list": [], "only": None, "f": 1.5},
        {"n": None, "mixed": "1", "nested": {"c": 2.5}, "big": -(2**70), "list": ["x"], "f": 2},
        {"n": 2**62, "mixed": [True, None], "nested": None, "big": 5, "list": None, "extra": False, "f": None},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = list(load_rows([path]))
    expected = [{name: row.get(name) for name in names} for row in rows]
    for row, wanted in zip(found, expected, strict=True):
        assert json.loads(row.pop("big")) == wanted.pop("big")  # longer than JSON columns take: kept as text
        assert row == wanted


def test_values_survive_a_change_of_type_far_into_the_file(tmp_path: Path) -> None:
    rows = [{"value": index, "late": None} for index in range(5000)] + [{"value": "text", "late": {"a": 1}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(load_rows([path])) == rows


def test_nan_is_missing_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": NaN, "b": "x\\ud83d"}\n{"a": 1.5, "b": "y"}\n', encoding="utf-8")
    assert list(load_rows([path])) == [{"a": None, "b": "x\ufffd"}, {"a": 1.5, "b": "y"}]


def test_several_sources_keep_their_rows_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first.write_text('{"q": "one", "n": 1}\n{"q": "two", "n": 2}', encoding="utf-8")
    second.write_text('{"q": "three", "n": "x", "z": [1]}', encoding="utf-8")
    rows = load_rows([first, second])
    assert [source.name for source in rows.sources] == ["rows", "rows-2"]
    assert [rows.source_of(index) for index in range(3)] == ["rows", "rows", "rows-2"]
    assert rows.source_ids.tolist() == [0, 0, 1]
    assert rows.column("z") == [None, None, [1]]
    assert any("'n'" in note for note in rows.notes)
    assert rows.conflicting_columns() == ("n",)
    table = rows.take([2, 0])
    assert table.column_names == ["q", "n", "z"]
    assert table.column("q").to_pylist() == ["three", "one"]
    assert [json.loads(text) for text in table.column("n").to_pylist()] == ["x", 1]
    assert table.column("z").to_pylist() == [[1], None]
    assert rows.take([1, 0]).column("n").type == pa.int64()


def test_subset_and_take_follow_the_order_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"n": index}) for index in range(3000)), encoding="utf-8")
    rows = load_rows([path])
    order = np.random.default_rng(0).permutation(3000)
    assert rows.take(order).column("n").to_pylist() == order.tolist()
    subset = rows.subset(order)
    assert [row["n"] for row in subset] == order.tolist()
    assert subset[7] == {"n": order[7]}
    assert subset.fingerprint != rows.fingerprint
    assert rows.subset(range(3000)).fingerprint == rows.fingerprint
    assert [row["n"] for row in rows[10:20:3]] == [10, 13, 16, 19]
    assert len(rows.take([])) == 0


def test_shared_training_files_load(tmp_path: Path) -> None:
    rows = load_rows([shared_path("data", "train")])
    assert {source.name: source.rows for source in rows.sources} == {
        "train/alpaca_1k": 999,
        "train/cherry_alpaca_5_percent": 3111,
        "train/code_alpaca_2k": 2017,
        "train/glaive_toolcall_en_demo": 300,
        "train/gsm8k_train": 7473,
        "train/t0_23k": 23593,
    }
    with shared_path("data", "train", "gsm8k_train.jsonl").open(encoding="utf-8") as file:
        expected = [json.loads(line) for line in file]
    assert list(load_rows([shared_path("data", "train", "gsm8k_train.jsonl")])) == expected


def test_csv_of_old_line_ends_and_of_pandas(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_bytes(b"prompt,response\ra,b\rc,d\r")
    assert [dict(row) for row in load_rows([file])] == [
        {"prompt": "a", "response": "b"},
        {"prompt": "c", "response": "d"},
    ]
    file.write_bytes(b",prompt,response\n0,a,b\n")
    assert [dict(row) for row in load_rows([file])] == [{"": "0", "prompt": "a", "response": "b"}]
