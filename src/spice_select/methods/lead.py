"""Rows chosen while the proxy is trained on them: a bandit over difficulty, then loss as training sees it (LEAD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from spice_select.errors import DataError
from spice_select.methods.base import Choice, Method, Need, Varies, finished
from spice_select.methods.ifd import ifd
from spice_select.methods.inputs import Inputs, Learner, Step
from spice_select.methods.loss import unmeasured
from spice_select.selection.quotas import Limits

SPREAD = 12 / 7
"""With a budget of 2.5% of the rows, 7 clusters and 20 rounds, the authors train on 1.5% of a cluster in a round."""


class Lead(Method):
    """Trains in rounds on the rows of one cluster that are the most uncertain, until the budget is chosen.

    A reimplementation from the paper, which nothing was there to check against: the published code does not run.
    """

    name: ClassVar[str] = "lead"
    summary: ClassVar[str] = "loss while training, expected after the next step and smoothed (dynamic uncertainty)"
    source: ClassVar[str] = "arXiv 2505.07437"
    cost: ClassVar[str] = "2 forward passes a row, then a training with 2 forward and backward passes an example"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES, Need.DIRECT_LOSSES, Need.TRAINING})
    varies: ClassVar[Varies] = "training"

    rounds: int = Field(default=20, ge=1)
    """Most rounds of training."""
    clusters: int = Field(default=7, ge=1)
    """Clusters of rows by difficulty, the arms of the bandit."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Share of the bandit's choices that is uniform."""
    smoothing: float = Field(default=0.1, ge=0, le=1)
    """Weight of a row's earlier uncertainty (b)."""
    share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Rows of a cluster that a round trains on; ``auto``: enough to fill the budget in the rounds, which at a budget of
    2.5% is the authors' 0.015."""
    max_uses: int = Field(default=4, ge=1)
    """Rounds in which a row is trained on at most."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Learning rate at first."""
    decay: float = Field(default=0.995, gt=0, le=1)
    """Factor on the learning rate after every ``decay_steps`` optimiser steps."""
    decay_steps: int = Field(default=8, ge=1)
    """Optimiser steps between two decays."""
    batch_size: int = Field(default=16, ge=1)
    """Examples of an optimiser step."""
    lora_r: int = Field(default=64, ge=1)
    """Rank of the adapters that are trained."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Their scale."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Their dropout while training."""
    dim: int = Field(default=4096, ge=1)
    """Length of a sketched gradient, by which rounds are compared."""

    def choose(self, inputs: Inputs) -> Choice:
        """Train in rounds, choosing what is trained on; the rest of the budget goes by uncertainty."""
        assert inputs.losses is not None and inputs.direct_losses is not None and inputs.learner is not None
        known = np.isfinite(inputs.losses)
        limits = inputs.limits(known)
        asked = limits.remaining
        if not limits.eligible.any():
            raise DataError("No row that may be chosen has a loss, which 'lead' needs; check the proxy.")
        labels = difficulty_clusters(inputs.losses, inputs.direct_losses, limits.eligible, self.clusters, inputs.seed)
        walk = _Walk(self, inputs, limits, labels, self._share(inputs, limits))
        walk.run(inputs.learner())
        trained = len(walk.picks)
        walk.rest()
        rest = len(walk.picks) - trained
        notes = (
            "LEAD is built from its paper; its published code does not run, so that no picks of it were there to "
            "compare these with.",
            f"{walk.rounds} rounds of training on {walk.examples:,} examples chose {trained:,} rows.",
            *unmeasured(inputs, known),
        )
        if rest:
            notes += (
                f"The other {rest:,} were chosen by their uncertainty when the rounds had ended; more method.rounds or "
                "a larger method.share would choose them while training.",
            )
        return finished(
            inputs,
            walk.picks,
            walk.scores,
            "dynamic uncertainty when chosen",
            asked,
            notes=notes,
            dropped="no other row has a loss",
            pool_scores=np.where(inputs.candidates & known, walk.utility, np.nan),
        )

    def _share(self, inputs: Inputs, limits: Limits) -> float:
        """Share of a cluster that a round trains on."""
        if self.share != "auto":
            return float(self.share)
        rows = int(limits.eligible.sum())
        wanted = min(rows, limits.remaining)
        if limits.tokens is not None:
            wanted = min(wanted, math.ceil(limits.tokens / max(1.0, inputs.response_tokens[limits.eligible].mean())))
        return min(1.0, SPREAD * wanted / rows * self.clusters / self.rounds)


@dataclass
class _Walk:
    """The rounds.

    Attributes:
        method: Settings.
        inputs: The rows.
        limits: What may be chosen.
        labels: Cluster of each row; -1 for a row that may not be chosen.
        share: Share of a cluster that a round trains on.
        utility: Uncertainty of each row as it is known.
        uses: Rounds that have trained on each row.
        picks: Rows chosen, in order.
        scores: Their uncertainty when they were.
        rounds: Rounds done.
        examples: Examples trained on, each time counted.
    """

    method: Lead
    inputs: Inputs
    limits: Limits
    labels: Int[np.ndarray, " n"]
    share: float
    utility: Float[np.ndarray, " n"] = field(init=False)
    uses: Int[np.ndarray, " n"] = field(init=False)
    chosen: Bool[np.ndarray, " n"] = field(init=False)
    picks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    rounds: int = 0
    examples: int = 0

    def __post_init__(self) -> None:
        assert self.inputs.losses is not None
        self.utility = np.array(self.inputs.losses, dtype=np.float64)
        self.uses = np.zeros(self.inputs.n, dtype=np.int64)
        self.chosen = np.zeros(self.inputs.n, dtype=bool)
        names = sorted(set(self.inputs.sources))
        code = {name: number for number, name in enumerate(names)}
        self._sources = np.array([code[name] for name in self.inputs.sources], dtype=np.int64)

    def run(self, learner: Learner) -> None:
        """Rounds until the budget is chosen, they are used up, or no cluster has a row left to choose."""
        generator = np.random.default_rng(self.inputs.seed)
        weights = np.ones(int(self.labels.max()) + 1)
        first: dict[int, Step] = {}
        before: Step | None = None
        gains: list[float] = []
        while self.rounds < self.method.rounds and self.limits.remaining:
            open_arms = np.bincount(self.labels[self.limits.eligible], minlength=len(weights)) > 0
            if not open_arms.any():
                return
            p = arm_probabilities(weights, self.method.gamma, open_arms)
            arm = _draw(p, generator.random())
            rows = self._round(arm)
            if not self.limits.remaining or not self.limits.eligible.any():
                # What this round would teach, no later round would use.
                return
            step = learner.train(rows)
            self.rounds += 1
            self.examples += len(rows)
            change = loss_change(first.get(arm), before, step.learning_rate)
            gains.append(self._learn(rows, step, change))
            first.setdefault(arm, step)
            before = step
            weights = updated_weights(weights, p, arm, scaled_reward(gains), self.method.gamma)
            # Only ratios count, and a long walk must not overflow.
            weights /= weights.max()

    def rest(self) -> None:
        """Fill the budget by uncertainty; the lowest row number wins a tie."""
        for row in np.argsort(-self.utility, kind="stable").tolist():
            if not self.limits.remaining:
                return
            if self.limits.eligible[row]:
                self._take(row)

    def _round(self, arm: int) -> list[int]:
        """The most uncertain rows of a cluster, of every source its share; those not yet chosen are."""
        usable = (self.labels == arm) & (self.uses < self.method.max_uses) & (self.chosen | self.limits.eligible)
        rows: list[int] = []
        for source in np.unique(self._sources[usable]):
            members = np.flatnonzero(usable & (self._sources == source))
            count = max(1, math.floor(self.share * len(members) + 1e-9))
            for row in members[np.argsort(-self.utility[members], kind="stable")][:count].tolist():
                if not self.chosen[row]:
                    if not (self.limits.remaining and self.limits.eligible[row]):
                        continue
                    self._take(row)
                rows.append(row)
        self.uses[rows] += 1
        return rows

    def _take(self, row: int) -> None:
        self.limits.take(row)
        self.chosen[row] = True
        self.picks.append(row)
        self.scores.append(float(self.utility[row]))

    def _learn(self, rows: Sequence[int], step: Step, change: float) -> float:
        """Take in what a round has shown; returns how much less uncertain its rows are, on the mean."""
        earlier = self.utility[list(rows)]
        now = dynamic_uncertainty(np.asarray(step.losses, dtype=np.float64), change, earlier, self.method.smoothing)
        now = np.where(np.isfinite(now), now, earlier)
        self.utility[list(rows)] = now
        return float((earlier - now).mean())


def difficulty_clusters(
    losses: Float[np.ndarray, " n"],
    direct_losses: Float[np.ndarray, " n"],
    eligible: Bool[np.ndarray, " n"],
    clusters: int,
    seed: int,
) -> Int[np.ndarray, " n"]:
    """Clusters of rows by their instruction-following difficulty, numbered from easy to hard.

    A row whose difficulty is unknown or above 1 has difficulty 0.

    Args:
        losses: Of every response given its prompt, in nats.
        direct_losses: Of every response alone, in nats.
        eligible: Rows that may be chosen; at least one.
        clusters: Clusters at most; there are never more than distinct difficulties.
        seed: Of the clustering.

    Returns:
        The number of every row's cluster, -1 for a row that may not be chosen.
    """
    from sklearn.cluster import KMeans

    difficulty = ifd(losses, direct_losses)
    # NaN is not below 1 either.
    difficulty = np.where(difficulty <= 1, difficulty, 0.0)[eligible]
    # In order of value, so that the order of the rows changes nothing.
    order = np.argsort(difficulty, kind="stable")
    values = difficulty[order]
    count = min(clusters, len(np.unique(values)))
    found = KMeans(n_clusters=count, random_state=seed % 2**32, n_init="auto").fit_predict(values[:, None])
    # Clusters of sorted numbers are runs of them.
    run = np.concatenate([[0], np.cumsum(np.diff(found) != 0)])
    labels = np.full(len(eligible), -1, dtype=np.int64)
    labels[np.flatnonzero(eligible)[order]] = run
    return labels


def arm_probabilities(
    weights: Float[np.ndarray, " a"], gamma: float, open_arms: Bool[np.ndarray, " a"] | None = None
) -> Float[np.ndarray, " a"]:
    """Probabilities of EXP3: by weight, a share of ``gamma`` uniform; arms that are not open have none."""
    there = np.ones(len(weights), dtype=bool) if open_arms is None else open_arms
    kept = np.where(there, weights, 0.0)
    p = (1.0 - gamma) * kept / kept.sum() + gamma * there / there.sum()
    return p / p.sum()


def updated_weights(
    weights: Float[np.ndarray, " a"], p: Float[np.ndarray, " a"], arm: int, reward: float, gamma: float
) -> Float[np.ndarray, " a"]:
    """Weights of EXP3 after an arm was drawn with probability ``p[arm]`` and gave a reward from -1 to 1."""
    new = np.array(weights, dtype=np.float64)
    new[arm] *= math.exp(gamma / len(weights) * reward / p[arm])
    return new


def best_mixture(first: float, before: float, cosine: float) -> float:
    """The beta at which ``beta g1 + (1 - beta) g2`` is shortest.

    Args:
        first: Squared norm of g1.
        before: Squared norm of g2.
        cosine: Cosine between both.
    """
    across = math.sqrt(max(0.0, first) * max(0.0, before)) * cosine
    below = first + before - 2.0 * across
    # Equal gradients: every mixture is the same.
    return (before - across) / below if below > 1e-12 * max(first, before, 0.0) else 0.0


def loss_change(first: Step | None, before: Step | None, learning_rate: float) -> float:
    """The change of a loss that a gradient step is expected to make, 0 or less, in nats.

    The step's gradient is not known before it is taken, and a mixture of the gradients of the cluster's first round and
    of the round before stands for it; before a cluster's first round, the latter alone.
    """
    if before is None:
        return 0.0
    d1, d2 = (0.0 if step is None else max(0.0, step.squared_norm) for step in (first, before))
    if first is None:
        return -learning_rate * d2
    cosine = _cosine(first.gradient, before.gradient)
    beta = best_mixture(d1, d2, cosine)
    rest = 1.0 - beta
    length = beta**2 * d1 + rest**2 * d2 + 2.0 * beta * rest * math.sqrt(d1 * d2) * cosine
    return -learning_rate * max(0.0, length)


def dynamic_uncertainty(
    losses: Float[np.ndarray, " m"], change: float, earlier: Float[np.ndarray, " m"], smoothing: float
) -> Float[np.ndarray, " m"]:
    """Instance-level dynamic uncertainty: the loss expected after the next step, smoothed with what it was before.

    Args:
        losses: Losses before the step, in nats.
        change: What the step is expected to add.
        earlier: The uncertainty before.
        smoothing: Its weight.
    """
    return (1.0 - smoothing) * (losses + change) + smoothing * earlier


def scaled_reward(gains: Sequence[float]) -> float:
    """The last gain, from -1 for the smallest so far to 1 for the largest; 0 while all are equal."""
    low, high = min(gains), max(gains)
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        return 0.0
    return min(1.0, max(-1.0, 2.0 * (gains[-1] - low) / (high - low) - 1.0))


def _cosine(one: Float[np.ndarray, " d"], other: Float[np.ndarray, " d"]) -> float:
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    size = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return min(1.0, max(-1.0, float(a @ b) / size)) if size > 0 else 0.0


def _draw(p: Float[np.ndarray, " a"], number: float) -> int:
    """The arm in whose part of [0, 1) a number lies."""
    arm = int(np.searchsorted(np.cumsum(p), number, side="right"))
    return min(arm, int(np.flatnonzero(p).max()))
