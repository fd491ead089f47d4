"""How conflict goes with gain and with epsilon: along the picks, across the pool at one moment, and between two rows.

Along the picks, step number drives everything: gains fall and the mean settles. Across the pool at one fixed S it does
not. Epsilon itself depends on squared inner products, so that agreeing rows lose as much as opposing ones.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, Figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.chosen import draw, epsilon_of, gather, shifted
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.opposition import against_mean, against_running_mean
from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows, cholesky
from spice_select.analysis.ranks import spearman

if TYPE_CHECKING:
    import pandas

SettingName = Literal["picks", "pool", "pairs"]
MOST_MEMBERS = 512
"""Most rows of the fixed S, the first picks."""
MOST_OTHERS = 4096
"""Rows of the pool compared with it."""


class ConflictCorrelation(Numbers):
    """Spearman of conflict with gain and with |eps|, None where a side is constant.

    Attributes:
        setting: ``"picks"``: each pick against the mean of those before it; ``"pool"``: rows outside against the mean
            of one fixed S, the first picks; ``"pairs"``: random pairs of rows, S a single row.
        size: |S|; None along the picks, where it grows.
        pairs: Rows or pairs compared.
        opposing: Share of them with conflict above 0.
        gain: Conflict max(0, -cos) with D_x(S).
        epsilon: Conflict with |eps_x(S)|.
        relative: Conflict with |eps_x(S)| / base_x.
        signed_gain: -cos, without the hinge, with D_x(S).
        signed_epsilon: -cos with |eps_x(S)|.
        signed_relative: -cos with |eps_x(S)| / base_x.
    """

    setting: SettingName
    size: int | None
    pairs: int
    opposing: float
    gain: float | None
    epsilon: float | None
    relative: float | None
    signed_gain: float | None
    signed_epsilon: float | None
    signed_relative: float | None


def correlate(
    setting: SettingName,
    size: int | None,
    opposition: Float[np.ndarray, " m"],
    bases: Float[np.ndarray, " m"],
    epsilons: Float[np.ndarray, " m"],
    conflicts: Float[np.ndarray, " m"] | None = None,
) -> ConflictCorrelation:
    """Correlations of one setting.

    Args:
        setting: Its name.
        size: |S|.
        opposition: -cos.
        bases: base_x in nats.
        epsilons: eps_x(S) in nats.
        conflicts: Conflict as the selection measured it; max(0, -cos) where absent.
    """
    conflict = np.maximum(opposition, 0.0) if conflicts is None else conflicts
    lost, gain = np.abs(epsilons), bases + epsilons
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(bases > 0, lost / bases, np.nan)
    return ConflictCorrelation(
        setting=setting,
        size=size,
        pairs=len(bases),
        opposing=float((conflict > 0).mean()) if len(conflict) else 0.0,
        gain=spearman(conflict, gain),
        epsilon=spearman(conflict, lost),
        relative=spearman(conflict, relative),
        signed_gain=spearman(opposition, gain),
        signed_epsilon=spearman(opposition, lost),
        signed_relative=spearman(opposition, relative),
    )


def conflict_correlations(
    rows: ScaledRows,
    picks: Int[np.ndarray, " k"],
    gains: Float[np.ndarray, " k"],
    conflicts: Float[np.ndarray, " k"],
    pool: Int[np.ndarray, " m"],
    norms: Float[np.ndarray, " n"],
    *,
    alpha: float,
    initial: Int[np.ndarray, " i"],
    samples: int = MOST_OTHERS,
    seed: int = 0,
) -> tuple[ConflictCorrelation, ...]:
    """Correlations along the picks, across the pool, and between two rows.

    Args:
        rows: The gradients.
        picks: Picks in order.
        gains: Their gains in nats.
        conflicts: Their conflicts as the selection measured them.
        pool: Rows that could be chosen.
        norms: |g|^2 of every row.
        alpha: Fisher scale a.
        initial: Rows in hand.
        samples: Rows and pairs that are compared at most.
        seed: Of their choice.
    """
    generator = np.random.default_rng(seed)
    found = []
    # The first pick has nothing before it to oppose.
    later = slice(0 if len(initial) else 1, None)
    bases = np.log1p(alpha * norms[picks])
    running = against_running_mean(rows, picks, initial)
    found.append(
        correlate("picks", None, running[later], bases[later], (gains - bases)[later], np.asarray(conflicts)[later])
    )
    members = np.concatenate([initial, picks]).astype(np.int64)[:MOST_MEMBERS]
    outside = np.setdiff1d(pool, members)
    outside = np.sort(draw(generator, outside, min(samples, len(outside))))
    if len(members) and len(outside):
        base = np.log1p(alpha * norms[outside])
        epsilon = _epsilons(rows, members, outside, base, alpha)
        found.append(correlate("pool", len(members), against_mean(rows, members, outside), base, epsilon))
    half = min(samples, len(pool) // 2)
    if half:
        chosen = draw(generator, pool, 2 * half)
        found.append(_pairs(rows, chosen[:half], chosen[half:], alpha))
    return tuple(found)


def correlation_table(found: Sequence[ConflictCorrelation]) -> pandas.DataFrame:
    """One line a setting."""
    import pandas

    return pandas.DataFrame([one.model_dump() for one in found], columns=list(ConflictCorrelation.model_fields))


def _epsilons(
    rows: ScaledRows,
    members: Int[np.ndarray, " t"],
    others: Int[np.ndarray, " b"],
    bases: Float[np.ndarray, " b"],
    alpha: float,
) -> Float[np.ndarray, " b"]:
    held = gather(rows, members)
    factor = cholesky(shifted(held @ held.T, alpha))
    found = np.empty(len(others))
    for start in range(0, len(others), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        found[part] = epsilon_of(rows.scaled(others[part]) @ held.T, factor, bases[part], alpha)
    return found


def _pairs(
    rows: ScaledRows, left: Int[np.ndarray, " h"], right: Int[np.ndarray, " h"], alpha: float
) -> ConflictCorrelation:
    opposition, base, epsilon = (np.zeros(len(left)) for _ in range(3))
    for start in range(0, len(left), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        one, other = rows.scaled(left[part]), rows.scaled(right[part])
        dots = np.einsum("ij,ij->i", one, other)
        squared, others = (np.einsum("ij,ij->i", side, side) for side in (one, other))
        with np.errstate(divide="ignore", invalid="ignore"):
            opposition[part] = np.nan_to_num(-dots / np.sqrt(squared * others))
        base[part] = np.log1p(alpha * squared)
        # D_x({y}) in closed form: the determinant of a 2 x 2 matrix.
        epsilon[part] = np.log1p(-np.square(alpha * dots) / ((1.0 + alpha * squared) * (1.0 + alpha * others)))
    return correlate("pairs", 1, opposition, base, epsilon)
