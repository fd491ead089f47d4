"""Greedy selection: one driver, and engines that find the best eligible row.

An engine knows an objective only by its gains. All engines follow one rule for ties, so that they give the same picks:
scores within 1e-9 * max(1, |best|) of the best tie, and the lowest row number wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import Information
from spice_select.selection.outlook import Ending
from spice_select.selection.quotas import Limits
from spice_select.selection.result import StopReason
from spice_select.selection.rows import Pool
from spice_select.selection.stopping import StopRule

TIE = 1e-9


class Choice(NamedTuple):
    """The best eligible row and what it is worth."""

    index: int
    gain: float
    conflict: float
    score: float


class Engine(Protocol):
    """Finds the best eligible row given the rows added so far."""

    def best(self) -> Choice | None:
        """The best eligible row; None when there is none."""
        ...

    def add(self, index: int) -> None:
        """Put a row of the pool into S, a candidate or not."""
        ...

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates for good."""
        ...

    def ending(self) -> Ending | None:
        """What is known of every row when the run is over; None where nothing is."""
        ...


@dataclass
class Trace:
    """What a greedy run did, step by step."""

    indices: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    conflicts: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    stop_reason: StopReason = "budget"
    rejected_gain: float | None = None


def run_greedy(engine: Engine, limits: Limits, stop: StopRule) -> Trace:
    """Add the best eligible row until the budget, the stop rule or the candidates end it."""
    trace = Trace()
    while limits.remaining > 0:
        choice = engine.best()
        if choice is None:
            trace.stop_reason = "tokens" if limits.tokens is not None else "exhausted"
            break
        if stop.stops(trace.gains, choice.gain):
            trace.stop_reason = "stop_ratio"
            trace.rejected_gain = choice.gain
            break
        trace.indices.append(choice.index)
        trace.gains.append(choice.gain)
        trace.conflicts.append(choice.conflict)
        trace.scores.append(choice.score)
        closed = limits.take(choice.index)
        if limits.remaining > 0:
            engine.add(choice.index)
            engine.close(closed)
    return trace


def slack(best: float) -> float:
    """How far below the best score a score still ties."""
    return TIE * max(1.0, abs(best))


def lowest_best(scores: Float[np.ndarray, " n"], best: float | None = None) -> int | None:
    """Position of the first score that ties with the best, of these or of more; None when none does."""
    best = float(scores.max(initial=-np.inf)) if best is None else best
    tied = scores >= best - slack(best)
    return int(np.argmax(tied)) if best > -np.inf and tied.any() else None


class Brute:
    """The definition: every gain and every mean afresh, for every candidate at every step."""

    def __init__(
        self, pool: Pool, information: Information, conflict: Conflict, score: Score, eligible: np.ndarray
    ) -> None:
        self._pool = pool
        self._information = information
        self._conflict = conflict
        self._score = score
        self._eligible = eligible.copy()
        self._selected = np.zeros((0, pool.dim))

    def ending(self) -> None:
        """Nothing: every gain is made afresh."""

    def best(self) -> Choice | None:
        """The best eligible row."""
        candidates = np.flatnonzero(self._eligible)
        if not len(candidates):
            return None
        rows = self._pool.take(candidates)
        gains = np.array([self._information.definition(self._selected, row) for row in rows])
        conflicts = self._conflict.of_rows(candidates, rows, np.sqrt(self._pool.squared_norms[candidates]))
        scores = self._score(candidates, gains, conflicts)
        at = lowest_best(scores)
        assert at is not None
        return Choice(int(candidates[at]), float(gains[at]), float(conflicts[at]), float(scores[at]))

    def add(self, index: int) -> None:
        """Put a row into S; the sum of S is taken from its rows again."""
        row = self._pool.row(index)
        self._selected = np.vstack([self._selected, row])
        self._conflict.add(row)
        self._conflict.total = self._selected.sum(axis=0)

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._eligible[indices] = False


class Dense:
    """Every row's potential and every inner product with the mean kept up to date: one pass over the rows a step."""

    def __init__(
        self, pool: Pool, information: Information, conflict: Conflict, score: Score, eligible: np.ndarray
    ) -> None:
        self._pool = pool
        self._information = information
        self._conflict = conflict
        self._score = score
        self._eligible = eligible.copy()
        self._norms = np.sqrt(pool.squared_norms)
        self._dots = np.zeros(len(pool))
        self._potentials = np.concatenate([information.potentials(block) for _, block in pool.blocks()])
        self._work = 0.0

    def best(self) -> Choice | None:
        """The best eligible row."""
        gains = self._information.gains(self._potentials)
        if self._conflict.fixed is not None:
            conflicts = self._conflict.fixed
        else:
            conflicts = self._conflict.of_dots(self._dots, self._norms)
        scores = np.where(self._eligible, self._score(slice(None), gains, conflicts), -np.inf)
        at = lowest_best(scores)
        return None if at is None else Choice(at, float(gains[at]), float(conflicts[at]), float(scores[at]))

    def add(self, index: int) -> None:
        """Put a row into S and bring every row up to date."""
        row = self._pool.row(index)
        self._information.add(row)
        self._conflict.add(row)
        self._work += float(len(self._pool)) * self._pool.dim
        for start, block in self._pool.blocks():
            part = slice(start, start + len(block))
            self._potentials[part] = self._information.updated(block, self._potentials[part])
            if self._conflict.fixed is None:
                self._dots[part] += block @ row

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._eligible[indices] = False

    def ending(self) -> Ending:
        """Potentials of the end for every row, but for a last pick that was not added."""
        return Ending(self._potentials, None, self._work)
