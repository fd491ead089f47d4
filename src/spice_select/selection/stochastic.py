"""Stochastic greedy with stale bounds: each pick is the best of a random sample of the candidates.

Of n candidates and k picks a sample holds ceil((n / k) ln(1 / epsilon)) rows, so that for a monotone submodular
objective and a budget in rows the expected value is at least 1 - 1/e - epsilon of the best possible, with n ln(1 /
epsilon) evaluations in all whatever k is. Within the sample the loop is lazy: stale scores are upper bounds, and rows
are measured again from the highest bound down, in float32 with room for its rounding, until the best of them beats the
next bound; whoever may be the best by then is measured in float64. The best of the sample is therefore exact. With a
conflict weight the same loop runs on the score, for which no such bound is known.

References:
    Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015, arXiv 1409.7938.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int

from spice_select.selection.bounds import Bounds
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import LogDet
from spice_select.selection.greedy import Choice, lowest_best, slack
from spice_select.selection.outlook import Ending
from spice_select.selection.rows import Pool

FIRST_BATCH = 8


def sample_size(candidates: int, picks: int, epsilon: float) -> int:
    """Rows of a sample for an expected shortfall of epsilon, at least 1 and at most all."""
    return max(1, min(candidates, math.ceil(-math.log(epsilon) * candidates / max(1, picks))))


class Stochastic:
    """The best row of a random sample, exactly.

    Args:
        pool: The rows.
        information: Empty log-determinant.
        conflict: What opposes.
        score: What is compared.
        eligible: Candidates, extra rows of the pool included as False.
        sample: Rows of a sample.
        seed: Of the samples; equal seeds draw equal samples from equal candidates.
        part: Which of several streams of that seed.
    """

    def __init__(
        self,
        pool: Pool,
        information: LogDet,
        conflict: Conflict,
        score: Score,
        eligible: Bool[np.ndarray, " n"],
        sample: int,
        seed: int = 0,
        part: int = 0,
    ) -> None:
        self._pool = pool
        self._information = information
        self._conflict = conflict
        self._score = score
        self._norms = np.sqrt(pool.squared_norms)
        self._known = Bounds(pool, information, conflict, score, eligible)
        self._candidates = np.flatnonzero(eligible)
        self._place = np.full(len(pool), -1, dtype=np.int64)
        self._place[self._candidates] = np.arange(len(self._candidates))
        self._count = len(self._candidates)
        self._sample = sample
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, part])))
        self._first = FIRST_BATCH
        self._work = 0.0

    def best(self) -> Choice | None:
        """The best row of a new sample; of all candidates where they are no more than that."""
        if self._count == 0:
            return None
        self._known.tighten()
        drawn = self._candidates[: self._count]
        if self._sample < self._count:
            drawn = drawn[self._random.choice(self._count, self._sample, replace=False, shuffle=False)]
        bounds = self._known.values[drawn]
        order = np.lexsort((drawn, -bounds))
        drawn, bounds = drawn[order], bounds[order]
        low, high = np.empty(len(drawn)), np.empty(len(drawn))
        done, size, floor = 0, self._first, -np.inf
        # Twice the slack: a bound may lie a rounding error below the gain that it bounds.
        while done < len(drawn) and bounds[done] >= floor - 2 * slack(floor):
            part = slice(done, min(done + size, len(drawn)))
            low[part], high[part] = self._screen(drawn[part])
            floor = max(floor, float(low[part].max()))
            done, size = part.stop, 2 * size
        # As many as this pick needed, give or take, so that most picks take two rounds.
        self._first = max(FIRST_BATCH, done // 2)
        finalists = np.sort(drawn[:done][high[:done] >= floor - 2 * slack(floor)])
        gains, conflicts, scores = self._measure(finalists)
        at = lowest_best(scores)
        assert at is not None
        return Choice(int(finalists[at]), float(gains[at]), float(conflicts[at]), float(scores[at]))

    def add(self, index: int) -> None:
        """Put a row into S; every bound stays one."""
        row = self._pool.row(index)
        self._information.add(row)
        self._conflict.add(row)
        self._work += float(self._pool.dim) ** 2

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._known.close(indices)
        # The last candidates fill the places of those that go, so that a sample is drawn without a pass over them all.
        for index in indices[self._place[indices] >= 0].tolist():
            place, self._count = self._place[index], self._count - 1
            last = self._candidates[self._count]
            self._candidates[place], self._place[last] = last, place
            self._place[index] = -1

    def ending(self) -> Ending:
        """The last potential of every row, and the information without what only a running engine needs."""
        potentials = self._known.at_end()
        self._information.forget()
        return Ending(potentials, self._information, self._work + self._known.work)

    def _screen(self, ids: Int[np.ndarray, " m"]) -> tuple[np.ndarray, np.ndarray]:
        """Scores of rows, from below and from above, and their bounds brought down to the latter."""
        rows = self._pool.take(ids)
        least, most = self._known.screen(ids, rows, self._norms[ids])
        conflicts = self._conflict.of_rows(ids, rows, self._norms[ids])
        one = self._score(ids, self._information.gains(least), conflicts)
        other = self._score(ids, self._information.gains(most), conflicts)
        # A relative penalty beyond 1 makes the score fall as the gain grows.
        return np.minimum(one, other), np.maximum(one, other)

    def _measure(self, ids: Int[np.ndarray, " m"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self._pool.take(ids)
        gains = self._information.gains(self._known.refresh(ids, rows))
        conflicts = self._conflict.of_rows(ids, rows, self._norms[ids])
        return gains, conflicts, self._score(ids, gains, conflicts)
