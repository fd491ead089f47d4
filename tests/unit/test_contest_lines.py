from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from spice_select.analysis.contest import Contest
from spice_select.analysis.contest_lines import overlap_matrix, sharing
from spice_select.analysis.overlap import overlaps
from spice_select.errors import StoreError
from spice_select.report.contest import render_page
from spice_select.report.contest_csv import CSV_COLUMNS, render_csv
from spice_select.report.contest_text import describe, render_markdown
from tests.contests import HOSTILE, chosen, failed, made_contest, taken


def test_means_spreads_and_distances_from_random() -> None:
    contest = made_contest(
        [
            *(chosen("random", seed, information=value) for seed, value in enumerate((10.0, 12.0, 14.0))),
            chosen("spice", 0, information=20.0),
            *(chosen("lead", seed, information=value, varies="training") for seed, value in enumerate((11.0, 15.0))),
        ]
    )
    random, spice, lead = contest.methods
    assert (random.seeds, spice.seeds, lead.seeds) == ((0, 1, 2), (0,), (0, 1))
    assert (random.mean("information"), random.spread("information").deviation) == (12.0, 2.0)
    assert (spice.spread("information").deviation, spice.spread("information").from_random) == (None, 4.0)
    assert lead.spread("information").from_random == pytest.approx(0.5)
    assert lead.spread("information").deviation == pytest.approx(np.std([11, 15], ddof=1))


def test_random_without_a_spread_measures_nothing() -> None:
    alike = made_contest(
        [chosen("random", 0, information=3.0), chosen("random", 1, information=3.0), chosen("spice", 0)]
    )
    assert alike.methods[1].spread("information").from_random is None
    once = made_contest([chosen("random", 0), chosen("spice", 0, information=9.0)])
    assert once.methods[1].spread("information").from_random is None
    assert any("Random chose once" in line for line in once.verdict)
    none = made_contest([chosen("spice", 0)])
    assert none.random is None and any("add random" in line for line in none.verdict)


def test_a_method_that_takes_everything_is_not_measured_by_random() -> None:
    contest = made_contest(
        [
            chosen("random", 0, information=1.0),
            chosen("random", 1, information=2.0),
            chosen("full", 0, k=40, information=50),
        ]
    )
    assert contest.methods[1].spread("information").from_random is None
    assert not any("full (" in line for line in contest.verdict)


def test_the_verdict_sorts_by_twice_the_spread() -> None:
    contest = made_contest(
        [
            *(chosen("random", seed, information=value) for seed, value in enumerate((10.0, 12.0, 14.0))),
            chosen("spice", 0, information=16.2),
            chosen("loss", 0, information=15.9),
            chosen("length", 0, information=7.8),
        ]
    )
    more, alike, less = contest.verdict[:3]
    assert more.startswith("More information than random by more than twice its spread: spice (+2.1);")
    assert alike == "Not told apart from random by information: loss."
    assert less == "Less information than random by more than twice its spread: length (-2.1)."
    assert any("no test of them" in line for line in contest.verdict)


def test_two_draws_are_said_to_be_few() -> None:
    draws = [chosen("random", seed, information=5.0 + seed) for seed in range(3)]
    assert any("give --seeds 5" in line for line in made_contest(draws[:2]).verdict)
    assert not any("give --seeds 5" in line for line in made_contest(draws).verdict)


def test_tokens_that_differ_are_told_and_those_of_more_rows_are_not() -> None:
    near = [chosen("random", 0, tokens=100), chosen("spice", 0, tokens=140), chosen("full", 0, k=40, tokens=9000)]
    assert not any("differ in length" in line for line in made_contest(near).verdict)
    apart = made_contest([*near, chosen("length", 0, tokens=300)])
    assert any("random has 100 response tokens and length 300" in line for line in apart.verdict)


def test_overlap_of_seeds_is_averaged_and_agrees_with_the_pairs() -> None:
    picks = {"spice": [[0, 1, 2, 3]], "random": [[0, 1, 8, 9], [4, 5, 6, 7]], "full": [list(range(10))]}
    found = overlap_matrix(picks, 10, 10)
    assert found.labels == ("spice", "random", "full")
    assert found.jaccard[0] == pytest.approx((1.0, (2 / 6 + 0) / 2, 0.4))
    assert found.jaccard[1] == pytest.approx((1 / 6, 0.0, 0.4))
    pair = overlaps({"a": picks["spice"][0], "b": picks["random"][0]}, 10).pairs[0]
    assert found.expected[0][1] == pytest.approx(pair.expected_jaccard)
    assert found.expected[1][1] == pytest.approx(pair.expected_jaccard)
    assert np.array(found.jaccard) == pytest.approx(np.array(found.jaccard).T)


def test_sharing_counts_every_measurement_once() -> None:
    gradients, losses = taken("gradients-1", tokens=100, backward=100), taken("losses-1", tokens=100)
    found = sharing(
        {"spice": [gradients], "fisher": [gradients], "ifd": [losses, taken("direct-1", tokens=50)], "full": []}
    )
    assert (found.total, found.dearest, found.alone) == (450, 300, 750)
    assert found.ratio == pytest.approx(1.5)
    assert sharing({"spice": [gradients], "fisher": [gradients]}).ratio == 1.0
    assert sharing({"full": []}).ratio is None


def test_a_failure_is_in_every_form(tmp_path: Path) -> None:
    contest = made_contest(
        [chosen("random", 0), chosen("random", 1), failed("selectit", "The tokenizer <b>has</b> no rating.")]
    )
    line = contest.methods[1]
    assert (line.seeds, line.error, line.mean("information")) == ((), "The tokenizer <b>has</b> no rating.", None)
    assert "selectit" not in contest.overlap.labels
    assert any("failed" in text for text in describe(contest))
    assert "no rating" in render_markdown(contest)
    page = render_page(contest)
    assert "&lt;b&gt;has&lt;/b&gt;" in page and "<b>has</b>" not in page
    rows = list(csv.DictReader(io.StringIO(render_csv(contest))))
    assert [row["status"] for row in rows] == ["chosen", "chosen", "failed"]
    assert rows[2]["information"] == "" and rows[2]["error"] == line.error


def test_no_cell_of_its_csv_is_a_formula_to_a_spreadsheet() -> None:
    text = "=HYPERLINK(0)\r@x"
    contest = made_contest([chosen("random", 0, information=-1.5), failed("selectit", text)])
    rows = list(csv.DictReader(io.StringIO(render_csv(contest))))
    assert [row["error"] for row in rows] == ["", "'=HYPERLINK(0)\n@x"] and rows[0]["information"] == "-1.5"


def test_the_record_survives_its_file_and_refuses_others(tmp_path: Path) -> None:
    contest = made_contest([chosen("random", 0), chosen("random", 1), chosen("spice", 0)])
    contest.write(tmp_path / "comparison.json")
    assert Contest.read(tmp_path / "comparison.json") == contest
    raw = json.loads((tmp_path / "comparison.json").read_text())
    assert raw["schema_version"] == 1 and raw["contestants"][0]["training"] is None
    (tmp_path / "other.json").write_text(json.dumps({**raw, "schema_version": 2}))
    with pytest.raises(StoreError, match="no comparison of this version"):
        Contest.read(tmp_path / "other.json")
    with pytest.raises(StoreError, match="cannot be read"):
        Contest.read(tmp_path / "none.json")


def test_the_csv_holds_the_records_numbers() -> None:
    contest = made_contest([chosen("random", 0), chosen("random", 1, information=1 / 3), chosen("spice", 0)])
    rows = list(csv.DictReader(io.StringIO(render_csv(contest))))
    assert tuple(rows[0]) == CSV_COLUMNS
    for row, entry in zip(rows, contest.contestants, strict=True):
        assert entry.numbers is not None and entry.cost is not None
        assert (row["label"], int(row["seed"])) == (entry.label, entry.seed)
        assert float(row["information"]) == entry.numbers.information
        assert int(row["tokens"]) == entry.numbers.tokens
        assert float(row["seconds"]) == entry.cost.seconds
        assert int(row["tokens_forward"]) == sum(one.tokens for one in entry.cost.taken)


def test_markdown_tables_are_whole() -> None:
    contest = made_contest([chosen("random", 0), chosen("random", 1), chosen("spice-alpha=2", 0)])
    tables = [block for block in render_markdown(contest).split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1
    assert all(len(table.splitlines()) == 4 for table in tables[:4])


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_fits(width: int) -> None:
    entries = [chosen("random", seed, information=1234.5 + seed) for seed in range(3)]
    contest = made_contest([*entries, chosen("a-method-of-a-rather-long-name-that-goes-on", 0)])
    lines = describe(contest, width)
    assert all(len(line) <= width for line in lines[1 : 2 + len(contest.methods)])
    assert "picks" in lines[1] and "information" in lines[1]


def test_names_of_sources_stay_text() -> None:
    contest = made_contest([chosen("random", 0), chosen("random", 1), chosen("spice", 0)], sources=HOSTILE)
    page = render_page(contest)
    assert HOSTILE[0] not in page and "&lt;img" in page
    assert "<img" not in render_markdown(contest).replace("\\<img", "")
    assert render_page(contest) == page


def test_without_a_yardstick_the_page_says_so() -> None:
    contest = made_contest(
        [chosen("random", 0, information=None), chosen("random", 1, information=None)], measured=False
    )
    assert "Gradients were not measured" in render_page(contest)
    assert "Diversity" not in render_markdown(contest).split("### Cost")[0].split("### Picks")[1].replace(
        "diversity", ""
    )
    assert describe(contest)[1].split() == ["method", "picks", "tokens", "median", "imbalance", "seconds"]
