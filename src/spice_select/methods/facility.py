"""Facility location by lazy greedy: a few rows such that every row is similar to one of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from spice_select.methods.vectors import TIE, lowest_best
from spice_select.selection.quotas import Limits

_BLOCK_BYTES = 64 << 20
_TABLE_BYTES = 1 << 30


class Similarities:
    """exp(-|x - y| / d) of vectors of length d: in a table where it takes at most a gigabyte, else when asked for.

    Args:
        points: The vectors.
    """

    def __init__(self, points: Float[np.ndarray, "m d"]) -> None:
        self._points = np.asarray(points, dtype=np.float64)
        self._squared = np.einsum("ij,ij->i", self._points, self._points)
        self._table: Float[np.ndarray, "m m"] | None = None
        if 8 * len(self) ** 2 <= _TABLE_BYTES:
            self._table = np.empty((len(self), len(self)))
            for span in self._spans():
                self._table[span] = self.of(self._points[span])

    def __len__(self) -> int:
        return len(self._points)

    def of(self, others: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b m"]:
        """Of some vectors with all."""
        sums = np.einsum("ij,ij->i", others, others)[:, None] + self._squared
        squared = sums - 2.0 * (others @ self._points.T)
        # What rounding leaves of the distance between copies is no distance.
        squared[squared <= 1e-13 * sums] = 0.0
        return np.exp(-np.sqrt(squared) / self._points.shape[1])

    def row(self, place: int) -> Float[np.ndarray, " m"]:
        """Of one of the vectors with all."""
        return self.of(self._points[place : place + 1])[0] if self._table is None else self._table[place]

    def gain(self, place: int, covered: Float[np.ndarray, " m"]) -> float:
        """How much more similar all become to what is chosen, summed, by one more choice."""
        return float(np.maximum(self.row(place) - covered, 0.0).sum())

    def totals(self) -> Float[np.ndarray, " m"]:
        """The gain of every vector while nothing is chosen."""
        if self._table is not None:
            return self._table.sum(axis=1)
        return np.concatenate([self.of(self._points[span]).sum(axis=1) for span in self._spans()])

    def _spans(self) -> Iterator[slice]:
        size = max(1, _BLOCK_BYTES // (8 * len(self)))
        for start in range(0, len(self), size):
            yield slice(start, start + size)


def spread(
    points: Float[np.ndarray, "m d"],
    numbers: Int[np.ndarray, " m"],
    limits: Limits,
    in_hand: Float[np.ndarray, "h d"] | None = None,
) -> tuple[list[int], list[float]]:
    """Choose rows greedily so that the sum over ``points`` of the similarity to the nearest choice is large.

    The sum is submodular, so that an earlier gain bounds a later one and most are never worked out again (lazy greedy).
    Gains within 1e-9 of the best tie, and the lowest row number wins.

    Args:
        points: Vectors of the rows that are to be represented, and from which is chosen.
        numbers: Their row numbers, in increasing order.
        limits: What may be chosen, and how much.
        in_hand: Vectors of rows that count as chosen.

    Returns:
        Row numbers in order of choice, and the gain of each.
    """
    if not len(points):
        return [], []
    similar = Similarities(points)
    covered = np.zeros(len(points)) if in_hand is None else similar.of(in_hand).max(axis=0, initial=0.0)
    bounds = similar.totals()
    fresh = np.full(len(points), in_hand is None or not len(in_hand))
    picks: list[int] = []
    gains: list[float] = []
    while limits.remaining:
        allowed = limits.eligible[numbers]
        while True:
            best = float(bounds[allowed & fresh].max(initial=-np.inf))
            least = best - TIE * max(1.0, abs(best)) if best > -np.inf else best
            stale = np.where(allowed & ~fresh & (bounds >= least), bounds, -np.inf)
            place = int(np.argmax(stale))
            if stale[place] == -np.inf:
                break
            bounds[place] = similar.gain(place, covered)
            fresh[place] = True
        found = lowest_best(bounds, allowed & fresh)
        if found is None:
            break
        place, gain = found
        limits.take(int(numbers[place]))
        picks.append(int(numbers[place]))
        gains.append(gain)
        covered = np.maximum(covered, similar.row(place))
        fresh[:] = False
    return picks, gains
