"""Who hears what a command does, and how long each stage takes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Reporter(Protocol):
    """Hears what a command does while it does it."""

    def stage(self, name: str) -> None:
        """Announce what comes next."""
        ...

    def note(self, line: str) -> None:
        """A fact worth reading."""
        ...

    def warn(self, line: str) -> None:
        """Something the user should act on or know."""
        ...

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        """Examples done of all, with the tokens and seconds that those done in this process took, and more in words."""
        ...


class Silent:
    """Says nothing: for the processes of a run that are not the first."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    def warn(self, line: str) -> None:
        """Nothing."""

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        """Nothing."""


class Listening:
    """Hands everything on to another reporter and keeps the warnings.

    Args:
        reporter: The other.

    Attributes:
        reporter: The other.
        warnings: What it was warned of.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.warnings: list[str] = []

    def stage(self, name: str) -> None:
        """Announce what comes next."""
        self.reporter.stage(name)

    def note(self, line: str) -> None:
        """A fact worth reading."""
        self.reporter.note(line)

    def warn(self, line: str) -> None:
        """Something the user should act on or know."""
        self.warnings.append(line)
        self.reporter.warn(line)

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        """Examples done of all."""
        self.reporter.advance(done, total, tokens, seconds, detail)


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def heard(reporter: Reporter) -> Iterator[None]:
    """Hand the warnings that this package raises inside to the reporter; those of the libraries below are dropped."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"spice_select(\.|$)")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in raised):
        reporter.warn(message)
