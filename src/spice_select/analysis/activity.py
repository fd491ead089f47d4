"""How much conflict there is between the gradients: between pairs of rows, and with the reference as picks come in.

Conflict appears as the proxy nears a point where the mean gradient vanishes (SPICE, ICLR 2026, arXiv 2601.23155,
section 4); with a fixed pretrained proxy there may be hardly any, and a run should say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.activity_record import (
    ActivityStep,
    ConflictActivity,
    NormHistogram,
    activity_step,
    merge_activities,
    norm_histogram,
)
from spice_select.analysis.pairs import pairs_of_gram, pairs_of_rows
from spice_select.selection.conflict import VANISHED
from spice_select.selection.rows import Rows

__all__ = [
    "ActivityStep",
    "ConflictActivity",
    "NormHistogram",
    "activity_of_gram",
    "measure_activity",
    "merge_activities",
]

SAMPLE = 2048
"""Rows between whose gradients pairs are counted."""
STEPS = 16
"""Steps of the selection at which the candidates are counted."""
_BLOCK_BYTES = 8 << 20
_GATHERED = 1024


class Chosen(Protocol):
    """What is read of a selection."""

    @property
    def indices(self) -> Any:
        """Row numbers in order of choice."""
        ...

    @property
    def reference(self) -> str:
        """``selected`` or ``pool``."""
        ...

    @property
    def hinge(self) -> float:
        """Cosine below which a row is in conflict."""
        ...


def measure_activity(
    rows: Rows,
    selection: Chosen,
    *,
    factors: Float[np.ndarray, " n"] | None = None,
    candidates: Bool[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
    squared_norms: Float[np.ndarray, " n"] | None = None,
    seed: int = 0,
    sample: int = SAMPLE,
    steps: int = STEPS,
) -> ConflictActivity:
    """Measure the conflict among gradient rows in one pass (two where the pool's mean is the reference).

    Args:
        rows: Gradient rows, such as a store.
        selection: The picks and what they conflict with.
        factors: What normalisation multiplied each row by.
        candidates: Rows that could be chosen; all where absent.
        initial: Numbers of rows in hand before the first pick.
        squared_norms: Squared norms of the gradients for the histogram, in place of those of the rows.
        seed: Seed of the sample of pairs.
        sample: Rows between which pairs are counted; all where there are fewer.
        steps: Steps of the selection at which candidates are counted, spread evenly on a log scale.
    """
    n = rows.shape[0]
    members = np.ones(n, dtype=bool) if candidates is None else np.asarray(candidates, dtype=bool)
    picks = np.asarray(selection.indices, dtype=np.int64)
    in_hand = np.asarray(initial, dtype=np.int64)
    times = _times(len(picks), steps)
    if selection.reference == "pool":
        references = _directions([_pool_sum(rows, factors, members)])
    else:
        references = _directions(_running_sums(rows, factors, picks, in_hand, times))
    places = _places(n, picks, in_hand, members)
    opposing = np.zeros(len(times), dtype=np.int64)
    norms = np.zeros(n)
    # Signs need no norms; a pass over the rows for them alone would double the time.
    with_norms = squared_norms is None or selection.hinge != 0.0
    for start, block in _blocks(rows):
        stop = start + len(block)
        if with_norms:
            norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
        if len(times):
            with np.errstate(invalid="ignore"):
                dots = block @ references.T.astype(block.dtype)
                below = _below(dots, norms[start:stop], references, selection.hinge)
            opposing += _counted(below, places[start:stop], times)
    if squared_norms is not None:
        norms = np.sqrt(np.asarray(squared_norms, dtype=np.float64))
    chosen = _sample(np.flatnonzero(members), sample, seed)
    pairs = pairs_of_rows(_gather(rows, chosen))
    remaining = [int(np.count_nonzero(places >= t)) for t in times]
    return _activity(len(chosen), pairs, selection, times, remaining, opposing, norms, members, picks)


def activity_of_gram(
    gram: Float[np.ndarray, "n n"],
    selection: Chosen,
    *,
    factors: Float[np.ndarray, " n"] | None = None,
    candidates: Bool[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
    steps: int = STEPS,
) -> ConflictActivity:
    """Measure the same from the inner products of the gradients, for a small pool: every pair is looked at.

    Args:
        gram: Inner products of the gradients as measured; rows whose own is NaN or Inf are no candidates.
        selection: The picks and what they conflict with.
        factors: What normalisation multiplied each row by.
        candidates: Rows that could be chosen; all where absent.
        initial: Numbers of rows in hand before the first pick.
        steps: Steps of the selection at which candidates are counted.
    """
    diagonal = np.asarray(np.diagonal(gram), dtype=np.float64)
    n = len(diagonal)
    finite = np.isfinite(diagonal)
    members = finite if candidates is None else finite & np.asarray(candidates, dtype=bool)
    scale = np.where(finite, 1.0 if factors is None else factors, 0.0)
    plain = np.where(finite[:, None] & finite, np.asarray(gram, dtype=np.float64), 0.0)
    norms = np.sqrt(np.maximum(np.diagonal(plain), 0.0))
    picks = np.asarray(selection.indices, dtype=np.int64)
    in_hand = np.asarray(initial, dtype=np.int64)
    times = _times(len(picks), steps)
    places = _places(n, picks, in_hand, members)
    pool = selection.reference == "pool"
    opposing = np.zeros(len(times), dtype=np.int64)
    for at, t in enumerate(times):
        within = np.flatnonzero(members) if pool else np.concatenate([in_hand, picks[:t]])
        weights = np.zeros(n)
        weights[within] = scale[within]
        dots = plain @ weights
        norm = float(np.sqrt(max(0.0, weights @ dots)))
        if norm > VANISHED * float(weights @ norms):
            below = dots / norm < selection.hinge * norms if selection.hinge else dots < 0.0
            opposing[at] = np.count_nonzero(below & (norms > 0.0) & (places >= t))
    chosen = np.flatnonzero(members)
    pairs = pairs_of_gram(plain[np.ix_(chosen, chosen)])
    remaining = [int(np.count_nonzero(places >= t)) for t in times]
    return _activity(len(chosen), pairs, selection, times, remaining, opposing, norms, members, picks)


def _activity(
    sampled: int,
    pairs: tuple[int, int, float],
    selection: Chosen,
    times: Int[np.ndarray, " s"],
    remaining: Sequence[int],
    opposing: Int[np.ndarray, " s"],
    norms: Float[np.ndarray, " n"],
    members: Bool[np.ndarray, " n"],
    picks: Int[np.ndarray, " k"],
) -> ConflictActivity:
    count, negative, cosines = pairs
    return ConflictActivity(
        sampled=sampled,
        pairs=count,
        opposing_pairs=negative,
        opposing_pairs_share=negative / count if count else None,
        mean_cosine=cosines / count if count else None,
        reference=selection.reference,
        hinge=float(selection.hinge),
        # With every candidate chosen there is nothing left to count.
        steps=tuple(
            activity_step(t, left, against)
            for t, left, against in zip(times.tolist(), remaining, opposing.tolist(), strict=True)
            if left
        ),
        norms=norm_histogram(norms, members, picks),
    )


def _times(picks: int, steps: int) -> Int[np.ndarray, " s"]:
    """Numbers of picks from 1 to all of them, every one where they are few, else spread evenly on a log scale."""
    if picks <= steps:
        return np.arange(1, picks + 1)
    return np.unique(np.round(np.geomspace(1, picks, steps)).astype(np.int64))


def _places(
    n: int, picks: Int[np.ndarray, " k"], in_hand: Int[np.ndarray, " m"], members: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Place of each row in the order of choice; beyond every place where it was not chosen, -1 for no candidate."""
    places = np.where(members, np.iinfo(np.int64).max, -1)
    places[picks] = np.arange(len(picks))
    places[in_hand] = -1
    return places


def _below(
    dots: Float[np.ndarray, "b m"], norms: Float[np.ndarray, " b"], references: Float[np.ndarray, "m d"], hinge: float
) -> Bool[np.ndarray, "b m"]:
    """Whether rows are in conflict with references of unit length, or of none."""
    if hinge == 0.0:
        return dots < 0.0
    return (dots < hinge * norms[:, None]) & (norms[:, None] > 0.0) & references.any(axis=1)


def _counted(
    below: Bool[np.ndarray, "b m"], places: Int[np.ndarray, " b"], times: Int[np.ndarray, " s"]
) -> Int[np.ndarray, " s"]:
    """Candidates left at each time that are in conflict; one column stands for every time where there is but one."""
    found = np.empty(len(times), dtype=np.int64)
    for at, t in enumerate(times):
        found[at] = np.count_nonzero(below[:, min(at, below.shape[1] - 1)] & (places >= t))
    return found


def _directions(sums: Sequence[tuple[Float[np.ndarray, " d"], float]]) -> Float[np.ndarray, "m d"]:
    """Unit vectors of sums of rows; zero where a sum vanishes beside the norms that went into it."""
    units = []
    for total, mass in sums:
        norm = float(np.sqrt(total @ total))
        units.append(total / norm if norm > VANISHED * mass else np.zeros_like(total))
    return np.array(units)


def _running_sums(
    rows: Rows,
    factors: Float[np.ndarray, " n"] | None,
    picks: Int[np.ndarray, " k"],
    in_hand: Int[np.ndarray, " m"],
    times: Int[np.ndarray, " s"],
) -> list[tuple[Float[np.ndarray, " d"], float]]:
    """Sum of the rows in S at each time, and the sum of their norms."""
    total, mass = np.zeros(rows.shape[1]), 0.0
    found = []
    for members in (in_hand, *np.split(picks, times)[:-1]):
        for start in range(0, len(members), _GATHERED):
            part = members[start : start + _GATHERED]
            wide = np.asarray(rows.rows(part), dtype=np.float64)
            weights = np.ones(len(part)) if factors is None else factors[part]
            total = total + weights @ wide
            mass += float(np.abs(weights) @ np.sqrt(np.einsum("ij,ij->i", wide, wide)))
        found.append((total, mass))
    return found[1:]


def _pool_sum(
    rows: Rows, factors: Float[np.ndarray, " n"] | None, members: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " d"], float]:
    total, mass = np.zeros(rows.shape[1]), 0.0
    for start, block in _blocks(rows):
        inside = members[start : start + len(block)]
        kept = block if inside.all() else block[inside]
        weights = np.ones(len(kept)) if factors is None else factors[start : start + len(block)][inside]
        total += weights.astype(kept.dtype) @ kept
        mass += float(weights @ np.sqrt(np.einsum("ij,ij->i", kept, kept, dtype=np.float64)))
    return total, mass


def _blocks(rows: Rows) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
    for start, block in rows.blocks(max(1, _BLOCK_BYTES // (4 * rows.shape[1]))):
        yield start, _floating(block)


def _gather(rows: Rows, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    return _floating(rows.rows(indices)) if len(indices) else np.zeros((0, rows.shape[1]), np.float32)


def _floating(block: np.ndarray) -> np.ndarray:
    """Rows as they are in float32 or float64; all else as float32."""
    return np.asarray(block, dtype=block.dtype if block.dtype in (np.float32, np.float64) else np.float32)


def _sample(members: Int[np.ndarray, " m"], size: int, seed: int) -> Int[np.ndarray, " s"]:
    if len(members) <= size:
        return members
    return np.sort(np.random.default_rng(seed).choice(members, size, replace=False))
