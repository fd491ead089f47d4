"""SelectIT: rows that the proxy itself rates well, surely, and whatever the wording of the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field

from spice_select.methods.base import Choice, Method, Need, ranked
from spice_select.methods.inputs import Inputs


class SelectIt(Method):
    """Rows by the proxy's own ratings, at the levels of tokens and sentences (SelectIT)."""

    name: ClassVar[str] = "selectit"
    summary: ClassVar[str] = "the proxy's own rating, weighed by how sure and how steady it is"
    source: ClassVar[str] = "arXiv 2402.16705"
    cost: ClassVar[str] = "one forward pass a row for every rating prompt"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RATINGS})

    prompts: int = Field(default=5, ge=1, le=9)
    """Rating prompts, each of which is one forward pass of every row."""
    levels: int = Field(default=5, ge=2, le=9)
    """The highest rating; the lowest is 1."""
    alpha: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """How much it costs a row that its ratings differ between prompts."""
    double_softmax: bool = True
    """Put the probabilities through a softmax once more, as the authors' code does; without, they are only divided by
    their sum, as the paper says."""

    def choose(self, inputs: Inputs) -> Choice:
        """Choose the rows with the highest sentence-level scores."""
        assert inputs.ratings is not None
        scores = sentence_scores(
            token_scores(np.asarray(inputs.ratings, dtype=np.float64), double_softmax=self.double_softmax), self.alpha
        )
        return ranked(
            inputs,
            scores,
            "sentence-level rating",
            dropped="the proxy gives no other row a probability of any rating",
        )


def token_scores(
    probabilities: Float[np.ndarray, "n prompts levels"], *, double_softmax: bool = True
) -> Float[np.ndarray, "n prompts"]:
    """The likeliest rating times its mean lead in probability over the other ratings.

    Args:
        probabilities: Probability of every rating token of all of the vocabulary, from the lowest rating on.
        double_softmax: Whether a softmax goes over the ratings' shares.

    Returns:
        The scores; NaN where no rating has any probability. Of equally likely ratings the higher counts.
    """
    levels = probabilities.shape[-1]
    sums = probabilities.sum(axis=-1, keepdims=True)
    shares = np.divide(probabilities, sums, out=np.full(probabilities.shape, np.nan), where=sums > 0)
    # Of the shares: what comes after keeps their order, and a softmax may round two of them together.
    top = levels - 1 - np.argmax(shares[..., ::-1], axis=-1)
    if double_softmax:
        shares = np.exp(shares)
        shares /= shares.sum(axis=-1, keepdims=True)
    lead = np.take_along_axis(shares, top[..., None], axis=-1) - shares
    return (top + 1) * lead.sum(axis=-1) / (levels - 1)


def sentence_scores(scores: Float[np.ndarray, "n prompts"], alpha: float) -> Float[np.ndarray, " n"]:
    """Mean over the prompts, less the more they differ: mean / (1 + alpha * population standard deviation)."""
    return scores.mean(axis=-1) / (1 + alpha * scores.std(axis=-1))


def model_scores(
    scores: Float[np.ndarray, "n models"], sizes: Sequence[float], *, official: bool = False
) -> Float[np.ndarray, " n"]:
    """Sentence scores of several models as one, each weighted by its size; the identity for a single model.

    Args:
        scores: Sentence scores by model.
        sizes: Parameters of each model, in any unit.
        official: As the authors' code does it: all but the last of the weights are shares of the others' sizes alone,
            so that they do not sum to 1.
    """
    weights = np.asarray(sizes, dtype=np.float64)
    totals = np.full(len(weights), weights.sum())
    if official and len(weights) > 1:
        totals[:-1] = weights[:-1].sum()
    return scores @ (weights / totals)
