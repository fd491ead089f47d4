"""The page of a comparison of methods in Chromium: nothing of a row runs, nothing is refused or fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spice_select.report.contest import render_page
from tests.browser.test_report_in_browser import CHROMIUM, chromium
from tests.contests import HOSTILE, chosen, failed, made_contest

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")


def test_it_shows_everything_and_no_text_acts(tmp_path: Path) -> None:
    draws = [chosen("random", seed, information=4.0 + seed) for seed in range(3)]
    contest = made_contest([*draws, chosen("spice", 0), failed("tsds", HOSTILE[0])], sources=HOSTILE)
    page = tmp_path / "report.html"
    page.write_text(render_page(contest), encoding="utf-8")
    done = chromium(tmp_path, page.as_uri(), "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert "<title>Methods side by side</title>" in done.stdout and "owned" not in done.stdout.partition("<main>")[0]
    assert not re.search(r"<img\b", done.stdout)
    assert "Refused" not in done.stderr and "violates" not in done.stderr
    assert len(re.findall(r'<svg class="plot"', done.stdout)) == 4
    # The page's own script ran under its policy.
    assert re.search(r'<html[^>]* class="scripted"', done.stdout)
