"""Folders of files, folders that datasets saved, and Hub ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from datasets.exceptions import DatasetNotFoundError

from spice_select.data.hub import HubId, parse_hub_id
from spice_select.data.sources import load_rows
from spice_select.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _write(path: Path, *values: int, key: str = "n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({key: value}) for value in values), encoding="utf-8")


def test_folder_is_read_in_order_of_names_and_passes_over_what_holds_no_rows(tmp_path: Path) -> None:
    _write(tmp_path / "b.jsonl", 3)
    _write(tmp_path / "a.jsonl", 1, 2)
    _write(tmp_path / "c" / "d.jsonl", 4)
    _write(tmp_path / ".hidden.jsonl", 99)
    _write(tmp_path / ".cache" / "x.jsonl", 99)
    for name in ("README.md", "dataset_infos.json", "LICENSE", "notes.txt"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    rows = load_rows([tmp_path])
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    assert [(source.name, source.format) for source in rows.sources] == [(tmp_path.name, "jsonl")]
    assert [row["n"] for row in load_rows([tmp_path], limit=3)] == [1, 2, 3]


def test_files_of_different_columns_are_different_sources(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", 1)
    _write(tmp_path / "b.jsonl", 2, key="m")
    rows = load_rows([tmp_path])
    assert [source.name for source in rows.sources] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]
    assert list(rows) == [{"n": 1}, {"m": 2}]


def test_files_named_by_split(tmp_path: Path) -> None:
    _write(tmp_path / "train-00000-of-00001.jsonl", 1)
    _write(tmp_path / "test-00000-of-00001.jsonl", 2)
    _write(tmp_path / "extra.jsonl", 3)
    rows = load_rows([tmp_path])
    assert sorted(row["n"] for row in rows) == [1, 3]
    assert any("other splits" in note for note in rows.notes)
    assert sorted(row["n"] for row in load_rows([tmp_path], split="test")) == [2, 3]


def test_a_folder_of_one_split_alone_is_read_whatever_split_is_asked(tmp_path: Path) -> None:
    _write(tmp_path / "a_test.jsonl", 1)
    _write(tmp_path / "b_test.jsonl", 2)
    assert [row["n"] for row in load_rows([tmp_path])] == [1, 2]


def test_save_to_disk(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"n": list(range(10)), "label": [0, 1] * 5}).select([5, 3, 8])
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    data.save_to_disk(tmp_path / "one", num_shards=2)
    rows = load_rows([tmp_path / "one"])
    assert [row["n"] for row in rows] == [5, 3, 8]
    assert rows.sources[0].format == "arrow"
    kept = datasets.Features.from_arrow_schema(rows.take([2, 0]).schema)
    assert kept["label"] == datasets.ClassLabel(names=["no", "yes"])


def test_save_to_disk_of_several_splits(tmp_path: Path) -> None:
    splits = {"train": datasets.Dataset.from_dict({"n": [1]}), "test": datasets.Dataset.from_dict({"n": [2]})}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert [row["n"] for row in load_rows([tmp_path / "two"])] == [1]
    assert [row["n"] for row in load_rows([tmp_path / "two"], split="test")] == [2]
    with pytest.raises(DataError, match="train, test"):
        load_rows([tmp_path / "two"], split="dev")
    (tmp_path / "two" / "train" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        load_rows([tmp_path / "two"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubId("owner/name", None, None)),
        ("owner/name@v1.0", HubId("owner/name", None, "v1.0")),
        ("owner/name@refs/convert/parquet", HubId("owner/name", None, "refs/convert/parquet")),
        ("owner/na.me-2:main", HubId("owner/na.me-2", "main", None)),
        (f"o/n:c-1.d@{COMMIT}", HubId("o/n", "c-1.d", COMMIT)),
        ("name", None),
        ("a/b/c", None),
        ("owner/", None),
        ("owner/name@", None),
    ],
)
def test_hub_ids(text: str, expected: HubId | None) -> None:
    assert parse_hub_id(text) == expected


class _Hub:
    """Stands for the Hub: what it was asked is recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.info)
        self.answer = answer

    def load(self, path: str, name: str | None, *, split: str, revision: str | None) -> Any:
        self.asked.append((path, name, split, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def info(self, *arguments: Any, **options: Any) -> Any:
        raise ConnectionError("offline")


def test_hub_data_set_at_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    hub = _Hub(monkeypatch, datasets.Dataset.from_dict({"question": ["a", "b", "c"], "answer": ["1", "2", "3"]}))
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, id, **options: huggingface_hub.DatasetInfo(id=id, sha=COMMIT),
    )
    rows = load_rows(["owner/name:main@v1"], split="test", limit=2)
    assert hub.asked == [("owner/name", "main", "test", COMMIT)]
    assert [row["question"] for row in rows] == ["a", "b"]
    assert (rows.sources[0].name, rows.sources[0].revision, rows.sources[0].format) == (
        "owner/name:main",
        COMMIT,
        "hub",
    )


def test_hub_data_set_offline_keeps_the_revision_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    hub = _Hub(monkeypatch, datasets.Dataset.from_dict({"text": ["a"]}))
    assert load_rows(["owner/name@v1"]).sources[0].revision == "v1"
    assert hub.asked == [("owner/name", None, "train", "v1")]


def test_a_folder_that_is_named_like_a_hub_id_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "owner" / "name" / "rows.jsonl", 7)
    assert [row["n"] for row in load_rows(["owner/name"])] == [7]


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub"), "hf auth login"),
        (ValueError("Unknown split \"train\". Should be one of ['test']."), "data.split"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts"),
        (ConnectionError("Couldn't reach the Hub"), "network"),
        (datasets.Dataset.from_dict({"text": []}), "no rows"),
    ],
)
def test_hub_faults_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Any, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    _Hub(monkeypatch, fault)
    with pytest.raises(DataError) as caught:
        load_rows(["owner/name"])
    text = str(caught.value)
    assert "owner/name" in text
    assert part in text
    assert "\n" not in text


def test_arrow_files_are_memory_mapped(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1000] * 5000})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    del table
    before = pa.total_allocated_bytes()
    rows = load_rows([tmp_path / "x.arrow"])
    assert len(rows) == 5000
    assert pa.total_allocated_bytes() - before < 1 << 20
