"""Rows by the proxy's loss, or its perplexity, on their response."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from scipy.stats import rankdata

from spice_select.methods.base import Choice, Method, Need, ranked
from spice_select.methods.inputs import Inputs


class Loss(Method):
    """Takes the rows with the highest, the lowest or the middle losses, of those between two quantiles.

    Perplexity is exp(loss), so that rows come in the same order by either.
    """

    name: ClassVar[str] = "loss"
    summary: ClassVar[str] = "the mean loss of the response given the prompt, or how near it is to the middle"
    source: ClassVar[str] = "arXiv 2309.04564"
    cost: ClassVar[str] = "1 forward pass a row"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES})

    order: Literal["highest", "lowest", "middle"] = "highest"
    """Which losses come first; ``middle`` takes the median of those between ``low`` and ``high`` first and goes outward
    from there by rank."""
    low: float = Field(default=0.0, ge=0, lt=1)
    """Rows below this quantile of the losses are left out: 0.1 drops the tenth that the proxy knows best."""
    high: float = Field(default=1.0, gt=0, le=1)
    """Rows above this quantile are left out: 0.95 drops the twentieth with the highest losses, often noise."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        return self

    def choose(self, inputs: Inputs) -> Choice:
        """Rows by loss; quantiles are of the losses of all rows that can be chosen."""
        assert inputs.losses is not None
        losses = np.asarray(inputs.losses, dtype=np.float64)
        known = inputs.candidates & np.isfinite(losses)
        quantiles = _quantiles(losses, known)
        within = known & (quantiles >= self.low) & (quantiles <= self.high)
        values, name = self._scores(losses, quantiles)
        scores = np.where(within, values, np.nan)
        left_out = int(known.sum() - within.sum())
        notes = unmeasured(inputs, known)
        if left_out:
            span = f"quantiles {self.low:g} and {self.high:g} of the losses"
            notes += (f"{left_out:,} rows outside {span} were left out.",)
            why, remedy = f"no other row lies between {span}", "widen method.low and method.high"
            return ranked(inputs, scores, name, notes=notes, dropped=why, remedy=remedy)
        return ranked(inputs, scores, name, notes=notes, dropped="no other row has a loss")

    def _scores(
        self, losses: Float[np.ndarray, " n"], quantiles: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " n"], str]:
        if self.order == "highest":
            return losses, "loss (nats a token)"
        if self.order == "lowest":
            return -losses, "loss (nats a token), negative"
        # By rank, and not by the loss itself: the middle share of the rows, whatever the shape of the distribution.
        # Rounded, so that the rows at equal ranks below and above the middle tie.
        return -np.round(np.abs(quantiles - (self.low + self.high) / 2), 12), "distance from the middle rank, negative"


def unmeasured(inputs: Inputs, known: Bool[np.ndarray, " n"]) -> tuple[str, ...]:
    """The sentence that counts the candidates without a score, if there are any."""
    count = int((inputs.candidates & ~known).sum())
    return (f"{count:,} rows have no loss, as it is NaN or infinite, and were left out.",) if count else ()


def _quantiles(losses: Float[np.ndarray, " n"], known: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Where each loss stands among the known ones, from 0 to 1; equal losses stand at one place."""
    found = np.full(len(losses), np.nan)
    count = int(known.sum())
    found[known] = (rankdata(losses[known]) - 0.5) / max(1, count)
    return found
