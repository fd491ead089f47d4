"""Numbers of a study in words: differences with their sign, intervals, names of measures and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spice_select.analysis.study_measures import BENCHMARKS, DOMAIN, MACRO, MICRO
from spice_select.analysis.study_summary import Difference, Family, Interval
from spice_select.analysis.tables import number

MINUS = "\N{MINUS SIGN}"
_MOST_DECIMALS = 6
_TITLES = {
    MACRO: "held-out loss, mean of domains",
    MICRO: "held-out loss, mean of rows",
    BENCHMARKS: "mean of the benchmarks",
}


def measure_title(name: str) -> str:
    """A measure as a person calls it."""
    return _TITLES.get(name) or (f"held-out loss on {name.removeprefix(DOMAIN)}" if name.startswith(DOMAIN) else name)


def short_title(name: str) -> str:
    """The same where there is little room."""
    return {MACRO: "mean of domains", MICRO: "mean of rows"}.get(name, name.removeprefix(DOMAIN))


def is_loss(name: str) -> bool:
    """Whether a measure is in nats."""
    return name in (MACRO, MICRO) or name.startswith(DOMAIN)


def unit(name: str) -> str:
    """What follows its numbers."""
    return " nats" if is_loss(name) else ""


def table_title(family: Family) -> str:
    """A table's name."""
    return f"{family.budget}, equal {family.equal}"


def signed(value: float, decimals: int | None = None) -> str:
    """A difference with its sign; -0 is 0."""
    text = number(abs(value), digits=3) if decimals is None else f"{abs(value):,.{decimals}f}"
    if not any(digit in "123456789" for digit in text):
        return text
    return (MINUS if value < 0 else "+") + text


def decimals_of(width: float) -> int:
    """Decimals that show two digits of an interval's half width."""
    if not width > 0:
        return 4
    return min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(width))))


def interval_text(found: Interval) -> str:
    """Both ends of an interval."""
    places = decimals_of((found.high - found.low) / 2)
    return f"[{signed(found.low, places)}, {signed(found.high, places)}]"


def difference_text(found: Difference, interval: Interval | None = None) -> str:
    """A difference with an interval: the given one, else that which covers most."""
    shown = interval or found.widest
    if shown is None:
        return signed(found.mean)
    return f"{signed(found.mean, decimals_of((shown.high - shown.low) / 2))} {interval_text(shown)}"


def chance_text(value: float | None) -> str:
    """A probability as reports have it."""
    if value is None:
        return "-"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def listed(names: Sequence[str]) -> str:
    """Names with commas, and an ``and`` before the last."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, thing: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
