"""The page: whole, deterministic, small, without network, and no text of a row becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from spice_select.analysis.record import SelectionRecord
from spice_select.errors import OutputError
from spice_select.report import plots
from spice_select.report.page import render_report, verdict, write_report
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
    return render_report(**made_run())


def test_the_same_run_gives_the_same_bytes(page: str) -> None:
    assert render_report(**made_run()) == page


def test_no_element_or_attribute_comes_from_a_text(page: str) -> None:
    hostile, harmless = Elements(page), Elements(render_report(**made_run(hostile=False)))
    kinds = {tag for tag, _ in hostile.found}
    assert kinds == {tag for tag, _ in harmless.found}
    assert "<code>--set selection.quotas=proportional</code>" in page
    assert "img" not in kinds and "textarea" not in kinds
    assert sum(tag == "script" for tag, _ in hostile.found) == 2
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
    assert "script-src 'sha256-" in policy[1] and "script-src 'unsafe-inline'" not in policy[1]


def test_the_embedded_record_is_the_record(page: str) -> None:
    data, code = Elements(page).scripts
    assert "<" not in data and ">" not in data and "&" not in data
    assert SelectionRecord.model_validate(json.loads(data)) == made_run()["record"]
    assert "use strict" in code


def test_what_it_says(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for wanted in (
        "200 of 2,000 usable rows were chosen; the budget is filled.",
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


def test_size_at_ten_thousand_picks_of_long_texts() -> None:
    run = made_run(n=100_000, k=10_000)
    run["texts"] = [[("user", '"' * 100_000), ("assistant", "<" * 100_000)]] * 200
    page = render_report(**run)
    assert len(page.encode()) < 5_000_000
    assert "averaged" in page


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (40, 2)])
def test_small_runs(n: int, k: int) -> None:
    Elements(render_report(**made_run(n=n, k=k, hostile=False)))


def test_constant_and_missing_numbers() -> None:
    run = made_run(n=30, k=5, hostile=False)
    run["lengths"] = np.full(30, 7)
    run["squared_norms"] = np.zeros(30)
    run["trace"].gains[:] = 0.0
    run["trace"].bases[:] = 0.0
    run["texts"] = []
    run["record"] = run["record"].model_copy(update={"certificate": None, "certificate_sentence": None, "model": None})
    page = render_report(**run)
    Elements(page)
    assert "No bound on their quality is stated" in page


def test_verdict_without_warnings() -> None:
    record = made_run(hostile=False)["record"]
    calm = record.model_copy(update={"warnings": (), "summary": record.summary.model_copy(update={"warnings": ()})})
    sentences = verdict(calm)
    assert len(sentences) == 3
    assert "within a factor of 2" in sentences[2]
    assert "warnings below" in verdict(record)[2]


def test_many_sources_are_cut() -> None:
    run = made_run(n=3000, k=100, hostile=False)
    record = run["record"]
    share = record.summary.sources[0]
    sources = tuple(share.model_copy(update={"name": f"s{i}", "pool": i}) for i in range(500))
    run["record"] = record.model_copy(update={"summary": record.summary.model_copy(update={"sources": sources})})
    page = render_report(**run)
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


def test_write(tmp_path: Path, page: str) -> None:
    run = made_run()
    write_report(tmp_path / "report.html", run.pop("record"), run.pop("trace"), **run)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    with pytest.raises(OutputError):
        run = made_run(n=5, k=2)
        write_report(tmp_path / "no" / "report.html", run.pop("record"), run.pop("trace"), **run)
