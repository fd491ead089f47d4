"""What a selection method is: its settings, what it needs to see of the rows, and how it chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict

from spice_select.methods.inputs import Inputs
from spice_select.selection import Selection
from spice_select.selection.result import StopReason

Varies = Literal["no", "draw", "training"]


class Need(StrEnum):
    """What a method must be given of the rows beside their number, source and response length."""

    GRADIENTS = "gradients"
    LOSSES = "losses"
    DIRECT_LOSSES = "direct losses"
    EMBEDDINGS = "embeddings"
    TOKEN_FEATURES = "token features"
    RATINGS = "ratings"
    TARGET = "target examples"
    CHECKPOINTS = "checkpoint gradients"
    TRAINING = "training"


@dataclass(frozen=True, eq=False)
class Choice:
    """The rows that a method chose, in order of choice.

    Attributes:
        indices: Row numbers, each once.
        scores: What each pick was chosen by, when it was.
        score_name: What the scores are, in a few words.
        stop_reason: ``"budget"``, ``"tokens"``, ``"stop_ratio"``, or ``"exhausted"``: fewer than asked for.
        pool_scores: The score of every row, for a method that scores rows by themselves; NaN where it has none.
        notes: What a user should read, in plain sentences.
        warnings: What a user should act on; a choice of fewer rows than asked for always has one.
        selection: The whole selection, for methods that maximise Fisher information.
    """

    indices: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    score_name: str
    stop_reason: StopReason
    pool_scores: Float[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    selection: Selection | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.indices)


class Method(BaseModel, ABC):
    """A way to choose rows; its fields are its settings, and every one has a default.

    A subclass is found by its name where it is one of this package's, or by an entry point of the group
    ``spice_select.methods``. Calling :meth:`choose` twice on the same inputs gives the same answer.

    Attributes:
        name: Its name on the command line.
        summary: What it maximises, in one line.
        source: Paper that it is from.
        cost: What it costs beside what it needs, in a few words.
        needs: What it must be given.
        varies: What of it depends on the seed: nothing, a cheap draw, or a training.
        takes_budget: Whether it chooses as much as it is told to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    varies: ClassVar[Varies] = "no"
    takes_budget: ClassVar[bool] = True

    def required(self) -> frozenset[Need]:
        """What it must be given under these settings."""
        return self.needs

    def varying(self) -> Varies:
        """What of its answer depends on the seed under these settings."""
        return self.varies

    def in_selection(self) -> dict[str, Any]:
        """Settings of the selection section that this method decides, by name."""
        return {}

    @abstractmethod
    def choose(self, inputs: Inputs) -> Choice:
        """Choose rows.

        Args:
            inputs: The rows, the budget, and what :meth:`required` has named.

        Raises:
            ConfigError: A setting that these inputs do not allow.
            DataError: Inputs that leave nothing to choose from.
        """


def fewer(asked: int, found: int, why: str, remedy: str) -> str:
    """The sentence for a choice of fewer rows than asked for."""
    return f"{found:,} of the {asked:,} rows asked for were chosen, as {why}; {remedy}."


def ranked(
    inputs: Inputs,
    scores: Float[np.ndarray, " n"] | Sequence[float],
    score_name: str,
    *,
    notes: tuple[str, ...] = (),
    dropped: str = "no other row has a score",
    remedy: str = "give a smaller budget",
) -> Choice:
    """Choose the rows with the highest scores; the lowest row number wins a tie, and equal rows tie.

    Args:
        inputs: The rows and the budget.
        scores: One for every row; a row whose score is NaN is never chosen.
        score_name: What the scores are.
        notes: Sentences for the user.
        dropped: Why rows may have no score, for the warning where too few have one.
        remedy: What to do about that.
    """
    values = inputs.settled(np.asarray(scores, dtype=np.float64))
    assert values.shape == (inputs.n,)
    limits = inputs.limits(known=~np.isnan(values))
    asked = limits.remaining
    order = np.argsort(-values, kind="stable")
    picks = []
    for index in order.tolist():
        if limits.remaining == 0:
            break
        if limits.eligible[index]:
            limits.take(index)
            picks.append(index)
    return finished(
        inputs, picks, values[picks], score_name, asked, notes=notes, dropped=dropped, remedy=remedy, pool_scores=values
    )


def finished(
    inputs: Inputs,
    picks: Sequence[int],
    scores: Sequence[float] | Float[np.ndarray, " k"],
    score_name: str,
    asked: int,
    *,
    notes: tuple[str, ...] = (),
    dropped: str = "no other row was left",
    remedy: str = "give a smaller budget",
    pool_scores: Float[np.ndarray, " n"] | None = None,
) -> Choice:
    """A choice from picks that were made under :meth:`Inputs.limits`, with the reason why it ended.

    Args:
        inputs: The rows and the budget.
        picks: Row numbers in order of choice.
        scores: What each was chosen by.
        score_name: What the scores are.
        asked: Rows that were asked for.
        notes: Sentences for the user.
        dropped: Why there may be fewer.
        remedy: What to do about that.
        pool_scores: The score of every row.
    """
    short = len(picks) < asked
    reason: StopReason = "budget"
    warnings: tuple[str, ...] = ()
    if short and inputs.budget.tokens is not None:
        reason = "tokens"
        if _another_fits(inputs, picks):
            reason = "exhausted"
            warnings = (f"Tokens are left of the budget after {len(picks):,} rows, as {dropped}; {remedy}.",)
    elif short:
        reason = "exhausted"
        warnings = (fewer(asked, len(picks), dropped, remedy),)
    return Choice(
        np.asarray(picks, dtype=np.int64),
        np.asarray(scores, dtype=np.float64),
        score_name,
        reason,
        pool_scores=pool_scores,
        notes=notes,
        warnings=warnings,
    )


def _another_fits(inputs: Inputs, picks: Sequence[int] | Int[np.ndarray, " k"]) -> bool:
    """Whether budget and quotas have room for a candidate beside the picks, whatever a method knows about it."""
    limits = inputs.limits()
    for index in picks:
        limits.take(int(index))
    return limits.remaining > 0 and bool(limits.eligible.any())
