"""Quantities of gradients that their inner products alone decide.

References:
    SPICE, ICLR 2026, arXiv 2601.23155 (gains and information).
    Kornblith, Norouzi, Lee, Hinton: Similarity of neural network representations revisited, arXiv 1905.00414 (CKA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int


class Picked(Protocol):
    """What is read of a selection on a Gram matrix."""

    @property
    def indices(self) -> Int[np.ndarray, " k"]:
        """Row numbers in order of choice."""
        ...

    @property
    def alpha(self) -> float:
        """Fisher scale a."""
        ...

    @property
    def factors(self) -> Float[np.ndarray, " n"] | None:
        """What normalisation multiplied each row by."""
        ...


@dataclass(frozen=True, eq=False)
class Geometry:
    """One model's gradients of the rows, and what they choose.

    Attributes:
        gram: Inner products of the gradients, finite.
        selection: What they choose.
    """

    gram: Float[np.ndarray, "n n"]
    selection: Picked


def cosine_matrix(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Cosines from inner products; nan with rows of zero norm."""
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return gram / np.outer(norms, norms)


def alignment(left: Float[np.ndarray, "n n"], right: Float[np.ndarray, "n n"]) -> float | None:
    """Centred kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)); None where all rows of one are alike."""
    first, second = _centred(left), _centred(right)
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.sum(first * second)) / norm if norm > 0.0 else None


def gains_alone(side: Geometry) -> Float[np.ndarray, " n"]:
    """D_x of every row while nothing is chosen, log(1 + a |g|^2), in nats."""
    return np.log1p(side.selection.alpha * np.maximum(np.diagonal(_scaled(side)), 0.0))


def gains_given(side: Geometry, given: Int[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """D_x of every row once some rows S are chosen, log(1 + a (K_xx - a K_xS (I + a K_SS)^-1 K_Sx)), in nats."""
    kernel, alpha = _scaled(side), side.selection.alpha
    inner = np.eye(len(given)) + alpha * kernel[np.ix_(given, given)]
    across = kernel[given]
    taken = alpha * np.einsum("sx,sx->x", across, np.linalg.solve(inner, across))
    return np.log1p(alpha * np.maximum(np.diagonal(kernel) - taken, 0.0))


def information_of(side: Geometry, rows: Int[np.ndarray, " m"]) -> float:
    """F(S) = log det(I + a K_SS) of some rows, in nats."""
    kernel = _scaled(side)[np.ix_(rows, rows)]
    return float(np.linalg.slogdet(np.eye(len(rows)) + side.selection.alpha * kernel)[1])


def _scaled(side: Geometry) -> Float[np.ndarray, "n n"]:
    """Inner products of the normalised gradients."""
    factors = side.selection.factors
    return side.gram if factors is None else side.gram * np.outer(factors, factors)


def _centred(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    # Scaled first, so that squares of very small or large values stay in range.
    gram = gram / max(float(np.abs(gram).max()), np.finfo(np.float64).tiny)
    means = gram.mean(axis=0)
    return gram - means - means[:, None] + means.mean()
