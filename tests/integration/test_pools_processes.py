"""Pools on one, two and three real processes, and killed by SIGKILL: one selection log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spice_select.demo import demo_model_path, demo_rows
from tests.integration.rows import write_jsonl
from tests.support import ROOT

_SMALL = ("schedule.kind=pools", "schedule.interval=1", "schedule.lora.r=2", "gradients.batch_tokens=128")


def _arguments(rows: Path, out: Path, budget: str, *settings: str) -> list[str]:
    extra = [part for setting in (*_SMALL, *settings) for part in ("--set", setting)]
    return ["run", str(rows), "-m", str(demo_model_path()), "-b", budget, "-o", str(out), "-q", *extra]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("processes")
    rows = write_jsonl(made / "rows.jsonl", demo_rows(seed=5)[:26])
    few = write_jsonl(made / "few.jsonl", demo_rows(seed=6)[:5])
    usual, one = ("schedule.pool_size=8",), ("schedule.pool_size=2", "schedule.batch_size=1")
    fixed = ("schedule.kind=fixed", "schedule.warmup_steps=2", "gradients.dim=64", "gradients.shard_rows=5")
    jobs = [
        *({"arguments": _arguments(rows, made / f"usual-{n}", "20%", *usual), "world": n} for n in (1, 2, 3)),
        # One pick in all, of pools smaller than the number of processes, the last of a single row.
        *({"arguments": _arguments(few, made / f"one-{n}", "1", *one), "world": n} for n in (1, 3)),
        *({"arguments": _arguments(few, made / f"all-{n}", "5", *one), "world": n} for n in (1, 3)),
        *({"arguments": _arguments(few, made / f"fixed-{n}", "2", *fixed), "world": n} for n in (1, 2)),
        {"arguments": _arguments(rows, made / "killed-1", "20%", *usual), "kills": 5},
        {"arguments": _arguments(rows, made / "killed-2", "20%", *usual), "world": 2, "kills": 3},
        {"arguments": _arguments(rows, made / "broken-2", "20%", *usual, "model.dtype=float16x"), "world": 2},
    ]
    (made / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.pool_runs", str(made / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (made / "ended.json").write_text(done.stdout)
    return made


def _log(folder: Path, name: str) -> bytes:
    return (folder / name / "schedule" / "log.jsonl").read_bytes()


def _ended(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "ended.json").read_text())


def test_all_processes_of_all_runs_end_well(folder: Path) -> None:
    *well, broken = _ended(folder)
    said = (folder / "jobs.log").read_text()
    for ended in well:
        assert set(ended["codes"]) == {0}, said[-3000:]  # type: ignore[call-overload]
    assert broken["codes"] == [2, 2]
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "world"), [("usual", 2), ("usual", 3), ("one", 3), ("all", 3)])
def test_the_picks_are_the_same_on_every_number_of_processes(folder: Path, name: str, world: int) -> None:
    assert _log(folder, f"{name}-{world}") == _log(folder, f"{name}-1")
    first, other = (json.loads((folder / f"{name}-{number}" / "selection.json").read_text()) for number in (1, world))
    assert first["schedule"] == other["schedule"]
    assert first["k"] == other["k"] == {"usual": 5, "one": 1, "all": 5}[name]


def test_a_warm_up_and_a_collect_are_shared_by_processes(folder: Path) -> None:
    first, second = (
        {
            str(path.relative_to(folder / name)): path.read_bytes()
            for path in sorted((folder / name / "gradients" / "shards").glob("*.npy"))
        }
        for name in ("fixed-1", "fixed-2")
    )
    assert first and first == second


@pytest.mark.parametrize(("name", "kills"), [("killed-1", 5), ("killed-2", 3)])
def test_a_killed_run_ends_in_the_log_of_one_that_was_not(folder: Path, name: str, kills: int) -> None:
    job = {"killed-1": -3, "killed-2": -2}[name]
    ended = _ended(folder)[job]
    assert ended["killed"] == kills or ended["early"] == 6
    assert _log(folder, name) == _log(folder, "usual-1")
