"""What a person sees while a command works: progress and notes on stderr, results on stdout."""

from __future__ import annotations

import datetime
import sys
import time
from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from spice_select.errors import printable

_PLAIN_INTERVAL_S = 10.0


def say(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print lines, or JSON, for a person or a program: text of strangers is in them, and no terminal acts on it."""
    typer.echo(printable(text, keep="\n"), nl=nl, err=err)


class ConsoleReporter:
    """Prints stages, notes, warnings and progress to stderr; plain lines when it is no terminal.

    Args:
        quiet: Print warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def stage(self, name: str) -> None:
        """Announce what comes next."""
        self._stop()
        self._first, self._last_line = None, 0.0
        if not self._quiet:
            self._console.print(f"[bold]{escape(printable(name))}[/bold]")

    def note(self, line: str) -> None:
        """A fact worth reading."""
        if not self._quiet:
            self._console.print(f"  {escape(printable(line))}")

    def warn(self, line: str) -> None:
        """Something the user should act on or know; printed even when quiet."""
        self._console.print(f"  [yellow]warning:[/yellow] {escape(printable(line))}")

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        """Examples done of all, with the tokens and seconds that those done in this process took, and more in words."""
        if self._quiet or total == 0:
            return
        rate = f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
        rate = "  ".join(part for part in (rate, detail) if part)
        if not self._console.is_terminal:
            self._plain(done, total, rate)
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("  examples"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("examples", total=total, rate=rate)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, rate=rate)

    def _plain(self, done: int, total: int, rate: str) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if done < total and now - self._last_line < _PLAIN_INTERVAL_S:
            return
        self._last_line = now
        print(f"  {done}/{total} examples {rate}{self._left(now, done, total)}".rstrip(), file=sys.stderr, flush=True)

    def _left(self, now: float, done: int, total: int) -> str:
        """Time left at the speed so far, once there is one."""
        assert self._first is not None
        began, at = self._first
        if done in (at, total):
            return ""
        return f"  {datetime.timedelta(seconds=round((now - began) / (done - at) * (total - done)))} left"

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
