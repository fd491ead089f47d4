"""The log-determinant from inner products alone: incremental Cholesky of I + a G G^T.

Pools need no sketch, as every quantity of the method depends on inner products only; this engine works from the Gram
matrix of exact gradients, or makes its columns from rows as it needs them.

References:
    Chen, Zhang, Zhou: Fast greedy MAP inference for determinantal point processes, arXiv 1709.05135.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.errors import ConfigError, DataError
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.greedy import Choice, lowest_best
from spice_select.selection.options import plain_array
from spice_select.selection.outlook import Ending

Column = Callable[[int], np.ndarray]


class GramPool:
    """A pool of which only the inner products are known.

    Attributes:
        n: Rows.
        dim: 0, as the gradients themselves are unknown.
        finite: Which rows have a finite norm.
        usable: The same.
        squared_norms: |g|^2 of the scaled rows; 0 where not finite.
        factors: What every row is multiplied by; None where it is nothing.
    """

    def __init__(self, gram: Float[np.ndarray, "n n"]) -> None:
        self._gram = gram
        self.n = len(gram)
        self.dim = 0
        diagonal = np.array(np.diagonal(gram), dtype=np.float64)
        self.finite = np.isfinite(diagonal)
        self.usable = self.finite
        self.squared_norms = np.where(self.finite, np.maximum(diagonal, 0.0), 0.0)
        self._scale: np.ndarray = np.ones(self.n)
        self.factors: np.ndarray | None = None
        self._across: np.ndarray | None = None
        self._within = np.zeros((0, 0))

    @classmethod
    def of(cls, gram: Any, earlier: Any = None) -> GramPool:
        """Check and wrap what the user gave.

        Raises:
            ConfigError: No square matrix of real numbers, or inner products with earlier rows that do not fit it.
            DataError: No row at all, or an inner product between usable rows that is NaN or Inf.
        """
        array = plain_array("gram", gram)
        if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype.kind not in "fiu":
            raise ConfigError(f"gram must be a square matrix of real numbers, not shape {list(array.shape)}.")
        if not len(array):
            raise DataError("gram is empty; pass the inner products of at least one row.")
        pool = cls(array)
        within = array[np.ix_(pool.finite, pool.finite)]
        if not np.isfinite(within).all():
            row = int(np.flatnonzero(pool.finite)[np.argmin(np.isfinite(within).all(axis=1))])
            raise DataError(f"gram holds NaN or Inf between row {row} and another row; mend it.")
        if earlier is not None:
            pool._remember(*earlier)
        return pool

    def _remember(self, across: Any, within: Any) -> None:
        across, within = plain_array("earlier", across), plain_array("earlier", within)
        count = across.shape[1] if across.ndim == 2 else -1
        if across.shape != (self.n, count) or within.shape != (count, count):
            raise ConfigError(
                f"earlier must be matrices of shape [{self.n}, m] and [m, m], not {list(across.shape)} and "
                f"{list(within.shape)}."
            )
        if not (np.isfinite(across[self.finite]).all() and np.isfinite(within).all()):
            raise ConfigError("earlier holds NaN or Inf; leave those rows out.")
        self._across = np.where(self.finite[:, None], across, 0.0).astype(np.float64)
        self._within = within.astype(np.float64)

    def known(self, alpha: float) -> Float[np.ndarray, "m n"] | None:
        """V with g_x^T (I + a F_0)^-1 g_y = <g_x, g_y> - <V_x, V_y>, F_0 the Fisher information of earlier rows."""
        if self._across is None:
            return None
        among = np.eye(len(self._within)) + alpha * self._within
        scaled = np.sqrt(alpha) * self._across * self._scale[:, None]
        return np.linalg.solve(np.linalg.cholesky(among), scaled.T)

    def __len__(self) -> int:
        return self.n

    def rescale(self, scale: Float[np.ndarray, " n"]) -> None:
        """Multiply every row by its factor from now on."""
        self._scale = self.factors = scale
        self.squared_norms = self.squared_norms * scale**2

    def column(self, index: int) -> Float[np.ndarray, " n"]:
        """Inner products of one row with all rows."""
        return np.where(self.finite, self._gram[:, index], 0.0) * (self._scale * self._scale[index])

    def mean_dots(self, members: Bool[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float]:
        """Inner product of every row with the sum of the members, and the norm of that sum."""
        total = np.zeros(self.n)
        for index in np.flatnonzero(members):
            total += self.column(int(index))
        return total, float(np.sqrt(max(0.0, total[members].sum())))


class Kernel:
    """Keeps q = g^T (I + a F_S)^-1 g of every row, whose 1 + a q is the residual diagonal of the factorisation.

    Args:
        column: Inner products of one row with all rows.
        squared_norms: The diagonal of the Gram matrix.
        alpha: Fisher scale a.
        conflict: Conflict by inner products with the sum of S.
        score: What is compared.
        eligible: Candidates.
        capacity: Rows that S is expected to hold.
        known: What rows of before have told of each row, which lessens its information and not its conflict.
    """

    def __init__(
        self,
        column: Column,
        squared_norms: Float[np.ndarray, " n"],
        alpha: float,
        conflict: Conflict,
        score: Score,
        eligible: np.ndarray,
        capacity: int = 16,
        known: Float[np.ndarray, "m n"] | None = None,
    ) -> None:
        self._column = column
        self._known = known
        self._squared_norms = squared_norms
        self._norms = np.sqrt(squared_norms)
        self._alpha = alpha
        self._conflict = conflict
        self._score = score
        self._eligible = eligible.copy()
        told = 0.0 if known is None else np.einsum("mn,mn->n", known, known)
        self._potentials = np.maximum(squared_norms - told, 0.0)
        self._dots = np.zeros(len(squared_norms))
        # Row t of the factor is step t: the product with one column of it then reads whole rows.
        self._factor = np.empty((max(1, min(capacity, len(squared_norms))), len(squared_norms)))
        self._size = 0
        self._work = 0.0

    def best(self) -> Choice | None:
        """The best eligible row."""
        gains = np.log1p(self._alpha * self._potentials)
        if self._conflict.fixed is not None:
            conflicts = self._conflict.fixed
        else:
            conflicts = self._conflict.of_dots(self._dots, self._norms)
        scores = np.where(self._eligible, self._score(slice(None), gains, conflicts), -np.inf)
        at = lowest_best(scores)
        return None if at is None else Choice(at, float(gains[at]), float(conflicts[at]), float(scores[at]))

    def add(self, index: int) -> None:
        """Put a row into S: one more row of the factor."""
        if self._size == len(self._factor):
            grown = np.empty((2 * self._size, self._factor.shape[1]))
            grown[: self._size] = self._factor
            self._factor = grown
        factor = self._factor[: self._size]
        inner = self._column(index)
        self._work += float(self._size * len(inner))
        beyond = inner if self._known is None else inner - self._known[:, index] @ self._known
        across = beyond - factor[:, index] @ factor
        row = across * np.sqrt(self._alpha / (1.0 + self._alpha * self._potentials[index]))
        self._factor[self._size] = row
        self._potentials = np.maximum(self._potentials - row * row, 0.0)
        self._size += 1
        if self._conflict.fixed is None:
            self._conflict.add_dot(float(self._dots[index]), float(self._squared_norms[index]))
            self._dots += inner

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._eligible[indices] = False

    def ending(self) -> Ending:
        """Potentials of the end for every row, but for a last pick that was not added."""
        return Ending(self._potentials, None, self._work)
