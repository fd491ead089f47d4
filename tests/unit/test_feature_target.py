"""Target examples are read as the pool is, and faults in them are told in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spice_select.config import RunConfig, resolve
from spice_select.demo import demo_model_path
from spice_select.errors import DataError
from spice_select.features.gather import gather
from spice_select.features.target import TargetRows, read_target
from spice_select.methods import make_method
from spice_select.pool import Pool, read_pool
from spice_select.reporter import Clock, Silent
from spice_select.selection.budget import Budget
from tests.benches import make_bench

POOL = [{"question": f"What is {i} plus one?", "answer": f"It is {i + 1}."} for i in range(4)]


@dataclass
class Heard(Silent):
    """Remembers what was said."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _config(
    tmp_path: Path, target: tuple[str, ...], pool: list[dict[str, Any]] | None = None, **data: Any
) -> RunConfig:
    sources = (_write(tmp_path / "pool.jsonl", pool or POOL),)
    return resolve({"data": {"sources": sources, "target": target, **data}, "model": {"name": str(demo_model_path())}})


def _read(config: RunConfig) -> tuple[TargetRows, Heard, Pool]:
    heard = Heard()
    pool = read_pool(config, Silent(), Clock())
    return read_target(config, pool, heard, Clock()), heard, pool


def test_a_target_is_encoded_as_the_pool_is(tmp_path: Path) -> None:
    file = _write(tmp_path / "t.jsonl", [{"instruction": POOL[2]["question"], "output": POOL[2]["answer"]}, POOL[0]])
    # Columns of both shapes in one file: the pair that is found is instruction and output, which the second row lacks.
    target, heard, pool = _read(_config(tmp_path, (file,)))
    assert len(target) == len(target.encoded) == len(target.rows) == 1
    assert target.subtasks == ("target",)
    assert np.array_equal(target.encoded.digests[0], pool.encoded.digests[2])
    assert any("1 of the 2 target examples have no response and are left out" in line for line in heard.notes)
    assert len(heard.warnings) == 1 and heard.warnings[0].startswith("1 of the 1 target examples are rows of the pool")


def test_no_warning_where_target_and_pool_differ(tmp_path: Path) -> None:
    file = _write(tmp_path / "t.jsonl", [{"question": "Which colour is snow?", "answer": "White."}])
    target, heard, pool = _read(_config(tmp_path, (file,)))
    assert heard.warnings == [] and bool(target.encoded.usable.all())
    assert target.encoded.identity == pool.encoded.identity


def test_subtasks_come_from_the_column_then_from_the_files(tmp_path: Path) -> None:
    first = [
        {"question": "a?", "answer": "b", "subtask": "algebra"},
        {"question": "c?", "answer": "d", "subtask": None},
    ]
    files = (
        _write(tmp_path / "maths.jsonl", first),
        _write(tmp_path / "law.jsonl", [{"question": "e?", "answer": "f"}, {"question": "g?", "answer": "h"}]),
    )
    assert _read(_config(tmp_path, files))[0].subtasks == ("algebra", "maths", "law", "law")
    assert _read(_config(tmp_path, files[:1]))[0].subtasks == ("algebra", "target")


def test_subtasks_stay_beside_their_examples_when_some_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": "", "subtask": 1},
        {"question": "c?", "answer": "d", "subtask": 2},
        {"question": "e?", "answer": "f", "subtask": 3},
    ]
    target, _, _ = _read(_config(tmp_path, (_write(tmp_path / "t.jsonl", rows),)))
    assert target.subtasks == ("2", "3")
    assert [row["question"] for row in target.rows] == ["c?", "e?"]


def test_the_column_mapping_of_the_pool_counts_where_the_target_has_the_column(tmp_path: Path) -> None:
    pool = [{"ask": f"What is {i}?", "say": f"It is {i}."} for i in range(3)]
    columns = {"prompt": "ask", "response": "say"}
    same = _write(tmp_path / "same.jsonl", [{"ask": "Now?", "say": "Yes."}])
    other = _write(tmp_path / "other.jsonl", [{"prompt": "Now?", "completion": "Yes."}])
    for file in (same, other):
        target, _, _ = _read(_config(tmp_path, (file,), pool, columns=columns))
        assert len(target) == 1
    both, _, _ = _read(_config(tmp_path, (same, other), pool, columns=columns))
    assert np.array_equal(both.encoded.digests[0], both.encoded.digests[1])


def test_a_limit_on_the_pool_leaves_the_target_whole(tmp_path: Path) -> None:
    file = _write(tmp_path / "t.jsonl", [{"question": f"{i}?", "answer": "b"} for i in range(5)])
    assert len(_read(_config(tmp_path, (file,), limit=2))[0]) == 5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"headline": "x", "body": "y"}], r"has the columns 'headline', 'body', which give no prompt and response"),
        ([{"question": "x?", "choices": "y"}], r"has the columns 'question', 'choices', which give no prompt"),
        ([{"question": "x?", "answer": ""}, {"question": "y?", "answer": None}], r"None of the 2 target examples"),
        ([], r"The target cannot be read: .*t\.jsonl is empty; give a file with at least one row\."),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_used_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    config = _config(tmp_path, (_write(tmp_path / "t.jsonl", rows),))
    with pytest.raises(DataError, match=said) as caught:
        _read(config)
    assert "\n" not in str(caught.value)


def test_a_missing_target_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    _write(tmp_path / "target.jsonl", POOL)
    config = _config(tmp_path, (str(tmp_path / "tagret.jsonl"),))
    with pytest.raises(
        DataError, match=r"The target '.*tagret\.jsonl' cannot be found .*did you mean .*target\.jsonl\?"
    ):
        _read(config)


def test_tsds_chooses_the_rows_that_are_like_the_target(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(12)]
    rows += [{"question": f"Name bird {i}.", "answer": "The heron stands by the river and waits."} for i in range(12)]
    target = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(30, 34)]
    file = _write(tmp_path / "t.jsonl", target)
    bench = make_bench(tmp_path / "bench", rows, proxy="demo", data={"target": file, "max_length": 128})
    method = make_method("tsds", {"alpha": 0.9, "scale": 0.5, "sample": "largest"})
    choice = method.choose(gather(method, bench, Budget(8), None, seed=0))
    assert len(choice) == 8 and max(choice.indices.tolist()) < 12
