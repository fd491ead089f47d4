"""Rows that change while a whole command runs: it records the rows that it used, or says what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spice_select import pipeline, pool
from spice_select.data.sources import load_rows
from spice_select.demo import demo_rows
from spice_select.study import choosing
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.unit.test_changing_files import into, written

STORE = ("--set", "gradients.dim=32")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_run_records_the_rows_that_it_used(
    command: Command, kind: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / f"rows.{kind}", tmp_path / "out"
    written(path, [{"prompt": row["instruction"], "response": row["output"]} for row in demo_rows(seed=3)[:12]])
    before = load_rows([path])
    real = pool.encode_rows

    def encoded(*args: Any, **options: Any) -> Any:
        into(path, lambda old: old[: len(old) // 2])
        return real(*args, **options)

    monkeypatch.setattr(pool, "encode_rows", encoded)
    assert command("run", path, "-m", model, "-b", "4", "-o", out, "-q", *STORE).code == 0
    assert json.loads((out / "selection.json").read_bytes())["fingerprints"]["rows"] == before.fingerprint
    chosen = pq.read_table(out / "data").to_pylist()
    assert len(chosen) == 4
    for row in chosen:
        assert {name: row[name] for name in ("prompt", "response")} == before[row["spice_index"]]


def test_a_mapped_file_that_is_written_into_leaves_no_selection(
    command: Command, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": row["instruction"], "response": row["output"]} for row in demo_rows(seed=3)[:12]]
    path, out = written(tmp_path / "rows.arrow", rows), tmp_path / "out"
    real = pipeline._choose

    def choose(*args: Any) -> Any:
        into(path, lambda old: old.replace(b"e", b"E"))
        return real(*args)

    monkeypatch.setattr(pipeline, "_choose", choose)
    said = command.refused(3, "run", path, "-m", model, "-b", "4", "-o", out, *STORE)
    assert "rows.arrow was written into since it was read" in said
    assert not (out / "selection.json").exists() and not list(out.glob(".results*"))


@pytest.mark.parametrize("pools", ["", ":schedule.kind=pools:schedule.pool_size=4"])
def test_a_study_whose_rows_change_between_two_readings_says_so(
    command: Command, pools: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = demo_rows(seed=3)[:12]
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    real = choosing.choose_all

    def choose_all(*args: Any) -> Any:
        # The same rows in another order: every number of a row means another.
        write_jsonl(path, rows[::-1])
        return real(*args)

    from spice_select.study import running

    monkeypatch.setattr(running, "choose_all", choose_all)
    given = ("--methods", f"spice{pools},random", "--budgets", "50%", "--equal", "rows", "--seeds", "1")
    plan = (*given, "--full-seeds", "0", "--holdout", "2", "--set", "training.max_steps=1")
    said = command.refused(3, "study", path, "-m", model, *plan, "-o", out)
    assert "rows.jsonl changed while the command ran; run it again with the rows as they are." in said
    assert not (out / "ledger.jsonl").exists()
    write_jsonl(path, rows)
    monkeypatch.undo()
    assert command("study", path, "-m", model, *plan, "-o", out, "-q").code == 0
