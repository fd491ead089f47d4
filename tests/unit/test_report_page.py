"""The page: whole, deterministic, small, without network, and no text of a row becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from spice_select.analysis.record import PoolRecord, ScheduleRecord, SelectionRecord
from spice_select.errors import OutputError
from spice_select.report import plots
from spice_select.report.content import RunContent, verdict
from spice_select.report.page import render_report, write_report
from spice_select.report.tables import example_tables
from tests.browser.made_run import HOSTILE, made_run

VOID = {"meta", "link", "input", "br"}


class Elements(HTMLParser):
    """Every element with its attributes; complains of tags that don't match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(made_run())


@pytest.fixture(scope="module")
def big() -> RunContent:
    return made_run(n=20_000, k=10_000)


def test_the_same_run_gives_the_same_bytes(page: str) -> None:
    assert render_report(made_run()) == page


def test_no_element_or_attribute_comes_from_a_text(page: str) -> None:
    hostile, harmless = Elements(page), Elements(render_report(made_run(hostile=False)))
    kinds = {tag for tag, _ in hostile.found}
    assert kinds == {tag for tag, _ in harmless.found}
    assert "<code>--set selection.quotas=proportional</code>" in page
    assert "img" not in kinds and "textarea" not in kinds
    assert sum(tag == "script" for tag, _ in hostile.found) == 3
    handlers = [name for _, attributes in hostile.found for name in attributes if name.startswith("on")]
    assert handlers == []
    for text in HOSTILE[:4]:
        assert text not in page


def test_nothing_is_fetched(page: str) -> None:
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or target == "data:,", (tag, target)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy[1] and "style-src 'sha256-" in policy[1] and "unsafe" not in policy[1]
    style, script = (re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    assert style is not None and script is not None
    for found in (style[1], script[1]):
        assert base64.b64encode(hashlib.sha256(found.encode()).digest()).decode() in policy[1]
    # The policy forbids styles on elements; one there would be lost.
    assert not [tag for tag, attributes in Elements(page).found if "style" in attributes]


def test_the_embedded_record_is_the_record(page: str) -> None:
    data, points, code = Elements(page).scripts
    for text in (data, points):
        assert not set("<>&\u2028\u2029") & set(text)
    assert len({len(column) for name, column in json.loads(points).items() if name != "sources"}) == 1
    assert SelectionRecord.model_validate(json.loads(data)) == made_run().record
    assert "use strict" in code


def test_what_it_says(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    assert "<svg class" in page
    for wanted in (
        "200 of 2,000 usable rows were chosen, and they hold",
        "at least 87.6%",
        "Warning.",
        "Advice.",
        "selection.normalize=sqrt_tokens",
        "models/SmolLM2-135M-Instruct",
        "0.0123456 (auto)",
        "812.40",
        "1" * 64,
        "Answer number 199",
        "domain 6",
        "more characters are not shown",
        "arXiv 2601.23155",
    ):
        assert wanted in text, wanted
    assert "Answer number 200" not in text


@pytest.mark.parametrize("letter", ["<", "\u754c", "\x00"])
def test_size_at_ten_thousand_picks_of_long_texts(big: RunContent, letter: str) -> None:
    long = [("user", letter * 20_000), ("assistant", letter * 20_000)]
    page = render_report(replace(big, texts=lambda rows: dict.fromkeys(rows, long)))
    assert len(page.encode()) < 5_000_000
    assert "averaged" in page
    assert re.search(
        r"Shown are [23],\d{3} of 10,000 picks and [23],\d{3} of 10,000 rows left out, evenly spaced", page
    )


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (40, 2)])
def test_small_runs(n: int, k: int) -> None:
    Elements(render_report(made_run(n=n, k=k, hostile=False)))


def test_constant_and_missing_numbers() -> None:
    run = made_run(n=30, k=5, hostile=False)
    trace = replace(run.trace, gains=np.zeros(5), bases=np.zeros(5))
    record = run.record.model_copy(update={"certificate": None, "certificate_sentence": None, "model": None})
    page = render_report(
        replace(run, lengths=np.full(30, 7), norms=np.zeros(30), trace=trace, texts=lambda rows: {}, record=record)
    )
    Elements(page)
    assert "No bound on their quality was computed" in page
    assert "text not at hand" in page


def test_numbers_that_are_not_known_are_left_out() -> None:
    run = made_run(hostile=False)
    bare = RunContent("bare", run.record, run.trace, remarks=("The gradients are gone.",))
    page = render_report(bare)
    Elements(page)
    assert "Not on this page.</strong> The gradients are gone." in page
    assert 'id="plane"' not in page and 'id="duplicates"' not in page and "Response length" not in page
    assert 'id="picks-' in page


def test_what_the_tables_hold() -> None:
    run = made_run(hostile=False)
    first, conflicting, left, near = example_tables(run)
    assert [line.index for line in first.lines] == run.trace.indices[:200].tolist()
    worst = [run.conflicts[line.index] for line in conflicting.lines]
    assert worst == sorted(run.conflicts.values(), reverse=True)[: len(worst)]
    assert {cell.value for line in conflicting.lines for cell in line.cells if cell.label == "Pick"} >= {"left out"}
    assert run.rejected is not None and run.neighbours is not None
    picked = set(run.trace.indices.tolist())
    assert not picked & {line.index for line in left.lines}
    assert [line.index for line in left.lines] == run.rejected.indices[:50].tolist()
    assert not picked & {line.index for line in near.lines}
    assert {line.partner for line in near.lines} <= picked
    assert near.lines[0].cells[0].value == "1.0000" and "70 in all, the nearest 50 shown" in near.about


def test_every_shown_row_of_the_tables_is_on_the_map() -> None:
    run = made_run(n=9000, k=3000, hostile=False)
    page = render_report(run)
    rows = set(json.loads(Elements(page).scripts[1])["row"])
    assert set(run.trace.indices[:200].tolist()) <= rows
    assert 2000 <= len(rows & set(run.trace.indices.tolist())) <= 2200


def test_pools_are_shown_one_by_one() -> None:
    run = made_run(n=100, k=20, hostile=False)
    pools = tuple(
        PoolRecord(
            pool=place, step=10 * place, offered=120, picks=12, loss=2.5 - place / 100, information=9.0,
            opposing_picks=0.25, certificate=0.9099, stop_reason="budget",
        )
        for place in range(90)
    )  # fmt: skip
    schedule = ScheduleRecord(kind="pools", offered=10_800, kept=0.1, steps=890, pools=pools)
    changed = {"schedule": schedule, "certificate": None, "certificate_sentence": None}
    page = render_report(replace(run, record=run.record.model_copy(update=changed)))
    Elements(page)
    assert "Pool by pool" in page and "890 optimiser steps" in page
    assert "60 of 90 pools, evenly spaced" in page
    assert "Within each pool the picks hold at least 90.9%" in page and "within it, added up" in page
    assert page.count("pool-loss-") > 3


def test_verdict_in_three_sentences() -> None:
    run = made_run(hostile=False)
    first, second, third = verdict(run)
    half = int(np.searchsorted(np.cumsum(run.trace.gains), run.trace.gains.sum() / 2)) + 1
    assert f"half of it in the first {half}" in first
    assert "at least 87.6%" in second
    assert third == "The conflict penalty changed none of the picks; read the warnings below before you train on them."
    summary = run.record.summary.model_copy(update={"warnings": (), "changed_by_penalty": 3})
    calm = replace(run, record=run.record.model_copy(update={"warnings": (), "summary": summary}))
    assert "changed 3 of the picks" in verdict(calm)[2]
    assert "within a factor of 2" in verdict(calm)[2]
    diagonal = run.record.objective.model_copy(update={"fisher": "diag-logdet"})
    plain = {"objective": diagonal, "certificate": None, "certificate_sentence": None}
    assert (
        "the diag-logdet form is no exact information"
        in verdict(replace(run, record=run.record.model_copy(update=plain)))[1]
    )


def test_many_sources_are_cut() -> None:
    run = made_run(n=300, k=20, hostile=False)
    record = run.record
    share = record.summary.sources[0]
    sources = tuple(share.model_copy(update={"name": f"s{i}", "pool": i}) for i in range(500))
    cut = record.model_copy(update={"summary": record.summary.model_copy(update={"sources": sources})})
    page = render_report(replace(run, record=cut))
    assert "and 440 smaller ones" in page
    assert "<bdi>s499</bdi>" in page and "<bdi>s3</bdi>" not in page


def test_plots_leave_no_trace_and_share_no_identifier(page: str) -> None:
    before = dict(matplotlib.rcParams)
    drawing = plots.curves([("a", np.arange(5.0))], label="nats", description='<"&>', key="x")
    assert dict(matplotlib.rcParams) == before
    assert "metadata" not in drawing and "matplotlib" not in drawing.lower()
    assert 'aria-label="&lt;&#34;&amp;&gt;"' in drawing
    assert "var(--picks)" in drawing and "#010203" not in drawing
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert (name[0] or name[1]) in names


def test_lines_are_told_apart_and_named_plainly() -> None:
    series = [(f"run $x^2$ <b>&{place}", np.linspace(place, 1.0, 9)) for place in range(plots.MOST_SERIES)]
    drawing = plots.curves(series, label="nats", description="several", key="x")
    assert "<b>" not in drawing and "series-8" in drawing
    assert "style=" not in drawing
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', drawing))) >= 6


def test_write(tmp_path: Path) -> None:
    run = made_run(n=5, k=2)
    write_report(tmp_path / "report.html", run)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(run)
    with pytest.raises(OutputError):
        write_report(tmp_path / "no" / "report.html", run)
