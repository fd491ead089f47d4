"""A run, or several, in a few lines of markdown: for a pull request, an issue or a card. No text of a row enters."""

from __future__ import annotations

from collections.abc import Sequence

from spice_select.report.compare import Row, overlaps, rows_of
from spice_select.report.content import RunContent, verdict
from spice_select.report.facts import beside_title, made_with, results, settings
from spice_select.report.text import escape_markdown

MOST_SHARES = 20
"""Sources that a table lists."""


def render_markdown(contents: Sequence[RunContent]) -> str:
    """Markdown of one run or of several side by side.

    Args:
        contents: The runs; their titles are the names they go by.
    """
    lines = _one(contents[0]) if len(contents) == 1 else _several(contents)
    return "\n".join(lines).rstrip() + "\n"


def _one(content: RunContent) -> list[str]:
    record = content.record
    lines = [f"## {escape_markdown(content.title)}", "", *_verdict(content)]
    rows = rows_of([[*results(record), *settings(record)]])
    lines += [*_table(["", ""], [[row.name, *row.values] for row in rows]), ""]
    shares = record.summary.sources
    if len(shares) > 1:
        lines += _table(
            ["Source", "Pool", "Picks"],
            [
                [share.name, f"{share.pool:,} ({share.pool_share:.1%})", f"{share.picks:,} ({share.picks_share:.1%})"]
                for share in sorted(shares, key=lambda share: -share.pool)[:MOST_SHARES]
            ],
        )
        if len(shares) > MOST_SHARES:
            lines.append(f"\n…and {len(shares) - MOST_SHARES:,} smaller sources")
        lines.append("")
    lines += [f"> **Warning.** {escape_markdown(warning)}\n" for warning in content.warnings]
    if record.summary.advice:
        lines.append(f"> **Advice.** {escape_markdown(record.summary.advice)}\n")
    lines.append(escape_markdown(made_with([record])))
    return lines


def _several(contents: Sequence[RunContent]) -> list[str]:
    names = [content.title for content in contents]
    records = [content.record for content in contents]
    lines = [f"## {beside_title(records)}", ""]
    for content in contents:
        lines += [f"### {escape_markdown(content.title)}", "", *_verdict(content)]
    asked: list[Row] = [row for row in rows_of([settings(record) for record in records]) if row.differs]
    rows = [*rows_of([results(record) for record in records]), *asked]
    lines += [*_table(["", *names], [[row.name, *row.values] for row in rows]), ""]
    found = overlaps(contents)
    lines += [f"Picks shared, as Jaccard index (picks are known again by {found.by}):", ""]
    shared = [
        [name, *(f"{pair.jaccard:.3f} ({pair.shared:,})" for pair in line)]
        for name, line in zip(names, found.table, strict=True)
    ]
    return [*lines, *_table(["", *names], shared)]


def _verdict(content: RunContent) -> list[str]:
    return [f"{escape_markdown(sentence)}\n" for sentence in verdict(content)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) or " " for cell in cells) + " |"

    ruler = "|" + "|".join("---" if place == 0 else "--:" for place in range(len(head))) + "|"
    return [line(head), ruler, *map(line, rows)]
