"""The page in Chromium: nothing of a row runs, nothing is fetched, search and theme work, it fits a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spice_select.report.page import render_report
from tests.browser.made_run import made_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder and keeps what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.html").write_text(render_report(**made_run()), encoding="utf-8")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Counting,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/report.html", asked
        http.shutdown()
        thread.join()


def chromium(tmp_path: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *options,
        address,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)


def seen(dom: str) -> list[str]:
    """Lines of the picks table that are shown."""
    table = dom[dom.index('<table id="picks">') :]
    rows = re.findall(r"<tr([^>]*)>(.*?)</tr>", table[table.index("<tbody>") : table.index("</tbody>")], re.DOTALL)
    return [content for attributes, content in rows if "hidden" not in attributes]


def test_opened_it_runs_its_own_script_alone_and_fetches_nothing(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    done = chromium(tmp_path, address, "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert "<title>SPICE selection</title>" in done.stdout
    assert asked == ["/report.html"]
    assert "Refused" not in done.stderr and "violates" not in done.stderr
    # The search field is shown by the page's own script: so that ran under the policy.
    assert re.search(r'<div id="finder">', done.stdout)
    assert len(seen(done.stdout)) == 200


def test_a_linked_search_shows_what_fits(tmp_path: Path, folder: Path) -> None:
    dom = chromium(
        tmp_path, f"{(folder / 'report.html').as_uri()}#find=%22answer%20NUMBER%20137%22%20thus", "--dump-dom"
    ).stdout
    (row,) = seen(dom)
    assert "Answer number 137" in row
    assert ">1 of 200</span>" in dom


def test_it_can_be_printed(tmp_path: Path, folder: Path) -> None:
    chromium(tmp_path, (folder / "report.html").as_uri(), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("selenium", reason="driving the page needs selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromedriver")
    if program is None:
        pytest.skip("driving the page needs chromedriver (Debian's package chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'driven'}"):
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=Service(program))
    yield browser
    browser.quit()


def test_typing_filters_and_the_theme_can_be_changed(driver: Any, folder: Path) -> None:
    driver.get((folder / "report.html").as_uri())
    field = driver.find_element("id", "search")
    field.send_keys('thus "number 42"')
    assert [row for row in driver.find_elements("css selector", "#picks tbody tr") if row.is_displayed()]
    assert driver.find_element("id", "count").text == "1 of 200"
    field.clear()
    field.send_keys("no such words anywhere")
    assert driver.find_element("id", "count").text == "0 of 200"
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(paper)
    driver.find_element("id", "theme").click()
    assert driver.execute_script(paper) != before
    assert driver.title == "SPICE selection"


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_it_never_scrolls_sideways(driver: Any, folder: Path, width: int) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    driver.get((folder / "report.html").as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach(function (d) { d.open = true; })")
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
