"""Several runs side by side: settings, numbers, curves, and which rows they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from spice_select.analysis.record import SelectionRecord
from spice_select.report import plots
from spice_select.report.content import Messages, RunContent, verdict
from spice_select.report.facts import beside_title, made_with, proxy, results, settings
from spice_select.report.page import BALANCE_ROWS, Plot
from spice_select.report.render import render
from spice_select.report.tables import Cell, Line, Table, measured_cells, source_cells

SMOOTHED = 50
"""Points of a line; single picks of several runs would hide each other."""
LISTED = 40
"""Rows of each list of shared or unshared picks."""


@dataclass(frozen=True)
class Row:
    """One line of a table with a value for every run.

    Attributes:
        name: What it is.
        values: One a run; empty where it has none.
    """

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Overlap:
    """Picks that two runs share.

    Attributes:
        shared: How many.
        jaccard: Those over all picks of either.
        of_first: Those over the picks of the first.
    """

    shared: int
    jaccard: float
    of_first: float


@dataclass(frozen=True)
class Overlaps:
    """Overlap of every run with every other.

    Attributes:
        table: One line a run, one overlap a run.
        by: How rows are known again: ``row number`` or ``text``.
        keys: What the picks of each run are known by, in order of choice.
    """

    table: tuple[tuple[Overlap, ...], ...]
    by: str
    keys: tuple[tuple[Hashable, ...], ...]


def overlaps(contents: Sequence[RunContent]) -> Overlaps:
    """Which picks the runs share; runs of different rows are compared by the texts of their picks."""
    prints = {content.record.fingerprints.rows for content in contents}
    if len(prints) == 1 and None not in prints:
        by = "row number"
        keys = tuple(tuple(content.trace.indices.tolist()) for content in contents)
    else:
        by = "text"
        keys = tuple(_digests(content) for content in contents)
    sets = [set(found) for found in keys]
    table = tuple(tuple(_overlap(first, second) for second in sets) for first in sets)
    return Overlaps(table, by, keys)


def render_comparison(contents: Sequence[RunContent]) -> str:
    """The page of several runs as text.

    Args:
        contents: The runs; their titles are the names they go by.
    """
    records = [content.record for content in contents]
    found = overlaps(contents)
    tables = tuple(
        table.with_texts(content.texts(table.rows)) for table, content in _lists(contents, found) if table.lines
    )
    return render(
        "compare.html.j2",
        title=beside_title(records),
        names=[content.title for content in contents],
        verdicts=[(content.title, verdict(content), len(content.warnings)) for content in contents],
        results=rows_of([results(record) for record in records]),
        settings=sorted(
            rows_of([[*settings(record), *proxy(record)] for record in records]), key=lambda row: not row.differs
        ),
        overlaps=found,
        course=_course(contents),
        averaged=max(len(content.trace.indices) for content in contents) > SMOOTHED,
        balance=_balance(records),
        tables=tables,
        unmeasured=[content.title for content in contents if content.trace.gains is None],
        made=made_with(records),
    )


def rows_of(columns: Sequence[Sequence[tuple[str, str]]]) -> list[Row]:
    """Names and values of several runs as lines; a line that is empty for all is left out."""
    names = dict.fromkeys(name for column in columns for name, _ in column)
    found = [dict(column) for column in columns]
    rows = [Row(name, tuple(column.get(name, "") for column in found)) for name in names]
    return [row for row in rows if any(row.values)]


def _overlap(first: set[Hashable], second: set[Hashable]) -> Overlap:
    shared, either = len(first & second), len(first | second)
    return Overlap(shared, shared / either if either else 1.0, shared / len(first) if first else 1.0)


def _digests(content: RunContent) -> tuple[Hashable, ...]:
    picks = content.trace.indices.tolist()
    texts = content.texts(picks)
    return tuple(_digest(texts[index]) if index in texts else (content.title, index) for index in picks)


def _digest(messages: Messages) -> str:
    return hashlib.sha256(json.dumps([list(message) for message in messages]).encode()).hexdigest()


def _course(contents: Sequence[RunContent]) -> tuple[Plot, ...]:
    names = [content.title for content in contents]

    def curves(title: str, about: str, label: str, values: Sequence[np.ndarray | None], *, log: bool = False) -> Plot:
        # A run without them keeps its place, and with it its colour in all drawings.
        series = [(name, np.zeros(0) if one is None else one) for name, one in zip(names, values, strict=True)]
        most = plots.MOST_POINTS if title == "Information" else SMOOTHED
        key = title.lower()
        return Plot(title, about, plots.curves(series, label=label, description=about, key=key, log=log, most=most))

    traces = [content.trace for content in contents]
    if all(trace.gains is None for trace in traces):
        return ()
    return (
        curves(
            "Information",
            "Information of the first picks together; with another Fisher scale or model the nats are others.",
            "nats",
            [None if trace.gains is None else np.cumsum(trace.gains) for trace in traces],
        ),
        curves("Gain", "What each pick added.", "nats", [trace.gains for trace in traces], log=True),
        curves("Epsilon", "What the earlier picks took away.", "nats", [trace.epsilons for trace in traces]),
        curves("Conflict", "Conflict of each pick.", "conflict", [trace.conflicts for trace in traces]),
    )


@dataclass(frozen=True)
class BalanceRow:
    """Share of a source in the first run's pool, and among the picks of each."""

    name: str
    pool: float
    picks: tuple[float, ...]


def _balance(records: Sequence[SelectionRecord]) -> tuple[BalanceRow, ...]:
    shares = [{share.name: share for share in record.summary.sources} for record in records]
    names = dict.fromkeys(name for found in shares for name in found)
    rows = [
        BalanceRow(
            name,
            shares[0][name].pool_share if name in shares[0] else 0.0,
            tuple(found[name].picks_share if name in found else 0.0 for found in shares),
        )
        for name in names
    ]
    return tuple(sorted(rows, key=lambda row: -row.pool)[:BALANCE_ROWS] if len(rows) > BALANCE_ROWS else rows)


def _lists(contents: Sequence[RunContent], found: Overlaps) -> list[tuple[Table, RunContent]]:
    """Picks of every run, and picks of one run alone, each with the run that knows their texts."""
    everyone = set.intersection(*(set(keys) for keys in found.keys))
    first = contents[0]
    tables = [
        (
            _list(
                first,
                "shared",
                "Picks of every run",
                f"{len(everyone):,} rows, by rank in {first.title}.",
                [place for place, key in enumerate(found.keys[0]) if key in everyone],
            ),
            first,
        )
    ]
    for number, (content, keys) in enumerate(zip(contents, found.keys, strict=True)):
        others = {key for other, theirs in enumerate(found.keys) if other != number for key in theirs}
        alone = [place for place, key in enumerate(keys) if key not in others]
        title = f"Picks of {content.title} alone"
        tables.append((_list(content, f"alone-{number}", title, f"{len(alone):,} rows, by rank.", alone), content))
    return tables


def _list(content: RunContent, key: str, title: str, about: str, places: Sequence[int]) -> Table:
    trace = content.trace
    lines = tuple(
        Line(
            int(trace.indices[place]),
            (
                Cell("Rank", f"{place + 1:,}"),
                *source_cells(content, int(trace.indices[place])),
                *measured_cells(content, place),
            ),
        )
        for place in places[:LISTED]
    )
    more = f" The first {LISTED} are shown." if len(places) > LISTED else ""
    return Table(key, title, about + more, lines)
