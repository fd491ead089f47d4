"""Rows that were not chosen, as they stand after the last pick: what each would still add, and whether it opposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.posterior import Posterior, ScaledRows
from spice_select.selection.conflict import VANISHED, cosines
from spice_select.selection.rows import as_rows

if TYPE_CHECKING:
    import pandas as pd

MOST_WORK = 8_000_000_000
"""Multiply-adds in float64 that the gains may cost, a few seconds on one core."""
CHUNK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Rejected:
    """The rows left out, given the picks.

    Attributes:
        indices: Those whose gain was measured, of the largest gain first, ``[m]``.
        gains: Their marginal gains in nats, ``[m]``.
        conflicts: Conflict with the reference of every row of the pool, after the last pick, ``[n]``.
        leading: As many of the first as are proven to lead: no row that was not measured can gain as much.
    """

    indices: Int[np.ndarray, " m"]
    gains: Float[np.ndarray, " m"]
    conflicts: Float[np.ndarray, " n"]
    leading: int

    def to_pandas(self) -> pd.DataFrame:
        """One line a measured row."""
        import pandas as pd

        return pd.DataFrame(
            {"index": self.indices, "gain": self.gains, "conflict": self.conflicts[self.indices]},
        )


def measure_rejected(
    gradients: Any,
    picks: Sequence[int] | Int[np.ndarray, " k"],
    *,
    alpha: float,
    candidates: Bool[np.ndarray, " n"],
    factors: Float[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " i"] = (),
    reference: str = "selected",
    hinge: float = 0.0,
    members: Bool[np.ndarray, " n"] | None = None,
    want: int = 50,
    most_work: int = MOST_WORK,
) -> Rejected:
    """Measure the rows left out.

    A gain never exceeds log(1 + a |g|^2), so rows are measured from the largest norm down, until the ``want`` largest
    gains are known or ``most_work`` is spent.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``.
        picks: Rows chosen.
        alpha: Fisher scale a.
        candidates: Rows that could be chosen; picks among them are passed over.
        factors: What normalisation multiplies each row by.
        initial: Rows in hand.
        reference: ``selected`` or ``pool``: whose mean a row conflicts with.
        hinge: Cosine below which a row is in conflict.
        members: Rows that make up the pool's mean; the candidates where absent.
        want: Largest gains that are asked for; 0 measures conflicts alone, as for a diagonal form.
        most_work: Multiply-adds that may be spent on gains.
    """
    rows = as_rows(gradients)
    n, dim = rows.shape
    scaled = ScaledRows(rows, factors)
    held = np.concatenate([np.asarray(initial, dtype=np.int64), np.asarray(picks, dtype=np.int64)])
    pool = candidates if members is None else members
    total, mass = _sum(scaled, np.flatnonzero(pool) if reference == "pool" else held)
    norms, conflicts = np.zeros(n), np.zeros(n)
    length = float(np.sqrt(total @ total))
    for start in range(0, n, CHUNK_ROWS):
        numbers = np.arange(start, min(start + CHUNK_ROWS, n))
        block = scaled.scaled(numbers)
        norms[numbers] = np.sqrt(np.einsum("ij,ij->i", block, block))
        if length > VANISHED * mass:
            conflicts[numbers] = np.maximum(0.0, hinge - cosines(block @ total, norms[numbers], length))
    sound = np.isfinite(norms) & (norms > 0)
    conflicts[~sound] = 0.0
    left = candidates & sound
    left[held] = False
    order = np.flatnonzero(left)
    order = order[np.argsort(-norms[order], kind="stable")]
    bounds = np.log1p(alpha * norms[order] ** 2)
    gains = np.zeros(0)
    if want and len(order):
        posterior = Posterior(scaled, held, alpha)
        cost = dim * max(1, min(len(held), dim))
        while len(gains) < len(order) and (not len(gains) or cost * len(gains) < most_work):
            if len(gains) >= want and np.partition(gains, -want)[-want] >= bounds[len(gains)]:
                break
            block = scaled.scaled(order[len(gains) : len(gains) + CHUNK_ROWS])
            gains = np.concatenate([gains, np.log1p(alpha * posterior.upper(block))])
    measured, rest = order[: len(gains)], bounds[len(gains) :]
    ranked = np.lexsort((measured, -gains))
    leading = len(gains) if not len(rest) else int((gains >= rest[0]).sum())
    return Rejected(measured[ranked], gains[ranked], conflicts, leading)


def _sum(scaled: ScaledRows, numbers: Int[np.ndarray, " m"]) -> tuple[Float[np.ndarray, " d"], float]:
    """Sum of some rows, and the sum of their norms."""
    total, mass = np.zeros(scaled.shape[1]), 0.0
    for start in range(0, len(numbers), CHUNK_ROWS):
        block = scaled.scaled(numbers[start : start + CHUNK_ROWS])
        total += block.sum(axis=0)
        mass += float(np.sqrt(np.einsum("ij,ij->i", block, block)).sum())
    return total, mass
