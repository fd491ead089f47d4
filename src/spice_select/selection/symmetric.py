"""A symmetric matrix of which only the blocks on and above the diagonal are kept up to date: half the arithmetic."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

BLOCK = 256
WAITING = 32
"""Rows of U that wait until they are taken off together: a matrix product instead of passes over the whole matrix."""

SCREENING_ERROR = 1e-5
"""Room for rounding in a float32 form of a unit row, about ten times what d terms of 2^-24 add up to at d = 65,536."""

POWER_STEPS = 24


class Symmetric:
    """I - U^T U for rows U that come in over time.

    Args:
        vectors: The first rows of U, shape [b, d].
    """

    def __init__(self, vectors: Float[np.ndarray, "b d"]) -> None:
        self.dim = vectors.shape[1]
        # Below the diagonal blocks nothing is ever read.
        self._matrix = np.eye(self.dim)
        self._columns = [slice(low, min(low + BLOCK, self.dim)) for low in range(0, self.dim, BLOCK)]
        self._waiting = np.empty((WAITING, self.dim))
        self._count = 0
        self._narrow: np.ndarray | None = None
        self._direction: np.ndarray | None = None
        self._take_off(vectors)

    def subtract(self, vectors: Float[np.ndarray, "b d"]) -> None:
        """Take v^T v away for each row v."""
        if self._count + len(vectors) > WAITING:
            self._take_off(np.concatenate([self._waiting[: self._count], vectors]))
            self._count = 0
            return
        self._waiting[self._count : self._count + len(vectors)] = vectors
        self._count += len(vectors)

    def times(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """The product with each row."""
        out = np.empty_like(rows)
        for columns in self._columns:
            out[:, columns] = rows[:, : columns.stop] @ self._matrix[: columns.stop, columns]
            if columns.stop < self.dim:
                out[:, columns] += rows[:, columns.stop :] @ self._matrix[columns, columns.stop :].T
        if self._count:
            waiting = self._waiting[: self._count]
            out -= (rows @ waiting.T) @ waiting
        return out

    def forms(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """The quadratic form g^T M g of each row g."""
        return self._forms(rows, self._matrix)

    def screening_forms(self, rows: Float32[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """The same in float32, in half the time: for rows of unit norm right to within `SCREENING_ERROR`."""
        if self._narrow is None:
            self._narrow = self._matrix.astype(np.float32)
        return self._forms(rows, self._narrow).astype(np.float64)

    def largest(self) -> float:
        """A number that no eigenvalue exceeds, at most a tenth above the largest where that is well above the rest.

        Power iteration guesses it from below, and a Cholesky factorisation of c I - M proves the guess.
        """
        if self._count:
            self._take_off(self._waiting[: self._count])
            self._count = 0
        # The direction of the last time is near that of now.
        vector, steps = self._direction, POWER_STEPS if self._direction is None else POWER_STEPS // 3
        if vector is None:
            vector = np.full(self.dim, 1.0 / np.sqrt(self.dim))
        guess = 0.0
        for _ in range(steps):
            vector = self.times(vector[None])[0]
            guess = float(np.sqrt(vector @ vector))
            if guess == 0.0:
                return self._proven(0.0)
            vector /= guess
        self._direction = vector
        return self._proven(guess)

    def _proven(self, guess: float) -> float:
        # Rounding of the factorisation is of the order of d times 2^-53.
        for factor in (1.1, 1.3, 1.6, 2.0):
            bound = factor * guess + self.dim * 1e-14
            beyond = -self._matrix
            beyond.flat[:: self.dim + 1] += bound
            try:
                np.linalg.cholesky(beyond, upper=True)
            except np.linalg.LinAlgError:
                continue
            return min(1.0, bound)
        return 1.0

    def _forms(self, rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        out = np.zeros(len(rows), dtype=rows.dtype)
        for columns in self._columns:
            part = rows[:, columns]
            image = part @ matrix[columns, columns]
            if columns.start:
                image += 2 * (rows[:, : columns.start] @ matrix[: columns.start, columns])
            out += np.einsum("ij,ij->i", image, part)
        if self._count:
            onto = rows @ self._waiting[: self._count].astype(rows.dtype).T
            out -= np.einsum("ij,ij->i", onto, onto)
        return out

    def _take_off(self, vectors: Float[np.ndarray, "b d"]) -> None:
        for columns in self._columns:
            self._matrix[: columns.stop, columns] -= vectors[:, : columns.stop].T @ vectors[:, columns]
            if self._narrow is not None:
                self._narrow[: columns.stop, columns] = self._matrix[: columns.stop, columns]
