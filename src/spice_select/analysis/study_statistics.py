"""What a study's outcomes say: tables, the verdict and the notes, from the ledger's lines alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from spice_select.analysis.study_measures import BENCHMARKS, MACRO, Ground, Start, finished, is_higher
from spice_select.analysis.study_notes import study_notes
from spice_select.analysis.study_record import UNTRAINED, WHOLE, Arm, Losses, Outcome, StudyPlan
from spice_select.analysis.study_summary import Summary
from spice_select.analysis.study_table import Entry, Table
from spice_select.analysis.study_verdict import judged, study_sentences

Cells = Mapping[tuple[str, str, str], Mapping[int, Outcome]]


def summarise(plan: StudyPlan, outcomes: Sequence[Outcome], untrained: Losses | None) -> Summary:
    """Everything that the page says in numbers; the order of outcomes and of arms changes nothing of it.

    Args:
        plan: What was planned.
        outcomes: Trainings that have ended, well or not; of several for one arm, seed and budget the last that came
            to an end counts.
        untrained: Held-out losses of the model before any training.
    """
    measured = next((one for one in outcomes if one.budget == UNTRAINED and finished(one)), None)
    before = None if measured is None else Start(measured.losses, measured.suites)
    trained = [one for one in outcomes if one.budget != UNTRAINED]
    ground = Ground.of(plan, outcomes)
    if untrained is not None:
        before = Start(untrained, {} if before is None else before.suites)
    cells = _cells(trained)
    primary = MACRO if any(one.losses for one in trained) or not trained else _first_suite(ground, trained)
    start = None if before is None else ground.values(before).get(primary)
    whole = {arm.label for arm in plan.arms if arm.method == "full"}
    random = _random(plan.arms)
    table = Table(ground, primary, before, random, plan.seeds)
    families = []
    for budget in (one for one in plan.budgets if one not in (WHOLE, UNTRAINED)):
        for equal in plan.equals:
            arms = [_arm(cells, arm.label, budget, equal) for arm in plan.arms if arm.label not in whole]
            family = table.family(budget, equal, arms, _full(cells, plan, whole, equal))
            families.append(judged(family, primary, random, start))
    known = {arm.label for arm in plan.arms}
    strangers = sum(one.arm not in known for one in trained)
    summary = Summary(
        measure=primary, higher=is_higher(primary), random=random, untrained=start, families=tuple(families)
    )
    return summary.model_copy(
        update={
            "verdict": study_sentences(summary),
            "notes": study_notes(plan, summary, trained, strangers),
        }
    )


def _cells(outcomes: Sequence[Outcome]) -> Cells:
    """Outcomes by arm, budget and what is equal, then by seed."""
    found: dict[tuple[str, str, str], dict[int, Outcome]] = {}
    for one in sorted(outcomes, key=lambda outcome: (outcome.written, outcome.key)):
        cell = found.setdefault((one.arm, one.budget, one.equal), {})
        earlier = cell.get(one.seed)
        if earlier is None or finished(one) or not finished(earlier):
            cell[one.seed] = one
    return found


def _arm(cells: Cells, label: str, budget: str, equal: str) -> Entry:
    cell = cells.get((label, budget, equal), {})
    ended = {seed: one for seed, one in cell.items() if finished(one)}
    return Entry(label, ended, tuple(sorted(set(cell) - set(ended))))


def _full(cells: Cells, plan: StudyPlan, whole: set[str], equal: str) -> Entry | None:
    """Trainings on the whole pool: one set, whatever is equal, unless it was trained for this table by itself."""
    labels = [arm.label for arm in plan.arms if arm.label in whole] + [
        arm.label for arm in plan.arms if arm.label not in whole
    ]
    for wanted in dict.fromkeys((equal, "rows", "tokens", "steps")):
        for label in labels:
            found = _arm(cells, label, WHOLE, wanted)
            if found.ended:
                return replace(found, label="full")
    return None


def _random(arms: Sequence[Arm]) -> str | None:
    """The arm called random, else the first by that method."""
    named = [arm.label for arm in arms if arm.label == "random"]
    return next(iter(named + [arm.label for arm in arms if arm.method == "random"]), None)


def _first_suite(ground: Ground, outcomes: Sequence[Outcome]) -> str:
    names = [name for one in outcomes if finished(one) for name in ground.values(one)]
    if BENCHMARKS in names:
        return BENCHMARKS
    return next((name for name in names if is_higher(name)), names[0] if names else MACRO)
