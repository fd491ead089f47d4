"""What methods are given of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.selection.budget import Budget
from spice_select.selection.partition import PartitionMap
from spice_select.selection.quotas import Groups, Limits
from spice_select.selection.rows import Rows


class Tokens(Protocol):
    """Hidden states of every row's tokens, read a row at a time."""

    @property
    def dim(self) -> int:
        """Length of a hidden state."""
        ...

    @property
    def counts(self) -> Int[np.ndarray, " n"]:
        """Tokens of every row."""
        ...

    def of(self, index: int) -> Float[np.ndarray, "t d"]:
        """The hidden states of one row, float32 or float64."""
        ...


@dataclass(frozen=True, eq=False)
class Target:
    """Examples of what the model should become good at.

    Attributes:
        subtasks: Name of each example's subtask; one name where the target has no subtasks.
        embeddings: Embedding of each, for methods that need embeddings.
    """

    subtasks: Sequence[str]
    embeddings: Float[np.ndarray, "m d"] | None = None

    def __len__(self) -> int:
        return len(self.subtasks)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Gradients of rows and target at one checkpoint of a warm-up.

    Attributes:
        weight: Mean learning rate of its epoch; only ratios matter.
        rows: Gradient row of every row of the pool.
        target: Gradient row of every target example.
    """

    weight: float
    rows: Rows
    target: Rows


@dataclass(frozen=True, eq=False)
class Step:
    """What a training on some rows was like.

    Attributes:
        losses: Loss of each row before its own optimiser step, in nats.
        gradient: Mean gradient of the rows, sketched.
        squared_norm: Squared norm of that mean gradient.
        learning_rate: That of the last optimiser step.
    """

    losses: Float[np.ndarray, " m"]
    gradient: Float[np.ndarray, " d"]
    squared_norm: float
    learning_rate: float


class Learner(Protocol):
    """A model that is trained while rows are selected."""

    def losses(self, rows: Sequence[int]) -> Float[np.ndarray, " m"]:
        """Losses of rows under the model as it is now, in nats."""
        ...

    def train(self, rows: Sequence[int]) -> Step:
        """Go once over some rows, learning from them."""
        ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """The rows as a method sees them. What a method has not declared is None.

    Attributes:
        n: Rows.
        candidates: Rows that may be chosen.
        response_tokens: Response tokens of every row.
        sources: Name of every row's source.
        budget: How much to choose.
        seed: Seed of every random choice; use a generator of its own.
        groups: Makes fresh quotas by group; None where there are none. :meth:`limits` observes them.
        labels: Label of every row by the grouping column, where there is one.
        quotas: Quotas by label as they were given.
        in_hand: Rows that count as chosen already, for methods that can take them into account.
        gradients: Gradient row of every row of the pool: ``shape``, ``rows(indices)`` and ``blocks(size)``.
        losses: Mean loss of the response given the prompt, in nats; NaN where there is none.
        direct_losses: Mean loss of the response alone, in nats; NaN where there is none.
        embeddings: Embedding of every row, as measured and not normalised; zeros where there is none.
        tokens: Hidden states of every row's tokens.
        ratings: Probability of every rating token, by row, prompt and rating from lowest to highest.
        target: Target examples.
        checkpoints: Gradients at the checkpoints of a warm-up.
        learner: Starts a training from the proxy as it came.
        equal: For every row the first one that is the same to the model: what is measured of both differs by rounding
            alone, as batches differ. None where that is not known.
        selection: Settings of the selection section, for the methods that maximise Fisher information.
        partition_map: Where the partitions of a selection make their picks; here, one after another, where absent.
    """

    n: int
    candidates: Bool[np.ndarray, " n"]
    response_tokens: Int[np.ndarray, " n"]
    sources: Sequence[str]
    budget: Budget
    seed: int = 0
    groups: Callable[[], Groups] | None = None
    labels: Sequence[str] | None = None
    quotas: Any = None
    in_hand: Sequence[int] = ()
    gradients: Rows | None = None
    losses: Float[np.ndarray, " n"] | None = None
    direct_losses: Float[np.ndarray, " n"] | None = None
    embeddings: Float[np.ndarray, "n d"] | None = None
    tokens: Tokens | None = None
    ratings: Float[np.ndarray, "n prompts levels"] | None = None
    target: Target | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    learner: Callable[[], Learner] | None = None
    equal: Int[np.ndarray, " n"] | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    partition_map: PartitionMap | None = None

    def settled(self, values: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
        """The values, those of equal rows made equal where they differ by rounding, so that such rows tie.

        Args:
            values: One or several numbers for every row.
        """
        if self.equal is None:
            return values
        first = values[self.equal]
        near = np.isclose(values, first, rtol=1e-3, atol=1e-6, equal_nan=True).reshape(len(values), -1).all(axis=1)
        return np.where(near.reshape(-1, *[1] * (values.ndim - 1)), first, values)

    def limits(self, known: Bool[np.ndarray, " n"] | None = None) -> Limits:
        """Rows that may be chosen and what is left of the budget; ``take`` a row to choose it.

        Args:
            known: Rows about which the method knows what it must; the others are never chosen.
        """
        eligible = self.candidates if known is None else self.candidates & known
        return Limits(eligible, self.budget, self.response_tokens, None if self.groups is None else self.groups())
