"""The page of a study, and all files that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spice_select.analysis.study_record import Study
from spice_select.analysis.study_summary import Family
from spice_select.analysis.study_words import table_title
from spice_select.analysis.tables import number
from spice_select.files import write_text
from spice_select.report.page import Plot
from spice_select.report.render import embedded, render
from spice_select.report.study_columns import Column, cost_columns, luck_columns, main_columns, measure_columns
from spice_select.report.study_csv import render_csv
from spice_select.report.study_plots import cost_plot, forest_plot
from spice_select.report.study_text import (
    COST_NOTE,
    LUCK_NOTE,
    MAIN_NOTE,
    MEASURES_NOTE,
    RUN_HEADS,
    UNTRAINED,
    cells,
    headline,
    render_markdown,
    run_rows,
    table_lines,
    untrained_cells,
)

FILES = ("study.csv", "study.md", "report.html", "study.json")
"""What is written, in that order: the record is last, and its presence means that all is whole."""
MOST_SETTINGS = 400
"""Characters of an arm's settings that the page shows."""


@dataclass(frozen=True)
class Sheet:
    """One table of the page.

    Attributes:
        title: Its head.
        about: What to know of it.
        heads: Heads of its columns after the first.
        shorts: The same where there is little room.
        rows: Name of each line and its cells.
        won: Name of the line that wins; None without one.
    """

    title: str
    about: str
    heads: tuple[str, ...]
    shorts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    won: str | None = None


@dataclass(frozen=True)
class Chapter:
    """All of one budget and what it is equal in.

    Attributes:
        title: Its head.
        anchor: Its name within the page.
        verdict: What is said of it that the head of the page doesn't say.
        main: The table of the verdict.
        plots: Its drawings.
        more: Further tables, folded.
    """

    title: str
    anchor: str
    verdict: tuple[str, ...]
    main: Sheet
    plots: tuple[Plot, ...]
    more: tuple[Sheet, ...]


def render_page(study: Study, title: str = "Study of selection") -> str:
    """The page as text: one file that loads nothing.

    Args:
        study: The study.
        title: Head of the page.
    """
    return render(
        "study.html.j2",
        title=title,
        study=study,
        headline=headline(study),
        verdict=_verdict(study),
        chapters=[_chapter(study, family, place) for place, family in enumerate(study.summary.families)],
        run_heads=RUN_HEADS,
        runs=run_rows(study),
        arms=_arms(study),
        facts=_facts(study),
        data=embedded(_slim(study)),
        version=study.versions.get("spice-select", ""),
    )


def write_study(folder: Path, study: Study) -> None:
    """Write the tables and the page, and last the record.

    Args:
        folder: Where to; it exists.
        study: The study.

    Raises:
        OutputError: Something cannot be written.
        ResourceError: The disk is full.
    """
    title = f"Study of selection: {folder.absolute().name}"
    csv_file, markdown_file, page, record = (folder / name for name in FILES)
    write_text(csv_file, render_csv(study))
    write_text(markdown_file, render_markdown(study))
    write_text(page, render_page(study, title))
    study.write(record)


def _chapter(study: Study, family: Family, place: int) -> Chapter:
    summary, key = study.summary, f"table-{place}"
    main = _sheet(family, table_title(family), MAIN_NOTE, main_columns(summary))
    before = untrained_cells(summary, main_columns(summary))
    if before is not None:
        main = replace(main, rows=(*main.rows, (UNTRAINED, tuple(before))))
    drawn = (
        (
            "Differences from random",
            "The thick line is the 95% interval over seeds, the thin one over seeds and test rows; a dot is told from "
            "random, a hollow diamond is not.",
            forest_plot(family, summary, f"forest-{place}"),
        ),
        (
            "Cost and what it buys",
            "Bars are standard errors; the triangle is random, the square the whole pool.",
            cost_plot(family, summary, f"cost-{place}"),
        ),
    )
    more = [_sheet(family, "Whose luck", LUCK_NOTE, luck_columns(summary), whole=False)]
    if columns := measure_columns(summary, family):
        more.append(_sheet(family, "Domains and other measures", MEASURES_NOTE, columns))
    more.append(_sheet(family, "Cost", COST_NOTE, cost_columns()))
    plots = tuple(Plot(title, about, drawing) for title, about, drawing in drawn if drawing is not None)
    return Chapter(table_title(family), key, family.verdict[1:], main, plots, tuple(more))


def _verdict(study: Study) -> list[str]:
    """The first sentence of every table, and what is said of all; the others stand beside their tables."""
    later = {sentence for family in study.summary.families for sentence in family.verdict[1:]}
    return [sentence for sentence in study.summary.verdict if sentence not in later]


def _sheet(family: Family, title: str, about: str, columns: Sequence[Column], *, whole: bool = True) -> Sheet:
    lines = table_lines(family) if whole else [(line.arm, line) for line in family.arms]
    return Sheet(
        title,
        about,
        tuple(column.title for column in columns),
        tuple(column.short for column in columns),
        tuple((name, tuple(cells(line, family, columns))) for name, line in lines),
        family.winner,
    )


def _arms(study: Study) -> list[tuple[str, str, str, str, str]]:
    varies = {"no": "no", "draw": "by its draw", "training": "by a training of its own"}
    found = []
    for arm in study.plan.arms:
        settings = {**arm.settings, **arm.overrides}
        text = ", ".join(f"{key} = {value}" for key, value in settings.items() if value is not None) or "none"
        shown = text if len(text) <= MOST_SETTINGS else text[: MOST_SETTINGS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        found.append((arm.label, arm.method, shown, varies[arm.varies], arm.summary))
    return found


def _facts(study: Study) -> list[tuple[str, str]]:
    plan = study.plan
    facts = [
        ("Pool", ", ".join(plan.data)),
        ("Rows that could be chosen", f"{plan.rows:,}"),
        ("Their response tokens", f"{plan.response_tokens:,}"),
        ("Trained model", plan.model),
        ("Proxy", plan.proxy),
        ("Budgets", ", ".join(plan.budgets)),
        ("Equal in", ", ".join(plan.equals)),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        *((f"Held-out rows, {name}", f"{count:,}") for name, count in plan.heldout.items()),
        *((f"training.{name}", str(value)) for name, value in plan.training.items()),
    ]
    facts += [
        (f"Smallest difference seen, {table_title(family)}", number(family.detectable, digits=2))
        for family in study.summary.families
        if family.detectable is not None
    ]
    facts += [(f"Digest, {name}", (value or "unknown")[:16]) for name, value in plan.fingerprints.items()]
    return facts


def _slim(study: Study) -> dict[str, object]:
    """The record without the losses of single rows, which ``study.json`` has."""
    found = study.model_dump(mode="json")
    found["plan"]["heldout_rows"] = []
    for losses in (found["untrained"], *(one["losses"] for one in found["outcomes"])):
        if losses is not None:
            losses["rows"] = []
    return found
