"""Marginal information gains given rows already chosen, with rounding bounded from above.

With A = I + a F the quantity behind a gain is q = g^T A^-1 g, and D = log(1 + a q). Every method here returns an upper
bound of q, the computed value plus a bound on its rounding error, so that sums of gains stay proven bounds.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Num

from spice_select.errors import ConfigError

EPS64 = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)
CHUNK_ROWS = 4096
"""Rows read and held at once."""
BLOCK_COLUMNS = 128
"""Width of the blocks by which a product with a triangular factor passes over its zeros."""


class RowReader(Protocol):
    """Gradients that can be read by row number: an array behind an adapter, or a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, d)``."""
        ...

    def rows(self, indices: Any, /) -> Any:
        """Rows by number, ``[b, d]``."""
        ...


class ScaledRows:
    """Gradient rows times a factor each, read a chunk at a time.

    Attributes:
        shape: ``(n, d)``.
        factors: Factor of every row.
    """

    def __init__(self, gradients: RowReader, factors: Float[np.ndarray, " n"] | None = None) -> None:
        self._gradients = gradients
        self.shape: tuple[int, int] = (int(gradients.shape[0]), int(gradients.shape[1]))
        self._plain = factors is None
        self.factors = np.ones(self.shape[0]) if factors is None else np.asarray(factors, dtype=np.float64)

    def raw(self, rows: Int[np.ndarray, " b"]) -> Num[np.ndarray, "b d"]:
        """Rows as they are stored, without their factor."""
        return np.asarray(self._gradients.rows(rows))

    def scaled(self, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """Rows times their factor, in float64."""
        scaled = self.raw(rows).astype(np.float64)
        if not self._plain:
            scaled *= self.factors[rows, None]
        return scaled


class Posterior:
    """(I + a F)^-1 of some rows, ready to measure the gains of others.

    Up to d / 2 rows it is held as a projection onto their span, and beyond as the inverse of a d x d Cholesky factor.

    Attributes:
        logdet: log det(I + a F) in nats.
        alpha: Fisher scale a.
        projection: ``[d, m]`` for few rows: q = |g|^2 - |g projection|^2. Its first columns alone belong to the first
            rows alone.
        inverse: ``[d, d]`` lower triangular for many rows: q = |inverse g|^2.
    """

    def __init__(
        self, rows: ScaledRows, members: Int[np.ndarray, " m"], alpha: float, *, project: bool | None = None
    ) -> None:
        dim = rows.shape[1]
        self.alpha = float(alpha)
        self.projection: Float[np.ndarray, "d m"] | None = None
        self.inverse: Float[np.ndarray, "d d"] | None = None
        if len(members) <= dim // 2 if project is None else project:
            held = rows.scaled(members)
            matrix = np.eye(len(members)) + self.alpha * (held @ held.T)
            factor = cholesky(matrix)
            self.projection = math.sqrt(self.alpha) * solve_lower(factor, held).T
            self.diagonal = np.diag(factor)
        else:
            matrix = np.zeros((dim, dim))
            for start in range(0, len(members), CHUNK_ROWS):
                chunk = rows.scaled(members[start : start + CHUNK_ROWS])
                matrix += chunk.T @ chunk
            matrix *= self.alpha
            matrix.flat[:: dim + 1] += 1.0
            factor = cholesky(matrix)
            self.inverse = solve_lower(factor, np.eye(dim))
            self.diagonal = np.diag(factor)
            self._inverse32 = self.inverse.astype(np.float32)
            self._frobenius = float(np.linalg.norm(self.inverse))
        self.logdet = 2.0 * float(np.log(self.diagonal).sum())
        # Backward error of a Cholesky solve, relative to |g|^2 (projection) or to q itself (inverse).
        spread = float(np.abs(matrix).sum(axis=1).max()) if len(matrix) else 0.0
        self._slack = 4.0 * (dim + len(members)) * EPS64 * (1.0 + spread)

    @property
    def screens(self) -> bool:
        """Whether float32 can bound q without cancellation."""
        return self.inverse is not None

    def upper(self, chunk: Float[np.ndarray, "b d"]) -> Float[np.ndarray, " b"]:
        """Upper bounds of q for scaled rows, in float64."""
        norms = np.einsum("ij,ij->i", chunk, chunk)
        if self.projection is not None:
            taken = chunk @ self.projection
            return np.maximum(norms - np.einsum("ij,ij->i", taken, taken), 0.0) + self._slack * norms
        assert self.inverse is not None
        whitened = _lower_product(chunk, self.inverse)
        return np.einsum("ij,ij->i", whitened, whitened) * (1.0 + self._slack)

    def upper_of_prefixes(
        self, chunk: Float[np.ndarray, "b d"], sizes: list[int]
    ) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, "p b"]]:
        """Squared norms, and upper bounds of q given only the first ``sizes[i]`` rows, for each i, sizes ascending."""
        assert self.projection is not None
        norms = np.einsum("ij,ij->i", chunk, chunk)
        taken = chunk @ self.projection[:, : sizes[-1]]
        np.square(taken, out=taken)
        left = np.empty((len(sizes), len(chunk)))
        explained, done = np.zeros(len(chunk)), 0
        for place, size in enumerate(sizes):
            explained += taken[:, done:size].sum(axis=1)
            done = size
            left[place] = np.maximum(norms - explained, 0.0) + self._slack * norms
        return norms, left

    def screen(
        self, chunk: Num[np.ndarray, "b d"], norms: Float[np.ndarray, " b"]
    ) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """The same by float32 products, for rows without their factor.

        Args:
            chunk: Rows as stored.
            norms: Their squared norms.

        Returns:
            Upper bounds of q, and its computed values. An upper bound is infinite where float32 overflowed.
        """
        assert self.inverse is not None
        dim = chunk.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            whitened = _lower_product(chunk.astype(np.float32, copy=False), self._inverse32)
            middle = np.einsum("ij,ij->i", whitened, whitened).astype(np.float64)
        # |y_j - computed y_j| <= (d + 4) u |R_j| |g| for every row R_j of the inverse factor, and summing the squares
        # costs (d + 4) u more.
        error = (dim + 4) * EPS32
        root = np.sqrt(middle * (1.0 + 2.0 * error)) + error * self._frobenius * np.sqrt(norms)
        bound = np.square(root) * (1.0 + self._slack)
        return np.where(np.isfinite(bound), bound, np.inf), np.where(np.isfinite(middle), middle, np.inf)


def _lower_product(chunk: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """``chunk @ lower.T`` for a lower triangular matrix, passing over its zero blocks."""
    dim = lower.shape[0]
    product = np.empty((len(chunk), dim), dtype=lower.dtype)
    for start in range(0, dim, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, dim)
        np.matmul(chunk[:, :stop], lower[start:stop, :stop].T, out=product[:, start:stop])
    return product


def cholesky(matrix: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Lower Cholesky factor of I + a F in either form.

    Raises:
        ConfigError: Rounding has made it singular.
    """
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    if failed.item():
        raise ConfigError(
            f"alpha is too large for these gradients: I + a F reaches {np.diagonal(matrix).max():.1e}, and float64 "
            "can't factorise it; use a smaller alpha, or 'auto'."
        )
    return factor.numpy()


def solve_lower(factor: Float[np.ndarray, "m m"], right: Float[np.ndarray, "m b"]) -> Float[np.ndarray, "m b"]:
    """Solve with a lower triangular factor."""
    return torch.linalg.solve_triangular(torch.from_numpy(factor), torch.from_numpy(right), upper=False).numpy()
