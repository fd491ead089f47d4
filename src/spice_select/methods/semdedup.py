"""SemDeDup: rows that mean the same as others are left out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from spice_select.methods.base import Choice, Method, Need, finished, ranked
from spice_select.methods.inputs import Inputs
from spice_select.methods.vectors import Vectors, unknown_note, vectors_of

_PIECE = 1024
_SCORE = "cosine distance to the nearest earlier row of its cluster"


class SemDedup(Method):
    """Removal of near-duplicates within clusters of embeddings, the most redundant rows first."""

    name: ClassVar[str] = "semdedup"
    summary: ClassVar[str] = "rows without near-duplicates: the most redundant are left out"
    source: ClassVar[str] = "arXiv 2303.09540"
    cost: ClassVar[str] = "k-means, and rows^2 / clusters x dimension"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS})
    varies: ClassVar[Literal["draw"]] = "draw"

    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Clusters of k-means; ``auto`` is the square root of the number of rows, and no more than the budget."""
    eps: Annotated[float, Field(ge=0, le=2)] | None = None
    """Rows whose cosine with an earlier row of their cluster is above 1 - eps are duplicates, and the budget is drawn
    from all others at random. None: the largest eps that leaves enough rows for the budget, and those rows."""
    keep: Literal["farthest", "nearest", "random"] = "farthest"
    """Which of a cluster's rows count as earlier: those farthest from its center, nearest to it, or a random order."""

    def choose(self, inputs: Inputs) -> Choice:
        """Leave out the most redundant rows."""
        vectors = vectors_of(inputs, "embeddings", unit=True)
        notes = unknown_note(inputs, vectors, "embeddings", "are never chosen")
        candidates = np.flatnonzero(inputs.candidates & vectors.known)
        count = self._count(len(candidates), inputs.budget.rows)
        redundancy = np.full(inputs.n, np.nan)
        if len(candidates):
            in_hand = np.array([index for index in inputs.in_hand if vectors.known[index]], dtype=np.int64)
            found, count = self._redundancies(vectors, in_hand, candidates, count, inputs.seed)
            redundancy[candidates] = found
        if self.eps is not None:
            return self._drawn(inputs, redundancy, self.eps, count, notes)
        choice = ranked(
            inputs,
            1.0 - redundancy,
            _SCORE,
            notes=(*notes, f"{count:,} clusters."),
            dropped="no other row that may be chosen has an embedding",
        )
        if len(choice) and (least := float(choice.scores.min())) < 1e-6:
            copies = int((choice.scores < 1e-6).sum())
            sentence = (
                f"{copies:,} of the {len(choice):,} rows chosen are copies of others by their embeddings, as too few "
                f"rows differ (eps {max(0.0, least):.3g}); give a smaller budget."
            )
            return replace(choice, warnings=(*choice.warnings, sentence))
        return choice

    def _count(self, rows: int, budget: int) -> int:
        wanted = min(round(rows**0.5), budget) if self.clusters == "auto" else self.clusters
        return max(1, min(wanted, rows))

    def _redundancies(
        self,
        vectors: Vectors,
        in_hand: Int[np.ndarray, " h"],
        candidates: Int[np.ndarray, " m"],
        count: int,
        seed: int,
    ) -> tuple[Float[np.ndarray, " m"], int]:
        """Largest cosine of every candidate with an earlier row of its cluster, -1 without one; and the clusters."""
        unit = vectors.take(np.concatenate([in_hand, candidates]))
        earlier = np.arange(len(unit)) < len(in_hand)
        labels, to_center = _clusters(unit, count, seed)
        if self.keep == "random":
            rank = np.random.default_rng(seed).permutation(len(unit)).astype(np.float64)
        else:
            # Centers that differ by rounding must not decide between copies: row numbers do.
            rank = np.round(to_center if self.keep == "farthest" else -to_center, 9)
        order = np.lexsort((np.arange(len(unit)), rank, ~earlier, labels))
        found = np.full(len(unit), -1.0)
        edges = np.flatnonzero(np.diff(labels[order])) + 1
        groups = np.split(order, edges)
        for members in groups:
            found[members] = _largest_with_earlier(unit[members])
        return found[len(in_hand) :], len(groups)

    def _drawn(
        self, inputs: Inputs, redundancy: Float[np.ndarray, " n"], eps: float, count: int, notes: tuple[str, ...]
    ) -> Choice:
        with np.errstate(invalid="ignore"):
            survivors = redundancy <= 1.0 - eps
        limits = inputs.limits(survivors)
        asked = limits.remaining
        picks = []
        for index in np.random.default_rng(inputs.seed).permutation(inputs.n).tolist():
            if limits.remaining and limits.eligible[index]:
                limits.take(index)
                picks.append(index)
        known = int((~np.isnan(redundancy)).sum())
        notes = (*notes, f"{int(survivors.sum()):,} of {known:,} rows are left without duplicates, {count:,} clusters.")
        return finished(
            inputs,
            picks,
            1.0 - redundancy[picks],
            _SCORE,
            asked,
            notes=notes,
            dropped=f"all others are duplicates at eps {eps:g}",
            remedy="lower method.eps, or leave it out to have the least redundant rows",
            pool_scores=1.0 - redundancy,
        )


def _clusters(
    unit: Float[np.ndarray, "m d"], count: int, seed: int
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Cluster of every row, and its cosine with the center."""
    if count == 1:
        labels, centers = np.zeros(len(unit), dtype=np.int64), unit.mean(axis=0, keepdims=True)
    else:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        # Threads add up in an order of their own, which may move a row between two clusters.
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            # Fewer clusters than asked for, as too few rows differ.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = KMeans(count, n_init="auto", max_iter=100, random_state=seed % (1 << 32)).fit(unit)
        labels, centers = np.asarray(found.labels_, dtype=np.int64), np.asarray(found.cluster_centers_)
    norms = np.linalg.norm(centers, axis=1)
    centers = centers / np.where(norms > 0, norms, 1.0)[:, None]
    return labels, np.einsum("ij,ij->i", unit, centers[labels])


def _largest_with_earlier(unit: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Largest cosine of every row with those before it; -1, the least there is, for the first."""
    found = np.full(len(unit), -1.0)
    for start in range(0, len(unit), _PIECE):
        piece = unit[start : start + _PIECE]
        cosines = piece @ unit[: start + len(piece)].T
        later: Bool[np.ndarray, "p q"] = (
            np.arange(cosines.shape[1])[None] >= np.arange(start, start + len(piece))[:, None]
        )
        cosines[later] = -1.0
        found[start : start + len(piece)] = cosines.max(axis=1)
    # Rounding must not decide between copies: row numbers do.
    return np.clip(np.round(found, 12), -1.0, 1.0)
