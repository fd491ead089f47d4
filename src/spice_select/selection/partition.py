"""Partition greedy in two rounds, for pools that one greedy cannot walk.

Rows are dealt at random to partitions, each partition makes its own picks, and a second greedy chooses from the picks
of all.

The answer is the better of the second round and the best single partition. For a monotone submodular objective, a
budget in rows and exact greedy in both rounds its expected value is at least (1 - 1/e) / 2 of the best possible; the
certificate measures what a run really reached.

References:
    Mirzasoleiman et al., Distributed Submodular Maximization, JMLR 2016, arXiv 1411.0541.
    Barbosa et al., The Power of Randomization: Distributed Submodular Maximization on Massive Datasets, ICML 2015,
    arXiv 1502.02606.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.selection.budget import Budget
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.engines import Recipe, make_engine, resolve_loop, threads_of
from spice_select.selection.greedy import Trace, run_greedy
from spice_select.selection.quotas import Limits
from spice_select.selection.rows import Pool, Rows
from spice_select.selection.stopping import StopRule


@dataclass(frozen=True, eq=False)
class Part:
    """One partition of the first round, with all that its greedy needs; it can be sent to another process.

    Arrays are of the members alone, so that what is sent is no larger than the partition; what ``source`` holds of
    other rows, such as the records of a store, comes on top.

    Attributes:
        number: Which partition.
        members: Row numbers it may choose from, ascending, shape [m].
        source: Gradient rows of the whole pool, read by number.
        squared_norms: |g|^2 of the scaled members.
        factors: What each member is multiplied by; None where it is nothing.
        fixed: Conflict of each member, where it does not depend on the picks.
        lengths: Response tokens of each member, where the budget counts them.
        per_row: Factor of each member's score.
        in_hand: Scaled gradients already in hand, shape [h, d].
        hinge: Cosine below which a row is in conflict.
        score: What is compared, but for ``per_row``.
        budget: Picks that it makes at most.
        recipe: How they are found.
    """

    number: int
    members: Int[np.ndarray, " m"]
    source: Rows
    squared_norms: Float[np.ndarray, " m"]
    factors: Float[np.ndarray, " m"] | None
    fixed: Float[np.ndarray, " m"] | None
    lengths: Int[np.ndarray, " m"] | None
    per_row: Float[np.ndarray, " m"] | None
    in_hand: Float[np.ndarray, "h d"]
    hinge: float
    score: Score
    budget: Budget
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class PartPicks:
    """What a partition chose.

    Attributes:
        number: Which partition.
        trace: Its steps, with row numbers of the whole pool.
        work: Multiply-adds that were spent on rows.
    """

    number: int
    trace: Trace
    work: float = 0.0

    @property
    def worth(self) -> float:
        """Sum of the scores of its picks."""
        return float(np.sum(self.trace.scores))


PartitionMap = Callable[[Callable[[Part], PartPicks], Sequence[Part]], Iterable[PartPicks]]
"""Applies a function to every partition, in any order and anywhere."""


class Members:
    """The rows of some numbers as a pool of their own.

    Args:
        source: All rows.
        numbers: Which, ascending.
    """

    def __init__(self, source: Rows, numbers: Int[np.ndarray, " m"]) -> None:
        self._source = source
        self._numbers = numbers

    @property
    def shape(self) -> tuple[int, int]:
        """Members m and dimension d."""
        return len(self._numbers), self._source.shape[1]

    def rows(self, indices: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """The members of those places, in that order."""
        return self._source.rows(self._numbers[indices])

    def blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
        """Every member once, in order."""
        for start in range(0, len(self._numbers), size):
            yield start, self._source.rows(self._numbers[start : start + size])


_DEALING = 1 << 32
"""Stream of the seed that deals rows, beside those that partitions draw samples from."""


def deal(candidates: Bool[np.ndarray, " n"], partitions: int, seed: int) -> list[Int[np.ndarray, " m"]]:
    """Row numbers of the candidates, dealt at random to partitions of equal size to within one, each ascending."""
    rows = np.flatnonzero(candidates)
    shuffled = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _DEALING]))).permutation(rows)
    return [np.sort(shuffled[number::partitions]) for number in range(min(partitions, len(rows)))]


def one_after_another(function: Callable[[Part], PartPicks], parts: Sequence[Part]) -> Iterable[PartPicks]:
    """The plain map, in this process."""
    return map(function, parts)


def choose_part(part: Part) -> PartPicks:
    """The first round of one partition: greedy over its members alone."""
    pool = Pool(Members(part.source, part.members), None, part.squared_norms, part.factors)
    in_hand = pool.append(part.in_hand)
    budget = Budget(min(part.budget.rows, len(part.members)), part.budget.tokens)
    limits = Limits(np.ones(len(part.members), dtype=bool), budget, part.lengths)
    fixed = part.fixed
    per_row = part.per_row
    if len(in_hand):
        # Rows in hand are behind the members and no candidates; what they hold here is never read.
        fixed = None if fixed is None else np.concatenate([fixed, np.zeros(len(in_hand))])
        per_row = None if per_row is None else np.concatenate([per_row, np.ones(len(in_hand))])
    score = Score(part.score.weight, part.score.relative, per_row)
    loop = resolve_loop(part.recipe.loop, part.recipe.fisher, len(part.members), pool.dim)
    with threads_of(loop):
        engine = make_engine(loop, part.recipe, pool, Conflict(pool.dim, part.hinge, fixed), score, limits, budget)
        for index in in_hand:
            engine.add(int(index))
        trace = run_greedy(engine, limits, StopRule())
        ending = engine.ending()
    trace.indices = part.members[np.array(trace.indices, dtype=np.int64)].tolist()
    return PartPicks(part.number, trace, 0.0 if ending is None else ending.work)


@dataclass(frozen=True, eq=False)
class Partitioned:
    """A selection that is made in two rounds; the arguments are those of the whole pool.

    Attributes:
        pool: The rows as selection sees them.
        source: The same rows as they were given, for whoever reads them elsewhere.
        eligible: Candidates, shape [n].
        lengths: Response tokens of each row.
        in_hand: Numbers of the rows already in hand.
        conflict: What opposes, before any pick.
        score: What is compared.
        budget: Picks.
        recipe: How they are found.
    """

    pool: Pool
    source: Rows
    eligible: Bool[np.ndarray, " n"]
    lengths: Int[np.ndarray, " n"] | None
    in_hand: Int[np.ndarray, " h"]
    conflict: Conflict
    score: Score
    budget: Budget
    recipe: Recipe

    def first_round(self, partitions: int, apply: PartitionMap) -> list[PartPicks]:
        """The picks of every partition, by number."""
        dealt = deal(self.eligible, partitions, self.recipe.seed)
        parts = [self._part(number, members) for number, members in enumerate(dealt)]
        return sorted(apply(choose_part, parts), key=lambda picks: picks.number)

    def _part(self, number: int, members: Int[np.ndarray, " m"]) -> Part:
        def of(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[members]

        return Part(
            number=number,
            members=members,
            source=self.source,
            squared_norms=self.pool.squared_norms[members],
            factors=of(self.pool.factors),
            fixed=of(self.conflict.fixed),
            lengths=of(self.lengths) if self.budget.tokens is not None else None,
            per_row=of(self.score.per_row),
            in_hand=self.pool.take(self.in_hand),
            hinge=self.conflict.hinge,
            score=Score(self.score.weight, self.score.relative),
            budget=self.budget,
            recipe=replace(self.recipe, part=number + 1),
        )


def united(picks: Sequence[PartPicks], n: int) -> Bool[np.ndarray, " n"]:
    """Which of n rows any partition chose."""
    chosen = np.zeros(n, dtype=bool)
    for part in picks:
        chosen[part.trace.indices] = True
    return chosen


def best_part(picks: Sequence[PartPicks], budget: Budget) -> PartPicks | None:
    """The partition whose own picks are worth most, of those that fill the budget; the first of them on a tie.

    A partition that has too few rows for the budget is no answer, though penalties may make fewer rows worth more.
    Where rows are counted, all partitions have chosen all that they have then, and the second round is exact.
    """
    full = [part for part in picks if len(part.trace.indices) == budget.rows or part.trace.stop_reason == "tokens"]
    return max(sorted(full, key=lambda part: part.number), key=lambda part: part.worth, default=None)
