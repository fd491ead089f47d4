"""Runs in pools at their edges: rows without a gradient, pools without picks, other settings half-way, quotas."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spice_select.schedule.pools as pools_module
from spice_select.files import Lock
from spice_select.schedule.gram import PoolGram
from tests.integration.command import Command
from tests.integration.test_cli_pools import POOLS


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "selection.json").read_text())


def test_rows_of_pools_without_picks_stay_usable(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "few"
    sizes = ("--set", "schedule.pool_size=4", "--limit", "16")
    assert command("run", rows_file, "-m", model, "-b", "2", "-o", out, *POOLS, *sizes).code == 0
    found = record(out)
    assert (found["k"], found["usable"], found["summary"]["pool"]) == (2, 16, 16)


def test_rows_without_a_gradient_are_told_and_so_is_a_budget_that_was_not_filled(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pools_module.pool_gram

    def broken(*args: Any, **keywords: Any) -> PoolGram:
        measured = real(*args, **keywords)
        gram = measured.gram.copy()
        gram[1:, :] = gram[:, 1:] = np.nan
        return dataclasses.replace(measured, gram=gram)

    monkeypatch.setattr(pools_module, "pool_gram", broken)
    out = tmp_path / "broken"
    assert command("run", rows_file, "-m", model, "-b", "6", "-o", out, *POOLS, "--limit", "24").code == 0
    found = record(out)
    assert (found["k"], found["usable"], found["stop_reason"]) == (2, 2, "exhausted")
    assert any("22 of 24 rows are unusable" in line for line in found["warnings"])
    assert any("Only 2 of the 6 rows of the budget" in line for line in found["warnings"])


def test_a_token_budget_leaves_no_training_without_a_learning_rate(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    assert command("run", rows_file, "-m", model, "-b", "200 tokens", "-o", out, *POOLS).code == 0
    trainings = record(out)["schedule"]["trainings"]
    assert trainings and all(training["learning_rate"] > 0 for training in trainings)


def test_memory_that_would_change_the_products_of_full_layers_is_another_run(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "full"
    args = (
        "run",
        rows_file,
        "-m",
        model,
        "-b",
        "4",
        "--limit",
        "12",
        "-o",
        out,
        *POOLS,
        "--set",
        "schedule.scope=full",
    )
    assert command(*args).code == 0
    (out / "selection.json").unlink()
    assert command(*args, "--set", "schedule.gram_bytes=8589934592").code == 0
    assert "belongs to a run" in command.refused(4, *args, "--set", "schedule.gram_bytes=1048576")


def test_an_unfinished_run_names_the_selection_setting_that_differs(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    args = ("run", rows_file, "-m", model, "--limit", "12", "-o", out, *POOLS)
    assert command(*args, "-b", "20%").code == 0
    (out / "selection.json").unlink()
    assert "selection.budget was '20%' and is now '50%'" in command.refused(4, *args, "-b", "50%")
    assert "budget: 20%" in (out / "config.yaml").read_text()
    assert command(*args, "-b", "20%").code == 0


def test_quotas_hold_over_pools_that_lack_a_group(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    labels = [json.loads(line)["domain"] for line in rows_file.read_text().splitlines()]
    quotas = "{arithmetic: {max: 0.1}, code: {min: 0.1}, lists: {min: 0.05}}"
    out = tmp_path / "quotas"
    outcome = command(
        *("run", rows_file, "-m", model, "-b", "20", "-o", out, *POOLS, "--set", "schedule.pool_size=5"),
        *("--set", "selection.groups=domain", "--set", f"selection.quotas={quotas}"),
    )
    assert outcome.code == 0, outcome.err
    log = (out / "schedule" / "log.jsonl").read_text().splitlines()[1:]
    picks = [row for line in log for row in json.loads(line)["entry"]["picks"]]
    counts = Counter(labels[row] for row in picks)
    assert len(picks) == 20
    assert counts["arithmetic"] <= 3 and counts["code"] >= 1


def test_starting_again_in_pools_leaves_no_gradients_of_before(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    args = ("run", rows_file, "-m", model, "-b", "4", "--limit", "12", "-o", out)
    assert command(*args, "--set", "gradients.dim=64").code == 0
    assert command(*args, *POOLS, "--overwrite").code == 0
    assert not (out / "gradients").exists()
    assert "pool by pool" in command.refused(2, "select", out, "-b", "3")
    assert command(*args, "--set", "gradients.dim=64", "--overwrite").code == 0
    assert not (out / "schedule").exists()


def test_a_warm_up_is_not_thrown_away_under_another_run(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "busy"
    args = ("run", rows_file, "-m", model, "-b", "4", "--limit", "12", "-o", out, "--set", "gradients.dim=64")
    args += ("--warmup-steps", "1", "--set", "schedule.lora.r=2")
    assert command(*args).code == 0
    with Lock.exclusive(out / "schedule" / ".lock", "it"):
        assert "Another run is writing" in command.refused(4, *args, "--overwrite")
    assert (out / "schedule" / "warm-up" / "checkpoint.json").is_file()
    assert (out / "selection.json").is_file()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("gradients.lora.adapter=somewhere", "a warm-up trains its own"), ("gradients.lora.r=4", "make them equal")],
)
def test_a_warm_up_trains_the_adapters_that_are_measured(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, setting: str, sentence: str
) -> None:
    args = ("run", rows_file, "-m", model, "-b", "4", "-o", tmp_path / "none", "--warmup-steps", "1", "--set", setting)
    assert sentence in command.refused(2, *args)
