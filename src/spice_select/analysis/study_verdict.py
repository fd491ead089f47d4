"""What can be said of a study, in plain sentences; nothing is claimed that its seeds do not carry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from spice_select.analysis.study_estimates import LEVEL
from spice_select.analysis.study_summary import ArmLine, Difference, Family, Standing, Summary
from spice_select.analysis.study_words import (
    chance_text,
    counted,
    difference_text,
    is_loss,
    listed,
    measure_title,
    table_title,
    unit,
)
from spice_select.analysis.tables import number

FEW = 3
"""Seeds below which a spread is hardly known."""


def judged(family: Family, primary: str, random: str | None, untrained: float | None) -> Family:
    """A table with its winner, if it has one, and its sentences.

    Args:
        family: The table; its winner and sentences are not looked at.
        primary: Name of the measure that the verdict goes by.
        random: Label of the arm that others are measured by.
        untrained: That measure before any training.
    """
    best = None if family.best is None else family.line(family.best)
    winner = None
    if best is not None and best.standing == "better" and not family.rivals and not best.failed:
        winner = best.arm
    found = family.model_copy(update={"winner": winner})
    sentences = [_against_random(found, primary, random), *_against_full(found, primary, untrained)]
    return found.model_copy(update={"verdict": tuple(sentences)})


def study_sentences(summary: Summary) -> tuple[str, ...]:
    """The verdict of the whole: that of every table, and whether tables of one budget agree."""
    if not any(line.seeds for family in summary.families for line in family.arms):
        return ("No training of this study has come to an end yet, so that there is nothing to tell.",)
    sentences = [sentence for family in summary.families for sentence in family.verdict]
    for budget in dict.fromkeys(family.budget for family in summary.families):
        tables = [family for family in summary.families if family.budget == budget]
        sentences += [_agreement(*pair, summary.measure) for pair in combinations(tables, 2) if _comparable(*pair)]
    return tuple(sentences)


def _against_random(family: Family, primary: str, random: str | None) -> str:
    where, best = f"At {table_title(family)}", None if family.best is None else family.line(family.best)
    if best is None:
        return f"{where}: no training has come to an end yet."
    extreme = "lowest" if is_loss(primary) or not _higher(best, primary) else "highest"
    first = f"{best.arm} ({_mean(best, primary)})"
    base = None if random is None else family.line(random)
    if base is None or not base.seeds:
        return f"{where}: random was not trained, so that nothing is told from chance; {extreme} so far: {first}."
    tested = [line for line in family.arms if line.standing != "unknown"]
    if not tested:
        why = (
            "one seed" if max(len(line.seeds) for line in family.arms) == 1 or len(base.seeds) == 1 else "too few seeds"
        )
        return f"{where}: {why}, so that no win is claimed; {extreme} so far: {first}, random {_mean(base, primary)}."
    by_standing: dict[Standing, list[str]] = {}
    for line in tested:
        by_standing.setdefault(line.standing, []).append(line.arm)
    better, worse = by_standing.get("better", []), by_standing.get("worse", [])
    also = [arm for arm in better if arm != best.arm]
    rest = f" Better than random too: {listed(also)}." if also and best.arm in better else ""
    rest += f" Worse than random: {listed(worse)}." if worse else ""
    seeds = _seeds(family)
    if not better:
        nothing = "nothing is distinguishable from random" if not worse else "no arm is better than random"
        seen = (
            ""
            if family.detectable is None
            else (
                f": the smallest difference this study could see is about {number(family.detectable, digits=2)}"
                f"{unit(primary)} (80% power)"
            )
        )
        return f"{where}: {nothing} at this number of seeds ({seeds}){seen}.{rest}"
    if best.arm not in better:
        told = listed([f"{arm} ({_told(_difference(family, arm, primary))})" for arm in better])
        return (
            f"{where}: better than random: {told}; the {extreme} mean is that of {first}, which is not told from "
            f"random ({_mean(base, primary)}).{' Worse than random: ' + listed(worse) + '.' if worse else ''}"
        )
    gained = (
        f"{measure_title(primary)} {_mean(best, primary)} against random's {_mean(base, primary)}, "
        f"{_told(_difference(family, best.arm, primary))} after Holm's correction over {counted(len(tested), 'arm')}"
    )
    if family.winner is not None:
        return f"{where}: {best.arm} wins: {gained}, and told from every other arm ({seeds}).{rest}"
    if best.failed:
        return (
            f"{where}: {best.arm} has the {extreme} mean and is better than random ({gained}), but no win is claimed, "
            f"as {counted(best.failed, 'training')} of it failed.{rest}"
        )
    return (
        f"{where}: {best.arm} has the {extreme} mean and is better than random ({gained}), but is not told from "
        f"{listed(family.rivals)} ({seeds}).{rest}"
    )


def _against_full(family: Family, primary: str, untrained: float | None) -> list[str]:
    if family.full is None or family.best is None:
        return []
    where, whole = f"At {table_title(family)}", family.full.measure(primary)
    if whole is None:
        return []
    pairs = [(line, found) for line in family.arms if (found := line.from_full(primary)) is not None]
    tested = [(line, found) for line, found in pairs if found.p_adjusted is not None]
    sign = -1.0 if whole.higher else 1.0
    if not tested:
        return [f"{where}: the whole pool or the arms have one seed, so that no arm is said to reach the whole pool."]
    told = [(line, found) for line, found in tested if found.p_adjusted is not None and found.p_adjusted < LEVEL]
    beyond = [line.arm for line, found in told if sign * found.mean < 0 and not line.failed]
    behind = [line.arm for line, found in told if sign * found.mean > 0]
    sentences = [f"{where}: better than the whole pool ({number(whole.mean)}): {listed(beyond)}."] if beyond else []
    if family.margin is None:
        if untrained is None:
            return [
                *sentences,
                f"{where}: without the untrained model no margin tells whether an arm reaches the whole pool.",
            ]
        return [
            *sentences,
            f"{where}: training on the whole pool gains nothing over the untrained model ({number(untrained)}).",
        ]
    margin = f"{number(family.margin, digits=2)}{unit(primary)} (a tenth of its gain over the untrained model)"
    if family.reaching:
        sentences.append(
            f"{where}: shown to lose less than {margin} to the whole pool ({number(whole.mean)}): "
            f"{listed(family.reaching)}."
        )
    else:
        line, found = min(tested, key=lambda pair: sign * pair[1].mean)
        after = f"; worse than the whole pool: {listed(behind)}" if behind else ""
        sentences.append(
            f"{where}: no arm is shown to come within {margin} of the whole pool ({number(whole.mean)}); the nearest "
            f"is {line.arm}, {difference_text(found)}{after}."
        )
    return sentences


def _comparable(first: Family, second: Family) -> bool:
    return first.best is not None and second.best is not None


def _agreement(first: Family, second: Family, primary: str) -> str:
    """Whether two tables of one budget rank the arms alike."""
    where = f"At {first.budget}, equal {first.equal} and equal {second.equal}"
    means = [
        (arm, one, two)
        for arm in (line.arm for line in first.arms)
        if (one := _value(first, arm, primary)) is not None and (two := _value(second, arm, primary)) is not None
    ]
    if len(means) < 2:
        return f"{where}: fewer than two arms are in both tables, so that their order cannot be compared."
    tau = _kendall([one for _, one, _ in means], [two for _, _, two in means])
    same = (
        f"{first.best} leads both" if first.best == second.best else f"{first.best} leads one, {second.best} the other"
    )
    order = "rank the arms alike" if tau >= 1 else f"rank the arms differently (Kendall's tau {tau:.2f})"
    changed = [
        f"{arm} ({one} by {first.equal}, {two} by {second.equal})"
        for arm, _, _ in means
        if (one := _standing(first, arm)) != (two := _standing(second, arm))
    ]
    after = (
        f"; against random they disagree on {listed(changed)}"
        if changed
        else "; against random they agree on every arm"
    )
    return f"{where} {order}; {same}{after}."


def _kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau: pairs in one order less those in two, over all; pairs tied in both are in one order."""
    pairs = list(combinations(range(len(first)), 2))
    agree = [np.sign(first[a] - first[b]) * np.sign(second[a] - second[b]) for a, b in pairs]
    alike = sum(first[a] == first[b] and second[a] == second[b] for a, b in pairs)
    return (float(sum(agree)) + alike) / len(pairs)


def _value(family: Family, arm: str, primary: str) -> float | None:
    line = family.line(arm)
    found = None if line is None else line.measure(primary)
    return None if found is None else found.mean


_STANDINGS: dict[Standing, str] = {
    "better": "better",
    "worse": "worse",
    "alike": "not told apart",
    "unknown": "not tested",
}


def _standing(family: Family, arm: str) -> str:
    line = family.line(arm)
    return _STANDINGS["unknown" if line is None else line.standing]


def _higher(line: ArmLine, primary: str) -> bool:
    found = line.measure(primary)
    return found is not None and found.higher


def _mean(line: ArmLine, primary: str) -> str:
    found = line.measure(primary)
    return "-" if found is None else number(found.mean)


def _difference(family: Family, arm: str, primary: str) -> Difference:
    line = family.line(arm)
    found = None if line is None else line.from_random(primary)
    assert found is not None
    return found


def _told(found: Difference) -> str:
    return f"{difference_text(found)}, {chance_text(found.p_adjusted)}"


def _seeds(family: Family) -> str:
    counts = sorted({len(line.seeds) for line in family.arms if line.seeds})
    if len(counts) == 1:
        return counted(counts[0], "seed")
    return f"{counts[0]} to {counts[-1]} seeds"
