"""The real command line on a pool of forty rows: several methods, files, resume, failures, refusals."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from spice_select.analysis.contest import Contest
from spice_select.cli import main
from spice_select.errors import DataError
from spice_select.features.bench import Counted
from spice_select.methods.length import Length
from spice_select.methods.loss import Loss
from tests.integration.command import Command, Outcome

METHODS = "spice,fisher,random,length,loss,ifd,dpp"
TIMINGS = {"seconds", "process_seconds", "memory_bytes", "timings"}


def timeless(value: Any) -> Any:
    """A record without what differs from run to run."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMINGS}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "comparison.json").read_text())


@pytest.fixture
def compare(command: Command, model: Path, rows_file: Path):
    def call(out: Path, methods: str = METHODS, *more: str | Path) -> Outcome:
        return command(
            *("compare", rows_file, "-m", model, "--methods", methods, "--budget", "20%"),
            *("--seeds", "3", "--output", out, "--set", "selection.groups=origin", *more),
        )

    return call


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path, rows_file: Path) -> Path:
    """One comparison of all cheap methods, in this process."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--methods", METHODS, "--budget", "20%", "--seeds", "3", "--set", "selection.groups=origin"]
        patch.setattr(
            sys, "argv", ["spice-select", "compare", str(rows_file), "-m", str(model), *arguments, "-o", str(out)]
        )
        patch.setattr(sys, "warnoptions", ["error"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return out


def test_every_file_comes_and_agrees(done: Path) -> None:
    contest = Contest.read(done / "comparison.json")
    assert [line.label for line in contest.methods] == METHODS.split(",")
    assert [line.seeds for line in contest.methods if line.method == "random"] == [(0, 1, 2)]
    assert all(line.seeds == (0,) for line in contest.methods if line.varies == "no")
    assert all(one.numbers is not None and one.numbers.k == 8 for one in contest.contestants)
    rows = list(csv.DictReader(io.StringIO((done / "comparison.csv").read_text())))
    assert [(row["label"], int(row["seed"])) for row in rows] == [(one.label, one.seed) for one in contest.contestants]
    assert "| spice | 8 |" in (done / "comparison.md").read_text()
    assert "<title>Methods side by side: out</title>" in (done / "report.html").read_text()
    assert (done / "config.yaml").is_file()
    spice, random = (next(line for line in contest.methods if line.label == name) for name in ("spice", "random"))
    assert contest.yardstick is not None and contest.yardstick.upper_bound is not None
    assert (spice.mean("share_of_best") or 0) > 0.63 > 0 < (random.spread("information").deviation or 0)
    assert (spice.spread("information").from_random or 0) > 2
    assert any(line.startswith("More information than random") and "spice (" in line for line in contest.verdict)


def test_choices_are_kept_whole_and_are_those_of_run(
    done: Path, command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    kept = json.loads((done / "methods" / "spice" / "seed-0.json").read_text())
    assert len(kept["indices"]) == len(kept["scores"]) == 8 and kept["stop_reason"] == "budget"
    outcome = command("run", rows_file, "-m", model, "--method", "spice", "--budget", "20%", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert pq.read_table(tmp_path / "run" / "trace.parquet").column("index").to_pylist() == kept["indices"]


def test_what_is_shared_is_measured_once(done: Path) -> None:
    contest = Contest.read(done / "comparison.json")
    assert set(contest.gradient_sharing.methods) == {"spice", "fisher", "dpp"}
    assert contest.gradient_sharing.ratio is not None and contest.gradient_sharing.ratio <= 1.1
    taken = {
        one.label: {each.measurement.rpartition("-")[0]: each for each in one.cost.taken}
        for one in contest.contestants
        if one.cost is not None
    }
    assert taken["random"] == taken["length"] == {}
    assert set(taken["spice"]) == {"gradients"} and set(taken["loss"]) == {"losses"}
    assert set(taken["ifd"]) == {"losses", "direct-losses"} and taken["ifd"]["losses"] == taken["loss"]["losses"]
    assert (taken["spice"]["gradients"].forwards, taken["spice"]["gradients"].backwards) == (40, 40)
    assert (taken["loss"]["losses"].forwards, taken["loss"]["losses"].backwards) == (40, 0)
    assert contest.sharing.total < contest.sharing.alone


def test_the_same_command_again_measures_and_chooses_nothing(
    done: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = record(done)
    choices = {path: path.stat().st_mtime_ns for path in (done / "methods").rglob("*.json")}
    assert len(choices) == 9

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(Counted, "batch", refuse)
    monkeypatch.setattr(Loss, "choose", refuse)
    outcome = compare(done)
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in (done / "methods").rglob("*.json")} == choices
    assert timeless(record(done)) == timeless(before)


def test_cut_off_and_begun_again_it_ends_in_the_same_record(
    done: Path, compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loss, "choose", stop)
        assert compare(out).code == 130
    assert (out / "methods" / "length" / "seed-0.json").is_file()
    assert not (out / "comparison.json").exists() and not (out / "methods" / "loss").exists()
    # What was half written, and what belongs to other settings, counts for nothing.
    whole = (out / "methods" / "spice" / "seed-0.json").read_text()
    (out / "methods" / "spice" / "seed-0.json").write_text(whole[: len(whole) // 2])
    kept = json.loads((out / "methods" / "length" / "seed-0.json").read_text())
    (out / "methods" / "length" / "seed-0.json").write_text(json.dumps({**kept, "identity": "0" * 64, "indices": [1]}))
    outcome = compare(out)
    assert outcome.code == 0, outcome.err
    assert timeless(record(out)) == timeless(record(done))


@pytest.mark.slow
def test_killed_without_warning_it_goes_on(compare, model: Path, rows_file: Path, tmp_path: Path) -> None:
    methods, whole, out = "spice,random,kcenter,semdedup,ifd", tmp_path / "whole", tmp_path / "out"
    assert compare(whole, methods).code == 0
    call = [sys.executable, "-m", "spice_select", "compare", str(rows_file), "-m", str(model), "--methods", methods]
    more = ["--budget", "20%", "--seeds", "3", "--set", "selection.groups=origin", "--output", str(out), "--quiet"]
    # Killed as soon as each of these is there: between choices, and in the middle of what comes next.
    for awaited in ("gradients", "methods/spice/seed-0.json", "methods/random/seed-1.json", "methods/kcenter"):
        with subprocess.Popen([*call, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (out / awaited).exists() and process.poll() is None:
                time.sleep(0.002)
            process.kill()
    assert not list(out.rglob("comparison.json"))
    outcome = compare(out, methods)
    assert outcome.code == 0, outcome.err
    passes = {"taken", "work", "sharing", "gradient_sharing"}
    found, wanted = timeless(record(out)), timeless(record(whole))
    for one in (found, wanted):
        for entry in [*one["methods"], *one["contestants"], *(each["cost"] for each in one["contestants"]), one]:
            # What was measured and not yet counted when the process was killed is counted by nobody.
            for key in passes & entry.keys():
                del entry[key]
    assert found == wanted


def test_other_settings_of_a_choice_are_chosen_anew_and_nothing_is_measured_again(
    compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert compare(out, "random,length,spice").code == 0
    first = record(out)
    with monkeypatch.context() as patch:
        patch.setattr(Counted, "batch", lambda *_: pytest.fail("nothing is to be measured"))
        outcome = compare(out, "random,length,spice:conflict_weight=0", "--set", "selection.budget=5", "--seed", "0")
    assert outcome.code == 0, outcome.err
    second = record(out)
    assert (first["rows"], second["rows"]) == (8, 5)
    assert [line["label"] for line in second["methods"]] == ["random", "length", "spice-conflict_weight=0"]
    assert {one["numbers"]["k"] for one in second["contestants"]} == {5}


def test_a_method_that_fails_is_told_and_the_others_go_on(
    compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail(*_: object) -> None:
        raise DataError("The rows have no length; give others.")

    with monkeypatch.context() as patch:
        patch.setattr(Length, "choose", fail)
        outcome = compare(out, "length,random", "--no-information")
        assert outcome.code == 3
        assert "length made no choice: The rows have no length" in outcome.err
        assert "failed" in outcome.out and "Traceback" not in outcome.err
        assert "The rows have no length" in (out / "report.html").read_text()
        # With nothing left to compare, the failure is the answer.
        assert "The rows have no length" in compare(tmp_path / "alone", "length", "--no-information").err
    assert compare(out, "length,random", "--no-information").code == 0
    assert [one["error"] for one in record(out)["contestants"]] == [None] * 4


def test_without_information_nothing_is_measured(compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "batch", lambda *_: pytest.fail("nothing is to be measured"))
    out = tmp_path / "out"
    outcome = compare(out, "random,length,full", "--no-information")
    assert outcome.code == 0, outcome.err
    assert not (out / "gradients").exists() and "Proxy" not in outcome.err
    found = record(out)
    assert found["yardstick"] is None and found["sharing"]["ratio"] is None
    assert {one["numbers"]["information"] for one in found["contestants"]} == {None}
    tokens = {line["label"]: line["spreads"] for line in found["methods"]}
    assert next(one["mean"] for one in tokens["full"] if one["measure"] == "k") == 40


def test_json_is_the_record(compare, tmp_path: Path) -> None:
    outcome = compare(tmp_path / "out", "random,length", "--no-information", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == record(tmp_path / "out")


@pytest.mark.parametrize(
    ("methods", "more", "said"),
    [
        ("spice,spize", (), "did you mean 'spice'"),
        ("spice:alpa=1", (), "did you mean 'method.alpha'"),
        ("spice,less", (), "none were given; name a file of them with --target FILE"),
        ("spice", ("--seeds", "0"), "--seeds cannot be 0"),
        ("spice", ("--set", "schedule.kind=pools"), "schedule.kind pools"),
        ("random,spice:hinge=7", (), "hinge"),
        ("random", ("--budget", "41"), "41"),
        ("random,dpp", ("--set", "method.kernel=vmf"), "--methods NAME:kernel=vmf"),
    ],
)
def test_faults_of_settings_are_found_before_anything_is_measured(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, methods: str, more: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out"
    call = ("compare", rows_file, "-m", model, "--budget", "20%", "--methods", methods, "-o", out)
    assert said in command.refused(2, *call, *more)
    assert not out.exists()


def test_a_budget_is_needed_by_those_that_take_one(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    call = ("compare", rows_file, "-m", model, "-o", tmp_path / "out", "--no-information")
    assert "No budget was given" in command.refused(2, *call, "--methods", "full,random")
    assert command(*call, "--methods", "full").code == 0


def test_a_folder_of_other_rows_is_refused_and_can_be_replaced(
    compare, command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert compare(out, "random,length", "--no-information").code == 0
    refused = compare(out, "random,length", "--no-information", "--limit", "20")
    assert refused.code == 4 and "--overwrite" in refused.err
    outcome = compare(out, "random", "--no-information", "--limit", "20", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert record(out)["pool"]["n"] == 20 and not (out / "methods" / "length").exists()


def test_seeds_go_on_from_the_first(compare, tmp_path: Path) -> None:
    outcome = compare(tmp_path / "out", "random", "--no-information", "--seed", "7")
    assert outcome.code == 0, outcome.err
    picks = [
        np.array(json.loads((tmp_path / "out" / "methods" / "random" / f"seed-{seed}.json").read_text())["indices"])
        for seed in (7, 8, 9)
    ]
    assert not np.array_equal(picks[0], picks[1]) and not np.array_equal(picks[1], picks[2])
