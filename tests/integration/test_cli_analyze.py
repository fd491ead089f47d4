"""``spice-select analyze`` on real runs, stores and folders that are neither."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from spice_select import GradientStore, pipeline
from spice_select.analysis_of import analyse_folder
from spice_select.config import load_config
from spice_select.demo import demo_rows
from spice_select.reporter import Silent
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.records import unsealed
from tests.support import ROOT

FAST = ("--samples", "20", "--clusters", "3")


def chosen(folder: Path) -> list[int]:
    return pq.read_table(folder / "trace.parquet").column("index").to_pylist()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder with two sources, a collect, a run with quotas, and two selections from its gradients."""
    base = tmp_path_factory.mktemp("analyze")
    rows = demo_rows(seed=5, rows=100)
    rows[4]["output"] = ""
    write_jsonl(base / "one.jsonl", rows[:40])
    write_jsonl(base / "two.jsonl", rows[40:])
    (base / "excluded.txt").write_text("0\n1\n2\n")
    (base / "in-hand.txt").write_text("10\n50\n")

    def run(name: str, *overrides: str, select_from: str | None = None) -> None:
        settings = [*overrides, f"output.folder={base / name}"]
        if select_from is not None:
            pipeline.select_from(base / select_from, Silent(), output=base / name, overrides=overrides)
            return
        sources = [str(base / "one.jsonl"), str(base / "two.jsonl")]
        values: dict[str, Any] = {
            "data": {"sources": sources},
            "model": {"name": str(model)},
            "gradients": {"dim": 128, "shard_rows": 32},
        }
        pipeline.run(load_config(None, settings, values), Silent())

    run("run", "selection.budget=20", "selection.groups=domain", "selection.quotas=proportional")
    run("unit", "selection.normalize=unit", "selection.groups=null", "selection.quotas=null", select_from="run")
    run(
        "held",
        f"selection.exclude={base / 'excluded.txt'}",
        f"selection.initial={base / 'in-hand.txt'}",
        "selection.normalize=clip",
        "selection.groups=null",
        "selection.quotas=null",
        select_from="run",
    )
    return base


def test_a_run_in_text(command: Command, made: Path) -> None:
    before = contents(made / "run")
    outcome = command("analyze", made / "run", "--by", "origin", "--against", made / "unit", *FAST)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[0] == f"Run {made / 'run'}"
    assert titles[1:] == [
        "Certificate",
        "Gain = base + epsilon, in nats",
        "Bounds on |epsilon| of random rows x and sets S",
        "Curvature, by conflict with the pool's mean",
        "Information at equal numbers of rows, in nats",
        "Fifths of the pool by conflict, in nats",
        "Spearman of conflict with gain and |epsilon|",
        "Diversity of directions",
        "Coverage by source",
        "Coverage by origin",
        "Coverage by domain",
        "Coverage by response tokens",
        "Coverage by direction",
        "Overlap",
        "Notes",
    ]
    assert max(len(line) for line in lines if str(made) not in line) <= 80
    assert "nan" not in outcome.out.lower().split()
    assert contents(made / "run") == before, "analysis writes nothing"


def test_a_run_in_numbers(command: Command, made: Path) -> None:
    found: dict[str, Any] = command.json("analyze", made / "run", "--against", made / "unit", *FAST)
    record = json.loads((made / "run" / "selection.json").read_text())
    picks, others = chosen(made / "run"), chosen(made / "unit")
    assert found["subject"]["picks"] == 20
    assert found["certificate"] == record["certificate"]
    assert found["subject"]["information"] == record["information"]
    assert found["theory"]["picks"]["rows"] == picks
    assert max(part["error"] for part in [found["theory"]["picks"], *found["theory"]["random"]]) < 1e-6
    assert all(check["free_violations"] == 0 for check in found["theory"]["bounds"])
    (pair,) = found["overlap"]["pairs"]
    assert pair["both"] == len(set(picks) & set(others))
    assert pair["jaccard"] == len(set(picks) & set(others)) / len(set(picks) | set(others))
    assert 0 < pair["expected_jaccard"] < 1
    coverage = {one["by"]: {group["name"]: group["picks"] for group in one["groups"]} for one in found["coverage"]}
    assert coverage["source"] == {"one": sum(row < 40 for row in picks), "two": sum(row >= 40 for row in picks)}
    rows = demo_rows(seed=5, rows=100)
    assert {name: count for name, count in coverage["domain"].items() if count} == {
        name: sum(rows[row]["domain"] == name for row in picks) for name in {rows[row]["domain"] for row in picks}
    }
    assert sum(coverage["response tokens"].values()) == sum(coverage["direction"].values()) == 20
    again = command.json("analyze", made / "run", "--against", made / "unit", *FAST)
    assert again == found, "the same seed gives the same numbers"
    other: dict[str, Any] = command.json("analyze", made / "run", "--seed", "1", *FAST)
    assert other["theory"]["random"] != found["theory"]["random"]
    assert other["theory"]["picks"] == found["theory"]["picks"]


def test_several_other_runs(command: Command, made: Path) -> None:
    outcome = command("analyze", made / "run", "--against", made / "unit", "--against", made / "held", "-q", *FAST)
    assert outcome.code == 0
    assert "Jaccard of every pair" in outcome.out
    assert outcome.err == ""


def forget_gradients(folder: Path) -> None:
    """As if the gradients had been moved: the record's note of where they lie leads nowhere."""
    record = unsealed(folder)
    assert Path(record["gradients"]).is_dir()
    (folder / "selection.json").write_text(json.dumps({**record, "gradients": str(folder / "gone")}))


@pytest.mark.parametrize("name", ["unit", "held"])
def test_a_selection_whose_gradients_lie_elsewhere(command: Command, made: Path, tmp_path: Path, name: str) -> None:
    """Without its gradients the trace speaks; with them the scale, the rows in hand and those left out are found."""
    moved = Path(shutil.copytree(made / name, tmp_path / name))
    forget_gradients(moved)
    alone: dict[str, Any] = command.json("analyze", moved, *FAST)
    assert alone["theory"] is alone["diversity"] is None
    assert alone["trace"]["picks"] == 20
    assert any("--gradients" in sentence for sentence in alone["left_out"])
    whole: dict[str, Any] = command.json("analyze", moved, "--gradients", made / "run" / "gradients", *FAST)
    known: dict[str, Any] = command.json("analyze", made / name, *FAST)
    assert {**known, "subject": None} == {**whole, "subject": None}
    assert whole["theory"]["picks"]["error"] < 1e-6
    bases = pq.read_table(made / name / "trace.parquet").column("base").to_pylist()
    assert whole["theory"]["picks"]["base"] == pytest.approx(bases, abs=1e-9)
    # Rows in hand could not be chosen any more.
    usable = 99 if name == "unit" else 94
    assert sum(group["pool"] for group in whole["coverage"][-1]["groups"]) == usable
    assert whole["diversity"]["pool"] == usable


def test_gradients_alone(command: Command, made: Path, tmp_path: Path) -> None:
    collected = tmp_path / "collected"
    collected.mkdir()
    shutil.copy(made / "run" / "config.yaml", collected)
    shutil.copytree(made / "run" / "gradients", collected / "gradients")
    found: dict[str, Any] = command.json("analyze", collected, *FAST)
    assert found["subject"]["kind"] == "store"
    assert found["subject"]["normalize"] == "sqrt_tokens"
    assert found["theory"] is found["certificate"] is found["overlap"] is None
    assert found["pool_theory"]["curvature"]
    assert any("Certificate" in sentence for sentence in found["left_out"])
    assert {one["by"] for one in found["coverage"]} == {"source", "domain", "response tokens", "direction"}
    store: dict[str, Any] = command.json("analyze", collected / "gradients", *FAST)
    assert store["pool_theory"] == found["pool_theory"]
    assert {one["by"] for one in store["coverage"]} == {"response tokens", "direction"}
    text = command("analyze", collected / "gradients", *FAST).out.splitlines()
    assert max(len(line) for line in text if str(tmp_path) not in line) <= 80


def test_pools_of_a_schedule(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "pools"
    pools = ("--set", "schedule.pool_size=20", "--set", "schedule.interval=1", "--set", "schedule.lora.r=2")
    outcome = command("run", rows_file, "-m", model, "-b", "10%", "-o", out, "--schedule", "pools", *pools)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = command.json("analyze", out, *FAST)
    assert found["theory"] is found["diversity"] is found["subject"]["alpha"] is None
    assert found["trace"]["picks"] == found["subject"]["picks"] == 4
    assert found["trace"]["half_life"] is None
    assert any("schedule" in sentence for sentence in found["left_out"])
    pools_record = json.loads((out / "selection.json").read_text())["schedule"]["pools"]
    assert (found["pools"]["pools"], found["pools"]["offered"]) == (2, 40)
    assert found["pools"]["certificate_least"] == min(pool["certificate"] for pool in pools_record)
    assert found["pools"]["opposing_last"] == pools_record[-1]["opposing_pairs"]
    assert command("analyze", out, "--by", "domain", *FAST).code == 0


def test_rows_that_moved_are_left_out_unless_asked_for(command: Command, made: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(made / "run", moved)
    text = (moved / "config.yaml").read_text().replace("one.jsonl", "gone.jsonl")
    (moved / "config.yaml").write_text(text)
    found: dict[str, Any] = command.json("analyze", moved, *FAST)
    assert [one["by"] for one in found["coverage"]] == ["source", "response tokens", "direction"]
    assert any("no longer" in sentence for sentence in found["left_out"])
    assert "gone.jsonl" in command.refused(3, "analyze", moved, "--by", "domain", *FAST)


def test_rows_that_changed(command: Command, made: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(made / "run", changed)
    lines = (made / "one.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "one.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    text = (changed / "config.yaml").read_text().replace(str(made / "one.jsonl"), str(tmp_path / "one.jsonl"))
    (changed / "config.yaml").write_text(text)
    assert "no longer" in command.refused(4, "analyze", changed, "--by", "domain", *FAST)
    assert command("analyze", changed, *FAST).code == 0


def test_what_cannot_be_analysed(command: Command, made: Path, model: Path, rows_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert command("run", rows_file, "-m", model, "-b", "4", "-o", other, "--set", "gradients.dim=64").code == 0
    run, store = made / "run", made / "run" / "gradients"
    refusals = [
        (3, "no folder", (tmp_path / "nowhere",)),
        (3, "config.yaml", (tmp_path,)),
        (2, "domain, origin", (run, "--by", "colour")),
        (2, "other rows", (run, "--against", other)),
        (2, "twice", (run, "--against", run)),
        (3, "no folder", (run, "--against", tmp_path / "nowhere")),
        (4, "not those", (made / "unit", "--gradients", other / "gradients")),
        (3, "no gradient store", (made / "unit", "--gradients", tmp_path)),
        (2, "gradients alone", (store, "--by", "domain")),
        (2, "holds none", (store, "--against", run)),
        (2, "", (run, "--samples", "0")),
        (2, "", (run, "--clusters", "0")),
    ]
    for code, part, arguments in refusals:
        outcome = command("analyze", *arguments)
        assert outcome.code == code, (arguments, outcome.err)
        assert part in outcome.err
        assert "Traceback" not in outcome.err


def test_damage_is_named(command: Command, made: Path, tmp_path: Path) -> None:
    for damage, said in (("trace", "trace.parquet"), ("record", "selection.json"), ("shard", ".npy")):
        broken = tmp_path / damage
        shutil.copytree(made / "run", broken)
        if damage == "trace":
            (broken / "trace.parquet").write_bytes(b"nothing")
        elif damage == "record":
            (broken / "selection.json").write_text("{}")
        else:
            (shard,) = broken.glob("gradients/shards/*0.npy")
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        assert said in command.refused(3, "analyze", broken, *FAST)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(made / "run" / "config.yaml", unfinished)
    assert "no finished selection" in command.refused(3, "analyze", unfinished)


def test_the_same_in_python(made: Path) -> None:
    found = analyse_folder(made / "run", samples=20, clusters=3)
    tables = found.to_pandas()
    trace = pq.read_table(made / "run" / "trace.parquet").to_pandas()
    assert tables["picks"]["row"].tolist() == trace["index"].tolist()
    np.testing.assert_allclose(tables["picks"]["epsilon"], trace["epsilon"], atol=1e-9)
    assert found.theory is not None
    assert found.certificate is not None
    last = found.theory.trajectory.curves[0].information[-1]
    assert math.isclose(last, found.certificate.information, rel_tol=1e-9)
    store = GradientStore.open(made / "run" / "gradients")
    assert found.subject.dim == store.dim == 128


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["analysis.py", "--demo-rows", "60", "--figure", str(figure)])
    runpy.run_path(str(ROOT / "examples" / "analysis.py"), run_name="__main__")
    assert "Information at equal numbers of rows" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_row_numbers_that_have_changed_are_refused(command: Command, made: Path) -> None:
    excluded = made / "excluded.txt"
    before = excluded.read_text()
    excluded.write_text("0\n1\n2\n3\n")
    try:
        outcome = command("analyze", made / "held", "--gradients", made / "run" / "gradients", *FAST)
    finally:
        excluded.write_text(before)
    assert outcome.code == 4
    assert "selection.exclude" in outcome.err and "changed" in outcome.err


def test_one_run_by_two_names_is_refused(command: Command, made: Path) -> None:
    again = made / "held" / ".." / "unit"
    outcome = command("analyze", made / "run", "--against", made / "unit", "--against", again, *FAST)
    assert outcome.code == 2
    assert "twice" in outcome.err


def test_a_missing_trace_is_named(command: Command, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "trace.parquet").unlink()
    outcome = command("analyze", tmp_path / "run", *FAST)
    assert outcome.code == 3
    assert "trace.parquet is missing" in outcome.err
