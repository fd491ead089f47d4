"""Columns of the tables of a study, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spice_select.analysis.study_measures import BENCHMARKS, DOMAIN
from spice_select.analysis.study_summary import ArmLine, Difference, Family, GainShare, Measure, Summary
from spice_select.analysis.study_words import (
    chance_text,
    decimals_of,
    difference_text,
    interval_text,
    measure_title,
    short_title,
    signed,
)
from spice_select.analysis.tables import number, percent

NONE = "-"
MOST_MEASURES = 14
"""Domains and benchmarks that a table has columns for."""
_STANDINGS = {"better": "better", "worse": "worse", "alike": "not told apart", "unknown": "not tested"}


@dataclass(frozen=True)
class Column:
    """One column of a table with a line for every arm.

    Attributes:
        title: Its head.
        short: Its head where there is little room.
        cell: What stands in it.
    """

    title: str
    short: str
    cell: Callable[[ArmLine, Family], str]


def mean_text(found: Measure | None) -> str:
    """A mean, and its standard error where there are several seeds."""
    if found is None:
        return NONE
    if found.error is None:
        return number(found.mean)
    # As many decimals as the error has two digits of, for the mean too.
    places = min(max(decimals_of(found.error), 2), 4) if abs(found.mean) < 1000 else 0
    return f"{found.mean:,.{places}f} \N{PLUS-MINUS SIGN}{found.error:,.{places}f}"


def mark(line: ArmLine, family: Family, random: str | None) -> str:
    """What the verdict says of an arm, in a word or two."""
    if not line.seeds:
        return "failed" if line.failed else "not trained"
    words = "reference" if line.arm == random else "wins" if line.arm == family.winner else _STANDINGS[line.standing]
    return f"{words}, reaches full" if line.arm in family.reaching else words


def share_text(found: GainShare | None) -> str:
    """Share of the whole pool's gain with its interval."""
    if found is None:
        return NONE
    text = f"{found.share:.0%}".replace("-", "\N{MINUS SIGN}")
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:.0%}, {found.high:.0%}]".replace("-", "\N{MINUS SIGN}")


def main_columns(summary: Summary) -> tuple[Column, ...]:
    """The table that every budget has."""
    name = summary.measure

    def seeds(line: ArmLine, _: Family) -> str:
        parts = [str(len(line.seeds))]
        parts += [f"{line.failed} failed"] if line.failed else []
        parts += [f"{line.missing} to come"] if line.missing else []
        return ", ".join(parts)

    def chance(line: ArmLine, _: Family) -> str:
        found = line.from_random(name)
        return NONE if found is None else chance_text(found.p_adjusted).removeprefix("p = ").removeprefix("p ")

    title = measure_title(name)
    return (
        Column("Against random", "verdict", lambda line, family: mark(line, family, summary.random)),
        Column(
            title[0].upper() + title[1:],
            "score" if summary.higher else "loss",
            lambda line, _: mean_text(line.measure(name)),
        ),
        Column("Less random's [95%]", "vs random", lambda line, _: _difference(line.from_random(name))),
        Column("p (Holm)", "p", chance),
        Column("Less the whole pool's [95%]", "vs full", lambda line, _: _difference(line.from_full(name))),
        Column("Share of the whole pool's gain [95%]", "of full's gain", lambda line, _: share_text(line.share)),
        Column("Response tokens", "tokens", lambda line, _: _count(line.response_tokens)),
        Column("Operations, of the whole pool's training", "cost", _cost),
        Column("Seeds", "seeds", seeds),
    )


def luck_columns(summary: Summary) -> tuple[Column, ...]:
    """Whose luck each interval is of."""
    name = summary.measure

    def of(field: str) -> Callable[[ArmLine, Family], str]:
        def cell(line: ArmLine, _: Family) -> str:
            found = line.from_random(name)
            interval = None if found is None else getattr(found, field)
            return NONE if interval is None else interval_text(interval)

        return cell

    def plain(line: ArmLine, _: Family) -> str:
        found = line.from_random(name)
        return NONE if found is None else signed(found.mean)

    def note(line: ArmLine, _: Family) -> str:
        found = line.from_random(name)
        return NONE if found is None else found.note or f"{found.n} pairs"

    return (
        Column("Less random's", "vs random", plain),
        Column("Luck of draw and training (seeds)", "seeds", of("seeds")),
        Column("Luck of the test rows", "rows", of("rows")),
        Column("Both", "both", of("both")),
        Column("Pairs", "pairs", note),
    )


def cost_columns() -> tuple[Column, ...]:
    """What selection and training take."""

    def of(field: str, text: Callable[[float], str]) -> Callable[[ArmLine, Family], str]:
        return lambda line, _: NONE if line.cost is None else text(getattr(line.cost, field))

    def share(field: str) -> Callable[[ArmLine, Family], str]:
        return lambda line, _: NONE if line.cost is None else percent(getattr(line.cost, field))

    return (
        Column("Selection, tokens forward", "sel. forward", of("selection_forward_tokens", _count)),
        Column("Selection, tokens backward", "sel. backward", of("selection_backward_tokens", _count)),
        Column("Selection, seconds", "sel. s", of("selection_seconds", _seconds)),
        Column("Selection, operations", "sel. operations", of("selection_flops", _power)),
        Column("Training, tokens", "train tokens", of("training_tokens", _count)),
        Column("Training, seconds", "train s", of("training_seconds", _seconds)),
        Column("Training, operations", "train operations", of("training_flops", _power)),
        Column("Seconds of the whole pool's training", "s of full", share("seconds_of_full")),
        Column("Operations of the whole pool's training", "cost", share("flops_of_full")),
        Column("Optimiser steps", "steps", lambda line, _: _count(line.steps)),
        Column("Rows", "rows", lambda line, _: _count(line.rows)),
    )


def measure_columns(summary: Summary, family: Family) -> tuple[Column, ...]:
    """Every other loss and every benchmark; a domain that is worse or better than random's by its interval says so."""
    names = dict.fromkeys(
        one.name
        for line in family.arms
        for one in line.measures
        if one.name != summary.measure and (one.name == BENCHMARKS or not one.name.endswith("stderr"))
    )

    def column(name: str) -> Column:
        def cell(line: ArmLine, _: Family) -> str:
            text, found = mean_text(line.measure(name)), line.from_random(name)
            return text + _sided(found, line.measure(name))

        return Column(short_title(name), short_title(name), cell)

    ordered = sorted(names, key=lambda name: name.startswith(DOMAIN))
    return tuple(map(column, ordered[:MOST_MEASURES]))


def _sided(found: Difference | None, measure: Measure | None) -> str:
    shown = None if found is None or found.p is None else found.widest
    if shown is None or measure is None or shown.low <= 0 <= shown.high:
        return ""
    return " (better)" if (shown.low > 0) == measure.higher else " (worse)"


def _difference(found: Difference | None) -> str:
    return NONE if found is None else difference_text(found)


def _cost(line: ArmLine, _: Family) -> str:
    if line.cost is None:
        return NONE
    share = line.cost.flops_of_full
    return _power(line.cost.flops) if share is None else percent(share)


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _power(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}".replace("e+", "e")
