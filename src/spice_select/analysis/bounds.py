"""Bounds on epsilon: Theorem 4 of the paper where its assumptions hold, and one that always holds.

With rho >= a |F_S|_2 and rho < 1, Gmax the largest norm of the rows in question, and C = 1 / (1 - rho - a Gmax^2 rho)::

    |eps_x(S)| <= C a^2 sum_{y in S} (g_x . g_y)^2 / (1 + a |g_x|^2)        while the denominator of C is positive

With n = |g_x|^2 and mu = a sum_{y in S} (g_x . g_y)^2 / n, the Cauchy-Schwarz inequality |g|^4 <= g^T M g * g^T M^-1 g
for M = I + a F_S gives, without any assumption::

    |eps_x(S)| <= log[(1 + mu)(1 + a n) / (1 + mu + a n)] <= log(1 + a n)

References:
    SPICE, ICLR 2026, arXiv 2601.23155, Theorem 4 and Table 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from spice_select.analysis.chosen import largest_eigenvalue
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.decomposition import Pairs
from spice_select.analysis.ranks import spearman

if TYPE_CHECKING:
    import pandas

ScaleName = Literal["run", "paper-table-4"]
TABLE_4 = 0.5
"""a |F_S|_2 at the scale called "paper-table-4"."""
ROUNDING = 1e-12
"""Part of base by which |eps| may pass a bound, beside the rounding of |eps| itself, before that is a violation."""


class Theorem4(Numbers):
    """Theorem 4's bound for one pair (x, S), or why it says nothing.

    Attributes:
        rho: a |F_S|_2.
        denominator: 1 - rho - a Gmax^2 rho.
        constant: C; None where an assumption fails.
        bound: Right side in nats; None where an assumption fails.
        reason: The assumption that fails.
    """

    rho: float
    denominator: float
    constant: float | None
    bound: float | None
    reason: str | None


def theorem4(
    held: Float[np.ndarray, "t d"],
    row: Float[np.ndarray, " d"],
    *,
    alpha: float,
    largest_norm: float | None = None,
) -> Theorem4:
    """Theorem 4's bound on |eps_x(S)|.

    Args:
        held: Gradients of S.
        row: Gradient of x.
        alpha: Fisher scale a.
        largest_norm: Gmax; the largest among S and x where absent.
    """
    held, row = np.asarray(held, dtype=np.float64), np.asarray(row, dtype=np.float64)
    squares = float(np.square(held @ row).sum())
    squared = float(row @ row)
    largest = max([squared, *np.einsum("ij,ij->i", held, held).tolist()])
    if largest_norm is not None:
        largest = largest_norm**2
    rho = alpha * largest_eigenvalue(held @ held.T)
    denominator = 1.0 - rho - alpha * largest * rho
    reason = _reason(rho, denominator)
    constant = None if reason else 1.0 / denominator
    return Theorem4(
        rho=rho,
        denominator=denominator,
        constant=constant,
        bound=None if constant is None else constant * alpha**2 * squares / (1.0 + alpha * squared),
        reason=reason,
    )


def _reason(rho: float, denominator: float) -> str | None:
    if rho >= 1.0:
        return f"a |F_S| is {rho:.3g}, and the theorem asks for less than 1"
    if denominator <= 0.0:
        return f"the denominator of C, 1 - rho - a Gmax^2 rho, is {denominator:.3g}, and must be positive"
    return None


def free_bound(
    squares: Float[np.ndarray, " m"], squared_norms: Float[np.ndarray, " m"], alpha: float
) -> Float[np.ndarray, " m"]:
    """Upper bounds on |eps_x(S)| in nats that need no assumption.

    Args:
        squares: sum over S of (g_x . g_y)^2 for each x.
        squared_norms: |g_x|^2.
        alpha: Fisher scale a.
    """
    squares, norms = np.asarray(squares, dtype=np.float64), np.asarray(squared_norms, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pull = np.where(norms > 0, alpha * squares / norms, 0.0)
        worth = alpha * norms
        # (1 + mu)(1 + w) / (1 + mu + w) = 1 + mu w / (1 + mu + w), and never above 1 + w.
        product = worth * (pull / (1.0 + pull + worth))
    product = np.where(np.isfinite(product), product, worth)
    return np.minimum(np.log1p(product), np.log1p(worth))


class BoundCheck(Numbers):
    """Both bounds against |eps| over random pairs (x, S) of one size.

    Attributes:
        size: |S|.
        scale: ``"run"``: the selection's own a; ``"paper-table-4"``: a = 0.5 / |F_S|_2 for each S, as Theorem 4 never
            applies to real gradients at the scales that select well.
        alpha: Fisher scale a, the median over the sets.
        pairs: Pairs that were tried.
        rho: a |F_S|_2, the median over the sets.
        applies: Share of the pairs for which Theorem 4's assumptions hold.
        reason: Why it does not hold, for the first pair where it doesn't.
        theorem_spearman: Rank correlation of its right side with |eps|; None where it holds for none.
        theorem_violations: Share of the pairs, of those it holds for, where |eps| exceeds it.
        theorem_looseness: Median of right side over |eps|.
        diagonal_violations: The same share with the diagonal approximation's eps instead of the exact one.
        diagonal_spearman: Rank correlation of the right side with the diagonal approximation's |eps|.
        free_spearman: Rank correlation of the assumption-free bound with |eps|.
        free_violations: Share of all pairs where |eps| exceeds it.
        free_looseness: Median of that bound over |eps|.
    """

    size: int
    scale: ScaleName
    alpha: float
    pairs: int
    rho: float
    applies: float
    reason: str | None
    theorem_spearman: float | None
    theorem_violations: float | None
    theorem_looseness: float | None
    diagonal_violations: float | None
    diagonal_spearman: float | None
    free_spearman: float | None
    free_violations: float
    free_looseness: float | None


def check_bounds(pairs: Sequence[Pairs], *, alpha: float, scale: ScaleName = "run") -> BoundCheck:
    """Hold both bounds against |eps| of random pairs.

    Args:
        pairs: As ``decomposition.random_pairs`` draws them.
        alpha: Fisher scale a of the selection.
        scale: Which a to use.
    """
    lost, right, free, diagonal, bases, rounding = [], [], [], [], [], []
    alphas, rhos, reason = [], [], None
    for one in pairs:
        largest = largest_eigenvalue(one.gram)
        used = alpha if scale == "run" else (TABLE_4 / largest if largest > 0 else alpha)
        rho = used * largest
        # Gmax over S and x alone: the theorem holds within any pool that has them.
        gmax = np.maximum(one.squared, one.diagonal.max(initial=0.0))
        denominators = 1.0 - rho - used * gmax * rho
        holds = (rho < 1.0) & (denominators > 0.0)
        if reason is None and not holds.all():
            reason = _reason(rho, float(denominators[np.argmin(holds)]))
        with np.errstate(divide="ignore"):
            bound = used**2 * one.squares / (1.0 + used * one.squared) / denominators
        right.append(np.where(holds, bound, np.nan))
        lost.append(-one.epsilons(used))
        # 1 + a q is what is left of 1 + a |g|^2, and the solve before it loses as the matrix is ill-conditioned.
        with np.errstate(over="ignore"):
            worst = len(one.held) * np.finfo(np.float64).eps * (1.0 + rho) * np.exp(np.abs(lost[-1]))
        rounding.append(worst)
        free.append(free_bound(one.squares, one.squared, used))
        bases.append(np.log1p(used * one.squared))
        weights = 1.0 / (1.0 + used * np.square(one.held).sum(axis=0))
        diagonal.append(np.abs(np.log1p(used * (np.square(one.others) @ weights)) - bases[-1]))
        alphas.append(used)
        rhos.append(rho)
    values, bound, own, base = (np.concatenate(part) for part in (lost, right, free, bases))
    approximate = np.concatenate(diagonal)
    known = np.isfinite(bound)
    slack = ROUNDING * (1.0 + base) + np.concatenate(rounding)
    return BoundCheck(
        size=len(pairs[0].held),
        scale=scale,
        alpha=float(np.median(alphas)),
        pairs=len(values),
        rho=float(np.median(rhos)),
        applies=float(known.mean()),
        reason=reason,
        theorem_spearman=spearman(bound[known], values[known]),
        theorem_violations=float((values > bound + slack)[known].mean()) if known.any() else None,
        theorem_looseness=_looseness(bound[known], values[known]),
        diagonal_violations=float((approximate > bound + slack)[known].mean()) if known.any() else None,
        diagonal_spearman=spearman(bound[known], approximate[known]),
        free_spearman=spearman(own, values),
        free_violations=float((values > own + slack).mean()),
        free_looseness=_looseness(own, values),
    )


def bounds_table(checks: Sequence[BoundCheck]) -> pandas.DataFrame:
    """One line for each size and scale."""
    import pandas

    return pandas.DataFrame([check.model_dump() for check in checks], columns=list(BoundCheck.model_fields))


def _looseness(bound: Float[np.ndarray, " m"], values: Float[np.ndarray, " m"]) -> float | None:
    felt = values > 0
    return float(np.median(bound[felt] / values[felt])) if felt.any() else None
