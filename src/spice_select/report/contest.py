"""The page of a comparison of methods, and all files that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from spice_select.analysis.contest import Contest, MethodLine
from spice_select.analysis.tables import number
from spice_select.files import write_text
from spice_select.report import contest_plots as plots
from spice_select.report.contest_columns import Column
from spice_select.report.contest_csv import render_csv
from spice_select.report.contest_text import (
    COST,
    COST_NOTE,
    DIVERSITY,
    DIVERSITY_NOTE,
    NO_YARDSTICK,
    OVERLAP_NOTE,
    PICKS,
    YARDSTICK,
    balance_head,
    headline,
    mixture,
    render_markdown,
    shared_sentences,
)
from spice_select.report.contest_training import TRAINING, domain_columns, training_note, untrained_line
from spice_select.report.page import BALANCE_ROWS, Plot
from spice_select.report.render import embedded, render

FILES = ("comparison.csv", "comparison.md", "report.html", "comparison.json")
"""What is written, in that order: the record is last, and its presence means that all is whole."""
MOST_SETTINGS = 400
"""Characters of a method's settings that the page shows."""


@dataclass(frozen=True)
class Sheet:
    """One table of the page with a line for every method.

    Attributes:
        title: Its head.
        about: What to know of it.
        heads: Heads of its columns.
        rows: Label of each method and its cells.
    """

    title: str
    about: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def render_page(contest: Contest, title: str = "Methods side by side") -> str:
    """The page as text: one file that loads nothing.

    Args:
        contest: The comparison.
        title: Head of the page.
    """
    return render(
        "contest.html.j2",
        title=title,
        contest=contest,
        headline=headline(contest),
        shared=shared_sentences(contest),
        failed=[line for line in contest.methods if line.error is not None],
        sheets=_sheets(contest),
        information=_plots(
            (
                "Information of the picks",
                "A dot for every seed of the methods that chose as many rows as random; the band is random's mean and "
                "standard deviation.",
                plots.information_plot(contest),
            ),
            ("Picks they share", OVERLAP_NOTE.split(";")[0] + ".", plots.overlap_plot(contest.overlap)),
        ),
        costs=_plots(
            ("Measurements", "What each would need alone, and all together.", plots.work_plot(contest)),
            ("Choosing", "With all measurements at hand.", plots.seconds_plot(contest)),
        ),
        overlap=_overlap(contest),
        overlap_note=OVERLAP_NOTE,
        balance=_balance(contest),
        balance_head=balance_head(contest),
        settings=_settings(contest),
        facts=_facts(contest),
        data=embedded(contest.model_dump(mode="json")),
        version=contest.versions.get("spice-select", ""),
    )


def write_contest(folder: Path, contest: Contest) -> None:
    """Write the tables and the page, and last the record.

    Args:
        folder: Where to; it exists.
        contest: The comparison.

    Raises:
        OutputError: Something cannot be written.
        ResourceError: The disk is full.
    """
    title = f"Methods side by side: {folder.absolute().name}"
    csv_file, markdown_file, page, record = (folder / name for name in FILES)
    write_text(csv_file, render_csv(contest))
    write_text(markdown_file, render_markdown(contest))
    write_text(page, render_page(contest, title))
    contest.write(record)


def _sheets(contest: Contest) -> tuple[Sheet, ...]:
    measured = contest.yardstick is not None
    sheets = [_sheet(contest.methods, "Picks", YARDSTICK if measured else NO_YARDSTICK, PICKS)]
    if measured:
        sheets.append(_sheet(contest.methods, "Diversity", DIVERSITY_NOTE, DIVERSITY))
    if contest.training is not None:
        trained = (*contest.methods, untrained_line(contest))
        sheets.insert(0, _sheet(trained, "Training", training_note(contest), TRAINING))
        if domains := domain_columns(contest):
            sheets.insert(1, _sheet(trained, "Domains", "Mean held-out loss in each domain, in nats.", domains))
    return (*sheets, _sheet(contest.methods, "Cost", COST_NOTE, COST))


def _sheet(lines: Sequence[MethodLine], title: str, about: str, columns: Sequence[Column]) -> Sheet:
    def cells(line: MethodLine) -> tuple[str, ...]:
        return tuple(column.cell(line) if line.seeds else "-" for column in columns)

    return Sheet(
        title, about, tuple(column.title for column in columns), tuple((line.label, cells(line)) for line in lines)
    )


def _plots(*given: tuple[str, str, Markup | None]) -> tuple[Plot, ...]:
    return tuple(Plot(title, about, drawing) for title, about, drawing in given if drawing is not None)


def _overlap(contest: Contest) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    found = contest.overlap
    return tuple(
        (label, tuple((f"{j:.3f}", f"{e:.3f}") for j, e in zip(line, chance, strict=True)))
        for label, line, chance in zip(found.labels, found.jaccard, found.expected, strict=True)
    )


@dataclass(frozen=True)
class Balance:
    """Shares of the groups, the largest of the pool first.

    Attributes:
        labels: The methods.
        rows: Name of a group, its share of the pool, and of each method's picks.
        more: Groups that are not shown.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, float, tuple[float, ...]], ...]
    more: int


def _balance(contest: Contest) -> Balance | None:
    pool, shares = mixture(contest)
    if len(pool) < 2:
        return None
    names = sorted(pool, key=lambda name: -pool[name])
    rows = tuple(
        (name, pool[name], tuple(found.get(name, 0.0) for found in shares.values())) for name in names[:BALANCE_ROWS]
    )
    return Balance(tuple(shares), rows, max(0, len(names) - BALANCE_ROWS))


def _settings(contest: Contest) -> list[tuple[str, str, str, str]]:
    """Label, method, settings that are set, and seeds of each."""
    found: dict[str, tuple[str, str, str, str]] = {}
    seeds: dict[str, list[str]] = {}
    for one in contest.contestants:
        seeds.setdefault(one.label, []).append(str(one.seed))
        text = ", ".join(f"{key} = {value}" for key, value in one.settings.items() if value is not None)
        shown = text if len(text) <= MOST_SETTINGS else text[: MOST_SETTINGS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        found[one.label] = (one.label, one.method, shown or "none", ", ".join(seeds[one.label]))
    return list(found.values())


def _facts(contest: Contest) -> list[tuple[str, str]]:
    pool, yardstick = contest.pool, contest.yardstick
    facts = [
        ("Rows", f"{pool.n:,}, of which {pool.candidates:,} could be chosen"),
        ("Budget", f"{contest.asked} ({contest.rows:,} rows)" if contest.rows is not None else str(contest.asked)),
        ("Proxy", contest.model),
        ("First seed", str(contest.seed)),
        ("Seeds of methods that draw", str(contest.seeds)),
        ("Median response of the pool", f"{number(pool.tokens_median)} tokens"),
    ]
    if yardstick is not None:
        facts += [
            ("Fisher scale a", number(yardstick.alpha)),
            ("Normalisation", yardstick.normalize),
            ("Numbers of a gradient", f"{yardstick.dim:,}"),
            ("Most that is possible", f"{number(yardstick.upper_bound)} nats (proven)"),
            ("Exact greedy without penalty", f"{number(yardstick.greedy)} nats"),
        ]
    if contest.training is not None:
        trained = contest.training
        facts += [
            ("Trained model", trained.model),
            ("Held-out rows", f"{trained.rows:,} of {len(trained.domains):,} domains"),
            *((f"training.{name}", str(value)) for name, value in trained.settings.items()),
        ]
    return facts
