"""Conflict: how far a gradient opposes a mean gradient, and what that costs it.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, section 4. The relative penalty, the pool's mean and the hinge go beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# Below this share of the summed norms a sum of gradients is rounding noise and points nowhere.
VANISHED = 1e-7


def cosines(dots: Float[np.ndarray, " m"], norms: Float[np.ndarray, " m"], norm: float) -> Float[np.ndarray, " m"]:
    """Cosines from inner products with one vector; rows of zero norm get nan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(dots / (norms * norm), -1.0, 1.0)


class Conflict:
    """max(0, hinge - cos(g_x, m)), m the mean of the selected rows; 0 where m or g_x is 0.

    With ``fixed`` conflicts (against the pool's mean, known from the start) the selected rows play no part.

    Args:
        dim: Dimension d of the gradients.
        hinge: Cosine below which a row is in conflict.
        fixed: Conflict of each row where it doesn't depend on S.
    """

    def __init__(self, dim: int, hinge: float = 0.0, fixed: Float[np.ndarray, " n"] | None = None) -> None:
        self.hinge = hinge
        self.fixed = fixed
        self.total = np.zeros(dim)
        self.norm = 0.0
        self._mass = 0.0
        self._squared = 0.0

    def add(self, row: Float[np.ndarray, " d"]) -> None:
        """Put a row into S."""
        self.total = self.total + row
        self._mass += float(np.sqrt(row @ row))
        norm = float(np.sqrt(self.total @ self.total))
        self.norm = norm if norm > VANISHED * self._mass else 0.0

    def add_dot(self, dot: float, squared_norm: float) -> None:
        """Put a row into S of which only inner products are known: <g, sum of S> and |g|^2."""
        self._squared += 2.0 * dot + squared_norm
        self._mass += float(np.sqrt(squared_norm))
        norm = float(np.sqrt(max(self._squared, 0.0)))
        self.norm = norm if norm > VANISHED * self._mass else 0.0

    def of_dots(self, dots: Float[np.ndarray, " m"], norms: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Conflicts from inner products with the sum of S."""
        if self.norm == 0.0:
            return np.zeros(len(dots))
        conflicts = np.maximum(0.0, self.hinge - cosines(dots, norms, self.norm))
        conflicts[norms == 0.0] = 0.0
        return conflicts

    def of_rows(
        self,
        indices: Int[np.ndarray, " m"],
        rows: Float[np.ndarray, "m d"],
        norms: Float[np.ndarray, " m"],
    ) -> Float[np.ndarray, " m"]:
        """Conflicts of rows."""
        if self.fixed is not None:
            return self.fixed[indices]
        return self.of_dots(rows @ self.total, norms)


def against_pool(
    dots: Float[np.ndarray, " n"],
    norm: float,
    norms: Float[np.ndarray, " n"],
    members: Bool[np.ndarray, " m"],
    hinge: float,
    *,
    quantile: bool = False,
) -> tuple[Float[np.ndarray, " n"], float]:
    """Conflict of each row with the sum of the pool's rows.

    Args:
        dots: Inner product of each row with that sum.
        norm: Norm of the sum.
        norms: Norm of each row; rows beyond those of ``members`` are no members.
        members: Which rows make up the sum, and the quantile where hinge is one.
        hinge: A cosine, or with ``quantile`` that per cent of the members' cosines.
        quantile: Whether the hinge is a quantile.

    Returns:
        The conflicts, and the hinge as a cosine.
    """
    within = np.flatnonzero(members)
    if norm <= VANISHED * float(norms[within].sum()):
        return np.zeros(len(dots)), 0.0 if quantile else hinge
    cosine = cosines(dots, norms, norm)
    if quantile:
        hinge = float(np.quantile(cosine[within[norms[within] > 0]], hinge / 100))
    conflicts = np.maximum(0.0, hinge - cosine)
    conflicts[norms == 0.0] = 0.0
    return conflicts, hinge


@dataclass(frozen=True)
class Score:
    """What is compared between candidates: gain less penalty, per token where asked.

    A score never exceeds :meth:`bound` of any earlier gain of the row, as gains shrink and conflicts are not negative.

    Attributes:
        weight: Conflict weight lambda.
        relative: gain * (1 - lambda * conflict) instead of gain - lambda * conflict.
        per_row: Factor of each row's score, 1 / tokens; None: no factor.
    """

    weight: float = 0.0
    relative: bool = False
    per_row: Float[np.ndarray, " n"] | None = None

    def __call__(
        self,
        indices: Int[np.ndarray, " m"] | slice,
        gains: Float[np.ndarray, " m"],
        conflicts: Float[np.ndarray, " m"] | None,
    ) -> Float[np.ndarray, " m"]:
        """Scores of rows; ``conflicts`` may be None where the weight is 0."""
        scores = gains
        if self.weight:
            assert conflicts is not None
            penalty = self.weight * conflicts
            scores = gains * (1.0 - penalty) if self.relative else gains - penalty
        return scores if self.per_row is None else scores * self.per_row[indices]

    def bound(
        self,
        indices: Int[np.ndarray, " m"] | slice,
        gains: Float[np.ndarray, " m"],
        fixed: Float[np.ndarray, " m"] | None = None,
    ) -> Float[np.ndarray, " m"]:
        """The most a row can score now or later, from a gain of now or earlier and a conflict that never changes."""
        bounds = gains
        if self.weight and fixed is not None:
            penalty = self.weight * fixed
            # Beyond a penalty of 1 a relative score is negative and rises as the gain falls; 0 bounds it.
            bounds = gains * np.maximum(0.0, 1.0 - penalty) if self.relative else gains - penalty
        return bounds if self.per_row is None else bounds * self.per_row[indices]
