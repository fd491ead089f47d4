"""The record of conflict among gradients: pairs that oppose one another, candidates in conflict, norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.comparison import Numbers

if TYPE_CHECKING:
    import pandas


class ActivityStep(Numbers):
    """The candidates at one step of the selection.

    Attributes:
        picks: Rows chosen by then, t.
        remaining: Candidates that are left.
        opposing: Those of them in conflict with the reference: the mean of the first t picks, or that of the pool.
        share: The same over all that are left.
    """

    picks: int
    remaining: int
    opposing: int
    share: float


class NormHistogram(Numbers):
    """Gradient norms before any normalisation, in bins half an octave wide; rows of zero norm are in none.

    Edges are powers of the root of 2, the same for every pool, so that histograms add up bin by bin.

    Attributes:
        edges: Edges of the bins, one more than there are bins; a bin holds its lower edge. Empty where no norm is
            above 0.
        pool: Candidates in each bin.
        picks: Picks in each bin.
    """

    edges: tuple[float, ...]
    pool: tuple[int, ...]
    picks: tuple[int, ...]

    @property
    def first(self) -> int:
        """The lowest edge, as a power of the root of 2."""
        return round(2 * float(np.log2(self.edges[0]))) if self.edges else 0

    def to_pandas(self) -> pandas.DataFrame:
        """One line a bin: low, high, pool, picks."""
        import pandas

        return pandas.DataFrame(
            {"low": self.edges[:-1], "high": self.edges[1:], "pool": self.pool, "picks": self.picks},
        )


class ConflictActivity(Numbers):
    """How much the gradients of a run oppose one another.

    Attributes:
        sampled: Rows of which every pair was looked at.
        pairs: Those pairs, rows of zero norm left out.
        opposing_pairs: Pairs whose inner product is negative.
        opposing_pairs_share: The same over all pairs; None where there is no pair.
        mean_cosine: Mean cosine of the pairs; None where there is none.
        reference: What candidates conflict with: the mean of the picks so far (``selected``) or of the ``pool``.
        hinge: Cosine below which there is conflict; over several pools the mean of theirs.
        steps: Candidates in conflict as the picks come in.
        norms: Histogram of gradient norms.
        pools: Pools that this is the sum of.
    """

    sampled: int
    pairs: int
    opposing_pairs: int
    opposing_pairs_share: float | None
    mean_cosine: float | None
    reference: str
    hinge: float
    steps: tuple[ActivityStep, ...]
    norms: NormHistogram
    pools: int = 1

    def describe(self) -> list[str]:
        """Two lines for the terminal."""
        lines = []
        if self.opposing_pairs_share is not None:
            within = f" within {self.pools:,} pools" if self.pools > 1 else ""
            lines.append(
                f"Pairs of rows with opposing gradients: {self.opposing_pairs_share:.1%}"
                f" (mean cosine {self.mean_cosine:.2f}; {self.pairs:,} pairs of {self.sampled:,} rows{within})"
            )
        if self.steps:
            mean = "the picks' mean" if self.reference == "selected" else "the pool's mean"
            what = f"oppose {mean}" if self.hinge == 0 else f"lie below a cosine of {self.hinge:.2g} with {mean}"
            shown = {0: None, len(self.steps) // 2: None, len(self.steps) - 1: None}
            listed = [
                f"{self.steps[at].share:.1%} after {self.steps[at].picks:,}"
                f" {'pick' if self.steps[at].picks == 1 else 'picks'}"
                for at in shown
            ]
            lines.append(f"Candidates that {what}: {', '.join(listed)}")
        return lines

    def to_pandas(self) -> pandas.DataFrame:
        """One line a step: picks, remaining, opposing, share."""
        import pandas

        columns = list(ActivityStep.model_fields)
        return pandas.DataFrame([step.model_dump() for step in self.steps], columns=columns)


def merge_activities(activities: Sequence[ConflictActivity]) -> ConflictActivity | None:
    """Put the activity of many pools together: counts are summed, shares and means are over all that was counted.

    A step that only some pools reached, as one with a larger budget does, is over those pools.

    Args:
        activities: One for each pool, of one reference.

    Returns:
        Their sum; None where there is none.
    """
    if not activities:
        return None
    assert len({activity.reference for activity in activities}) == 1
    counts: dict[int, list[int]] = {}
    for step in (step for activity in activities for step in activity.steps):
        count = counts.setdefault(step.picks, [0, 0])
        count[0] += step.remaining
        count[1] += step.opposing
    pairs = sum(activity.pairs for activity in activities)
    cosines = sum(activity.pairs * (activity.mean_cosine or 0.0) for activity in activities)
    opposing = sum(activity.opposing_pairs for activity in activities)
    return ConflictActivity(
        sampled=sum(activity.sampled for activity in activities),
        pairs=pairs,
        opposing_pairs=opposing,
        opposing_pairs_share=opposing / pairs if pairs else None,
        mean_cosine=cosines / pairs if pairs else None,
        reference=activities[0].reference,
        hinge=float(np.mean([activity.hinge for activity in activities])),
        steps=tuple(activity_step(t, *counts[t]) for t in sorted(counts)),
        norms=_merged_norms([activity.norms for activity in activities if activity.norms.edges]),
        pools=sum(activity.pools for activity in activities),
    )


def norm_histogram(
    norms: Float[np.ndarray, " n"], members: Bool[np.ndarray, " n"], picks: Int[np.ndarray, " k"]
) -> NormHistogram:
    """Count the norms of the candidates and of the picks in the same bins."""
    known = np.isfinite(norms) & (norms > 0.0)
    members, chosen = members & known, picks[known[picks]]
    if not members.any() and not len(chosen):
        return NormHistogram(edges=(), pool=(), picks=())
    bins = np.zeros(len(norms), dtype=np.int64)
    bins[known] = np.floor(2.0 * np.log2(norms[known])).astype(np.int64)
    held = np.concatenate([bins[members], bins[chosen]])
    low, count = int(held.min()), int(held.max() - held.min()) + 1
    return NormHistogram(
        edges=_edges(low, count),
        pool=tuple(np.bincount(bins[members] - low, minlength=count).tolist()),
        picks=tuple(np.bincount(bins[chosen] - low, minlength=count).tolist()),
    )


def _merged_norms(parts: Sequence[NormHistogram]) -> NormHistogram:
    if not parts:
        return NormHistogram(edges=(), pool=(), picks=())
    low = min(part.first for part in parts)
    count = max(part.first + len(part.pool) for part in parts) - low
    pool, picks = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for part in parts:
        span = slice(part.first - low, part.first - low + len(part.pool))
        pool[span] += part.pool
        picks[span] += part.picks
    return NormHistogram(edges=_edges(low, count), pool=tuple(pool.tolist()), picks=tuple(picks.tolist()))


def _edges(low: int, count: int) -> tuple[float, ...]:
    return tuple(float(2.0 ** (at / 2)) for at in range(low, low + count + 1))


def activity_step(picks: int, remaining: int, opposing: int) -> ActivityStep:
    """One step from its counts; some candidate must be left."""
    return ActivityStep(picks=picks, remaining=remaining, opposing=opposing, share=opposing / remaining)
