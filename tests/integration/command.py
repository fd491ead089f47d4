"""Runs the real command line in this process, where a start of the interpreter for each call would take minutes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from spice_select.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class Command:
    """Calls ``spice-select`` with arguments and keeps what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: str | Path) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["spice-select", *map(str, args)])
        # Under test, warnings stay errors: main() silences them only where the interpreter was given no filters.
        self._monkeypatch.setattr(sys, "warnoptions", ["error"])
        self._capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        said = self._capsys.readouterr()
        return Outcome(code, said.out, said.err)

    def refused(self, code: int, *args: str | Path) -> str:
        """The one sentence of a call that must fail with an exit code and without a traceback."""
        outcome = self(*args)
        assert outcome.code == code, f"exit {outcome.code}: {outcome.err}"
        assert "Traceback" not in outcome.err
        lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, outcome.err
        return lines[0].removeprefix("error: ")

    def json(self, *args: str | Path) -> dict[str, object]:
        """The object that a call prints with --json."""
        outcome = self(*args, "--json")
        assert outcome.code == 0, outcome.err
        assert len(outcome.out.strip().splitlines()) == 1
        return json.loads(outcome.out)
