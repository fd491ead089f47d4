"""The measures of a study's trainings as samples: by seed, and by held-out row where there is one number for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spice_select.analysis.study_estimates import Sample, Strata
from spice_select.analysis.study_record import Losses, Outcome, StudyPlan

MACRO, MICRO, BENCHMARKS = "macro", "micro", "benchmarks"
DOMAIN = "domain "
"""What the name of a domain's measure begins with."""
_LOWER = ("loss", "perplexity", "bits_per_byte", "nll")
_MAIN = ("acc_norm", "exact_match", "pass@1", "pass_at_1", "acc", "f1")
_AGREE = 1e-6


def is_higher(name: str) -> bool:
    """Whether more of a measure is better: losses and perplexities are the measures of which less is."""
    if name in (MACRO, MICRO) or name.startswith(DOMAIN):
        return False
    return not any(word in name.rpartition(" ")[2] for word in _LOWER)


def values_of(
    losses: Losses | None, suites: Mapping[str, Mapping[str, float]], tasks: Sequence[str]
) -> dict[str, float]:
    """Every measure of one training, or of the model before any.

    Args:
        losses: Held-out losses.
        suites: Metrics by task.
        tasks: All tasks of the study: only a training that has them all has a mean over them.
    """
    found: dict[str, float] = {}
    if losses is not None:
        found |= {MACRO: losses.macro, MICRO: losses.micro}
        found |= {f"{DOMAIN}{name}": value for name, value in losses.by_domain.items()}
    main = [_main(suites[task]) for task in tasks if task in suites]
    if len(tasks) > 1 and len(main) == len(tasks) and all(value is not None for value in main):
        found[BENCHMARKS] = sum(value for value in main if value is not None) / len(main)
    for task, metrics in suites.items():
        found |= {f"{task} {name}": value for name, value in metrics.items() if "stderr" not in name}
    return found


@dataclass(frozen=True)
class Start:
    """The model before any training.

    Attributes:
        losses: Its held-out losses.
        suites: Its metrics, by task.
    """

    losses: Losses | None
    suites: Mapping[str, Mapping[str, float]]


def finished(outcome: Outcome) -> bool:
    """Whether a training came to an end and was measured."""
    return outcome.error is None and (outcome.losses is not None or bool(outcome.suites))


@dataclass(frozen=True, eq=False)
class Ground:
    """What all trainings are measured on.

    Attributes:
        tasks: All benchmarks of the study.
        domains: Domain of every held-out row; empty where it is not known.
    """

    tasks: tuple[str, ...]
    domains: tuple[str, ...]

    @classmethod
    def of(cls, plan: StudyPlan, outcomes: Sequence[Outcome]) -> Ground:
        """The ground of a plan and its outcomes."""
        tasks = dict.fromkeys(task for outcome in outcomes for task in outcome.suites)
        domains = plan.heldout_rows
        if not domains and len(plan.heldout) == 1:
            # There is but one domain that a row can be of.
            ((name, count),) = plan.heldout.items()
            domains = (name,) * count
        return cls(tuple(sorted(tasks)), domains)

    def strata(self, measure: str) -> Strata | None:
        """The rows that a measure is an average over; None for one that is none."""
        if not self.domains:
            return None
        names = np.asarray(self.domains)
        present = list(dict.fromkeys(self.domains))
        members = {name: np.flatnonzero(names == name) for name in present}
        if measure == MACRO:
            return Strata(tuple(members.values()), (1 / len(members),) * len(members))
        if measure == MICRO:
            return Strata(tuple(members.values()), tuple(len(rows) / len(names) for rows in members.values()))
        own = members.get(measure.removeprefix(DOMAIN)) if measure.startswith(DOMAIN) else None
        return None if own is None else Strata((own,), (1.0,))

    def values(self, outcome: Outcome | Start) -> dict[str, float]:
        """Every measure of one training, or of the model before any."""
        return values_of(outcome.losses, outcome.suites, self.tasks)

    def sample(self, measure: str, outcomes: Sequence[Outcome] | Start) -> Sample:
        """Some trainings on one measure, in their order, or the model before any.

        Rows are left out where they do not average to the measure: they are then no rows of it.
        """
        fixed = isinstance(outcomes, Start)
        given = [outcomes] if isinstance(outcomes, Start) else outcomes
        values = np.asarray([self.values(one)[measure] for one in given], dtype=np.float64)
        strata = self.strata(measure)
        losses = [one.losses for one in given if one.losses is not None]
        if strata is None or any(len(one.rows) != len(self.domains) for one in losses):
            return Sample(values, None, fixed)
        rows = np.asarray([one.rows for one in losses], dtype=np.float64)
        agree = np.allclose(strata.average(rows), values, rtol=_AGREE, atol=_AGREE)
        return Sample(values, rows if agree else None, fixed)


def _main(metrics: Mapping[str, float]) -> float | None:
    """The metric that a task goes by."""
    names = [name for name in metrics if "stderr" not in name and is_higher(name)]
    for wanted in _MAIN:
        for name in names:
            if name.partition(",")[0] == wanted:
                return metrics[name]
    return metrics[names[0]] if names else None
