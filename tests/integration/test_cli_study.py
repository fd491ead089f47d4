"""The real command line: a study of two arms and the whole pool, taken up, widened, killed, refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from spice_select.analysis.study_record import Outcome, Study
from spice_select.demo import demo_rows
from spice_select.study.ledger import Ledger
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.study_kills import DEFAULTS, killed_runs, preload, table

pytest.importorskip("trl", reason="training needs TRL")

ARMS = "random,length,full"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", demo_rows(seed=3)[:40])


@pytest.fixture
def study(command: Command, model: Path, pool: Path):
    def call(out: Path, *more: str | Path):
        return command(
            *("study", pool, "-m", model, "--methods", ARMS, "--budgets", "25%,100%", "--equal", "rows"),
            *("--holdout", "4", "--set", "training.epochs=1", "--set", "training.lr=1e-3", "--output", out, *more),
        )

    return call


def ledger(out: Path) -> list[Outcome]:
    return Ledger(out / "ledger.jsonl").read()


def test_a_study_is_taken_up_widened_and_told(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = study(out, "--seeds", "1")
    assert first.code == 0, first.err
    assert [(one.arm, one.budget, one.seed) for one in ledger(out)] == [
        ("untrained", "untrained", 0),
        ("random", "25%", 0),
        ("length", "25%", 0),
        ("full", "100%", 0),
    ]
    held = json.loads((out / "heldout-rows.json").read_text())
    assert len(held) == 4
    before = (out / "ledger.jsonl").read_bytes()
    # Three seeds add those that are missing, and change nothing that is there.
    assert study(out, "--seeds", "3", "--full-seeds", "1").code == 0
    after = (out / "ledger.jsonl").read_bytes()
    assert after.startswith(before) and len(ledger(out)) == 4 + 2 * 2
    found = Study.read(out / "study.json")
    # One row of the pool is a copy of a held-out one, and no arm may have it.
    excluded = json.loads(next(out.glob("excluded-rows-*.json")).read_text())
    assert set(held) < set(excluded) and len(excluded) == 5
    assert found.missing == 0 and found.plan.rows == 35 and found.plan.heldout == {"rows": 4}
    assert {one.rows for one in found.outcomes} == {9, 35}
    assert found.untrained is not None and len(found.untrained.rows) == 4
    by_seed = [one.subset for one in found.outcomes if one.arm == "random"]
    assert len(set(by_seed)) == 3
    assert len({one.subset for one in found.outcomes if one.arm == "length"}) == 1
    full = next(one for one in found.outcomes if one.arm == "full")
    assert full.cost.selection_flops == 0 < full.cost.training_flops
    assert all(one.cost.training_tokens == one.tokens for one in found.outcomes)
    for name in ("report.html", "study.md", "study.csv", "study.yaml"):
        assert (out / name).stat().st_size > 0
    # The table again, from the ledger alone; and on another folder, which knows nothing, from the same ledger.
    told = table(out)
    (out / "study.json").unlink()
    assert study(out, "--seeds", "3", "--full-seeds", "1", "--no-train").code == 0
    assert table(out) == told
    other = tmp_path / "other"
    assert study(other, "--seeds", "3", "--full-seeds", "1", "--ledger", out / "ledger.jsonl").code == 0
    assert table(other) == told and (out / "ledger.jsonl").read_bytes() == after


def test_a_dry_run_prices_what_is_missing_and_writes_nothing(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = study(out, "--seeds", "2", "--full-seeds", "1", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert not out.exists()
    assert "5 trainings, of which the ledger knows up to 0" in outcome.out
    assert "are taken 0 times" in outcome.out and "tokens a second in training" in outcome.out


def test_equal_tokens_and_steps(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = study(out, "--seeds", "1", "--full-seeds", "0", "--equal", "tokens,steps", "--methods", "random,length")
    assert outcome.code == 0, outcome.err
    found = Study.read(out / "study.json")
    limit = round(0.25 * found.plan.response_tokens)
    for one in found.outcomes:
        if one.equal == "tokens":
            assert one.response_tokens <= limit
        else:
            assert one.rows == 9 and one.steps == 9


def test_arms_without_equal_tokens_keep_their_other_budgets(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arms = (
        "random,random:label=by-origin:selection.groups=origin:selection.quotas=proportional,"
        "length:label=everything:gradients.loss=all"
    )
    outcome = study(out, "--seeds", "1", "--full-seeds", "0", "--equal", "rows,tokens", "--methods", arms)
    assert outcome.code == 0, outcome.err
    found = Study.read(out / "study.json")
    assert {(one.arm, one.equal) for one in found.outcomes} == {
        ("random", "rows"),
        ("random", "tokens"),
        ("by-origin", "rows"),
        ("everything", "rows"),
    }
    assert found.missing == 0 and "no sets equal in response tokens" in outcome.err


def test_fixed_steps_are_another_training(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("--seeds", "1", "--full-seeds", "0", "--methods", "random")
    assert study(out, *call).code == 0
    assert study(out, *call, "--set", "training.max_steps=1").code == 0
    first, other = ledger(out)[1:]
    assert first.key != other.key and (first.steps, other.steps) == (3, 1)
    assert [one.steps for one in Study.read(out / "study.json").outcomes] == [1]


def test_a_first_start_that_fails_leaves_no_settings(study, command: Command, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ["study", pool, "-m", tmp_path / "missing", "--methods", "random", "--seeds", "1", "--output", out]
    assert command(*call).code == 3
    assert study(out, "--seeds", "1", "--full-seeds", "0", "--methods", "random").code == 0


def test_rows_of_two_arms_alike_are_trained_once(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arms = "length:label=a,length:label=b"
    assert study(out, "--seeds", "1", "--full-seeds", "0", "--methods", arms).code == 0
    a, b = ledger(out)[1:]
    assert (a.arm, b.arm) == ("a", "b") and a.key == b.key and a.losses == b.losses


def test_half_a_line_is_done_again(study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert study(out, "--seeds", "1", "--full-seeds", "0").code == 0
    told, path = table(out), out / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert study(out, "--seeds", "1", "--full-seeds", "0").code == 0
    assert table(out) == told


def test_killed_at_random_points_ends_in_the_same_table(pool: Path, model: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        preload()
        met, _ = killed_runs(["study", str(pool), "-m", str(model), *DEFAULTS], tmp_path, kills=4, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert met > 0
    assert table(tmp_path / "undisturbed") == table(tmp_path / "killed")
    assert {one.key for one in ledger(tmp_path / "killed")} == {one.key for one in ledger(tmp_path / "undisturbed")}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seeds", "0"), "--seeds cannot be 0"),
        (("--budgets", "0%"), "--budgets cannot have '0%'"),
        (("--budgets", "many"), "--budgets cannot have 'many'"),
        (("--equal", "words"), "--equal cannot have 'words'"),
        (("--workers", "0"), "--workers cannot be 0"),
        (("--workers", "1000000"), "--workers cannot be 1000000 on this machine, which has "),
        (("--holdout", "40"), "--holdout cannot take 40 rows out of rows"),
        (("--methods", "random,random"), "Two arms are named 'random'"),
        (("--methods", "random:data.max_length=64"), "cannot be one arm's own"),
        (("--methods", "random:label=a/b"), "label cannot be 'a/b'"),
        (("--methods", "spice:selection.alpa=1"), "Unknown setting 'selection.alpa'"),
        (("--methods", "random:schedule.kind=pools"), "cannot choose in pools"),
        (("--set", "schedule.kind=pools"), "give it to the arm"),
        (("--eval-limit", "3"), "go with --suites"),
        (("--full-seeds", "-1"), "--full-seeds cannot be -1"),
    ],
)
def test_refusals(command: Command, model: Path, pool: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    out = tmp_path / "out"
    call = ["study", pool, "-m", model, "--methods", ARMS, "--seeds", "1", "--output", out, *more]
    assert said in command.refused(2, *call)


def test_other_settings_and_strange_folders_are_refused(study, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert study(out, "--seeds", "1", "--full-seeds", "0", "--methods", "random").code == 0
    again = study(out, "--seeds", "1", "--full-seeds", "0", "--methods", "random", "--set", "data.max_length=64")
    assert again.code == 4 and "data.max_length was 2048 and is now 64" in again.err
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine.txt").write_text("mine")
    refused = study(strange, "--seeds", "1")
    assert refused.code == 4 and "no study has left" in refused.err
    assert sorted(path.name for path in strange.iterdir() if not path.name.startswith(".")) == ["mine.txt"]


def test_two_workers_share_the_plan(pool: Path, model: Path, tmp_path: Path) -> None:
    import os
    import subprocess

    out = tmp_path / "out"
    call = [sys.executable, "-m", "spice_select", "study", str(pool), "-m", str(model), "--methods", "random,length"]
    call += ["--budgets", "25%", "--seeds", "2", "--holdout", "4", "--set", "training.epochs=1", "--output", str(out)]
    done = subprocess.run(
        [*call, "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = ledger(out)
    assert len({(one.arm, one.equal, one.seed) for one in found}) == len(found) == 1 + 2 * 2 * 2
