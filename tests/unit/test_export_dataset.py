"""A written folder loads as exactly the chosen rows, in order, beside the proxy's messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from spice_select.data.rows import RowSet
from spice_select.data.schema import detect_schemas
from spice_select.data.sources import load_rows
from spice_select.errors import DataError, OutputError
from spice_select.export.card import CardFacts, code_span, escape_markdown, python_string, size_category
from spice_select.export.dataset import DatasetFiles, write_dataset
from spice_select.export.tables import export_rows
from tests.support import shared_path

FACTS = CardFacts("subset", "a proxy", {"selection.budget": "10%"}, "the budget is filled", 1.5, ("Short rows lead.",))


@dataclass(frozen=True)
class Picks:
    indices: np.ndarray
    gains: np.ndarray = field(init=False)
    bases: np.ndarray = field(init=False)
    epsilons: np.ndarray = field(init=False)
    conflicts: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        numbers = np.random.default_rng(0).random((5, len(self.indices)))
        for name, values in zip(("gains", "bases", "epsilons", "conflicts", "scores"), numbers, strict=True):
            object.__setattr__(self, name, values)


def pool(folder: Path, *sources: list[dict[str, Any]]) -> RowSet:
    paths = []
    for number, rows in enumerate(sources):
        paths.append(folder / f"source{number}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_rows(paths)


def write(folder: Path, rows: RowSet, indices: list[int], **options: Any) -> DatasetFiles:
    return write_dataset(folder, rows, detect_schemas(rows), Picks(np.array(indices)), FACTS, **options)


def load(folder: Path, cache: Path, name: str | None = None) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), name, split="train", cache_dir=str(cache))


QUESTIONS = [{"question": f"q{n} ü😀", "answer": f"a{n}", "meta": {"n": n}} for n in range(8)]
ALPACA = [{"instruction": f"i{n}", "input": "x" if n % 2 else "", "output": f"o{n}"} for n in range(4)]
PROMPTS = [{"prompt": f"p{n}", "completion": f"c{n}<|end|>", "template": "t"} for n in range(3)]
CALL = {"name": "f", "arguments": {"x": 1}}
SHARE = [
    {
        "conversations": [
            {"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
    }
]  # fmt: skip


def test_loads_as_exactly_the_chosen_rows_in_order(tmp_path: Path) -> None:
    rows = pool(tmp_path, QUESTIONS)
    out = tmp_path / "out"
    files = write(out, rows, [5, 0, 3])
    # What else a run leaves must not be loaded.
    np.save(out / "gradients.npy", np.zeros(3))
    (out / "gradients").mkdir()
    np.save(out / "gradients" / "000000.npy", np.zeros(3))
    (out / "gradients" / "manifest.json").write_text("{}", encoding="utf-8")
    (out / "selection.json").write_text('{"n": 8}', encoding="utf-8")
    (out / "config.yaml").write_text("seed: 0", encoding="utf-8")
    (out / "report.html").write_text("<p>", encoding="utf-8")
    loaded = load(out, tmp_path / "cache")
    picks = Picks(np.array([5, 0, 3]))
    assert loaded.column_names == [
        "question", "answer", "meta", "messages", "spice_source", "spice_rank", "spice_index", "spice_gain",
        "spice_base", "spice_epsilon", "spice_conflict", "spice_score",
    ]  # fmt: skip
    assert [{name: row[name] for name in QUESTIONS[0]} for row in loaded] == [QUESTIONS[n] for n in (5, 0, 3)]
    assert loaded[0]["messages"] == [{"role": "user", "content": "q5 ü😀"}, {"role": "assistant", "content": "a5"}]
    assert list(loaded["spice_index"]) == [5, 0, 3]
    assert list(loaded["spice_rank"]) == [0, 1, 2]
    assert set(loaded["spice_source"]) == {"source0"}
    for name in ("gain", "base", "epsilon", "conflict", "score"):
        assert list(loaded[f"spice_{name}"]) == getattr(picks, f"{name}s").tolist()
    assert files.hidden == () and files.notes == ()
    assert datasets.get_dataset_config_names(str(out)) == ["default"]


def test_trace_has_one_line_a_step(tmp_path: Path) -> None:
    files = write(tmp_path / "out", pool(tmp_path, QUESTIONS, ALPACA), [9, 2])
    trace = pq.read_table(files.trace)
    assert trace.column_names == ["rank", "index", "gain", "base", "epsilon", "conflict", "score", "source"]
    assert trace.select(["rank", "index", "source"]).to_pylist() == [
        {"rank": 0, "index": 9, "source": "source1"},
        {"rank": 1, "index": 2, "source": "source0"},
    ]


def test_mixed_sources_hide_only_what_a_trainer_would_misread(tmp_path: Path) -> None:
    rows = pool(tmp_path, QUESTIONS, ALPACA, PROMPTS, SHARE)
    files = write(tmp_path / "out", rows, [15, 12, 8, 0, 9], special_tokens=["<|end|>"])
    assert files.hidden == ("prompt", "completion", "conversations")
    loaded = load(tmp_path / "out", tmp_path / "cache")
    whole = load(tmp_path / "out", tmp_path / "cache", "all")
    assert set(whole.column_names) - set(loaded.column_names) == set(files.hidden)
    originals = [*QUESTIONS, *ALPACA, *PROMPTS, *SHARE]
    for row, index in zip(whole, (15, 12, 8, 0, 9), strict=True):
        assert {name: row[name] for name in originals[index]} == originals[index]
        assert all(row[name] is None for name in rows.columns if name not in originals[index])
    assert loaded[0]["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    assert loaded[1]["messages"][1] == {"role": "assistant", "content": "c0"}  # its special token stripped
    assert loaded[4]["messages"][0] == {"role": "user", "content": "i1\n\nx"}


def test_native_messages_stay_as_they_are(tmp_path: Path) -> None:
    plain = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 1}]
    rich = [
        {
            "messages": [
                {"role": "user", "content": "q", "name": "Ann"},
                {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
                {"role": "tool", "content": "r", "tool_call_id": "7"},
                {"role": "assistant", "content": "a", "reasoning_content": "r"},
            ],
            "id": 2,
        }
    ]
    rows = pool(tmp_path, plain, rich, QUESTIONS)
    files = write(tmp_path / "out", rows, [1, 0, 2])
    assert "messages_original" not in files.columns
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert loaded[0]["messages"] == rich[0]["messages"]
    assert loaded[1]["messages"] == plain[0]["messages"]
    assert loaded[2]["messages"][0]["content"] == "q0 ü😀"
    write(tmp_path / "plain", rows, [0])
    kind = pq.read_schema(tmp_path / "plain" / "data" / "train-00000-of-00001.parquet").field("messages").type
    assert pa.types.is_list(kind)
    assert [(key.name, key.type) for key in kind.value_type] == [("role", pa.string()), ("content", pa.string())]
    assert load(tmp_path / "plain", tmp_path / "cache")[0]["messages"] == plain[0]["messages"]


def test_messages_of_another_form_are_set_aside(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    files = write(tmp_path / "out", pool(tmp_path, [{"messages": turns}]), [0])
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert loaded[0]["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert loaded[0]["messages_original"] == turns
    assert any("messages_original" in note for note in files.notes)


def test_keys_without_a_value_are_absent_from_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "tool_calls": None}, {"role": "assistant", "content": "a", "name": None}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "x.parquet")
    rows = load_rows([tmp_path / "x.parquet"])
    files = write(tmp_path / "out", rows, [0])
    assert files.notes == ()
    assert [set(turn) for turn in load(tmp_path / "out", tmp_path / "cache")[0]["messages"]] == [
        {"role", "content"}
    ] * 2


@pytest.mark.parametrize("tools", ["", "no json", ["a"]])
def test_tools_that_a_trainer_cannot_read_are_set_aside(tmp_path: Path, tools: Any) -> None:
    rows = pool(tmp_path, [{"prompt": "q", "output": "a", "tools": tools}], SHARE)
    write(tmp_path / "out", rows, [0, 1])
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert loaded[0]["tools"] is None
    assert json.loads(loaded[1]["tools"]) == json.loads(SHARE[0]["tools"])
    assert loaded[0]["tools_original"] == tools


def test_tools_of_another_column_and_native_tools(tmp_path: Path) -> None:
    native = [{"instruction": "q", "output": "a", "tools": [{"name": "f"}, {"name": "g", "x": 1}]}, ALPACA[0]]
    files = write(tmp_path / "out", pool(tmp_path, native), [1, 0])
    assert files.notes == ()
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert [row["tools"] for row in loaded] == [None, native[0]["tools"]]
    rows = pool(tmp_path, [{"instruction": "q", "output": "a", "functions": '[{"name": "f"}]'}])
    schemas = detect_schemas(rows, {"tools": "functions"})
    write_dataset(tmp_path / "two", rows, schemas, Picks(np.array([0])), FACTS)
    assert load(tmp_path / "two", tmp_path / "cache")[0]["tools"] == '[{"name": "f"}]'


def test_text_alone_trains_as_text(tmp_path: Path) -> None:
    rows = pool(tmp_path, [{"body": "some text", "text": "a title"}, {"body": "more", "text": "b"}])
    schemas = detect_schemas(rows, {"text": "body"})
    files = write_dataset(tmp_path / "out", rows, schemas, Picks(np.array([1])), FACTS)
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert "messages" not in loaded.column_names
    assert (loaded[0]["text"], loaded[0]["text_original"]) == ("more", "b")
    assert "`text` column trains" in files.card.read_text("utf-8")
    assert write(tmp_path / "own", pool(tmp_path, [{"text": "t"}]), [0]).notes == ()


def test_text_beside_chat_is_one_assistant_turn(tmp_path: Path) -> None:
    write(tmp_path / "out", pool(tmp_path, [{"text": "t"}], ALPACA), [0, 1])
    assert load(tmp_path / "out", tmp_path / "cache")[0]["messages"] == [{"role": "assistant", "content": "t"}]


def test_a_run_over_an_earlier_output_replaces_its_numbers(tmp_path: Path) -> None:
    first = write(tmp_path / "first", pool(tmp_path, QUESTIONS, PROMPTS), [10, 5, 0, 3])
    again = load_rows([tmp_path / "first"])
    assert len(again) == 4
    assert [schema.kind for schema in detect_schemas(again)] == ["messages"]
    files = write(tmp_path / "second", again, [2, 0])
    loaded = load(tmp_path / "second", tmp_path / "cache")
    assert list(loaded["spice_index"]) == [2, 0]
    assert set(loaded["spice_source"]) == {"first"}
    assert [row["question"] for row in loaded] == ["q0 ü😀", None]
    assert files.columns == first.columns
    assert any("earlier run" in note for note in files.notes)


def test_numbers_and_objects_of_one_column_are_kept(tmp_path: Path) -> None:
    rows = pool(tmp_path, [{**ALPACA[0], "id": 7}], [{**QUESTIONS[0], "id": "x-1"}])
    write(tmp_path / "out", rows, [1, 0])
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert list(loaded["id"]) == ["x-1", 7]


def test_many_shards_keep_the_order(tmp_path: Path) -> None:
    rows = pool(tmp_path, [{"question": f"q{n}" * 50, "answer": "a"} for n in range(40)])
    order = np.random.default_rng(1).permutation(40).tolist()
    files = write(tmp_path / "out", rows, order, shard_bytes=4000)
    count = len(files.data)
    assert count > 2
    assert files.data[-1].name == f"train-{count - 1:05d}-of-{count:05d}.parquet"
    assert list(load(tmp_path / "out", tmp_path / "cache")["spice_index"]) == order


def test_rewriting_leaves_nothing_of_before(tmp_path: Path) -> None:
    rows = pool(tmp_path, QUESTIONS)
    out = tmp_path / "out"
    write(out, rows, list(range(8)), shard_bytes=100)
    (out / ".data-1-dead.tmp").mkdir()
    write(out, rows, [1])
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data", "trace.parquet"]
    assert [path.name for path in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_a_failed_write_leaves_the_earlier_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pool(tmp_path, QUESTIONS)
    out = tmp_path / "out"
    write(out, rows, [1])

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(Exception, match="disk is full") as caught:
        write(out, rows, [2])
    assert getattr(caught.value, "exit_code", None) == 4
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data", "trace.parquet"]
    monkeypatch.undo()
    assert pq.read_table(out / "data")["spice_index"].to_pylist() == [1]


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError):
        write(tmp_path / "out", pool(tmp_path, QUESTIONS), [0])


def test_a_pick_without_a_response_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Row 1"):
        write(tmp_path / "out", pool(tmp_path, [ALPACA[0], {**ALPACA[1], "output": ""}]), [1])


def test_card_is_valid_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    facts = CardFacts(
        title="my|set `x`",
        proxy="a`b|c",
        settings={"data.sources": ["a_b.jsonl"]},
        warnings=("<script>*x*</script>\n# head", "1. list", "{{ 7 * 7 }} $x$"),
        information=1234.5,
    )
    rows = pool(tmp_path, QUESTIONS, ALPACA)
    files = write_dataset(tmp_path / "out", rows, detect_schemas(rows), Picks(np.array([0, 9])), facts)
    text = files.card.read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["size_categories"] == ["n<1K"]
    assert front["pretty_name"] == "my|set `x`"
    assert "arxiv:2601.23155" in front["tags"]
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "\n# head" not in body
    assert "49" not in body
    assert "- 1\\. list" in body
    assert "| proxy | ``a`b\\|c`` |" in body
    assert 'load_dataset("my|set \\x60x\\x60"' in body
    assert "| `source1` | 4 | 1 | 25.0% |" in body
    assert "| `data.sources` | `['a_b.jsonl']` |" in body
    assert "2 of 12 rows" in body
    assert "2601.23155" in body
    import huggingface_hub

    huggingface_hub.DatasetCard(text)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_single_files_hold_objects_and_not_text_of_them(tmp_path: Path, name: str) -> None:
    files = write(tmp_path / "out", pool(tmp_path, SHARE, QUESTIONS), [0, 3])
    export_rows(files.data[0].parent, tmp_path / name)
    written = list(load_rows([tmp_path / name]))
    assert written[0]["messages"][1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert written[0]["conversations"] == SHARE[0]["conversations"]
    assert written[1]["messages"] == [{"role": "user", "content": "q2 ü😀"}, {"role": "assistant", "content": "a2"}]


def test_markdown_helpers() -> None:
    assert escape_markdown("a*b_[c](d)\n<e>") == "a\\*b\\_\\[c\\](d) \\<e\\>"
    assert escape_markdown("- x") == "\\- x"
    assert code_span("a`b") == "``a`b``"
    assert code_span("``x") == "``` ``x ```"
    assert python_string('a"\\') == '"a\\"\\\\"'
    assert [size_category(n) for n in (1, 999, 1000, 50_000, 10**6, 10**7)] == [
        "n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "n>1M", "n>1M"
    ]  # fmt: skip


def test_shared_mixture_round_trips(tmp_path: Path) -> None:
    names = ("gsm8k_train.jsonl", "alpaca_1k.json", "t0_23k.parquet", "glaive_toolcall_en_demo.json")
    rows = load_rows([shared_path("data", "train", name) for name in names])
    random = np.random.default_rng(0)
    chosen = np.concatenate([random.choice(np.flatnonzero(rows.source_ids == s), 20, replace=False) for s in range(4)])
    random.shuffle(chosen)
    write(tmp_path / "out", rows, chosen.tolist())
    whole = load(tmp_path / "out", tmp_path / "cache", "all")
    for row, index in zip(whole, chosen.tolist(), strict=True):
        original = rows[index]
        assert {name: row[name] for name in original} == original
        assert row["spice_source"] == rows.source_of(index)
