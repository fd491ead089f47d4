"""Rows that match an evaluation file are found by equality and by overlap, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spice_select.data.contamination import Contamination, contaminated, normalise
from spice_select.data.schema import detect_schemas
from spice_select.data.sources import load_rows
from spice_select.errors import ConfigError, DataError
from tests.support import shared_path

LONG = "A train leaves the old station at nine and travels sixty miles an hour until it meets the river bridge at noon"


def _find(folder: Path, pool: list[dict[str, Any]], *tests: list[dict[str, Any]], **options: Any) -> Contamination:
    path = folder / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, pool)), encoding="utf-8")
    files = []
    for number, rows in enumerate(tests):
        files.append(folder / f"test{number}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows = load_rows([path])
    return contaminated(rows, detect_schemas(rows), [str(file) for file in files], **options)


def _pool(*questions: str) -> list[dict[str, Any]]:
    return [{"question": question, "answer": "a"} for question in questions]


def test_normalise() -> None:
    assert normalise("  Straße,\t—  ＡＢＣ!? x_y\n") == "strasse abc x y"
    assert normalise("?!…") == ""


def test_equal_prompts_match_whatever_case_space_and_punctuation(tmp_path: Path) -> None:
    found = _find(tmp_path, _pool("What IS\n2 + 2 ?", "What is 2 + 3?", "what is 2, 2"), _pool("What is 2+2?"))
    assert found.mask.tolist() == [True, False, True]
    assert (found.files[0].equal, found.files[0].overlapping, found.files[0].prompts) == (2, 0, 1)
    assert "2 rows match" in found.describe()[0]


@pytest.mark.parametrize(
    "test",
    [
        {"question": "Q one"}, {"prompt": "Q one"}, {"text": "Q one"}, {"input": "Q one", "target": "t"},
        {"problem": "Q one", "solution": ""}, {"question": "Q one", "choices": ["a"], "answer": ["x"]},
        {"messages": [{"role": "user", "content": "Q one"}, {"role": "assistant", "content": "x"}]},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q one"}]},
        {"instruction": "Q one", "input": "", "output": "y"}, {"instruction": "Q", "input": "one", "output": "y"},
    ],
)  # fmt: skip
def test_evaluation_files_of_every_shape(tmp_path: Path, test: dict[str, Any]) -> None:
    assert _find(tmp_path, _pool("q ONE", "q two"), [test]).mask.tolist() == [True, False]


def test_the_last_user_turn_counts(tmp_path: Path) -> None:
    turns = [("user", "first"), ("assistant", "x"), ("user", "second"), ("assistant", "y")]
    pool = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    assert _find(tmp_path, pool, _pool("second")).mask.tolist() == [True]
    assert _find(tmp_path, pool, _pool("first")).mask.tolist() == [False]


def test_half_of_the_runs_of_thirteen_words_is_a_match(tmp_path: Path) -> None:
    words = LONG.split()
    runs = len(words) - 12
    half = -(-runs // 2)
    enough = " ".join(words[: 12 + half])
    short = " ".join(words[: 12 + half - 1])
    pool = [
        {"question": f"Solve this: {LONG}, please", "answer": "a"},
        {"question": f"{enough} then", "answer": "a"},
        {"question": f"{short} then", "answer": "a"},
        {"question": "Hidden", "answer": f"As in: {LONG}."},
        {"question": " ".join(reversed(words)), "answer": "a"},
    ]
    found = _find(tmp_path, pool, _pool(LONG))
    assert found.mask.tolist() == [True, True, False, True, False]
    assert (found.files[0].equal, found.files[0].overlapping) == (0, 3)
    assert _find(tmp_path, pool, _pool(LONG), threshold=1.0).mask.tolist() == [True, False, False, True, False]
    assert _find(tmp_path, pool, _pool(LONG), words=3, threshold=0.1).mask.tolist() == [True] * 4 + [False]


def test_short_prompts_match_whole_alone(tmp_path: Path) -> None:
    assert not _find(tmp_path, _pool("Say: name a colour, and why"), _pool("Name a colour")).mask.any()


def test_several_files_and_unusable_rows(tmp_path: Path) -> None:
    pool = [*_pool("one", "two", "three"), {"question": "one", "answer": ""}]
    found = _find(tmp_path, pool, _pool("one", "two"), _pool("two"))
    assert found.mask.tolist() == [True, True, False, False]
    assert [file.equal for file in found.files] == [2, 1]
    assert found.describe()[-1].startswith("2 rows")


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is a prompt"):
        _find(tmp_path, _pool("one"), [{"foo": "one"}])
    with pytest.raises(DataError, match="no prompts"):
        _find(tmp_path, _pool("one"), [{"question": "?!"}])
    with pytest.raises(DataError, match="cannot be found"):
        contaminated(load_rows([tmp_path / "pool.jsonl"]), [], [tmp_path / "absent.jsonl"])
    with pytest.raises(ConfigError, match="threshold"):
        _find(tmp_path, _pool("one"), _pool("one"), threshold=0.0)


def test_shared_sets_that_are_known_to_overlap() -> None:
    rows = load_rows([shared_path("data", "train", "alpaca_1k.json")])
    found = contaminated(rows, detect_schemas(rows), [shared_path("data", "train", "cherry_alpaca_5_percent.json")])
    assert 57 <= found.mask.sum() <= 60


def test_shared_evaluation_files_have_prompts() -> None:
    rows = load_rows([shared_path("data", "train", "gsm8k_train.jsonl")], limit=50)
    names = ("gsm8k_test.jsonl", "HumanEval.jsonl.gz", "mbpp.jsonl", "ifeval.jsonl", "arc_challenge_test.json",
             "truthfulqa_mc.json")  # fmt: skip
    found = contaminated(rows, detect_schemas(rows), [shared_path("data", "eval", name) for name in names])
    assert [file.prompts > 100 for file in found.files] == [True] * len(names)
    assert found.mask.sum() == 0
