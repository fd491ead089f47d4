"""The result of a selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.selection.outlook import Outlook

StopReason = Literal["budget", "stop_ratio", "tokens", "exhausted"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that were chosen, in order of choice, and why.

    Attributes:
        indices: Row numbers as the rows were given, shape [t].
        gains: Marginal information gain of each pick when it was picked, D_x(S), in nats.
        bases: What each pick is worth alone, log(1 + a |g|^2) for the exact form.
        epsilons: gain - base: what the picks before it take away; never positive.
        conflicts: Conflict of each pick when it was picked.
        scores: What was compared: gain less penalty, per token where asked.
        stop_reason: ``"budget"``, ``"stop_ratio"``, ``"tokens"`` (no row fits what is left) or ``"exhausted"``.
        n: Rows that were given.
        k: Rows that were asked for; the cap where the budget is in tokens or absent.
        alpha: Fisher scale a, resolved.
        conflict_weight: Weight lambda.
        penalty: ``"absolute"`` or ``"relative"``.
        reference: ``"selected"`` or ``"pool"``.
        hinge: The hinge as a cosine, resolved.
        normalize: Normalisation of the rows.
        fisher: Form of Fisher information.
        loop: Loop that ran, resolved.
        unusable: Rows left out because they are marked unusable or hold NaN or Inf.
        first_gain_outlier: The first gain is more than twice the median of the next ten, so a stop ratio bites early.
        warnings: Sentences for the user.
        constrained: Quotas, token budget, gains per token, rows in hand that were given as gradients, samples or
            partitions had a say, so that greedy's guarantee for F does not hold.
        sampling_epsilon: Expected shortfall of the stochastic loop; None where every candidate was looked at.
        partitions: Partitions of the first round; 1: there was none.
        factors: What normalisation multiplied each row by, shape [n]; None where it was nothing.
        outlook: What is known at the end of the rows that were not chosen, for the exact form; None for a loop or a
            form that knows nothing, and where only inner products were given.
        without_penalty: Runs the same selection with conflict weight 0; None where that is what ran.
    """

    indices: Int[np.ndarray, " t"]
    gains: Float[np.ndarray, " t"]
    bases: Float[np.ndarray, " t"]
    epsilons: Float[np.ndarray, " t"]
    conflicts: Float[np.ndarray, " t"]
    scores: Float[np.ndarray, " t"]
    stop_reason: StopReason
    n: int
    k: int
    alpha: float
    conflict_weight: float
    penalty: str
    reference: str
    hinge: float
    normalize: str
    fisher: str
    loop: str
    unusable: int = 0
    first_gain_outlier: bool = False
    warnings: tuple[str, ...] = ()
    constrained: bool = False
    sampling_epsilon: float | None = None
    partitions: int = 1
    factors: Float[np.ndarray, " n"] | None = field(default=None, repr=False)
    outlook: Outlook | None = field(default=None, repr=False)
    without_penalty: Callable[[], Selection] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def information(self) -> float:
        """Information of the picks, in nats: the sum of the gains; F(S) for the exact form without rows in hand."""
        return float(np.sum(self.gains))

    @property
    def opposing(self) -> float:
        """Share of the picks that were in conflict when they were picked."""
        return float(np.mean(self.conflicts > 0)) if len(self.conflicts) else 0.0

    @cached_property
    def changed_by_penalty(self) -> int:
        """Picks that are not in the answer without penalty (conflict weight 0), which is computed on first access."""
        if self.without_penalty is None:
            return 0
        return len(np.setdiff1d(self.indices, self.without_penalty().indices))
