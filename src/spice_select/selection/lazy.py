"""Lazy greedy for any objective whose gains shrink: stale scores are upper bounds, so few rows are looked at a step.

Exact for every conflict weight >= 0 and both penalties: a conflict is never negative, so a gain of any earlier step
bounds the score from above.

References:
    Minoux, Accelerated greedy algorithms for maximizing submodular set functions, 1978.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import Information
from spice_select.selection.greedy import Choice, lowest_best, slack
from spice_select.selection.rows import Pool

FIRST_BATCH = 32


class Lazy:
    """Refreshes the rows with the highest bounds, in growing batches, until the best score beats the next bound."""

    def __init__(
        self,
        pool: Pool,
        information: Information,
        conflict: Conflict,
        score: Score,
        eligible: np.ndarray,
        batch: int = FIRST_BATCH,
    ) -> None:
        self._pool = pool
        self._information = information
        self._conflict = conflict
        self._score = score
        self._norms = np.sqrt(pool.squared_norms)
        self._batch = batch
        self._largest_batch = max(batch, (16 << 20) // (8 * pool.dim))
        potentials = np.concatenate([information.potentials(block) for _, block in pool.blocks()])
        bounds = score.bound(slice(None), information.gains(potentials), conflict.fixed)
        self._bounds = np.where(eligible, bounds, -np.inf)

    def best(self) -> Choice | None:
        """The best eligible row."""
        waiting = self._bounds.copy()
        size = self._batch
        seen: list[np.ndarray] = []
        best = -np.inf
        while True:
            size = min(size, len(waiting))
            top = np.argpartition(waiting, len(waiting) - size)[len(waiting) - size :]
            # Twice the slack: a bound may lie a rounding error below the gain that it bounds.
            top = top[(waiting[top] > -np.inf) & (waiting[top] >= best - 2 * slack(best))]
            if not len(top):
                break
            seen.append(self._refresh(top))
            waiting[top] = -np.inf
            best = max(best, float(seen[-1][3].max()))
            size = min(2 * size, self._largest_batch)
        if not seen:
            return None
        indices, gains, conflicts, scores = np.concatenate(seen, axis=1)
        order = np.argsort(indices, kind="stable")
        at = lowest_best(scores[order])
        assert at is not None
        at = order[at]
        return Choice(int(indices[at]), float(gains[at]), float(conflicts[at]), float(scores[at]))

    def add(self, index: int) -> None:
        """Put a row into S; every bound stays one."""
        row = self._pool.row(index)
        self._information.add(row)
        self._conflict.add(row)

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._bounds[indices] = -np.inf

    def ending(self) -> None:
        """Nothing: these bounds are of scores, and of objectives that nothing is proven for."""

    def _refresh(self, indices: np.ndarray) -> np.ndarray:
        rows = self._pool.take(indices)
        gains = self._information.gains(self._information.potentials(rows))
        conflicts = self._conflict.of_rows(indices, rows, self._norms[indices])
        fixed = None if self._conflict.fixed is None else conflicts
        self._bounds[indices] = self._score.bound(indices, gains, fixed)
        return np.stack([indices.astype(np.float64), gains, conflicts, self._score(indices, gains, conflicts)])
