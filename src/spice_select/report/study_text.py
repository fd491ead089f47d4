"""A study for a terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from spice_select.analysis.study_record import Outcome, Study
from spice_select.analysis.study_summary import ArmLine, Family, Summary
from spice_select.analysis.study_words import counted, measure_title, table_title
from spice_select.analysis.tables import aligned, number
from spice_select.report.study_columns import (
    Column,
    cost_columns,
    luck_columns,
    main_columns,
    measure_columns,
)
from spice_select.report.text import escape_markdown

FULL, UNTRAINED = "full (100%)", "untrained"
MAIN_NOTE = (
    "Means are over the seeds, \N{PLUS-MINUS SIGN} their standard error. Differences are by seed where both arms have "
    "the same seeds; the interval covers the luck of draw, training and test rows where the rows are known, else that "
    "of draw and training. 'better' and 'worse' are told from random after Holm's correction over the arms of this "
    "table."
)
LUCK_NOTE = (
    "The interval over seeds is the luck of draw and training, on these test rows; that over rows is the luck of the "
    "test rows, for the trainings at hand; the last covers both. All at 95%, none corrected for several arms."
)
COST_NOTE = (
    "Means over the seeds. Selection counts what the arm needs alone, whether it was measured for it or for another; "
    "operations are estimated from tokens and parameters."
)
MEASURES_NOTE = "In brackets: where the 95% interval of the difference from random leaves out 0, uncorrected."


def describe(study: Study, width: int = 80) -> list[str]:
    """The study in a few lines for a terminal: tables, the verdict, and notes last.

    Args:
        study: The study.
        width: Columns of the terminal; the last columns of the tables give way.
    """
    summary, lines = study.summary, [headline(study)]
    wanted = ("verdict", "loss", "score", "vs random", "seeds", "of full's gain", "cost", "tokens")
    known = {column.short: column for column in main_columns(summary)}
    for family in summary.families:
        columns = [known[name] for name in wanted if name in known]
        table = _aligned(family, columns)
        while len(columns) > 2 and max(map(len, table)) > width:
            columns.pop()
            table = _aligned(family, columns)
        lines += [f"{table_title(family)}:", *table]
    if summary.untrained is not None:
        lines.append(f"Untrained: {measure_title(summary.measure)} {number(summary.untrained)}.")
    lines += summary.verdict
    lines += [f"Note: {note}" for note in summary.notes]
    return lines


def headline(study: Study) -> str:
    """What was studied, in one sentence."""
    plan = study.plan
    ended = sum(one.error is None for one in study.outcomes)
    failed = len(study.outcomes) - ended
    more = f", {failed:,} failed" if failed else ""
    more += f", {study.missing:,} to come" if study.missing else ""
    return (
        f"{counted(len(plan.arms), 'arm')} choosing from {plan.rows:,} rows by {plan.proxy}, training {plan.model}: "
        f"{counted(ended, 'training')}{more}."
    )


def table_lines(family: Family) -> list[tuple[str, ArmLine]]:
    """Names and lines of a table: the arms, then the whole pool."""
    whole = [] if family.full is None else [(FULL, family.full)]
    return [*((line.arm, line) for line in family.arms), *whole]


def cells(line: ArmLine, family: Family, columns: Sequence[Column]) -> list[str]:
    """Cells of a line; against random, the whole pool is not judged."""
    found = []
    for column in columns:
        text = column.cell(line, family)
        found.append("reference" if column.short == "verdict" and line is family.full else text)
    return found


def untrained_cells(summary: Summary, columns: Sequence[Column]) -> list[str] | None:
    """Cells of the model before any training."""
    if summary.untrained is None:
        return None
    return [
        number(summary.untrained) if column.short in ("loss", "score") else "" if column.short != "verdict" else "start"
        for column in columns
    ]


def render_markdown(study: Study) -> str:
    """The study as tables of markdown; no text of a row enters."""
    summary = study.summary
    lines = ["## Study of selection", "", escape_markdown(headline(study)), ""]
    lines += [f"- {escape_markdown(sentence)}" for sentence in summary.verdict]
    lines += ["", MAIN_NOTE, ""]
    for family in summary.families:
        lines += [
            f"### {escape_markdown(table_title(family))}",
            "",
            *_table(family, main_columns(summary), summary),
            "",
        ]
        lines += ["Intervals of the difference from random:", "", *_table(family, luck_columns(summary)), ""]
        if columns := measure_columns(summary, family):
            lines += ["Other measures:", "", *_table(family, columns), ""]
        lines += ["Cost:", "", *_table(family, cost_columns()), ""]
    if summary.families:
        lines += [LUCK_NOTE, "", MEASURES_NOTE, "", COST_NOTE, ""]
    if summary.notes:
        lines += ["### What limits these numbers", "", *(f"- {escape_markdown(note)}" for note in summary.notes), ""]
    if study.outcomes:
        lines += ["### All trainings", "", *_rows(RUN_HEADS, run_rows(study)), ""]
    lines.append(f"Made with spice-select {escape_markdown(study.versions.get('spice-select', ''))}.")
    return "\n".join(lines).rstrip() + "\n"


RUN_HEADS = (
    *("Arm", "Budget", "Equal", "Seed", "Mean of domains", "Mean of rows"),
    *("Response tokens", "Steps", "Seconds", "Status"),
)
"""Heads of the table of all trainings."""


def run_rows(study: Study) -> list[list[str]]:
    """Cells of the table of all trainings, in the order of plan and seeds."""
    arms = {arm.label: place for place, arm in enumerate(study.plan.arms)}
    budgets = {budget: place for place, budget in enumerate(study.plan.budgets)}

    def place(one: Outcome) -> tuple[int, str, int, str, int]:
        return budgets.get(one.budget, len(budgets)), one.equal, arms.get(one.arm, len(arms)), one.arm, one.seed

    return [
        [
            one.arm,
            one.budget,
            one.equal,
            str(one.seed),
            "-" if one.losses is None else number(one.losses.macro),
            "-" if one.losses is None else number(one.losses.micro),
            f"{one.response_tokens:,}",
            f"{one.steps:,}",
            number(one.cost.selection_seconds + one.cost.training_seconds, digits=3),
            f"failed: {one.error}" if one.error else "trained",
        ]
        for one in sorted(study.outcomes, key=place)
    ]


def _aligned(family: Family, columns: Sequence[Column]) -> list[str]:
    rows = [[name, *cells(line, family, columns)] for name, line in table_lines(family)]
    return aligned(["arm", *(column.short for column in columns)], rows, words=(0, 1))


def _table(family: Family, columns: Sequence[Column], summary: Summary | None = None) -> list[str]:
    rows = [[name, *cells(line, family, columns)] for name, line in table_lines(family)]
    before = None if summary is None else untrained_cells(summary, columns)
    if before is not None:
        rows.append([UNTRAINED, *before])
    return _rows(["Arm", *(column.title for column in columns)], rows)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(found: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) or " " for cell in found) + " |"

    ruler = "|" + "|".join("---" if place == 0 else "--:" for place in range(len(head))) + "|"
    return [line(head), ruler, *map(line, rows)]
