"""Rows whose prompt helps the proxy least to predict the response: instruction-following difficulty."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from spice_select.methods.base import Choice, Method, Need, finished, ranked
from spice_select.methods.facility import spread
from spice_select.methods.inputs import Inputs
from spice_select.methods.loss import unmeasured
from spice_select.methods.vectors import unknown_note, vectors_of

Variant = Literal["cherry", "superfiltering"]


class Ifd(Method):
    """Takes the rows with the highest difficulty of those whose prompt does not make the response less likely."""

    name: ClassVar[str] = "ifd"
    summary: ClassVar[str] = "how little the prompt helps: loss given the prompt over loss of the response alone"
    source: ClassVar[str] = "arXiv 2308.12032"
    cost: ClassVar[str] = "2 forward passes a row, the second of the response alone"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSSES, Need.DIRECT_LOSSES})

    variant: Variant = "cherry"
    """``cherry``: the ratio of the losses, L(y|x) / L(y) (arXiv 2308.12032). ``superfiltering``: the ratio of the
    perplexities, exp(L(y|x) - L(y)) (arXiv 2402.00530). They rank differently."""
    keep_above: bool = False
    """Keep rows whose prompt does not help. Without it ``cherry`` leaves out those above 1 and ``superfiltering`` those
    at or above 1, as the authors of each do."""

    diverse: float | None = Field(default=None, ge=1)
    """Take this many times the budget by difficulty first, and of those the rows that represent them best by their
    embeddings (facility location; 10 in arXiv 2402.00530). None: by difficulty alone."""

    def required(self) -> frozenset[Need]:
        """Both losses, and embeddings where the picks shall be diverse."""
        return self.needs if self.diverse is None else self.needs | {Need.EMBEDDINGS}

    def choose(self, inputs: Inputs) -> Choice:
        """Rows by difficulty; a row without both losses has none and is never chosen."""
        assert inputs.losses is not None and inputs.direct_losses is not None
        difficulty = ifd(inputs.losses, inputs.direct_losses, self.variant)
        measured = inputs.candidates & np.isfinite(inputs.losses) & np.isfinite(inputs.direct_losses)
        known = measured & ~np.isnan(difficulty)
        kept = known if self.keep_above else known & helped(difficulty, self.variant)
        bound = "above 1" if self.variant == "cherry" else "of 1 or more"
        unhelped = int(known.sum() - kept.sum())
        notes = unmeasured(inputs, measured)
        if known.sum() < measured.sum():
            count = int(measured.sum() - known.sum())
            notes += (f"{count:,} rows have a loss of 0 without their prompt, and so no ratio, and were left out.",)
        if unhelped:
            notes += (f"{unhelped:,} rows have a difficulty {bound}: their prompt does not help; they were left out.",)
        why, remedy = "no other row has both losses", "give a smaller budget"
        if unhelped:
            others = "1 other has" if unhelped == 1 else f"{unhelped:,} others have"
            why = f"{others} a difficulty {bound}"
            remedy = "set method.keep_above=true, or give a smaller budget"
        if self.diverse is None:
            choice = ranked(
                inputs,
                np.where(kept, difficulty, np.nan),
                "IFD (ratio of losses)" if self.variant == "cherry" else "IFD (ratio of perplexities)",
                notes=notes,
                dropped=why,
                remedy=remedy,
            )
        else:
            choice = _diverse(inputs, np.where(kept, difficulty, np.nan), self.diverse, notes, why, remedy)
        # The rows left out have a difficulty all the same, and it is why they were.
        return replace(choice, pool_scores=difficulty)


def _diverse(
    inputs: Inputs,
    difficulty: Float[np.ndarray, " n"],
    factor: float,
    notes: tuple[str, ...],
    why: str,
    remedy: str,
) -> Choice:
    """Of the rows with the highest difficulty, those that represent them best."""
    vectors = vectors_of(inputs, "embeddings", unit=True)
    notes += unknown_note(inputs, vectors, "embeddings", "are never chosen")
    scores = np.where(vectors.known, difficulty, np.nan)
    shortlist = _shortlist(inputs, scores, factor)
    limits = inputs.limits(known=np.isin(np.arange(inputs.n), shortlist))
    asked = limits.remaining
    in_hand = np.array([row for row in inputs.in_hand if vectors.known[row]], dtype=np.int64)
    picks, gains = spread(vectors.take(shortlist), shortlist, limits, vectors.take(in_hand) if len(in_hand) else None)
    notes += (f"The picks are of the {len(shortlist):,} rows with the highest difficulty.",)
    return finished(inputs, picks, gains, "gain in facility location", asked, notes=notes, dropped=why, remedy=remedy)


def _shortlist(inputs: Inputs, scores: Float[np.ndarray, " n"], factor: float) -> Int[np.ndarray, " m"]:
    """Row numbers with the highest scores, as many as a multiple of the budget holds, in increasing order.

    What would be chosen by the scores alone is among them, so that quotas can be met.
    """
    order = np.argsort(-scores, kind="stable")[: int((~np.isnan(scores)).sum())]
    if inputs.budget.tokens is None:
        count = int(np.ceil(factor * inputs.budget.rows - 1e-9))
    else:
        before = np.cumsum(inputs.response_tokens[order]) - inputs.response_tokens[order]
        count = int((before < factor * inputs.budget.tokens).sum())
    return np.union1d(order[:count], ranked(inputs, scores, "").indices)


def ifd(
    losses: Float[np.ndarray, " n"], direct_losses: Float[np.ndarray, " n"], variant: Variant = "cherry"
) -> Float[np.ndarray, " n"]:
    """Instruction-following difficulty (arXiv 2308.12032; ``superfiltering``: 2402.00530).

    Args:
        losses: Mean loss of each response given its prompt, in nats.
        direct_losses: Mean loss of the same tokens without the prompt, in nats.
        variant: Ratio of the losses, or of the perplexities.

    Returns:
        NaN where a loss is NaN or infinite, and where the ratio of losses would be over 0.
    """
    given, alone = np.asarray(losses, dtype=np.float64), np.asarray(direct_losses, dtype=np.float64)
    known = np.isfinite(given) & np.isfinite(alone)
    found = np.full(len(given), np.nan)
    if variant == "cherry":
        known &= alone > 0
        found[known] = given[known] / alone[known]
    else:
        # Beyond what float64 holds, rows tie.
        found[known] = np.exp(np.minimum(given[known] - alone[known], 700.0))
    return found


def helped(difficulty: Float[np.ndarray, " n"], variant: Variant) -> Bool[np.ndarray, " n"]:
    """Whether the prompt helps: at most 1 for ``cherry``, less than 1 for ``superfiltering``."""
    return difficulty <= 1 if variant == "cherry" else difficulty < 1
