"""What methods that compare rows by distance share: the rows as vectors, inner products, and the best by a score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.methods.base import Need
from spice_select.methods.inputs import Inputs
from spice_select.selection.rows import ArrayRows, Rows

Features = Literal["gradients", "embeddings"]

HELD_BYTES = 1 << 30
"""Vectors of at most so many bytes are held in memory; larger ones are read anew in every pass over them."""
AHEAD = 32
"""Rows whose inner products are computed together: reading the vectors takes longer than multiplying them."""
TIE = 1e-9
"""Scores that differ by less than this part are equal, so that rounding decides nothing."""
_BLOCK_BYTES = 8 << 20


class Vectors:
    """Rows in float64, read block by block.

    A row of zeros, or one that is not finite, stands for a row about which nothing is known: it is zeros here.

    Args:
        rows: The rows.
        unit: Divide each by its norm.

    Attributes:
        n: Rows.
        dim: Their length.
        known: Rows that have a direction.
    """

    def __init__(self, rows: Rows, *, unit: bool) -> None:
        self._rows = rows
        self.n, self.dim = rows.shape
        self._size = max(1, _BLOCK_BYTES // (8 * self.dim))
        self._held: list[tuple[int, np.ndarray]] | None = None
        self._shift: np.ndarray | None = None
        norms = np.empty(self.n)
        with np.errstate(all="ignore"):
            for start, block in rows.blocks(self._size):
                wide = np.asarray(block, dtype=np.float64)
                norms[start : start + len(wide)] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        self.known: Bool[np.ndarray, " n"] = np.isfinite(norms) & (norms > 0)
        self._norms = np.where(self.known & unit, norms, 1.0)

    def shift(self, by: Float[np.ndarray, " d"]) -> None:
        """Subtract a vector from every row that is known, from now on."""
        self._shift = by
        self._held = None

    def mean(self, members: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
        """Mean of some rows; zeros of none."""
        total = np.zeros(self.dim)
        for start, block in self.blocks():
            total += members[start : start + len(block)].astype(np.float64) @ block
        return total / max(1, int(members.sum()))

    def take(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Rows by number."""
        numbers = np.asarray(indices, dtype=np.int64)
        return self._prepared(self._rows.rows(numbers), numbers)

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
        """Every row once, in order, as (number of the first row, rows)."""
        if self._held is None and 8 * self.n * self.dim <= HELD_BYTES:
            self._held = list(self._read())
        return iter(self._held) if self._held is not None else self._read()

    def products(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m n"]:
        """Inner products of some rows with all."""
        wanted = self.take(indices)
        found = np.empty((len(wanted), self.n))
        for start, block in self.blocks():
            found[:, start : start + len(block)] = wanted @ block.T
        return found

    def squared_norms(self) -> Float[np.ndarray, " n"]:
        """Squared norm of every row as it is now."""
        return np.concatenate([np.einsum("ij,ij->i", block, block) for _, block in self.blocks()])

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, block in self._rows.blocks(self._size):
            yield start, self._prepared(block, np.arange(start, start + len(block)))

    def _prepared(self, block: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        wide = np.array(block, dtype=np.float64)
        wide[~self.known[numbers]] = 0.0
        wide /= self._norms[numbers, None]
        if self._shift is not None:
            wide[self.known[numbers]] -= self._shift
        return wide


class Products:
    """Inner products of one row after the other with all rows, computed for several likely rows at a time.

    Args:
        vectors: The rows.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._found: dict[int, np.ndarray] = {}

    def of(self, index: int, likely: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Inner products of a row with all.

        Args:
            index: The row.
            likely: Score of every row; the highest are likely to be asked for next, those at minus infinity never are.
        """
        if index not in self._found:
            numbers = np.flatnonzero(likely > -np.inf)
            if len(numbers) > AHEAD:
                numbers = numbers[np.argpartition(-likely[numbers], AHEAD - 1)[:AHEAD]]
            wanted = np.unique(np.append(numbers, index))
            self._found = dict(zip(wanted.tolist(), self._vectors.products(wanted), strict=True))
        return self._found[index]


def vectors_of(inputs: Inputs, features: Features, *, unit: bool) -> Vectors:
    """The vectors of the rows.

    Args:
        inputs: What the method was given.
        features: Which vectors.
        unit: Divide each by its norm.
    """
    if features == "embeddings":
        assert inputs.embeddings is not None and len(inputs.embeddings) == inputs.n
        return Vectors(ArrayRows(inputs.embeddings), unit=unit)
    assert inputs.gradients is not None and inputs.gradients.shape[0] == inputs.n
    return Vectors(inputs.gradients, unit=unit)


def need_of(features: Features) -> Need:
    """What a method must be given to see these vectors."""
    return Need.EMBEDDINGS if features == "embeddings" else Need.GRADIENTS


def unknown_note(inputs: Inputs, vectors: Vectors, features: Features, what: str) -> tuple[str, ...]:
    """A sentence on the candidates without a direction, where there are any."""
    count = int((inputs.candidates & ~vectors.known).sum())
    return (f"{count:,} rows have {features} of nothing but zeros, and {what}.",) if count else ()


def lowest_best(
    scores: Float[np.ndarray, " n"], allowed: Bool[np.ndarray, " n"], *, least: float = 1.0
) -> tuple[int, float] | None:
    """The row with the best score, the lowest row number where scores tie, and the score; None where none is allowed.

    Args:
        scores: Score of every row; minus infinity is no score.
        allowed: Rows that may be chosen.
        least: Scores below this tie by their difference, others by its part of the best.
    """
    masked = np.where(allowed, scores, -np.inf)
    best = float(masked.max(initial=-np.inf))
    if best == -np.inf:
        return None
    index = int(np.argmax(masked >= best - TIE * max(least, abs(best))))
    return index, float(masked[index])
