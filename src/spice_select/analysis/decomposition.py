"""The epsilon-decomposition: what a row is worth alone, and what the rows before it take away.

    base_x = log(1 + a |g_x|^2),    eps_x(S) = D_x(S) - base_x <= 0

Epsilon is computed by its closed form from inner products, and base + eps is held against a gain that was computed
another way: the selection's own for its picks, and a difference of two log-determinants for random pairs.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, section 3.2 and Table 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.chosen import draw, epsilon_of, gather, open_rows, shifted
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.posterior import ScaledRows, cholesky
from spice_select.analysis.ranks import pearson, spearman

if TYPE_CHECKING:
    import pandas

MOST_PICKS = 2048
"""Picks whose inner products are held at once; the first ones where there are more."""
PER_SET = 10
"""Rows x that share one random set S."""
LARGEST_MATRIX = 256
"""Dimension up to which gains are checked by d x d determinants, the form that epsilon does not use."""


class Correlates(Numbers):
    """How |eps_x(S)| goes with sum_{y in S} (g_x . g_y)^2; None where a side is constant.

    Attributes:
        spearman: Rank correlation with the sum.
        pearson: Correlation with the sum.
        spearman_scaled: Rank correlation with the sum over 1 + a |g_x|^2, the right side of Theorem 4.
        pearson_scaled: Correlation with that.
        spearman_cosine: Rank correlation with the sum of squared cosines.
        pearson_cosine: Correlation with that.
    """

    spearman: float | None
    pearson: float | None
    spearman_scaled: float | None
    pearson_scaled: float | None
    spearman_cosine: float | None
    pearson_cosine: float | None


class Decomposition(Numbers):
    """Base, epsilon and gain of pairs (x, S), in nats.

    Attributes:
        kind: ``"picks"``: every pick x with the picks before it; ``"random"``: random x and random sets S.
        size: |S| of random pairs.
        rows: Row number of each x.
        base: What each x is worth alone.
        epsilon: What S takes away from it; never positive.
        gain: D_x(S), computed independently of the two.
        squares: sum over S of (g_x . g_y)^2.
        cosines: sum over S of the squared cosines.
        error: Largest |base + epsilon - gain|.
        correlates: How epsilon goes with the squares.
        of: Picks in all, of which the first were looked at; pairs in all where random.
        method: How the gain was computed.
    """

    kind: Literal["picks", "random"]
    size: int | None = None
    rows: tuple[int, ...]
    base: tuple[float, ...]
    epsilon: tuple[float, ...]
    gain: tuple[float, ...]
    squares: tuple[float, ...]
    cosines: tuple[float, ...]
    error: float
    correlates: Correlates
    of: int
    method: str

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> pandas.DataFrame:
        """One line a pair."""
        import pandas

        columns = ("rows", "base", "epsilon", "gain", "squares", "cosines")
        return pandas.DataFrame({name: np.array(getattr(self, name)) for name in columns}).rename(
            columns={"rows": "row"}
        )


class Pairs:
    """Random rows x beside one random set S, with their inner products.

    Attributes:
        held: Rows of S, ``[t, d]``.
        others: Rows x, ``[b, d]``.
        numbers: Their row numbers.
        gram: Inner products within S.
        across: Inner products of each x with S.
        squared: |g_x|^2.
        diagonal: |g_y|^2, y in S.
    """

    def __init__(self, rows: ScaledRows, members: Int[np.ndarray, " t"], numbers: Int[np.ndarray, " b"]) -> None:
        self.held, self.others, self.numbers = gather(rows, members), gather(rows, numbers), numbers
        self.gram = self.held @ self.held.T
        self.across = self.others @ self.held.T
        self.squared = np.einsum("ij,ij->i", self.others, self.others)
        self.diagonal = np.diagonal(self.gram).copy()

    @property
    def squares(self) -> Float[np.ndarray, " b"]:
        """Sum over S of (g_x . g_y)^2."""
        return np.square(self.across).sum(axis=1)

    @property
    def cosines(self) -> Float[np.ndarray, " b"]:
        """Sum over S of the squared cosines; 0 for a row of zeros."""
        norms = self.squared[:, None] * self.diagonal[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(norms > 0, np.square(self.across) / norms, 0.0).sum(axis=1)

    def epsilons(self, alpha: float) -> Float[np.ndarray, " b"]:
        """eps_x(S)."""
        factor = cholesky(shifted(self.gram, alpha))
        return epsilon_of(self.across, factor, np.log1p(alpha * self.squared), alpha)

    def gains(self, alpha: float) -> Float[np.ndarray, " b"]:
        """D_x(S) as the difference of two log-determinants: d x d where d is small, else (|S| + 1) x (|S| + 1)."""
        if self.held.shape[1] <= LARGEST_MATRIX:
            whole = shifted(self.held.T @ self.held, alpha)
            before = np.linalg.slogdet(whole)[1]
            return np.array([np.linalg.slogdet(whole + alpha * np.outer(row, row))[1] - before for row in self.others])
        matrix = shifted(self.gram, alpha)
        before = np.linalg.slogdet(matrix)[1]
        size = len(matrix)
        bordered = np.empty((size + 1, size + 1))
        bordered[:size, :size] = matrix
        found = np.empty(len(self.others))
        for place, (inner, squared) in enumerate(zip(self.across, self.squared, strict=True)):
            bordered[size, :size] = bordered[:size, size] = alpha * inner
            bordered[size, size] = 1.0 + alpha * squared
            found[place] = np.linalg.slogdet(bordered)[1] - before
        return found


def random_pairs(
    rows: ScaledRows, pool: Int[np.ndarray, " m"], size: int, samples: int, generator: np.random.Generator
) -> list[Pairs]:
    """Random sets S of one size with ``PER_SET`` rows x outside of each, ``samples`` pairs in all."""
    made = []
    for start in range(0, samples, PER_SET):
        chosen = draw(generator, pool, size + min(PER_SET, samples - start))
        made.append(Pairs(rows, chosen[:size], chosen[size:]))
    return made


def decompose_random(pairs: Sequence[Pairs], alpha: float) -> Decomposition:
    """The decomposition of random pairs (x, S) of one size |S|.

    Args:
        pairs: As :func:`random_pairs` draws them.
        alpha: Fisher scale a.
    """
    base = np.concatenate([np.log1p(alpha * one.squared) for one in pairs])
    wide = len(pairs[0].held[0]) > LARGEST_MATRIX
    return _result(
        kind="random",
        size=len(pairs[0].held),
        rows=np.concatenate([one.numbers for one in pairs]),
        base=base,
        epsilon=np.concatenate([one.epsilons(alpha) for one in pairs]),
        gain=np.concatenate([one.gains(alpha) for one in pairs]),
        squares=np.concatenate([one.squares for one in pairs]),
        cosines=np.concatenate([one.cosines for one in pairs]),
        of=len(base),
        method=f"difference of two log-determinants, {'|S| x |S|' if wide else 'd x d'}",
    )


def decompose_picks(
    gradients: object,
    indices: Sequence[int] | Int[np.ndarray, " k"],
    gains: Sequence[float] | Float[np.ndarray, " k"],
    *,
    alpha: float,
    factors: Float[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
    limit: int = MOST_PICKS,
) -> Decomposition:
    """The decomposition of every pick given the picks before it, held against the gains that the selection reported.

    Args:
        gradients: ``[n, d]`` array, tensor or store.
        indices: Picks in order of choice.
        gains: Their gains in nats, as the selection reported them.
        alpha: Fisher scale a.
        factors: Factor of every row, as normalisation makes them.
        initial: Rows that were in hand before the first pick.
        limit: Picks to look at, the first ones.
    """
    rows = open_rows(gradients, factors)
    order = np.concatenate([np.asarray(initial, dtype=np.int64), np.asarray(indices, dtype=np.int64)])
    held = len(order) - len(indices)
    count = min(len(indices), limit)
    held_rows = gather(rows, order[: held + count])
    gram = held_rows @ held_rows.T
    diagonal = np.diagonal(gram).copy()
    factor = cholesky(shifted(gram, alpha))
    base = np.log1p(alpha * diagonal)
    # Row t of the factor holds L^-1 a b for the rows before t: the closed form of epsilon with one factorisation.
    below = np.square(np.tril(factor, -1)).sum(axis=1) * np.exp(-base)
    epsilon = np.maximum(np.log1p(-np.minimum(below, 1.0 - 1e-16)), -base)
    before = np.square(np.tril(gram, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.outer(diagonal, diagonal)
        angles = np.where(norms > 0, before / norms, 0.0)
    part = slice(held, held + count)
    return _result(
        kind="picks",
        size=None,
        rows=order[part],
        base=base[part],
        epsilon=epsilon[part],
        gain=np.asarray(gains, dtype=np.float64)[:count],
        squares=before.sum(axis=1)[part],
        cosines=angles.sum(axis=1)[part],
        of=len(indices),
        method="as the selection measured it",
    )


def _result(
    *,
    kind: Literal["picks", "random"],
    size: int | None,
    rows: Int[np.ndarray, " m"],
    base: Float[np.ndarray, " m"],
    epsilon: Float[np.ndarray, " m"],
    gain: Float[np.ndarray, " m"],
    squares: Float[np.ndarray, " m"],
    cosines: Float[np.ndarray, " m"],
    of: int,
    method: str,
) -> Decomposition:
    lost = np.abs(epsilon)
    scaled = squares * np.exp(-base)
    return Decomposition(
        kind=kind,
        size=size,
        rows=tuple(rows.tolist()),
        base=tuple(base.tolist()),
        epsilon=tuple(epsilon.tolist()),
        gain=tuple(gain.tolist()),
        squares=tuple(squares.tolist()),
        cosines=tuple(cosines.tolist()),
        error=float(np.abs(base + epsilon - gain).max(initial=0.0)),
        correlates=Correlates(
            spearman=spearman(lost, squares),
            pearson=pearson(lost, squares),
            spearman_scaled=spearman(lost, scaled),
            pearson_scaled=pearson(lost, scaled),
            spearman_cosine=spearman(lost, cosines),
            pearson_cosine=pearson(lost, cosines),
        ),
        of=of,
        method=method,
    )
