"""How information accumulates: several ways of choosing at equal numbers, and low against high conflict.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, section 3.3 and Figure 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.chosen import Part, gather, log_det, shifted
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.curves import (
    WORK,
    Curve,
    CurveName,
    HalfLife,
    checkpoints,
    half_life,
    information_at,
    most_picks,
)
from spice_select.analysis.posterior import ScaledRows
from spice_select.selection import select

if TYPE_CHECKING:
    import pandas

RANDOM_RUNS = 5
LARGEST_FIFTH_BUDGET = 256
"""Most rows chosen from each fifth of the pool."""


class Fifth(Numbers):
    """What a fifth of the pool holds, by conflict with the pool's mean gradient.

    Attributes:
        name: ``"low"`` or ``"high"`` conflict.
        rows: Rows in the fifth.
        conflict: Median of -cos with the pool's mean.
        norm: Median gradient norm, scaled as the selection saw it.
        budget: Rows chosen from it.
        random: Mean information of random choices of that many of its rows, in nats.
        random_deviation: Standard deviation over those choices.
        greedy: Information of the greedy choice without penalty.
        half_life: Of the greedy gains.
        random_unit: As ``random``, with every row scaled to the median norm of the pool: direction without length.
    """

    name: str
    rows: int
    conflict: float
    norm: float
    budget: int
    random: float
    random_deviation: float
    greedy: float
    half_life: HalfLife
    random_unit: float


class Trajectory(Numbers):
    """Curves at equal numbers of picks.

    Attributes:
        half_life: Of the selection's own gains.
        curves: One for each way of choosing.
        fifths: Low and high conflict.
        picks: Picks that the curves reach.
        of: Picks of the selection.
    """

    half_life: HalfLife
    curves: tuple[Curve, ...]
    fifths: tuple[Fifth, ...]
    picks: int
    of: int

    def to_pandas(self) -> pandas.DataFrame:
        """One line for each curve and checkpoint."""
        import pandas

        return pandas.concat([curve.to_pandas() for curve in self.curves], ignore_index=True)


def follow(
    rows: ScaledRows,
    picks: Int[np.ndarray, " k"],
    gains: Float[np.ndarray, " k"],
    pool: Int[np.ndarray, " m"],
    norms: Float[np.ndarray, " n"],
    opposition: Float[np.ndarray, " m"],
    *,
    alpha: float,
    conflict_weight: float,
    initial: Int[np.ndarray, " i"],
    seed: int = 0,
    runs: int = RANDOM_RUNS,
    work: float = WORK,
) -> Trajectory:
    """Information along the picks, along greedy without penalty, the largest norms and random rows.

    Args:
        rows: The gradients.
        picks: Picks in order.
        gains: Their gains in nats.
        pool: Rows that could be chosen.
        norms: |g|^2 of every row.
        opposition: -cos of each row of the pool with the pool's mean.
        alpha: Fisher scale a.
        conflict_weight: lambda of the picks; 0: they are greedy without penalty themselves.
        initial: Rows in hand.
        seed: Of the random choices.
        runs: Random choices.
        work: Multiply-adds allowed for one curve.
    """
    generator = np.random.default_rng(seed)
    free = np.setdiff1d(pool, initial)
    size = min(len(picks), most_picks(rows.shape[1], work), len(free))
    steps = checkpoints(size)

    def curve(name: CurveName, choices: list[np.ndarray], decay: HalfLife | None = None) -> Curve:
        values = np.array([information_at(rows, one, steps, alpha=alpha, initial=initial) for one in choices])
        columns = (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
        mean, low, high = (tuple(column.tolist()) for column in columns)
        return Curve(
            name=name, picks=tuple(steps), information=mean, low=low, high=high, runs=len(choices), half_life=decay
        )

    curves = [curve("picks", [picks[:size]], half_life(gains))]
    if size:
        if conflict_weight:
            plain = greedy(rows, free, size, alpha, initial)
            curves.append(curve("fisher", [plain[0]], half_life(plain[1])))
        else:
            curves.append(curves[0].model_copy(update={"name": "fisher"}))
        curves.append(curve("top norm", [free[np.argsort(-norms[free], kind="stable")][:size]]))
        curves.append(curve("random", [generator.permutation(free)[:size] for _ in range(runs)]))
    return Trajectory(
        half_life=half_life(gains),
        curves=tuple(curves),
        fifths=_fifths(rows, pool, norms, opposition, alpha, size, generator, runs),
        picks=size,
        of=len(picks),
    )


def greedy(
    rows: ScaledRows, pool: Int[np.ndarray, " m"], size: int, alpha: float, initial: Int[np.ndarray, " i"]
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Greedy picks without penalty and their gains."""
    left_out = np.ones(rows.shape[0], dtype=bool)
    left_out[pool] = False
    left_out[initial] = False
    found = select(
        Part(rows, np.arange(rows.shape[0])),
        budget=size,
        alpha=alpha,
        conflict_weight=0.0,
        exclude=left_out,
        initial=initial if len(initial) else None,
    )
    return found.indices, found.gains


def _fifths(
    rows: ScaledRows,
    pool: Int[np.ndarray, " m"],
    norms: Float[np.ndarray, " n"],
    opposition: Float[np.ndarray, " m"],
    alpha: float,
    picks: int,
    generator: np.random.Generator,
    runs: int,
) -> tuple[Fifth, ...]:
    """Random and greedy choices of equal size from the fifths of least and of most conflict; rows in hand play no part.

    The size is that of the selection, but at most half of a fifth, so that there is something to choose.
    """
    count = len(pool) // 5
    budget = min(picks, count // 2, LARGEST_FIFTH_BUDGET)
    if budget < 1:
        return ()
    order = np.argsort(opposition, kind="stable")
    typical = float(np.median(norms[pool]))
    found = []
    for name, places in (("low", order[:count]), ("high", order[-count:])):
        members = np.sort(pool[places])
        random, unit = [], []
        for _ in range(runs):
            held = gather(rows, generator.permutation(members)[:budget])
            gram = held @ held.T
            random.append(log_det(shifted(gram, alpha)))
            lengths = np.sqrt(np.diagonal(gram))
            scale = np.divide(np.sqrt(typical), lengths, out=np.zeros(len(lengths)), where=lengths > 0)
            unit.append(log_det(shifted(gram * np.outer(scale, scale), alpha)))
        chosen = select(Part(rows, members), budget=budget, alpha=alpha, conflict_weight=0.0)
        found.append(
            Fifth(
                name=name,
                rows=count,
                conflict=float(np.median(opposition[places])),
                norm=float(np.sqrt(np.median(norms[members]))),
                budget=budget,
                random=float(np.mean(random)),
                random_deviation=float(np.std(random)),
                greedy=chosen.information,
                half_life=half_life(chosen.gains),
                random_unit=float(np.mean(unit)),
            )
        )
    return tuple(found)
