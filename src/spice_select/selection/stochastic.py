"""Stochastic greedy with a short memory: each pick is the best row of its own random sample and of the last ones.

Of n candidates and k picks a sample holds ceil((n / k) ln(1 / epsilon)) rows, so that for a monotone submodular
objective and a budget in rows the expected value is at least 1 - 1/e - epsilon of the best possible. What earlier
samples showed can only add to that: a pick is compared with the rows of the last ``AHEAD`` samples, its own among them.
With a conflict weight the same loop runs on the score, for which no such bound is known.

Samples are drawn with replacement, from the rows that are left when they are drawn. Of n such rows, k' of them in the
best set and not picked yet, a sample of s misses all k' with probability (1 - k'/n)^s, which is what the proof asks.

The samples of several picks are drawn together, so that rows are measured many at a time, and are shown one after
another: no pick is chosen by what a later sample holds. Rows whose stale bounds say that they may win are screened in
float32, with room for its rounding; the best of them form an *active set* whose scores are exact in float64 at every
step. Where the best of these does not beat the bounds of all other rows that are shown, those that it does not beat
are measured exactly. So every pick is the exact best of the rows it is compared with.

References:
    Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015, arXiv 1409.7938.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.selection.bounds import Bounds
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import LogDet
from spice_select.selection.greedy import Choice, lowest_best, slack
from spice_select.selection.outlook import Ending
from spice_select.selection.rows import Pool

AHEAD = 64
"""Samples that are drawn together, and that a pick looks back on, its own among them."""
DRAWN = 1 << 14
"""Rows that may be drawn together; larger samples are drawn a few at a time."""
ACTIVE = 2
"""Rows of the active set for each sample drawn together."""
SCREENED = 2048
"""Rows that are screened together at most; of more, those with the highest bounds."""
TIGHTEN_AT_FIRST = 1.06
"""Growth of the picks between two looks at the largest eigenvalue, from d to 2 d picks."""
SCREENED_FOR = 16
"""Picks for which a row that was looked at is not screened again."""
FEW = 16
"""Rows that are measured exactly without being screened."""


def sample_size(candidates: int, picks: int, epsilon: float) -> int:
    """Rows of a sample for an expected shortfall of epsilon, at least 1 and at most all."""
    return max(1, min(candidates, math.ceil(-math.log(epsilon) * candidates / max(1, picks))))


def samples_together(sample: int) -> int:
    """How many samples of that size are drawn together, and looked back on."""
    return max(1, min(AHEAD, DRAWN // sample))


class Stochastic:
    """The best row of the last random samples, exactly.

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
        self._known = Bounds(pool, information, conflict, score, eligible, TIGHTEN_AT_FIRST)
        self._candidates = np.flatnonzero(eligible)
        self._place = np.full(len(pool), -1, dtype=np.int64)
        self._place[self._candidates] = np.arange(len(self._candidates))
        self._count = len(self._candidates)
        self._sample = sample
        self._together = samples_together(sample)
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, part])))
        self._wants_dots = bool(score.weight) and conflict.fixed is None
        self._work = 0.0
        # Row t of `_drawn` is shown from turn t on, row t of `_earlier` until turn t.
        self._earlier = np.zeros((0, 0), dtype=np.int64)
        self._drawn = np.zeros((0, 0), dtype=np.int64)
        self._turn = -1
        self._won: list[float] = []
        self._set_active(np.zeros(0, dtype=np.int64), np.zeros((0, pool.dim)))

    def best(self) -> Choice | None:
        """The best row of the last samples; of all candidates where a sample is no less."""
        self._turn += 1
        while self._count:
            if self._turn >= len(self._drawn):
                self._look_ahead()
            choice = self._best_shown()
            if choice is not None:
                self._won.append(choice.score)
                return choice
            # Quotas can close all rows that were drawn, and leave others.
            self._turn = len(self._drawn)
        return None

    def add(self, index: int) -> None:
        """Put a row into S and bring the active set up to date."""
        at = int(np.searchsorted(self._ids, index))
        if at == len(self._ids) or self._ids[at] != index or self._slots[at] < 0:
            self._add_unforeseen(index)
            return
        slot, past = self._slots[at], self._products[: self._steps, at]
        factor = self._factor(float(self._potentials[at]))
        product = (self._inner[slot] - past @ self._products[: self._steps]) * factor
        self._vectors[self._steps] = (self._images[slot] - past @ self._vectors[: self._steps]) * factor
        self._products[self._steps] = product
        self._steps += 1
        self._potentials = np.maximum(self._potentials - product * product, 0.0)
        self._conflict.add(self._rows[at])
        if self._wants_dots:
            self._dots += self._plain[slot]

    def _add_unforeseen(self, index: int) -> None:
        """Put a row into S whose products are not at hand."""
        self._flush()
        row = self._pool.row(index)
        image = self._information.times(row[None])[0]
        self._work += float(self._pool.dim) ** 2
        vector = image * self._factor(max(float(row @ image), 0.0))
        self._information.append(vector[None])
        self._conflict.add(row)
        if not len(self._ids):
            return
        product = self._rows @ vector
        self._potentials = np.maximum(self._potentials - product * product, 0.0)
        self._vectors[self._steps], self._products[self._steps] = vector, product
        self._steps = self._handed = self._steps + 1
        if self._wants_dots:
            self._dots += self._rows @ row

    def _factor(self, potential: float) -> float:
        return math.sqrt(self._information.alpha / (1.0 + self._information.alpha * potential))

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._known.close(indices)
        at = np.searchsorted(self._ids, indices)
        inside = at < len(self._ids)
        inside[inside] = self._ids[at[inside]] == indices[inside]
        self._offset[at[inside]] = -np.inf
        # The last candidates fill the places of those that go, so that a sample is drawn without a pass over them all.
        for index in indices[self._place[indices] >= 0].tolist():
            place, self._count = self._place[index], self._count - 1
            last = self._candidates[self._count]
            self._candidates[place], self._place[last] = last, place
            self._place[index] = -1

    def ending(self) -> Ending:
        """The last potential of every row, and the information without what only a running engine needs."""
        self._flush()
        self._known.potentials[self._ids] = self._potentials
        potentials = self._known.at_end()
        self._information.forget()
        return Ending(potentials, self._information, self._work + self._known.work)

    def _best_shown(self) -> Choice | None:
        gains = self._information.gains(self._potentials)
        if self._conflict.fixed is not None:
            conflicts = self._conflict.fixed[self._ids]
        else:
            dots = self._dots if self._wants_dots else self._rows @ self._conflict.total
            conflicts = self._conflict.of_dots(dots, self._norms[self._ids])
        shown = (self._from <= self._turn) | (self._turn < self._until)
        scores = np.where(shown, self._score(self._ids, gains, conflicts) + self._offset, -np.inf)
        best = float(scores.max(initial=-np.inf))
        others = max(self._others_drawn[self._turn], self._others_earlier[self._turn])
        if others > -np.inf and others >= best - 2 * slack(best):
            return self._settle(gains, conflicts, scores, best)
        at = lowest_best(scores, best)
        if at is None:
            return None
        return Choice(int(self._ids[at]), float(gains[at]), float(conflicts[at]), float(scores[at]))

    def _settle(
        self,
        gains: Float[np.ndarray, " a"],
        conflicts: Float[np.ndarray, " a"],
        scores: Float[np.ndarray, " a"],
        best: float,
    ) -> Choice | None:
        """Measure the other rows shown that the active set does not beat, the highest bounds first."""
        self._flush()
        values = self._known.values
        shown = np.concatenate([self._drawn[: self._turn + 1].ravel(), self._earlier[self._turn + 1 :].ravel()])
        bounds = values[shown]
        over = np.unique(shown[(bounds > -np.inf) & (bounds >= best - 2 * slack(best))])
        over = np.setdiff1d(over, self._ids, assume_unique=True)
        if len(over) > FEW:
            self._screen(over[np.argsort(-values[over])])
        over = over[np.argsort(-values[over], kind="stable")]
        columns = [(self._ids, gains, conflicts, scores)]
        done, size = 0, FEW // 2
        # Twice the slack: a bound may lie a rounding error below the gain that it bounds.
        while done < len(over) and values[over[done]] >= best - 2 * slack(best):
            ids = over[done : done + size]
            rows = self._pool.take(ids)
            gained = self._information.gains(self._known.refresh(ids, rows))
            opposed = self._conflict.of_rows(ids, rows, self._norms[ids])
            scored = self._score(ids, gained, opposed)
            columns.append((ids, gained, opposed, scored))
            best = max(best, float(scored.max()))
            done, size = done + len(ids), 2 * size
        self._note_bounds()
        ids, gains, conflicts, scores = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(ids, kind="stable")
        at = lowest_best(scores[order], best)
        if at is None:
            return None
        at = order[at]
        return Choice(int(ids[at]), float(gains[at]), float(conflicts[at]), float(scores[at]))

    def _look_ahead(self) -> None:
        """Draw the next samples, and choose the active set from the rows that may win with these or the last ones."""
        self._flush()
        open_rows = self._offset == 0.0
        self._known.write_back(self._ids[open_rows], self._potentials[open_rows])
        self._known.tighten()
        self._earlier, self._drawn, self._turn = self._drawn, self._draw(), 0
        values = self._known.values
        ids = np.concatenate([self._drawn.ravel(), self._earlier[1:].ravel()])
        bounds = values[ids]
        floor = min(self._floor(values), float(bounds.max()))
        ids = _highest(np.unique(ids[(bounds >= floor) & (bounds > -np.inf)]), values, SCREENED)
        self._screen(ids)
        ids = np.sort(_highest(ids, values, ACTIVE * len(self._drawn)))
        self._won = []
        self._activate(ids)

    def _draw(self) -> Int[np.ndarray, "t s"]:
        candidates = self._candidates[: self._count]
        if self._sample >= self._count:
            return np.tile(candidates, (self._together, 1))
        # With replacement: a sample then misses the best rows with just the probability that the guarantee allows.
        return candidates[self._random.integers(self._count, size=(self._together, self._sample))]

    def _floor(self, values: Float[np.ndarray, " n"]) -> float:
        """A score that the next picks will hardly fall below; a guess, by which nothing is left out for good."""
        if self._won:
            low = min(self._won)
            early = float(np.median(self._won[: max(1, len(self._won) // 4)]))
            return low - min(early - low, 0.2 * abs(low)) - 1e-3 * abs(low)
        few = min(8, self._drawn.shape[1])
        return float(np.median(np.partition(values[self._drawn], -few, axis=1)[:, -few]))

    def _screen(self, ids: Int[np.ndarray, " m"]) -> None:
        """Bring the bounds of rows down, of those that were not looked at of late."""
        stale = ids[self._known.unseen(ids) >= SCREENED_FOR]
        for start in range(0, len(stale), SCREENED // 2):
            part = stale[start : start + SCREENED // 2]
            self._known.screen(self._pool, part, self._norms[part])

    def _note_bounds(self) -> None:
        """The highest bound at each turn of the rows shown that are not active."""
        values = self._known.values
        bounds = np.where(self._drawn_active < 0, values[self._drawn], -np.inf).max(axis=1)
        self._others_drawn = np.maximum.accumulate(bounds)
        self._others_earlier = np.full(len(self._drawn), -np.inf)
        if len(self._earlier):
            bounds = np.where(self._earlier_active < 0, values[self._earlier], -np.inf).max(axis=1)
            self._others_earlier[:-1] = np.maximum.accumulate(bounds[:0:-1])[::-1]

    def _note_turns(self) -> None:
        """When each active row is shown: from one turn on, and until another."""
        self._drawn_active, self._earlier_active = (_places(self._ids, drawn) for drawn in (self._drawn, self._earlier))
        self._from = np.full(len(self._ids), len(self._drawn))
        self._until = np.zeros(len(self._ids), dtype=np.int64)
        turn, column = np.nonzero(self._drawn_active >= 0)
        np.minimum.at(self._from, self._drawn_active[turn, column], turn)
        turn, column = np.nonzero(self._earlier_active >= 0)
        np.maximum.at(self._until, self._earlier_active[turn, column], turn)

    def _activate(self, ids: Int[np.ndarray, " a"]) -> None:
        """Make rows the active set; those that would be picked if scores stayed as they are get their images as well.

        A row's potential is at hand with its image, so that only the others' are measured apart.
        """
        rows = self._pool.take(ids)
        self._set_active(ids, rows)
        self._note_turns()
        self._note_bounds()
        scores = self._known.values[ids]
        chosen: list[int] = []
        for turn in range(len(self._drawn)):
            shown = np.where((self._from <= turn) | (turn < self._until), scores, -np.inf)
            if shown.max(initial=-np.inf) > -np.inf:
                chosen.append(int(shown.argmax()))
                scores[chosen[-1]] = -np.inf
        likely = rows[chosen]
        self._images = self._information.times(likely)
        self._inner = self._images @ rows.T
        self._plain = likely @ rows.T if self._wants_dots else self._inner
        self._work += float(len(chosen)) * self._pool.dim * (self._pool.dim + len(ids))
        self._slots[chosen] = np.arange(len(chosen))
        self._potentials[chosen] = np.maximum(self._inner[np.arange(len(chosen)), chosen], 0.0)
        self._known.write_back(ids[chosen], self._potentials[chosen])
        others = np.flatnonzero(self._slots < 0)
        self._potentials[others] = self._known.refresh(ids[others], rows[others])

    def _set_active(self, ids: Int[np.ndarray, " a"], rows: Float[np.ndarray, "a d"]) -> None:
        self._ids, self._rows = ids, rows
        self._potentials = np.zeros(len(ids))
        self._offset = np.zeros(len(ids))
        self._dots = rows @ self._conflict.total if self._wants_dots else np.zeros(0)
        self._slots = np.full(len(ids), -1)
        room = self._together if len(ids) else 0
        self._vectors = np.empty((room, self._pool.dim))
        self._products = np.empty((room, len(ids)))
        self._steps = self._handed = 0

    def _flush(self) -> None:
        """Hand the update vectors since the last time to the information."""
        if self._handed < self._steps:
            self._information.append(self._vectors[self._handed : self._steps])
            self._handed = self._steps


def _places(ids: Int[np.ndarray, " a"], drawn: Int[np.ndarray, "t s"]) -> Int[np.ndarray, "t s"]:
    """Where each drawn row is among the sorted ids; -1: nowhere."""
    if not len(ids):
        return np.full(drawn.shape, -1)
    at = np.minimum(np.searchsorted(ids, drawn), len(ids) - 1)
    return np.where(ids[at] == drawn, at, -1)


def _highest(ids: Int[np.ndarray, " m"], values: Float[np.ndarray, " n"], most: int) -> Int[np.ndarray, " h"]:
    """The rows with the highest bounds, at most so many."""
    if len(ids) <= most:
        return ids
    return ids[np.argpartition(values[ids], len(ids) - most)[len(ids) - most :]]
