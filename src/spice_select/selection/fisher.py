"""Information of a set of gradients: the log-determinant of SPICE, and its diagonal surrogates by name.

An objective keeps the state of a selected set S and answers for rows outside it. It works on *potentials*, whatever
number per row is cheapest to keep up to date, and turns them into gains; an optimiser need not know which.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Float32

from spice_select.selection.symmetric import Symmetric

FisherName = Literal["exact", "diag-logdet", "paper-diag", "released"]

# A d x d float64 inverse beyond this dimension takes more than 512 MB; the update vectors alone serve as well.
LARGEST_INVERSE = 8192


class Information(Protocol):
    """The state of a selected set S under one form of Fisher information."""

    name: str

    def add(self, row: Float[np.ndarray, " d"]) -> None:
        """Put a row into S."""
        ...

    def potentials(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Potentials of rows given S, from scratch."""
        ...

    def updated(self, rows: Float[np.ndarray, "m d"], potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Potentials given S, from those before the last :meth:`add`."""
        ...

    def gains(self, potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Marginal gains D_x(S), in nats."""
        ...

    def base(self, row: Float[np.ndarray, " d"]) -> float:
        """What a row is worth alone, D_x(empty)."""
        ...

    def definition(self, selected: Float[np.ndarray, "t d"], row: Float[np.ndarray, " d"]) -> float:
        """The gain of a row by the definition, without any state."""
        ...


class LogDet:
    """F(S) = log det(I + a sum_{i in S} g_i g_i^T), exactly.

    Keeps (I + a F_S)^-1 as I minus a sum of outer products of update vectors: M_{t+1} = M_t - u u^T with
    u = M_t g sqrt(a / (1 + a q)) and q = g^T M_t g. The vectors alone are cheaper while S is small; from d/2 members on
    the matrix is formed. The potential of a row is q, its gain log(1 + a q).

    Args:
        alpha: Fisher scale a.
        dim: Dimension d of the gradients.
        window: Update vectors kept once the matrix is formed, for whoever brings old potentials up to date.
        largest_inverse: Dimension beyond which the matrix is never formed.
    """

    name = "exact"

    def __init__(self, alpha: float, dim: int, *, window: int = 1, largest_inverse: int = LARGEST_INVERSE) -> None:
        self.alpha = alpha
        self.dim = dim
        self.size = 0
        self.matrix: Symmetric | None = None
        self._window = max(1, window)
        self._largest = largest_inverse
        self._vectors = np.empty((min(64, max(1, dim)), dim))
        self._first = 0

    def times(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """(I + a F_S)^-1 g for each row g."""
        if self.matrix is not None:
            return self.matrix.times(rows)
        vectors = self.vectors(0)
        return rows - (rows @ vectors.T) @ vectors

    def vectors(self, since: int) -> Float[np.ndarray, "s d"]:
        """Update vectors from step ``since`` on; only the last ones are kept once the matrix is formed."""
        assert since >= self._first
        return self._vectors[since - self._first : self.size - self._first]

    @property
    def first_vector(self) -> int:
        """The first step whose update vector is still kept."""
        return self._first

    def potentials(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """The q = g^T (I + a F_S)^-1 g of each row."""
        if self.matrix is not None:
            return np.maximum(self.matrix.forms(rows), 0.0)
        squared = np.einsum("ij,ij->i", rows, rows)
        if self.size == 0:
            return squared
        onto = rows @ self.vectors(0).T
        return np.maximum(squared - np.einsum("ij,ij->i", onto, onto), 0.0)

    def screening_forms(self, units: Float32[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """The potentials of rows of unit norm in float32, right to within ``symmetric.SCREENING_ERROR``."""
        if self.matrix is not None:
            return self.matrix.screening_forms(units)
        onto = units @ self.vectors(0).astype(np.float32).T
        return 1.0 - np.einsum("ij,ij->i", onto, onto).astype(np.float64)

    def updated(self, rows: Float[np.ndarray, "m d"], potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """The q after the last row, from that before it."""
        onto = rows @ self._vectors[self.size - 1 - self._first]
        return np.maximum(potentials - onto * onto, 0.0)

    def gains(self, potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """log(1 + a q)."""
        return np.log1p(self.alpha * potentials)

    def base(self, row: Float[np.ndarray, " d"]) -> float:
        """log(1 + a |g|^2)."""
        return float(np.log1p(self.alpha * (row @ row)))

    def add(self, row: Float[np.ndarray, " d"]) -> None:
        """Put a row into S."""
        image = self.times(row[None])[0]
        potential = max(float(row @ image), 0.0)
        self.append((image * np.sqrt(self.alpha / (1.0 + self.alpha * potential)))[None])

    def append(self, vectors: Float[np.ndarray, "b d"]) -> None:
        """Put the rows into S whose update vectors are given, in order."""
        if self.matrix is not None and self.size - self._first + len(vectors) > 2 * self._window:
            kept = self.vectors(max(self._first, self.size - self._window)).copy()
            self._first = self.size - len(kept)
            self._vectors[: len(kept)] = kept
        used = self.size - self._first
        if used + len(vectors) > len(self._vectors):
            grown = np.empty((max(2 * len(self._vectors), used + len(vectors)), self.dim))
            grown[:used] = self._vectors[:used]
            self._vectors = grown
        self._vectors[used : used + len(vectors)] = vectors
        self.size += len(vectors)
        if self.matrix is not None:
            self.matrix.subtract(vectors)
        elif self.dim <= self._largest and 2 * self.size >= self.dim:
            self.matrix = Symmetric(self.vectors(0))

    def forget(self) -> None:
        """Let go of update vectors that the matrix makes unneeded, and of room for more."""
        if self.matrix is None:
            self._vectors = self.vectors(0).copy()
        else:
            self._vectors, self._first = np.empty((1, self.dim)), self.size

    def definition(self, selected: Float[np.ndarray, "t d"], row: Float[np.ndarray, " d"]) -> float:
        """F(S + x) - F(S), each by one determinant."""
        return log_det(np.vstack([selected, row]), self.alpha) - log_det(selected, self.alpha)


def log_det(rows: Float[np.ndarray, "t d"], alpha: float) -> float:
    """F(S) = log det(I + a F_S) in nats, by whichever of the two equal forms is smaller.

    Args:
        rows: The gradients of S, shape [t, d].
        alpha: Fisher scale a.
    """
    wide = np.asarray(rows, dtype=np.float64)
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return float(np.linalg.slogdet(np.eye(len(gram)) + alpha * gram)[1])


class _Diagonal(ABC):
    """State shared by the diagonal surrogates: den_j = 1 + a sum_{i in S} g_ij^2."""

    name = ""

    def __init__(self, alpha: float, dim: int) -> None:
        self.alpha = alpha
        self._den = np.ones(dim)

    def add(self, row: Float[np.ndarray, " d"]) -> None:
        """Put a row into S."""
        self._den = self._den + self._weight(row)

    def updated(self, rows: Float[np.ndarray, "m d"], potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Gains from scratch: a diagonal has no cheaper way."""
        return self.potentials(rows)

    def gains(self, potentials: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """The potentials are the gains."""
        return potentials

    def potentials(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Gains given S."""
        return self._gains_at(rows, self._den)

    def base(self, row: Float[np.ndarray, " d"]) -> float:
        """Gain given the empty set."""
        return float(self._gains_at(row[None], np.ones_like(self._den))[0])

    def definition(self, selected: Float[np.ndarray, "t d"], row: Float[np.ndarray, " d"]) -> float:
        """The gain with the denominators summed afresh."""
        return float(self._gains_at(row[None], 1.0 + self._weight(selected).sum(axis=0))[0])

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        return self.alpha * rows**2

    @abstractmethod
    def _gains_at(self, rows: np.ndarray, den: np.ndarray) -> np.ndarray:
        """Gains of rows, given the denominators."""


class DiagLogDet(_Diagonal):
    """sum_j log(1 + a g_j^2 / den_j): the log-determinant of the diagonal, a true set function."""

    name = "diag-logdet"

    def _gains_at(self, rows: np.ndarray, den: np.ndarray) -> np.ndarray:
        return np.log1p(self.alpha * rows**2 / den).sum(axis=1)


class PaperDiag(_Diagonal):
    """log(1 + a sum_j g_j^2 / den_j): the diagonal approximation; no set function has these marginals."""

    name = "paper-diag"

    def _gains_at(self, rows: np.ndarray, den: np.ndarray) -> np.ndarray:
        return np.log1p(self.alpha * (rows**2 @ (1.0 / den)))


class Released(PaperDiag):
    """As paper-diag with den += a g_j^4: what the code published with the paper computes."""

    name = "released"

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        return self.alpha * rows**4


def make_information(name: FisherName, alpha: float, dim: int) -> Information:
    """The empty state of a form of Fisher information."""
    if name == "exact":
        return LogDet(alpha, dim)
    return {"diag-logdet": DiagLogDet, "paper-diag": PaperDiag, "released": Released}[name](alpha, dim)
