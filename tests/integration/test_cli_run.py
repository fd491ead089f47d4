"""The real command line from rows to a subset that loads, replays and can be selected from anew."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from spice_select import GradientStore, select
from spice_select.demo import demo_rows
from tests.integration.command import Command
from tests.integration.rows import write_jsonl

FAST = ("--set", "gradients.dim=256")
COLUMNS = ("messages", "spice_source", "spice_rank", "spice_index", "spice_gain", "spice_base", "spice_epsilon")


@pytest.fixture
def finished(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    outcome = command("run", rows_file, "-m", model, "--budget", "20%", "--output", out, *FAST)
    assert outcome.code == 0, outcome.err
    return out


def load(folder: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def test_a_run_leaves_what_it_promises(finished: Path, rows_file: Path, tmp_path: Path) -> None:
    names = {entry.name for entry in finished.iterdir()}
    assert names >= {
        "data",
        "README.md",
        "selection.json",
        "trace.parquet",
        "report.html",
        "gradients",
        "config.yaml",
    }
    record = json.loads((finished / "selection.json").read_text())
    assert record["n"] == 40
    assert record["k"] == 8
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    chosen = load(finished, tmp_path / "cache")
    assert len(chosen) == 8
    assert list(chosen["spice_rank"]) == list(range(8))
    for row in chosen:
        original = rows[row["spice_index"]]
        assert {name: row[name] for name in original} == original
        assert row["messages"][-1]["role"] == "assistant"
        assert row["messages"][-1]["content"] == original["output"]
    assert set(COLUMNS) <= set(chosen.column_names)


def test_the_picks_are_those_of_select_on_the_store(finished: Path, tmp_path: Path) -> None:
    store = GradientStore.open(finished / "gradients", verify=True)
    picks = select(store, budget="20%", alpha="auto", normalize="sqrt_tokens", loop="brute").indices
    assert list(load(finished, tmp_path / "cache")["spice_index"]) == list(picks)


def test_replay_from_the_written_configuration(command: Command, finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    outcome = command("run", "--config", finished / "config.yaml", "--output", again)
    assert outcome.code == 0, outcome.err
    first, second = load(finished, tmp_path / "c1"), load(again, tmp_path / "c2")
    assert first.to_list() == second.to_list()
    for shard in (finished / "gradients" / "shards").glob("*.npy"):
        assert (again / "gradients" / "shards" / shard.name).read_bytes() == shard.read_bytes()


def test_a_configuration_of_relative_paths_replays_from_another_folder(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    Path("rows.jsonl").write_bytes(rows_file.read_bytes())
    Path("out.txt").write_text("3 4")
    Path("in.txt").write_text("5")
    Path("chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    Path("eval.jsonl").write_text(rows_file.read_text().splitlines()[6])
    settings = [
        "selection.exclude=out.txt", "selection.initial=in.txt", "data.chat_template=chat.jinja",
        "data.contamination=eval.jsonl",
    ]  # fmt: skip
    given = [word for setting in settings for word in ("--set", setting)]
    first = command("run", "rows.jsonl", "-m", model, "-b", "5", "-o", "picked", *given, *FAST)
    assert first.code == 0, first.err
    monkeypatch.chdir(there)
    again = command("run", "--config", here / "picked" / "config.yaml", "-o", "picked")
    assert again.code == 0, again.err
    assert load(here / "picked", tmp_path / "c1").to_list() == load(there / "picked", tmp_path / "c2").to_list()


def test_the_same_command_again_reuses_the_gradients(
    command: Command, finished: Path, model: Path, rows_file: Path
) -> None:
    before = {path: path.read_bytes() for path in (finished / "gradients").rglob("*") if path.is_file()}
    outcome = command("run", rows_file, "-m", model, "--budget", "20%", "--output", finished, *FAST)
    assert outcome.code == 0, outcome.err
    assert "reused 1" in outcome.err
    assert {path: path.read_bytes() for path in (finished / "gradients").rglob("*") if path.is_file()} == before


def test_select_anew_from_a_finished_run(command: Command, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    record = command.json("select", finished, "--budget", "5", "--output", other, "--preset", "paper")
    assert record["k"] == 5
    assert record["objective"]["normalize"] == "none"
    assert not (other / "gradients").exists()
    store = GradientStore.open(finished / "gradients")
    assert list(load(other, tmp_path / "cache")["spice_index"]) == list(select(store, budget=5).indices)
    # Into the run's own folder only on demand, for it holds another selection.
    assert "selection.budget" in command.refused(4, "select", finished, "--budget", "5")
    assert command.json("select", finished, "--budget", "5", "--overwrite")["k"] == 5


def test_collect_then_select(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command.json("collect", rows_file, "-m", model, "-o", out, *FAST)["rows"] == 40
    assert not (out / "selection.json").exists()
    assert command.json("select", out, "--budget", "0.1")["k"] == 4
    assert len(load(out, tmp_path / "cache")) == 4


def test_mixed_sources_quotas_exclusions_and_tokens(command: Command, model: Path, tmp_path: Path) -> None:
    rows = demo_rows(seed=4)[:60]
    first = write_jsonl(tmp_path / "first.jsonl", rows[:40])
    pairs = [{"question": row["instruction"] + row["input"], "answer": row["output"]} for row in rows[40:]]
    second = tmp_path / "second.json"
    second.write_text(json.dumps(pairs))
    leave = tmp_path / "leave.txt"
    leave.write_text("0\n1\n2\n")
    out = tmp_path / "out"
    args = ("run", first, second, "-m", model, "-b", "12", "-o", out, *FAST)
    args += ("--set", "selection.groups=source", "--set", "selection.quotas=proportional")
    args += ("--set", f"selection.exclude={leave}")
    assert command(*args).code == 0
    chosen = load(out, tmp_path / "cache")
    sources = list(chosen["spice_source"])
    assert {name: sources.count(name) for name in set(sources)} == {sources[0]: 8, sources[-1]: 4} or sorted(
        sources.count(name) for name in set(sources)
    ) == [4, 8]
    assert not {0, 1, 2} & set(chosen["spice_index"])
    budget = command.json(
        "select", out, "-b", "200 tokens", "-o", tmp_path / "tokens", "--set", "selection.quotas=null"
    )
    picked = load(tmp_path / "tokens", tmp_path / "c2")["spice_index"]
    lengths = GradientStore.open(out / "gradients").lengths
    assert 0 < int(lengths[list(picked)].sum()) <= 200
    assert budget["k"] == len(picked)


def test_contamination_is_left_out_and_counted(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    wanted = rows[7]
    test_set = write_jsonl(tmp_path / "test.jsonl", [wanted])
    out = tmp_path / "out"
    args = ("run", rows_file, "-m", model, "-b", "5", "-o", out, *FAST, "--set", f"data.contamination=[{test_set}]")
    assert command(*args).code == 0
    store = GradientStore.open(out / "gradients")
    assert not store.usable[7]
    assert not np.any(store.rows([7]))


def test_dry_run_writes_nothing(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cost = command.json("run", rows_file, "-m", model, "-b", "10%", "-o", out, "--dry-run")
    assert not out.exists()
    assert cost["examples"] == 40
    assert cost["picks"] == 4
    for field in ("flops", "disk_bytes", "peak_memory_bytes", "gradient_seconds", "measured_batches"):
        assert cost[field] > 0


def test_doctor_checks_gradients_on_the_users_model(command: Command, model: Path) -> None:
    report = command.json("doctor", "--model", model)
    assert report["gradients"]["passed"]
    assert report["gradients"]["largest_relative_error"] < 1e-4
    assert "torch" in report["versions"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.json"])
def test_export_as_one_file(command: Command, finished: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "exported" / name
    assert command("export", finished, "--output", out).code == 0
    rows = datasets.load_dataset(
        {"jsonl": "json"}.get(out.suffix[1:], out.suffix[1:]),
        data_files=str(out),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert list(rows["spice_index"]) == list(load(finished, tmp_path / "c2")["spice_index"])
    assert "exists" in command.refused(4, "export", finished, "--output", out)


def test_demo(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = command("demo", "--output", out)
    assert outcome.code == 0, outcome.err
    for origin in ("original", "duplicate", "near_duplicate", "wrong_answer"):
        assert origin in outcome.out
    chosen = load(out, tmp_path / "cache")
    assert len(chosen) == round(0.1 * len(demo_rows()))
