"""The whole command, in this process: rows, configuration and settings damaged by turns."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any
from unittest import mock

from spice_select.cli import main
from spice_select.errors import ConfigError
from tests.fuzz.base import Format, Wrong, require_sentence
from tests.fuzz.mutators import LINES, TEXT

_PARTS = b"\n=====\n"


class CommandLine(Format):
    """``spice-select run`` with a model that is not there, so that all before the model is read."""

    name = "command line"
    mutators = (*LINES, *TEXT)
    weight = 0.5

    def make_seeds(self) -> list[bytes]:
        from tests.fuzz.rows import CHATS, ROWS, SHARED, _lines

        configs = (b"selection: {budget: 10%}\n", b"data: {columns: {prompt: q}}\nseed: 3\n", b"preset: paper\n")
        sets = (b"selection.alpha=auto", b"data.limit=2", b"selection.quotas={a: {min: 1}}")
        rows = map(_lines, (ROWS, CHATS, SHARED))
        return [_PARTS.join(parts) for parts in zip(rows, configs, sets, strict=True)]

    def read(self, content: bytes) -> None:
        rows, config, setting = [*content.split(_PARTS), b"", b""][:3]
        self.place(self.folder / "rows.jsonl", rows)
        self.place(self.folder / "config.yaml", config)
        given = setting.decode("utf-8", "surrogateescape").replace("\0", "")
        self.run(
            "run", str(self.folder / "rows.jsonl"), "--config", str(self.folder / "config.yaml"), "--set", given,
            "--model", str(self.folder / "no-model"), "--output", str(self.folder / "out"),
        )  # fmt: skip

    def run(self, *arguments: str) -> Any:
        """Call the command; it must end with a code of its own and one sentence.

        Raises:
            ConfigError: It was refused, as it must be.
            Wrong: It ended in another way.
        """
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.object(sys, "argv", ["spice-select", *arguments]),
            mock.patch.object(sys, "warnoptions", ["ignore"]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        said = err.getvalue()
        if code not in (2, 3, 4) or "Traceback" in said or "\x1b" in out.getvalue():
            raise Wrong(f"exit {code}: {said[-200:]}")
        found = [line for line in said.splitlines() if line.startswith("error: ")]
        # A usage error is typer's own, in a frame.
        if len(found) != 1 and "Usage:" not in said:
            raise Wrong(f"{len(found)} sentences: {said[-200:]}")
        require_sentence(found[0] if found else "usage")
        raise ConfigError(found[0] if found else "usage")


FORMATS = (CommandLine,)
