"""Rows drawn so that they lie like the target examples, near duplicates sharing one row's part (TSDS, KNN-KDE)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from typing_extensions import override

from spice_select.errors import DataError
from spice_select.methods.base import Choice, Method, Need, Varies, finished
from spice_select.methods.inputs import Inputs

Unit = Literal["nearest", "raw"]

_BLOCK = 1 << 22
_LEAST_NEIGHBOURS = 100
_NOTHING = 1e-12
"""Part of a target example's mass that is rounding."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Where the mass of the target examples goes.

    Attributes:
        p: Probability of every candidate; it adds up to 1.
        s: Neighbours that share a target example's mass at the least, near duplicates counted as one.
        last: Place of the last neighbour that gets its whole part, from 0, for every target example.
        unit: Distance that counts as 1.
    """

    p: Float[np.ndarray, " n"]
    s: float
    last: Int[np.ndarray, " m"]
    unit: float


class Tsds(Method):
    """Moves the mass of the target examples to rows near them, spread out as far as the distance allows, and draws."""

    name: ClassVar[str] = "tsds"
    summary: ClassVar[str] = "small distance to the target examples, with the picks spread out (optimal transport)"
    source: ClassVar[str] = "arXiv 2410.11303"
    cost: ClassVar[str] = "distances of all rows to all target examples, and of their neighbours to each other"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.TARGET})
    varies: ClassVar[Varies] = "draw"

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the distance against the spread; 1 takes nearest rows alone."""
    scale: float = Field(default=5.0, gt=0)
    """Distance, in units, that weighs as much as the spread (the authors' C)."""
    sigma: float = Field(default=0.75, ge=0)
    """Rows nearer to each other than this, in units, share a part; 0: none do."""
    unit: Unit = "nearest"
    """What counts as distance 1. ``nearest``: the median distance from a target example to the row nearest to it;
    ``raw``: 1."""
    normalize: bool = True
    """Divide every embedding by its norm."""
    max_k: int = Field(default=5000, ge=1)
    """Most neighbours of a target example; fewer in a pool of less than ten times as many rows."""
    kde_k: int = Field(default=1000, ge=1)
    """Most neighbours by which the density around a row is measured."""
    sample: Literal["gumbel", "largest"] = "gumbel"
    """``gumbel``: draw by the probabilities, without replacement; ``largest``: take the most probable rows."""
    fill: bool = True
    """When all rows with a probability are taken, go on with the rows nearest to a target example."""

    @override
    def varying(self) -> Varies:
        return "draw" if self.sample == "gumbel" else "no"

    @override
    def choose(self, inputs: Inputs) -> Choice:
        """Draw rows by the mass that target examples give them."""
        assert inputs.embeddings is not None and inputs.target is not None and inputs.target.embeddings is not None
        rows, known = _prepared(inputs.embeddings, self.normalize)
        queries, seen = _prepared(inputs.target.embeddings, self.normalize)
        pool = np.flatnonzero(inputs.candidates & known)
        if not len(pool) or not seen.any():
            what = "row that may be chosen" if not len(pool) else "target example"
            raise DataError(f"No {what} has an embedding other than zero, which 'tsds' needs; check the proxy.")
        rows, queries = rows[pool], queries[seen]
        least = max(_LEAST_NEIGHBOURS, len(pool) // 10)
        found = knn_kde(
            rows,
            queries,
            alpha=self.alpha,
            scale=self.scale,
            sigma=self.sigma,
            neighbours=min(self.max_k, least),
            kde_neighbours=min(self.kde_k, least),
            unit=self.unit,
        )
        p = np.zeros(inputs.n)
        p[pool] = found.p
        limits = inputs.limits(known)
        asked = limits.remaining
        picks: list[int] = []
        drawn = 0
        for index in self._order(inputs, p, pool, rows, queries):
            if limits.remaining == 0:
                break
            if limits.eligible[index]:
                limits.take(index)
                picks.append(index)
                drawn += bool(p[index] > 0)
        support = int((p > 0).sum())
        return finished(
            inputs,
            picks,
            p[picks],
            "probability (KNN-KDE)",
            asked,
            notes=self._notes(inputs, found, support, len(picks) - drawn),
            dropped=f"{support:,} rows have a probability above 0",
            remedy="set method.fill=true, a larger method.scale, or give a smaller budget",
            pool_scores=np.where(inputs.candidates & known, p, np.nan),
        )

    def _order(
        self,
        inputs: Inputs,
        p: Float[np.ndarray, " n"],
        pool: Int[np.ndarray, " c"],
        rows: Float[np.ndarray, "c d"],
        queries: Float[np.ndarray, "m d"],
    ) -> Iterator[int]:
        """Rows in the order in which they are taken: those with a probability, then the nearest."""
        support = np.flatnonzero(p > 0)
        # Equal probabilities shall be equal whatever the order in which they were added up.
        weights = np.round(p[support] / p.max(), 12)
        if self.sample == "gumbel":
            with np.errstate(divide="ignore"):
                # The k largest of log p plus independent Gumbel numbers are k draws without replacement by p.
                weights = np.log(weights) + np.random.default_rng(inputs.seed).gumbel(size=inputs.n)[support]
        yield from support[np.argsort(-weights, kind="stable")].tolist()
        if self.fill:
            others = np.flatnonzero(p[pool] == 0)
            distances = nearest_distance(rows[others], queries)
            yield from pool[others[np.argsort(distances, kind="stable")]].tolist()

    def _notes(self, inputs: Inputs, found: Assignment, support: int, filled: int) -> tuple[str, ...]:
        assert inputs.target is not None
        notes = [
            f"{len(found.last):,} target examples give {support:,} rows a probability (s {found.s:.4g}, distance unit "
            f"{found.unit:.4g})."
        ]
        if missing := len(inputs.target) - len(found.last):
            notes.append(f"{missing:,} target examples have an embedding of zero and count for nothing.")
        if filled:
            notes.append(
                f"{filled:,} picks have no probability and were taken as the rows nearest to a target example; a "
                "larger method.scale, or a smaller method.alpha, spreads the probability over more rows."
            )
        return tuple(notes)


def knn_kde(
    candidates: Float[np.ndarray, "n d"],
    queries: Float[np.ndarray, "m d"],
    *,
    alpha: float,
    scale: float,
    sigma: float,
    neighbours: int,
    kde_neighbours: int,
    unit: Unit = "raw",
) -> Assignment:
    """Probabilities of KNN-KDE (TSDS, arXiv 2410.11303, algorithm 2).

    They minimise ``alpha / scale`` times the mean distance that the mass of the target examples is moved, plus
    ``1 - alpha`` times the largest part that any row gets of an example, each part times the density around its row.

    Args:
        candidates: Embeddings of the rows.
        queries: Embeddings of the target examples.
        alpha: Weight of the distance.
        scale: Distance that weighs as much as the spread, in units.
        sigma: Reach of the density's kernel, in units; 0: every row has density 1.
        neighbours: Nearest rows of each target example that can get of its mass.
        kde_neighbours: Nearest rows by which the density is measured, the row itself among them.
        unit: What counts as distance 1; ``nearest``: the median distance of a target example to the nearest row that
            is not at the same place.
    """
    count = min(neighbours, len(candidates))
    distances, indices = nearest(candidates, queries, count)
    one = _unit(distances) if unit == "nearest" else 1.0
    union, places = np.unique(indices, return_inverse=True)
    density = kernel_density(candidates[union], sigma * one, kde_neighbours)
    parts = 1.0 / density[places.reshape(indices.shape)]
    s, last = _sweep(distances / one, parts, alpha, scale, whole=count == len(candidates))
    taken = np.diff(np.minimum(np.cumsum(parts, axis=1) / s, 1.0), axis=1, prepend=0.0)
    # Where the neighbours are used up, the last takes what is left.
    taken[:, -1] += 1.0 - taken.sum(axis=1)
    taken[taken < _NOTHING] = 0.0
    p = np.bincount(indices.ravel(), weights=taken.ravel(), minlength=len(candidates))
    return Assignment(p / p.sum(), s, last, one)


def nearest(
    candidates: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"], count: int
) -> tuple[Float[np.ndarray, "m count"], Int[np.ndarray, "m count"]]:
    """Distances and numbers of the nearest candidates, exact, nearest first; the lowest number wins a tie."""
    distances = np.empty((len(queries), count))
    indices = np.empty((len(queries), count), dtype=np.int64)
    for start, approximate, slack in _squared(candidates, queries):
        for offset, row in enumerate(approximate):
            number = start + offset
            bound = np.partition(row, count - 1)[count - 1]
            near = np.flatnonzero(row <= bound + slack)
            # Again without the cancellation of a product, so that copies of a row are at the very same distance.
            exact = np.sqrt(np.square(candidates[near] - queries[number]).sum(axis=1))
            order = np.argsort(exact, kind="stable")[:count]
            distances[number], indices[number] = exact[order], near[order]
    return distances, indices


def nearest_distance(
    candidates: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " n"]:
    """Distance of every candidate to the query nearest to it."""
    if not len(candidates):
        return np.zeros(0)
    found = np.full(len(candidates), np.inf)
    for start, approximate, _ in _squared(queries, candidates):
        rows = slice(start, start + len(approximate))
        found[rows] = np.square(candidates[rows] - queries[approximate.argmin(axis=1)]).sum(axis=1)
    return np.sqrt(found)


def kernel_density(rows: Float[np.ndarray, "u d"], sigma: float, neighbours: int) -> Float[np.ndarray, " u"]:
    """Sum over the nearest rows of ``max(0, 1 - distance² / sigma²)``.

    Args:
        rows: The rows.
        sigma: Distance at which the kernel is zero; 0: no row has another near it.
        neighbours: Rows that count, the row itself, which gives 1, among them.
    """
    density = np.ones(len(rows))
    others = min(neighbours, len(rows)) - 1
    if sigma == 0 or others == 0:
        return density
    for start, squared, _ in _squared(rows, rows):
        kernel = np.maximum(0.0, 1.0 - np.maximum(squared, 0.0) / sigma**2)
        own = np.arange(len(kernel))
        kernel[own, start + own] = 0.0
        if others < len(rows) - 1:
            kernel = np.partition(kernel, len(rows) - others, axis=1)[:, len(rows) - others :]
        density[start : start + len(own)] += kernel.sum(axis=1)
    return density


def _sweep(
    distances: Float[np.ndarray, "m k"], parts: Float[np.ndarray, "m k"], alpha: float, scale: float, *, whole: bool
) -> tuple[float, Int[np.ndarray, " m"]]:
    """Raise s, from neighbour to neighbour, until farther mass costs more than spread is worth.

    At s each neighbour can take ``part / s`` of an example's mass. A neighbour is the last that an example needs up to
    the s at which those before and itself take all.

    Args:
        distances: Of each example's neighbours, nearest first.
        parts: One over the density around each.
        alpha: Weight of the distance.
        scale: Distance that weighs as much as the spread.
        whole: Whether every candidate is a neighbour.
    """
    examples, count = distances.shape
    reach = np.cumsum(parts, axis=1)
    moved = np.cumsum(parts * distances, axis=1)
    last = np.zeros(examples, dtype=np.int64)
    limit = float(reach[:, -1].min())
    if count == 1:
        return limit, last
    heap = [(float(reach[j, 0]), 0, j) for j in range(examples)]
    heapq.heapify(heap)
    cost = np.zeros(examples)
    total, s, ended = 0.0, limit, np.inf
    while heap:
        key, k, j = heapq.heappop(heap)
        if key > ended:
            # An example's neighbours can take no more: s ends where they have taken all.
            return float(ended), last
        s = key
        total -= cost[j]
        cost[j] = max(0.0, distances[j, k + 1] * key - moved[j, k])
        total += cost[j]
        if alpha / scale * total >= (1.0 - alpha) * examples:
            return s, last
        last[j] = k
        if k + 2 < count:
            heapq.heappush(heap, (float(reach[j, k + 1]), k + 1, j))
        else:
            ended = min(ended, float(reach[j, -1]))
    # With rows left beyond the neighbours, their distance is unknown and s stays; else all rows take what they can.
    return (limit, np.full(examples, count - 1)) if whole else (s, last)


def _prepared(embeddings: Float[np.ndarray, "n d"], normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in float64, divided by their norms where asked for, and which of them are not zero."""
    values = np.asarray(embeddings, dtype=np.float64)
    norms = np.sqrt(np.square(values).sum(axis=1))
    known = np.isfinite(norms) & (norms > 0)
    if normalize:
        values = values / np.where(known, norms, 1.0)[:, None]
    return values, known


def _unit(distances: Float[np.ndarray, "m k"]) -> float:
    """Median over the examples of the least distance that isn't rounding; 1 where all rows are at one place."""
    floor = 1e-6 * distances.max()
    least = np.where(distances > floor, distances, np.inf).min(axis=1)
    least = least[np.isfinite(least)]
    return float(np.median(least)) if len(least) else 1.0


def _squared(
    candidates: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"]
) -> Iterator[tuple[int, Float[np.ndarray, "b n"], float]]:
    """Squared distances of some queries at a time to all candidates, the first query's number, and their error."""
    middle = candidates.mean(axis=0)
    near, far = candidates - middle, queries - middle
    norms, lengths = np.square(near).sum(axis=1), np.square(far).sum(axis=1)
    slack = 1e-10 * float(max(norms.max(), lengths.max()))
    step = max(1, _BLOCK // sum(candidates.shape))
    for start in range(0, len(queries), step):
        block = far[start : start + step]
        squared = block @ near.T
        squared *= -2.0
        squared += norms
        squared += lengths[start : start + step, None]
        yield start, squared, slack
