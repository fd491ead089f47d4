"""k-center: every row lies near a chosen one."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float

from spice_select.methods.base import Choice, Method, Need, Varies, finished
from spice_select.methods.inputs import Inputs
from spice_select.methods.vectors import Features, Products, Vectors, lowest_best, need_of, unknown_note, vectors_of
from spice_select.selection.quotas import Limits

_ROUNDING = 1e-13


class KCenter(Method):
    """Greedy farthest first: the next row is the one farthest from all chosen before."""

    name: ClassVar[str] = "kcenter"
    summary: ClassVar[str] = "coverage: the largest distance of any row to the nearest chosen one, made small"
    source: ClassVar[str] = "arXiv 1708.00489"
    cost: ClassVar[str] = "picks x rows x dimension"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS})

    features: Features = "embeddings"
    """Vectors that rows are compared by."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two vectors; ``cosine`` is 1 minus their cosine."""
    start: Literal["centroid", "random", "farthest"] = "centroid"
    """The first pick: nearest to the mean of all rows, drawn at random, or farthest from the mean. Rows in hand are
    centers already, and make it the row farthest from them."""

    def varying(self) -> Varies:
        """Nothing but a random start depends on the seed."""
        return "draw" if self.start == "random" else "no"

    def required(self) -> frozenset[Need]:
        """The vectors."""
        return frozenset({need_of(self.features)})

    def choose(self, inputs: Inputs) -> Choice:
        """Choose rows farthest first."""
        vectors = vectors_of(inputs, self.features, unit=self.metric == "cosine")
        limits = inputs.limits(vectors.known)
        asked = limits.remaining
        covered = inputs.candidates & vectors.known
        # Distances stay as they are, and lose less to rounding where rows lie around the origin.
        vectors.shift(vectors.mean(covered))
        centers = [index for index in inputs.in_hand if vectors.known[index]]
        distances = _Nearest(vectors)
        for center in centers:
            distances.add(center, np.full(inputs.n, -np.inf))
        picks: list[int] = []
        scores: list[float] = []
        while limits.remaining:
            first = not picks and not centers
            ranking = self._first(distances.squared_norms, limits, inputs.seed) if first else distances.squared
            best = lowest_best(ranking, limits.eligible, least=0.0)
            if best is None:
                break
            index = best[0]
            limits.take(index)
            picks.append(index)
            scores.append(np.nan if first else self._distance(best[1]))
            distances.add(index, np.where(limits.eligible, distances.squared, -np.inf))
        notes = unknown_note(inputs, vectors, self.features, "are never chosen")
        if len(picks) + len(centers) and covered.any():
            notes += (self._radius_note(inputs, distances.squared[covered]),)
        return finished(
            inputs,
            picks,
            scores,
            f"{self.metric} distance to the nearest row chosen before",
            asked,
            notes=notes,
            dropped=f"no other row that may be chosen has {self.features}",
        )

    def _first(self, squared_norms: Float[np.ndarray, " n"], limits: Limits, seed: int) -> Float[np.ndarray, " n"]:
        if self.start == "random":
            return np.random.default_rng(seed).permutation(len(squared_norms)).astype(np.float64)
        return squared_norms if self.start == "farthest" else -squared_norms

    def _distance(self, squared: float) -> float:
        return squared / 2.0 if self.metric == "cosine" else float(np.sqrt(squared))

    def _radius_note(self, inputs: Inputs, squared: Float[np.ndarray, " m"]) -> str:
        radius = self._distance(float(squared.max()))
        note = f"Every row lies within a {self.metric} distance of {radius:.6g} of a chosen one"
        if inputs.budget.tokens is not None or inputs.groups is not None:
            return f"{note}."
        beside = " beside those in hand" if inputs.in_hand else ""
        # By the triangle inequality, which holds for |x - y|, and so for the root of 1 minus the cosine.
        part = "a quarter" if self.metric == "cosine" else "half"
        return f"{note}; no choice of as many rows{beside} has less than {part} of that (arXiv 1708.00489)."


class _Nearest:
    """Squared distance of every row to the nearest center."""

    def __init__(self, vectors: Vectors) -> None:
        self.squared_norms = vectors.squared_norms()
        self.squared = np.full(vectors.n, np.inf)
        self._products = Products(vectors)

    def add(self, index: int, likely: Float[np.ndarray, " n"]) -> None:
        """Add a center; ``likely`` scores the rows that may come next."""
        sums = self.squared_norms + self.squared_norms[index]
        squared = sums - 2.0 * self._products.of(index, likely)
        # What rounding leaves of the distance between copies is no distance.
        squared[_negligible(squared, sums)] = 0.0
        self.squared = np.minimum(self.squared, squared)


def _negligible(squared: Float[np.ndarray, " n"], sums: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    return squared <= _ROUNDING * sums
