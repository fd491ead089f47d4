from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from spice_select.analysis.study_record import Study
from spice_select.report.study import FILES, render_page, write_study
from spice_select.report.study_csv import COLUMNS, render_csv
from spice_select.report.study_text import describe, render_markdown
from tests.studies import cost, drawn, losses, outcome, plan, study

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> | \x1b[31m"
ARMS = {"random": 0.0, "spice": -0.05, "ifd": 0.002, "long": 0.05}


@pytest.fixture(scope="module")
def made() -> Study:
    seeds = range(4)
    found = drawn(ARMS, seeds, generator=np.random.default_rng(4), common=0.01)
    outcomes = [
        outcome(arm, seed, one, equal=equal, spent=cost(selection=0.0 if arm == "random" else 2e13))
        for equal in ("rows", "tokens")
        for (arm, seed), one in found.items()
    ]
    whole = drawn({"full": -0.2}, seeds, generator=np.random.default_rng(4), common=0.01)
    outcomes += [outcome("full", seed, one, budget="100%") for (_, seed), one in whole.items()]
    outcomes.append(outcome(HOSTILE, 0, None, error=f"It diverged: {HOSTILE}."))
    of = plan(
        [*ARMS, HOSTILE, "full"],
        seeds,
        budgets=("10%", "100%"),
        equals=("rows", "tokens"),
        note="One selection a seed.",
    )
    return study(of, outcomes, losses([2.0] * 20), missing=7)


def test_the_page_shows_tables_verdict_and_plots_and_no_text_acts(made: Study) -> None:
    page = render_page(made)
    assert "<img" not in page and "\x1b" not in page and "&lt;img" in page
    assert page.count('<svg class="plot"') == 4
    assert "10%, equal rows" in page and "10%, equal tokens" in page and "full (100%)" in page
    assert "spice wins" in page and "What limits these numbers" in page
    assert "One selection a seed." in page and "7 to come" in page
    assert re.search(r"<strong>spice</strong>", page)
    # Everything that a plot tells by colour, words or forms tell too.
    assert "not told apart" in page and "worse" in page
    assert not re.search(r"""(src|href)="(?!#|data:)""", page) and "style=" not in page


def test_the_embedded_record_is_whole_but_for_single_rows(made: Study) -> None:
    page = render_page(made)
    found = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    record = json.loads(found[1])
    assert record["outcomes"][0]["losses"]["rows"] == [] and record["untrained"]["rows"] == []
    assert Study.model_validate(record).summary == made.summary


def test_markdown_holds_every_table_and_no_markup_of_labels(made: Study) -> None:
    text = render_markdown(made)
    assert not re.search(r"(?<!\\)<img", text) and "\x1b" not in text
    assert "### 10%, equal rows" in text and "Intervals of the difference from random" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count(" | ") >= 3 for line in tables if "---" not in line)
    assert "### All trainings" in text and "| untrained | start | 2.000 |" in text


def test_the_csv_has_one_line_for_each_training(made: Study) -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(made))))
    assert len(lines) == len(made.outcomes) + 1 and lines[0]["arm"] == "untrained"
    assert list(lines[0])[: len(COLUMNS)] == list(COLUMNS)
    first = made.outcomes[0]
    assert first.losses is not None
    assert float(lines[1]["loss_macro"]) == first.losses.macro
    assert float(lines[1]["loss maths"]) == first.losses.by_domain["maths"]
    assert lines[-1]["status"] == "failed" and lines[-1]["loss_macro"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n", " ="])
def test_no_cell_of_a_csv_is_a_formula_to_a_spreadsheet(made: Study, start: str) -> None:
    text = start + "cmd|' /C calc'!A0"
    one = made.outcomes[0]
    assert one.losses is not None
    losses = one.losses.model_copy(update={"by_domain": {text: -1.5}, "macro": -1.5})
    changed = one.model_copy(update={"arm": text, "error": text, "budget": text, "losses": losses, "first_loss": -2.5})
    suites = {"suites": {text: {"acc": 0.5}}}
    study = made.model_copy(update={"outcomes": (changed.model_copy(update=suites),), "untrained": losses})
    rows = list(csv.reader(io.StringIO(render_csv(study))))
    assert len(rows) == 3
    numbers = 0
    for cell in (cell for row in rows for cell in row):
        try:
            numbers += float(cell) < 0
        except ValueError:
            assert not cell.lstrip(" ").startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n")), cell
    # Numbers below zero are numbers; before a text stands what a spreadsheet takes off again.
    assert numbers == 5 and rows[2][COLUMNS.index("arm")] == "'" + text.replace("\r", "\n")


@pytest.mark.parametrize("width", [72, 80, 200])
def test_the_terminal_gets_what_fits(made: Study, width: int) -> None:
    lines = describe(made, width)
    tables = [line for line in lines if line.startswith("  ")]
    assert tables and max(map(len, tables)) <= width
    assert not any("\x1b" in line for line in tables)
    assert any("spice wins" in line for line in lines)
    assert [line for line in lines if line.startswith("Note: ")]


def test_all_files_are_written_the_record_last(made: Study, tmp_path: Path) -> None:
    write_study(tmp_path, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES) and FILES[-1] == "study.json"
    assert Study.read(tmp_path / "study.json") == made
    # The same numbers give the same bytes.
    before = (tmp_path / "report.html").read_bytes()
    write_study(tmp_path, made)
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_study_of_one_seed_or_of_nothing_has_a_page() -> None:
    once = study(plan(["random", "spice"], (0,)), [outcome("random", 0, 2.0), outcome("spice", 0, 1.0)])
    assert "no win is claimed" in render_page(once) and "wins" not in render_markdown(once)
    nothing = study(plan(["random"], (0, 1)), [], missing=2)
    assert "No training of this study has come to an end" in render_page(nothing)
    assert describe(nothing, 80) and render_csv(nothing).count("\n") == 1 and render_markdown(nothing)


def test_benchmarks_alone_make_a_page() -> None:
    scores = {"random": (0.30, 0.32, 0.31), "spice": (0.40, 0.43, 0.415)}
    outcomes = [
        outcome(arm, seed, None, suites={"arc": {"acc": value}, "gsm8k": {"exact_match": value / 2}})
        for arm, row in scores.items()
        for seed, value in enumerate(row)
    ]
    page = render_page(study(plan(["random", "spice"], range(3)), outcomes))
    assert "Mean of the benchmarks" in page and "arc acc" in page and "spice wins" in page
