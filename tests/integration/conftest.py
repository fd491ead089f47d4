from __future__ import annotations

from pathlib import Path

import pytest

from spice_select.demo import demo_model_path, demo_rows
from tests.integration.command import Command
from tests.integration.rows import write_jsonl


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="session")
def model() -> Path:
    return demo_model_path()


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty generated rows."""
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", demo_rows(seed=3)[:40])
