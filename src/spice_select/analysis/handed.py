"""Upper bounds on the best set from what a run hands over, with few further looks at the rows.

The run's last measurements bound every gain at its end, and the squared norms bound those at its start. Rows that can
still be among the best are measured again from the run's own factorisation, within a share of the work that the run
itself has spent. A prefix on the way is tried where a sample of the rows promises that it bounds best.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.knapsack import fractional_sum, measure_leading
from spice_select.analysis.posterior import EPS64, Posterior
from spice_select.analysis.prefixes import Bounds, Task, powers
from spice_select.selection.outlook import Outlook

SHARE = 0.05
"""Multiply-adds that may be spent, over those that the run has spent on rows, where that is no trifle."""
LEAST_ROWS = 256
"""Rows that are measured whatever that costs."""
SAMPLE = 1024
"""Rows by which prefixes are compared before one of them is measured."""


def handed_bounds(task: Task, outlook: Outlook, work: float) -> tuple[Bounds, float]:
    """Bounds by prefix, and F(S).

    Args:
        task: The selection.
        outlook: What its run has handed over.
        work: Multiply-adds that may be spent on rows.
    """
    dim = task.rows.shape[1]
    gained = np.concatenate([[0.0], np.cumsum(outlook.gains)])
    norms = np.where(task.eligible, outlook.squared_norms, 0.0)
    # As in Posterior: the backward error of the run's updates, relative to |g|^2.
    slack = 4.0 * (dim + outlook.members) * EPS64 * (1.0 + outlook.held)
    first = np.log1p(task.alpha * norms * (1.0 + (dim + 4) * EPS64))
    first[task.order[: task.held]] = 0.0
    bounds: Bounds = {0: task.bound(first, 0, 0.0)}

    potentials = np.where(task.eligible, np.minimum(outlook.potentials, norms), 0.0)
    last = task.outside(np.minimum(np.log1p(task.alpha * (potentials + slack * norms)), first), task.size)
    information = outlook.information
    if information is not None:

        def measure(chunk: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
            found = information.potentials(task.rows.scaled(chunk))
            return np.log1p(task.alpha * (found + slack * norms[chunk]))

        # The matrix is symmetric, and half of it is looked at.
        row = float(dim * (information.size if information.matrix is None else dim // 2 + 1))
        last = measure_leading(last, measure, task.weights, task.capacities[0], _rows_for(work, row))
    bounds[task.size] = task.bound(last, task.size, float(gained[task.size]))
    _try_prefix(task, first, gained, bounds, work)
    return bounds, float(gained[task.size])


def _try_prefix(
    task: Task, first: Float[np.ndarray, " n"], gained: Float[np.ndarray, " s"], bounds: Bounds, work: float
) -> None:
    """Measure the prefix on the way that a sample of the rows finds best, if it finds one better than both ends."""
    dim, held = task.rows.shape[1], task.held
    most = min(task.size - 1, dim // 2 - held)
    steps = [
        t
        for t in ([0] if held else []) + powers(1, max(most, 0), 2)[1:]
        if t <= most and float(held + t) ** 2 * dim + SAMPLE * float(held + t) * dim <= work / 2
    ]
    known = np.flatnonzero(first > 0)
    if not steps or not len(known):
        return
    leading = Posterior(task.rows, task.order[: held + steps[-1]], task.alpha, project=True)
    # Every so many rows in order of norm stand for those around them.
    known = known[np.argsort(-first[known], kind="stable")]
    sample = np.sort(known[np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(np.int64)])
    _, left = leading.upper_of_prefixes(task.rows.scaled(sample), [held + t for t in steps])
    share = len(sample) / len(known)
    promised = {}
    for t, potentials in zip(steps, left, strict=True):
        gains = np.zeros(len(first))
        gains[sample] = np.log1p(task.alpha * potentials)
        gains = task.outside(gains, t)[sample]
        rest = fractional_sum(gains, task.weights[sample], task.capacities[0] * share) / share
        promised[t] = float(gained[t]) + rest
    best = min(promised, key=lambda t: promised[t])
    if promised[best] >= min(upper[0] for upper in bounds.values()):
        return

    def measure(chunk: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        return np.log1p(task.alpha * leading.upper_of_prefixes(task.rows.scaled(chunk), [held + best])[1][0])

    limit = _rows_for(work, float(dim * max(held + best, 1)))
    found = measure_leading(task.outside(first, best), measure, task.weights, task.capacities[0], limit)
    # At t = 0 the rows in hand make what norms alone gave tighter.
    bounds[best] = task.bound(found, best, float(gained[best]))


def _rows_for(work: float, row: float) -> int:
    """Rows that the work allows to measure, a few at least."""
    return max(LEAST_ROWS, int(work / max(row, 1.0)))
