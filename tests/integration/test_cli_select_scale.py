"""Samples and partitions by the real command line: what is recorded, what is another selection, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spice_select import GradientStore, select
from tests.integration.command import Command

FAST = ("--set", "gradients.dim=64", "--set", "gradients.batch_tokens=512")
STOCHASTIC = ("--set", "selection.loop=stochastic", "--set", "selection.sampling_epsilon=0.2")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, model: Path, rows_file: Path) -> Path:
    from spice_select import pipeline
    from spice_select.config import load_config
    from spice_select.reporter import Silent

    folder = tmp_path_factory.mktemp("collected") / "out"
    values = {
        "data": {"sources": (str(rows_file),)},
        "model": {"name": str(model)},
        "gradients": {"dim": 64, "batch_tokens": 512},
        "output": {"folder": str(folder)},
        "seed": 3,
    }
    pipeline.collect(load_config(values=values, preset="paper"), Silent())
    return folder


def test_samples_are_recorded_and_drawn_by_the_seed(command: Command, collected: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    record = command.json("select", collected, "-b", "8", "-o", out, *STOCHASTIC)
    assert record["loop"] == "stochastic" and record["sampling_epsilon"] == 0.2 and record["partitions"] == 1
    assert record["certificate"]["guarantee"] is None
    store = GradientStore.open(collected / "gradients")
    picks = select(store, budget=8, loop="stochastic", sampling_epsilon=0.2, seed=3).indices
    trace = command.json("analyze", out)
    assert trace is not None
    assert json.loads((out / "selection.json").read_text())["k"] == 8
    assert [row["spice_index"] for row in _rows(out)] == picks.tolist()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "for a shortfall of 0.2" in page


def test_how_picks_are_reached_is_no_other_selection_and_samples_are(
    command: Command, collected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command.json("select", collected, "-b", "6", "-o", out)
    again = ("select", collected, "-b", "6", "-o", out)
    assert command(*again, "--set", "selection.loop=dense", "--set", "selection.device=cpu:0").code == 0
    assert "selection.loop" in command.refused(4, *again, *STOCHASTIC)
    assert "selection.partitions" in command.refused(4, *again, "--set", "selection.partitions=3")


def test_the_command_says_that_the_exact_picks_may_be_others(command: Command, collected: Path, tmp_path: Path) -> None:
    plain = command("select", collected, "-b", "6", "-o", tmp_path / "plain")
    assert plain.code == 0 and "may be others" not in plain.out
    told = command("select", collected, "-b", "6", "-o", tmp_path / "told", "--partitions", "3", *STOCHASTIC)
    assert told.code == 0
    assert "dealt to 3 partitions" in told.out and "shortfall of 0.2; the exact picks may be others" in told.out


def test_partitions_are_recorded(command: Command, collected: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    record = command.json("select", collected, "-b", "10", "-o", out, "--set", "selection.partitions=3")
    assert record["partitions"] == 3 and record["k"] == 10 and record["certificate"]["guarantee"] is None
    store = GradientStore.open(collected / "gradients")
    assert [row["spice_index"] for row in _rows(out)] == select(store, budget=10, partitions=3, seed=3).indices.tolist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("selection.loop=stochastic", "selection.fisher=released"), "cannot go with fisher"),
        (("selection.partitions=2", "selection.groups=source", "selection.quotas=proportional"), "quotas"),
        (("selection.device=cuda", "selection.loop=kernel"), "loop 'kernel'"),
        (("selection.sampling_epsilon=1",), "sampling_epsilon"),
        (("selection.device=toaster",), "device 'toaster' cannot be used here"),
    ],
)
def test_what_does_not_go_together_is_refused_before_gradients_are_measured(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, settings: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out"
    args = [part for setting in settings for part in ("--set", setting)]
    assert said in command.refused(2, "run", rows_file, "-m", model, "-b", "5", "-o", out, *FAST, *args)
    assert not out.exists()


def _rows(folder: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
