"""Methods at the command line: the list, runs of several, and one that another package brings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from spice_select.analysis.record import SelectionRecord
from spice_select.demo import demo_rows
from spice_select.methods import method_names
from tests.integration.command import Command
from tests.integration.rows import write_jsonl

DOCS = Path(__file__).parents[2] / "docs" / "methods"


def run(command: Command, rows: Path, model: Path, output: Path, *more: str) -> SelectionRecord:
    outcome = command("run", rows, "--model", model, "--output", output, "--quiet", *more)
    assert outcome.code == 0, outcome.err
    return SelectionRecord.read(output / "selection.json")


def picks(output: Path) -> list[int]:
    return pq.read_table(output / "trace.parquet")["index"].to_pylist()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The documented example as an installed package."""
    blocks = dict(re.findall(r"```(python|toml)\n(.*?)```", (DOCS / "your-own.md").read_text(), re.DOTALL))
    code, entry = blocks["python"], blocks["toml"]
    assert len(re.findall(r"^.*\S.*$", code, re.MULTILINE)) <= 11
    folder = tmp_path / "site"
    info = folder / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "my_package.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    group, name, value = re.search(r'entry-points\."(.+?)"\]\n(\w+) = "(.+?)"', entry).groups()  # type: ignore[union-attr]
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    return folder


def shell(plugin: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "spice_select", *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_method_is_listed_with_what_it_needs(command: Command) -> None:
    outcome = command("methods")
    assert outcome.code == 0
    for name in method_names():
        assert re.search(rf"^{name}$", outcome.out, re.MULTILINE), name
    listed = json.loads(command("methods", "--json").out)
    assert [entry["name"] for entry in listed][:16] == method_names()[:16]
    assert all(entry["summary"] and entry["fault"] is None for entry in listed)
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["random"]["needs"] == [] and by_name["spice"]["needs"] == ["gradients"]
    assert "target examples" in by_name["less"]["needs"] and "target examples" in by_name["tsds"]["needs"]


def test_every_method_is_documented() -> None:
    index = (DOCS.parent / "methods.md").read_text()
    for name in method_names():
        assert f"(methods/{name}.md)" in index
        assert (DOCS / f"{name}.md").read_text().startswith(f"# {name}")


def test_one_method_is_shown_with_its_settings(command: Command) -> None:
    outcome = command("methods", "spice_plus")
    assert outcome.code == 0
    assert "method.stop_ratio = 0.5" in outcome.out


def test_an_unknown_method_is_told_the_nearest(command: Command, rows_file: Path, model: Path, tmp_path: Path) -> None:
    common = ("run", rows_file, "--model", model, "--budget", "4", "--output", tmp_path / "out")
    assert "did you mean 'kcenter'" in command.refused(2, *common, "--method", "kcentre")
    assert "did you mean 'method.stop_ratio'" in command.refused(
        2, *common, "--method", "spice_plus", "--set", "method.stop_ration=0.2"
    )
    assert "has no settings" in command.refused(2, *common, "--method", "random", "--set", "method.alpha=1")
    assert "method.normalize" in command.refused(2, *common, "--set", "method.normalize=units")
    assert not (tmp_path / "out").exists()


def test_a_method_towards_a_target_asks_for_one(command: Command, rows_file: Path, model: Path, tmp_path: Path) -> None:
    common = ("run", rows_file, "--model", model, "--budget", "4", "--output", tmp_path / "out")
    for name in ("less", "tsds"):
        said = command.refused(2, *common, "--method", name)
        assert name in said and "--target" in said
    missing = command.refused(3, *common, "--method", "tsds", "--target", tmp_path / "nothing.jsonl")
    assert "nothing.jsonl" in missing


def test_pools_go_with_information_alone(command: Command, rows_file: Path, model: Path, tmp_path: Path) -> None:
    common = ("run", rows_file, "--model", model, "--budget", "4", "--output", tmp_path / "out", "--schedule", "pools")
    assert "pools" in command.refused(2, *common, "--method", "random")


def test_random_loads_no_model_and_leaves_a_whole_run(
    command: Command, rows_file: Path, model: Path, tmp_path: Path
) -> None:
    record = run(command, rows_file, model, tmp_path / "out", "--budget", "6", "--method", "random")
    assert record.k == 6 and record.method is not None and record.method.name == "random"
    assert not (tmp_path / "out" / "gradients").exists() and not (tmp_path / "out" / "features").exists()
    again = run(command, rows_file, model, tmp_path / "again", "--budget", "6", "--method", "random")
    other = run(command, rows_file, model, tmp_path / "other", "--budget", "6", "--method", "random", "--seed", "5")
    assert again.k == other.k == 6
    assert picks(tmp_path / "out") == picks(tmp_path / "again") != picks(tmp_path / "other")


def test_a_written_configuration_replays_the_method(
    command: Command, rows_file: Path, model: Path, tmp_path: Path
) -> None:
    run(
        command,
        rows_file,
        model,
        tmp_path / "out",
        "--budget",
        "5",
        "--method",
        "length",
        "--set",
        "method.order=shortest",
    )
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["method"] == {"name": "length", "order": "shortest"}
    outcome = command("run", "--config", tmp_path / "out" / "config.yaml", "--output", tmp_path / "again", "--quiet")
    assert outcome.code == 0, outcome.err
    assert picks(tmp_path / "again") == picks(tmp_path / "out")


def test_fisher_is_spice_without_its_penalty(command: Command, rows_file: Path, model: Path, tmp_path: Path) -> None:
    run(command, rows_file, model, tmp_path / "fisher", "--budget", "8", "--method", "fisher")
    outcome = command(
        "select", tmp_path / "fisher", "--output", tmp_path / "plain", "--quiet",
        "--set", "method.name=spice", "--set", "selection.conflict_weight=0",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert picks(tmp_path / "plain") == picks(tmp_path / "fisher")
    record = SelectionRecord.read(tmp_path / "fisher" / "selection.json")
    assert record.objective.conflict_weight == 0.0 and record.summary.changed_by_penalty is None


def test_spice_plus_stops_early_without_a_budget(
    command: Command, rows_file: Path, model: Path, tmp_path: Path
) -> None:
    record = run(
        command, rows_file, model, tmp_path / "out", "--method", "spice_plus", "--set", "method.stop_ratio=0.9"
    )
    assert record.stop_reason == "stop_ratio" and 1 <= record.k < record.n


def test_another_method_in_the_same_folder_is_refused(
    command: Command, rows_file: Path, model: Path, tmp_path: Path
) -> None:
    run(command, rows_file, model, tmp_path / "out", "--budget", "6", "--method", "random")
    said = command.refused(
        4, "run", rows_file, "--model", model, "--budget", "6", "--output", tmp_path / "out", "--method", "length"
    )
    assert "method.name was 'random' and is now 'length'" in said


def test_the_documented_example_of_another_package_works(plugin: Path, rows_file: Path, model: Path) -> None:
    listed = shell(plugin, "methods")
    assert listed.returncode == 0, listed.stderr
    assert "surprise (of my_package)" in listed.stdout
    out = plugin.parent / "out"
    done = shell(
        plugin, "run", rows_file, "--model", model, "--budget", "5", "--output", out,
        "--method", "surprise", "--set", "method.power=1", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = SelectionRecord.read(out / "selection.json")
    assert record.k == 5 and record.method is not None
    assert record.method.name == "surprise" and record.method.settings == {"power": 1.0}
    table = pq.read_table(out / "data")
    assert table["spice_score"].to_pylist() == sorted(table["spice_score"].to_pylist(), reverse=True)
    near = shell(
        plugin, "run", rows_file, "--model", model, "--budget", "5", "--output", out,
        "--method", "surprise", "--set", "method.powr=1",
    )  # fmt: skip
    assert near.returncode == 2 and "did you mean 'method.power'" in near.stderr


def test_a_broken_package_is_named_and_stops_nothing_else(plugin: Path, command: Command) -> None:
    (plugin / "my_package.py").write_text("import nothing_of_this_name\n")
    listed = shell(plugin, "methods")
    assert listed.returncode == 0 and "cannot be used" in listed.stdout and "random" in listed.stdout
    shown = shell(plugin, "methods", "surprise")
    assert shown.returncode == 2 and "cannot be loaded" in shown.stderr and "Traceback" not in shown.stderr


def test_a_dry_run_prices_what_the_method_needs(command: Command, rows_file: Path, model: Path) -> None:
    def cost(*method: str) -> dict[str, Any]:
        return command.json("run", rows_file, "--model", model, "--budget", "4", "--dry-run", *method)

    fisher, drawn, ifd = cost("--method", "fisher"), cost("--method", "random"), cost("--method", "ifd")
    assert fisher["gradient_seconds"] > 0 and fisher["measuring_seconds"] == 0
    assert drawn["gradient_seconds"] == drawn["measuring_seconds"] == drawn["disk_bytes"] == drawn["flops"] == 0
    assert ifd["gradient_seconds"] == 0 and ifd["measuring_seconds"] > 0
    rated = cost("--method", "selectit")
    assert rated["measuring_seconds"] > 2 * ifd["measuring_seconds"]
    said = command("run", rows_file, "--model", model, "--budget", "4", "--dry-run", "--method", "random").out
    assert "as method random needs none" in said and "selection" not in said


def test_select_takes_another_method_of_the_same_gradients(
    command: Command, rows_file: Path, model: Path, tmp_path: Path
) -> None:
    run(command, rows_file, model, tmp_path / "spice", "--budget", "6")
    outcome = command("select", tmp_path / "spice", "--method", "dpp", "--output", tmp_path / "dpp", "--quiet")
    assert outcome.code == 0, outcome.err
    record = SelectionRecord.read(tmp_path / "dpp" / "selection.json")
    assert record.method is not None and record.method.name == "dpp" and record.information is not None
    assert "spice-select run --method ifd" in command.refused(
        2, "select", tmp_path / "spice", "--method", "ifd", "--output", tmp_path / "ifd"
    )


def test_copies_tie_and_a_warning_of_a_measurement_is_kept(command: Command, model: Path, tmp_path: Path) -> None:
    """Copies lie in other batches, so that what is measured of them differs by rounding."""
    rows = demo_rows(seed=5)[:12]
    pool = write_jsonl(tmp_path / "twice.jsonl", [*rows, *reversed(rows)])
    for name in ("selectit", "ifd"):
        run(command, pool, model, tmp_path / name, "--budget", "24", "--method", name)
        order = picks(tmp_path / name)
        assert all(order.index(row) < order.index(23 - row) for row in range(12)), name
    target = write_jsonl(tmp_path / "target.jsonl", demo_rows(seed=6)[:3])
    record = run(
        command, pool, model, tmp_path / "less", "--budget", "4", "--method", "less", "--target", str(target),
        "--set", "method.epochs=1", "--set", "method.dim=64",
    )  # fmt: skip
    assert any("optimiser step" in line for line in record.warnings)
