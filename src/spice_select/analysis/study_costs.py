"""What the trainings of an arm took, selection included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from spice_select.analysis.study_record import Cost, Outcome
from spice_select.analysis.study_summary import CostLine


def cost_line(outcomes: Sequence[Outcome], full: Sequence[Outcome]) -> CostLine:
    """Mean cost of some trainings, and the same over the training on the whole pool.

    Args:
        outcomes: Trainings of one arm, at least one.
        full: Trainings on the whole pool; they have no selection.
    """
    costs = [outcome.cost for outcome in outcomes]
    means = {name: _mean(costs, lambda cost, name=name: getattr(cost, name)) for name in Cost.model_fields}
    line = CostLine(**means)
    if not full:
        return line
    whole = [outcome.cost for outcome in full]
    return line.model_copy(
        update={
            "tokens_of_full": _over(line.training_tokens, _mean(whole, lambda cost: cost.training_tokens)),
            "seconds_of_full": _over(line.seconds, _mean(whole, lambda cost: cost.training_seconds)),
            "flops_of_full": _over(line.flops, _mean(whole, lambda cost: cost.training_flops)),
        }
    )


def _mean(costs: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    return math.fsum(of(cost) for cost in costs) / len(costs)


def _over(value: float, whole: float) -> float | None:
    return value / whole if whole > 0 else None
