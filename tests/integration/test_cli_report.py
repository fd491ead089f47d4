"""``spice-select report`` on finished runs: whole, without gradients, with sources gone, side by side."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spice_select.analysis.record import PoolRecord, ScheduleRecord, SelectionRecord
from spice_select.cli.console import ConsoleReporter
from spice_select.config import load_config
from spice_select.demo import demo_rows
from spice_select.pages import open_run, write_page
from spice_select.pipeline import run as run_pipeline
from spice_select.pipeline import select_from
from spice_select.pool import read_pool
from spice_select.report.content import Trace
from spice_select.reporter import Clock
from spice_select.run_folder import RunFolder
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.records import unsealed

EVIL = "</script><script>document.title='owned'</script><!-- \u202e \x00 \x1b[31m"


@dataclass(frozen=True)
class Kept:
    """What a run that chose pool by pool measured."""

    lengths: np.ndarray
    squared_norms: np.ndarray
    usable: np.ndarray
    store: None = None


class Picks:
    """A selection of which only the trace is looked at."""

    def __init__(self, trace: Trace) -> None:
        self.__dict__.update(vars(trace))


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, some of them hostile, a finished run, and another selection from its gradients."""
    folder = tmp_path_factory.mktemp("report")
    rows = [dict(row) for row in demo_rows(seed=3)[:60]]
    for row in rows[::7]:
        row["output"] = f"{row['output']} {EVIL}"
    write_jsonl(folder / "rows.jsonl", rows)
    flags = {
        "data": {"sources": [str(folder / "rows.jsonl")]},
        "model": {"name": str(model)},
        "gradients": {"dim": 128},
        "selection": {"budget": "20%"},
        "output": {"folder": str(folder / "run")},
    }
    with ConsoleReporter(quiet=True) as reporter:
        run_pipeline(load_config(None, (), flags), reporter)
        select_from(
            folder / "run", reporter, output=folder / "other", overrides=["selection.normalize=unit"], budget="10"
        )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change; its sources stay where they are."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def points(page: Path) -> dict[str, list]:
    found = re.search(r'<script type="application/json" id="points">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_the_page_of_a_folder_is_that_of_the_run(command: Command, run: Path) -> None:
    at_once = (run / "report.html").read_text(encoding="utf-8")
    outcome = command("report", run)
    assert (outcome.code, outcome.out.strip()) == (0, f"The report is {run / 'report.html'}.")
    again = (run / "report.html").read_text(encoding="utf-8")
    # Only the seconds that the last stage took, and the notes on what was written, came after the first page.
    for begins, ends in (('id="points">', "</script>"), ('<section id="found">', "<h2>Settings and provenance</h2>")):
        first, second = (page[(at := page.index(begins)) : page.index(ends, at)] for page in (at_once, again))
        assert first == second
    assert "Not on this page" not in again
    assert EVIL not in again


def test_every_row_has_its_text_and_place(command: Command, run: Path) -> None:
    data = points(run / "report.html")
    rows = [
        json.loads(line) for line in Path(load_config(run / "config.yaml").data.sources[0]).read_text().splitlines()
    ]
    assert sorted(data["row"]) == list(range(60))
    ranks = dict(zip(data["row"], data["rank"], strict=True))
    assert sum(rank > 0 for rank in ranks.values()) == 12
    for place, index in enumerate(data["row"]):
        words = rows[index]["output"].split()[0]
        assert words in data["text"][place]


def test_without_sources_the_picks_keep_their_texts(command: Command, run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("rows.jsonl", "gone.jsonl"))
    assert command("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The texts of rows left out are not shown, as their sources cannot be read" in page
    data = points(run / "report.html")
    assert {bool(text) for text, rank in zip(data["text"], data["rank"], strict=True) if rank} == {True}
    assert {bool(text) for text, rank in zip(data["text"], data["rank"], strict=True) if not rank} == {False}
    assert "text not at hand" in page and "have numbers alone" in page


def test_changed_sources_lend_no_text(command: Command, run: Path, tmp_path: Path) -> None:
    changed = write_jsonl(tmp_path / "rows.jsonl", demo_rows(seed=4)[:60])
    source = load_config(run / "config.yaml").data.sources[0]
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(source, str(changed)))
    assert command("report", run).code == 0
    assert "as the sources have changed since the run" in (run / "report.html").read_text(encoding="utf-8")
    data = points(run / "report.html")
    assert not any(text for text, rank in zip(data["text"], data["rank"], strict=True) if not rank)


def test_without_gradients_it_says_what_is_missing(command: Command, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "other", tmp_path / "other"))
    assert 'id="plane"' in (other / "report.html").read_text(encoding="utf-8")
    # The record knows where the gradients lie.
    assert command("report", other, "--output", tmp_path / "known.html").code == 0
    assert len(points(tmp_path / "known.html")["row"]) == 60
    record = unsealed(other)
    assert Path(record["gradients"]) == (made / "run" / "gradients").absolute()
    (other / "selection.json").write_text(json.dumps({**record, "gradients": str(tmp_path / "gone")}))
    assert command("report", other, "--output", tmp_path / "bare.html").code == 0
    bare = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "name the folder that holds them with --gradients" in bare and 'id="plane"' not in bare
    page = tmp_path / "whole.html"
    assert command("report", other, "--gradients", made / "run" / "gradients", "-o", page).code == 0
    assert len(points(page)["row"]) == 60
    (other / "selection.json").write_text(
        (other / "selection.json")
        .read_text()
        .replace(SelectionRecord.read(other / "selection.json").fingerprints.encoded or "", "0" * 64)
    )
    assert command("report", other, "--gradients", made / "run" / "gradients", "-o", page).code == 0
    assert "are not those of this run" in page.read_text(encoding="utf-8")


def test_a_run_that_kept_no_gradients_has_a_page_of_what_it_knows(made: Path, tmp_path: Path) -> None:
    config = load_config(made / "run" / "config.yaml")
    with ConsoleReporter(quiet=True) as reporter:
        pool = read_pool(config, reporter, Clock())
    whole = open_run(RunFolder(made / "run"))
    assert whole.lengths is not None and whole.norms is not None and whole.usable is not None
    measured = Kept(whole.lengths, whole.norms**2, whole.usable)
    lines = tuple(
        PoolRecord(
            pool=place,
            step=place,
            offered=30,
            picks=6,
            loss=2.0,
            information=3.0,
            opposing_picks=0.5,
            stop_reason="budget",
        )
        for place in range(2)
    )
    schedule = ScheduleRecord(kind="pools", steps=20, pools=lines)
    record = whole.record.model_copy(update={"schedule": schedule, "certificate": None, "certificate_sentence": None})
    write_page(RunFolder(tmp_path), record, Picks(whole.trace), config, pool, measured)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This run kept no gradients of all rows" in page and 'id="plane"' not in page
    assert "Pool by pool" in page and "Gradient norm" in page and "By gradient norm, largest first." in page
    assert "text not at hand" not in page


def test_a_damaged_store_costs_the_map_alone(command: Command, run: Path) -> None:
    for shard in (run / "gradients" / "shards").glob("*.npy"):
        shard.write_bytes(b"nothing")
    assert command("report", run).code == 0
    assert "The gradients of all rows cannot be read" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_side_by_side(command: Command, made: Path, tmp_path: Path) -> None:
    page, notes = tmp_path / "beside.html", tmp_path / "beside.md"
    outcome = command("report", made / "run", made / "other", "--output", page, "--markdown", notes)
    assert outcome.code == 0, outcome.err
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text and text.count("<script") == 1
    first, second = (open_run(RunFolder(made / name), measure=False) for name in ("run", "other"))
    a, b = set(first.trace.indices.tolist()), set(second.trace.indices.tolist())
    jaccard = f"{len(a & b) / len(a | b):.3f}"
    assert f"{jaccard} <small>({len(a & b)}, {len(a & b) / len(a):.1%})" in text
    assert f"{jaccard} ({len(a & b)})" in notes.read_text(encoding="utf-8")
    assert re.search(r'class="differs"><th scope="row">Normalisation', text)
    assert "Rows are known again by row number" in text
    assert f"{len(a - b)} rows, by rank." in text


def test_runs_of_other_rows_are_compared_by_their_texts(command: Command, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "other", tmp_path / "other"))
    record = unsealed(other)
    record["fingerprints"]["rows"] = "0" * 64
    (other / "selection.json").write_text(json.dumps(record))
    page = tmp_path / "beside.html"
    assert command("report", made / "other", other, "-o", page).code == 0
    text = page.read_text(encoding="utf-8")
    # The same picks, each known again; as the folders' names are alike, paths tell them apart.
    assert "Rows are known again by text" in text and text.count("1.000 <small>") == 4
    assert f"<bdi>{tmp_path / 'other'}</bdi>" in text


def test_markdown_goes_to_the_terminal_alone(command: Command, run: Path) -> None:
    outcome = command("report", run, "--markdown", "-")
    assert outcome.code == 0
    assert outcome.out.startswith("## SPICE selection: run\n")
    assert outcome.out.rstrip().endswith("arXiv 2601.23155).")
    assert "The report is" in outcome.err and "The report is" not in outcome.out
    assert "| Picks | 12 |" in outcome.out


def test_json(command: Command, run: Path) -> None:
    found = command.json("report", run, "--markdown", "-")
    assert found["page"] == str(run / "report.html")
    assert str(found["markdown"]).startswith("## ")
    assert found["file"] is None


def test_refusals(command: Command, run: Path, made: Path, tmp_path: Path) -> None:
    assert "holds no finished selection" in command.refused(3, "report", tmp_path / "nothing")
    assert "name it with --output" in command.refused(2, "report", run, made / "other")
    assert "must end in .html" in command.refused(2, "report", run, "-o", run / "selection.json")
    assert "data set card" in command.refused(2, "report", run, "--markdown", run / "README.md")
    assert "must end in .md" in command.refused(2, "report", run, "--markdown", run / "config.yaml")
    gradients = made / "run" / "gradients"
    both = ("report", run, made / "other", "-o", tmp_path / "x.html", "--gradients", gradients)
    assert "belongs to one run" in command.refused(2, *both)
    assert "too many" in command.refused(2, "report", *[run] * 9, "-o", tmp_path / "x.html")
    assert "cannot be written" in command.refused(4, "report", run, "-o", tmp_path / "no" / "x.html")
    (run / "trace.parquet").write_bytes(b"nothing")
    assert "trace.parquet is not what was written" in command.refused(3, "report", run)
    (run / "selection.json").write_text("{}")
    assert "is no record of a run" in command.refused(3, "report", run)
