"""What to know of a study before its numbers are believed: failures, gaps, single seeds, domains that lose."""

from __future__ import annotations

from collections.abc import Sequence

from spice_select.analysis.study_measures import DOMAIN, finished
from spice_select.analysis.study_record import Outcome, StudyPlan
from spice_select.analysis.study_summary import ArmLine, Family, Summary
from spice_select.analysis.study_words import counted, difference_text, listed, measure_title, table_title
from spice_select.analysis.tables import number

MOST = 12
"""Failures and domains that are told one by one."""


def study_notes(plan: StudyPlan, summary: Summary, outcomes: Sequence[Outcome], strangers: int = 0) -> tuple[str, ...]:
    """Everything that limits what the numbers say, in plain sentences.

    Args:
        plan: What was planned.
        summary: The tables.
        outcomes: Trainings that have ended, well or not.
        strangers: Outcomes of arms that the plan does not name.
    """
    notes = [*_failures(outcomes), *_gaps(summary, strangers), *_seeds(plan, summary), *_harm(summary)]
    notes += [*_domains(summary), *_costs(summary), *_rows(summary)]
    if plan.note:
        notes.append(plan.note)
    return tuple(dict.fromkeys(notes))


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for one in sorted(outcomes, key=lambda outcome: (outcome.budget, outcome.equal, outcome.arm, outcome.seed)):
        if not finished(one):
            why = one.error or "it was not measured"
            found.setdefault((one.arm, why), []).append(f"{one.budget}, equal {one.equal}, seed {one.seed}")
    told = [
        f"{arm} failed {'once' if len(where) == 1 else f'{len(where)} times'} ({'; '.join(where[:3])}"
        f"{'; ...' if len(where) > 3 else ''}): {why.rstrip('.')}. Its means are those of the trainings that ended."
        for (arm, why), where in list(found.items())[:MOST]
    ]
    if len(found) > MOST:
        told.append(f"{counted(len(found) - MOST, 'further failure')} stand in the table of all trainings.")
    return told


def _gaps(summary: Summary, strangers: int) -> list[str]:
    notes = []
    missing = sum(line.missing for family in summary.families for line in family.arms)
    if missing:
        notes.append(
            f"{counted(missing, 'planned training')} of these tables {'has' if missing == 1 else 'have'} no outcome "
            "yet; the same command goes on with them."
        )
    if strangers:
        notes.append(f"{counted(strangers, 'earlier outcome')} of arms that this plan does not name are left out.")
    if summary.families and all(family.full is None for family in summary.families):
        notes.append(
            "The whole pool was not trained on, so that no share of its gain is known (add 100% to the budgets)."
        )
    return notes


def _seeds(plan: StudyPlan, summary: Summary) -> list[str]:
    notes = []
    once = [f"{table_title(family)}: {listed(arms)}" for family in summary.families if (arms := _trained(family, 1))]
    twice = [f"{table_title(family)}: {listed(arms)}" for family in summary.families if (arms := _trained(family, 2))]
    if once:
        notes.append(f"One seed, which is no ground for any claim, at {'; '.join(once)}.")
    if twice:
        notes.append(f"Two seeds tell a spread poorly, so that intervals are very wide, at {'; '.join(twice)}.")
    full = next((family.full for family in summary.families if family.full is not None), None)
    several = max((len(line.seeds) for family in summary.families for line in family.arms), default=0)
    if full is not None and len(full.seeds) < several:
        how = (
            "its spread is taken to be that of the arm beside it, and nothing is claimed of it"
            if len(full.seeds) == 1
            else "the differences from it are unpaired (Welch)"
        )
        notes.append(
            f"The whole pool was trained under {counted(len(full.seeds), 'seed')} and arms under up to {several}: "
            f"{how}."
        )
    trained = {line.arm for family in summary.families for line in family.arms if len(line.seeds) > 1}
    same = [arm.label for arm in plan.arms if arm.varies == "no" and arm.label in trained]
    if same:
        notes.append(
            f"{listed(same)} choose{'s' if len(same) == 1 else ''} the same rows under every seed: the spread is that "
            "of training alone, while random's is that of draw and training."
        )
    return notes


def _trained(family: Family, count: int) -> list[str]:
    return [line.arm for line in family.arms if len(line.seeds) == count]


def _harm(summary: Summary) -> list[str]:
    start = summary.untrained
    if start is None:
        return (
            ["The untrained model was not measured, so that no share of a gain is known."] if summary.families else []
        )
    notes = []
    for family in summary.families:
        harmed = [
            f"{line.arm} ({number(found.mean)})"
            for line in (*family.arms, *([] if family.full is None else [family.full]))
            if (found := line.measure(summary.measure)) is not None
            and ((found.mean < start) if summary.higher else (found.mean > start))
        ]
        if harmed:
            notes.append(
                f"At {table_title(family)} training did harm: worse than the untrained model ({number(start)}): "
                f"{listed(harmed)}."
            )
    return notes


def _domains(summary: Summary) -> list[str]:
    """Domains, and benchmarks, where an arm that is better on the whole is told to be worse."""
    notes = []
    for family in summary.families:
        for line in family.arms:
            if line.standing != "better":
                continue
            worse = [f"{measure_title(name)} ({text})" for name, text in _worse(line, summary.measure)]
            if worse:
                more = f" and {len(worse) - MOST} more" if len(worse) > MOST else ""
                notes.append(
                    f"At {table_title(family)} {line.arm} is better than random on the whole and worse on "
                    f"{listed(worse[:MOST])}{more}."
                )
    return notes


def _worse(line: ArmLine, primary: str) -> list[tuple[str, str]]:
    found = []
    for one in line.against_random:
        shown, measure = one.widest, line.measure(one.measure)
        if one.measure == primary or shown is None or measure is None or one.p is None:
            continue
        if not (one.measure.startswith(DOMAIN) or measure.higher):
            continue
        if (shown.high < 0) if measure.higher else (shown.low > 0):
            found.append((one.measure, difference_text(one)))
    return found


def _costs(summary: Summary) -> list[str]:
    notes = []
    for family in summary.families:
        dear = [
            f"{line.arm} ({line.cost.flops_of_full:.1f} times)"
            for line in family.arms
            if line.cost is not None and line.cost.flops_of_full is not None and line.cost.flops_of_full >= 1
        ]
        if dear:
            notes.append(
                f"At {table_title(family)} selection and training take as many operations as training on the whole "
                f"pool, or more: {listed(dear)}."
            )
    return notes


def _rows(summary: Summary) -> list[str]:
    found = [one for family in summary.families for line in family.arms for one in line.against_random]
    own = [one for one in found if one.measure == summary.measure]
    if own and all(one.rows is None for one in own):
        return [
            "No interval over the test rows is known for the measure of the verdict: what is said holds for these "
            "rows, and not for others like them."
        ]
    return []
