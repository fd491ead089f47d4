"""A handful of rows held in memory, and what their inner products say of one another.

Everything here works from the Gram matrix of at most a few thousand rows, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows, cholesky, solve_lower
from spice_select.errors import ConfigError
from spice_select.selection.options import plain_array
from spice_select.selection.rows import as_rows


def open_rows(gradients: object, factors: Float[np.ndarray, " n"] | None = None) -> ScaledRows:
    """Rows of an array, a tensor or a store, read by number and scaled by their factors."""
    if isinstance(gradients, ScaledRows):
        return gradients
    return ScaledRows(as_rows(gradients), factors)


class Part:
    """Some of the rows, scaled and numbered afresh, as selection reads them.

    Attributes:
        shape: Rows and dimension.
    """

    def __init__(self, rows: ScaledRows, members: Int[np.ndarray, " m"]) -> None:
        self._rows, self._members = rows, members
        self.shape = (len(members), rows.shape[1])

    def rows(self, indices: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """The rows of those numbers."""
        return self._rows.scaled(self._members[indices])

    def blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
        """Every row once, in order."""
        for start in range(0, len(self._members), size):
            yield start, self._rows.scaled(self._members[start : start + size])


LARGEST_SQUARE = 1e140
"""Squared norms and scales beyond this, or below its inverse, have squares that float64 does not hold."""


def require_range(norms: Float[np.ndarray, " n"], alpha: float) -> None:
    """Refuse gradients whose inner products cannot be squared.

    Args:
        norms: |g|^2 of every row; what is not finite is passed over.
        alpha: Fisher scale a.

    Raises:
        ConfigError: Too large or too small.
    """
    largest = float(norms[np.isfinite(norms)].max(initial=0.0))
    known = [value for value in (largest, alpha) if value > 0]
    if any(not 1.0 / LARGEST_SQUARE <= value <= LARGEST_SQUARE for value in known):
        raise ConfigError(
            f"Squared gradient norms of {largest:.1e} at alpha {alpha:.1e} have squares beyond float64; multiply the "
            "gradients by a number that brings them near 1."
        )


def squared_norms(rows: ScaledRows) -> Float[np.ndarray, " n"]:
    """|g|^2 of every scaled row; not finite where the row isn't."""
    found = np.empty(rows.shape[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, rows.shape[0], CHUNK_ROWS):
            chunk = rows.scaled(np.arange(start, min(start + CHUNK_ROWS, rows.shape[0])))
            found[start : start + len(chunk)] = np.einsum("ij,ij->i", chunk, chunk)
    return found


def usable_rows(gradients: object, candidates: object, norms: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Rows that may be chosen and hold numbers only; ``candidates`` is a mask, or None for a store's own or all."""
    given = candidates if candidates is not None else getattr(gradients, "usable", None)
    finite = np.isfinite(norms)
    return finite if given is None else finite & plain_array("candidates", given).astype(bool)


def gather(rows: ScaledRows, numbers: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    """Scaled rows by number, read in chunks."""
    if not len(numbers):
        return np.zeros((0, rows.shape[1]))
    return np.concatenate([rows.scaled(numbers[at : at + CHUNK_ROWS]) for at in range(0, len(numbers), CHUNK_ROWS)])


def shifted(gram: Float[np.ndarray, "m m"], alpha: float) -> Float[np.ndarray, "m m"]:
    """I + a G G^T."""
    matrix = alpha * gram
    matrix.flat[:: len(matrix) + 1] += 1.0
    return matrix


def log_det(matrix: Float[np.ndarray, "m m"]) -> float:
    """The log-determinant of a positive definite matrix, by its Cholesky factor."""
    return 2.0 * float(np.log(np.diagonal(cholesky(matrix))).sum())


def largest_eigenvalue(gram: Float[np.ndarray, "m m"]) -> float:
    """|F|_2, from the Gram matrix or from F itself."""
    return float(max(torch.linalg.eigvalsh(torch.from_numpy(gram))[-1].item(), 0.0)) if len(gram) else 0.0


def epsilon_of(
    across: Float[np.ndarray, "b m"], factor: Float[np.ndarray, "m m"], bases: Float[np.ndarray, " b"], alpha: float
) -> Float[np.ndarray, " b"]:
    """eps_x(S) in nats by its closed form, which no difference of gains enters.

    With b the inner products of x with S, eps = log(1 - a^2 b^T (I + a K)^-1 b / (1 + a |g_x|^2)).

    Args:
        across: Inner products of each x with each row of S.
        factor: Cholesky factor of I + a K, K the Gram matrix of S.
        bases: log(1 + a |g_x|^2).
        alpha: Fisher scale a.
    """
    if not across.shape[1]:
        return np.zeros(len(across))
    solved = solve_lower(factor, np.ascontiguousarray(across.T))
    taken = alpha * alpha * np.einsum("ij,ij->j", solved, solved) * np.exp(-bases)
    # Rounding may take away as much as there is: the gain is then 0 to working precision.
    return np.maximum(np.log1p(-np.minimum(taken, 1.0 - 1e-16)), -bases)


def draw(generator: np.random.Generator, pool: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " m"]:
    """Different rows of the pool, in random order."""
    return pool[generator.permutation(len(pool))[:size]]
