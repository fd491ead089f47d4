"""What an order of rows holds, whoever chose it: information, gains in that order, conflicts, and a proven share.

Gains come from Cholesky factors in float64. Of I + a G G^T, whose first t rows belong to the first t rows of the order,
the diagonal holds every gain, D_t = 2 log L_tt. Where the order is longer than the rows it goes by blocks B: given
A = I + a F of the rows before, the gains are those of I + a B A^-1 B^T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.certificate import Certificate, certify
from spice_select.analysis.chosen import open_rows, squared_norms
from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows, cholesky, solve_lower
from spice_select.selection.conflict import Conflict, against_pool
from spice_select.selection.options import NormalizeName, Options, ReferenceName, alpha_of, scale_of
from spice_select.selection.rows import as_rows

BLOCK_ROWS = 1024
"""Least number of rows whose gains are taken at once where they are more than dimensions."""


@dataclass(frozen=True, eq=False)
class GivenTrace:
    """One value for every row of an order.

    Attributes:
        indices: Row numbers in that order, ``[k]``.
        gains: Marginal information gain of each given those before it, in nats.
        bases: What each is worth alone, log(1 + a |g|^2).
        epsilons: gain - base: what those before it take away; never positive.
        conflicts: Conflict of each with its reference, when its turn came.
        alpha: Fisher scale a.
        reference: ``selected`` or ``pool``.
        hinge: The hinge as a cosine.
        normalize: Normalisation of the rows.
        factors: What normalisation multiplies each row of the pool by; None where it is nothing.
    """

    indices: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"]
    bases: Float[np.ndarray, " k"]
    epsilons: Float[np.ndarray, " k"]
    conflicts: Float[np.ndarray, " k"]
    alpha: float
    reference: str
    hinge: float
    normalize: str
    factors: Float[np.ndarray, " n"] | None

    @cached_property
    def information(self) -> float:
        """F of the rows beyond what rows in hand hold, in nats: the sum of the gains."""
        return math.fsum(self.gains.tolist())


def scaling_of(
    gradients: Any,
    normalize: NormalizeName,
    alpha: float | str,
    *,
    members: Bool[np.ndarray, " n"] | None = None,
    lengths: Int[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, " n"] | None, float]:
    """Factors of the rows and the Fisher scale, as a selection under these settings takes them.

    Args:
        gradients: An array, a tensor or a store.
        normalize: As ``select`` takes it.
        alpha: A number, or ``"auto"``.
        members: Rows that could be chosen; a store's usable ones, or all, where absent.
        lengths: Response tokens of each row; a store's own where absent.

    Raises:
        ConfigError: An unknown normalisation, or lengths that are needed and absent.
    """
    options = Options(alpha=alpha, normalize=normalize)
    options.check()
    squared = squared_norms(open_rows(gradients))
    able = _usable(gradients, len(squared)) & np.isfinite(squared)
    squared[~able] = 0.0
    within = able if members is None else able & members
    tokens = lengths if lengths is not None else getattr(gradients, "lengths", None)
    factors, _ = scale_of(options.normalize, np.sqrt(squared), within, tokens)
    return factors, alpha_of(alpha, (squared if factors is None else squared * factors**2)[within])[0]


def information_of(
    gradients: Any,
    order: Sequence[int] | Int[np.ndarray, " k"],
    *,
    alpha: float,
    factors: Float[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
) -> float:
    """F of some rows beyond what rows in hand hold, in nats; their order plays no part.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``.
        order: Row numbers, each once.
        alpha: Fisher scale a.
        factors: What normalisation multiplies each row by.
        initial: Numbers of rows in hand.

    Raises:
        ConfigError: A scale that float64 cannot factorise.
    """
    rows = open_rows(gradients, factors)
    held, picks = np.asarray(initial, dtype=np.int64), np.asarray(order, dtype=np.int64)
    return math.fsum(_gains(_Whole(gradients, rows), np.concatenate([held, picks]), float(alpha))[len(held) :].tolist())


def given_trace(
    gradients: Any,
    order: Sequence[int] | Int[np.ndarray, " k"],
    *,
    normalize: NormalizeName = "none",
    alpha: float | str = "auto",
    reference: ReferenceName = "selected",
    hinge: float | str = 0.0,
    members: Bool[np.ndarray, " n"] | None = None,
    lengths: Int[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
) -> GivenTrace:
    """What a selection would have recorded of these rows, had it taken them in this order.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``; a row that is unusable or no number counts as 0.
        order: Row numbers, each once.
        normalize: As ``select`` takes it, and so are the others.
        alpha: Fisher scale a, or ``"auto"``.
        reference: ``selected`` or ``pool``.
        hinge: A cosine, or a quantile of the pool's such as ``"25%"``.
        members: Rows that could be chosen; a store's usable ones, or all, where absent.
        lengths: Response tokens of each row; a store's own where absent.
        initial: Numbers of rows in hand.

    Raises:
        ConfigError: A setting that cannot be, or a scale that float64 cannot factorise.
    """
    picks, held = np.asarray(order, dtype=np.int64), np.asarray(initial, dtype=np.int64)
    factors, scale = scaling_of(gradients, normalize, alpha, members=members, lengths=lengths)
    rows = _Whole(gradients, open_rows(gradients, factors))
    gains = _gains(rows, np.concatenate([held, picks]), scale)[len(held) :]
    conflict = _reference(rows, reference, hinge, members)
    for _, block in rows.blocks(held):
        for row in block:
            conflict.add(row)
    bases, conflicts = np.zeros(len(picks)), np.zeros(len(picks))
    for start, block in rows.blocks(picks):
        norms = np.einsum("ij,ij->i", block, block)
        bases[start : start + len(block)] = np.log1p(scale * norms)
        for place, row in enumerate(block, start):
            length = np.sqrt(norms[place - start : place - start + 1])
            conflicts[place] = conflict.of_rows(picks[place : place + 1], row[None], length)[0]
            if conflict.fixed is None:
                conflict.add(row)
    # Rounding alone may put a gain above what the row is worth alone, or below nothing.
    gains = np.clip(gains, 0.0, bases)
    return GivenTrace(
        picks, gains, bases, gains - bases, conflicts, scale, reference, conflict.hinge, normalize, factors
    )


def certify_given(
    gradients: Any,
    order: Sequence[int] | Int[np.ndarray, " k"],
    *,
    alpha: float,
    budget: float,
    factors: Float[np.ndarray, " n"] | None = None,
    candidates: Bool[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
    tokens: Int[np.ndarray, " n"] | None = None,
) -> Certificate:
    """The certificate of rows that need not be greedy's.

    Its bound asks nothing of the prefixes that it is measured at but that they are sets of rows, so that it holds for
    any order; the guarantee that greedy carries is left out. It is looser the less the first rows hold.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``.
        order: Row numbers, each once.
        alpha: Fisher scale a, a number.
        budget: Rows, or response tokens where ``tokens`` is given.
        factors: What normalisation multiplies each row by.
        candidates: Rows that may be chosen; a store's usable ones, or all, where absent.
        initial: Numbers of rows in hand.
        tokens: Response tokens of each row, for a token budget.
    """
    rows = as_rows(gradients)
    able = _usable(gradients, rows.shape[0]) if candidates is None else candidates
    return certify(
        rows,
        np.asarray(order, dtype=np.int64),
        alpha=alpha,
        budget=budget,
        factors=factors,
        candidates=able,
        initial=initial,
        tokens=tokens,
        constrained=True,
    )


class _Whole:
    """Scaled rows in which what is unusable or no number is 0."""

    def __init__(self, gradients: Any, rows: ScaledRows) -> None:
        self._rows = rows
        self._able = _usable(gradients, rows.shape[0])
        self.shape = rows.shape

    def take(self, numbers: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        with np.errstate(invalid="ignore", over="ignore"):
            block = self._rows.scaled(numbers)
        block[~(self._able[numbers] & np.isfinite(block).all(axis=1))] = 0.0
        return block

    def blocks(
        self, numbers: Int[np.ndarray, " m"], size: int = CHUNK_ROWS
    ) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
        for start in range(0, len(numbers), size):
            yield start, self.take(numbers[start : start + size])


def _usable(gradients: Any, n: int) -> Bool[np.ndarray, " n"]:
    marked = getattr(gradients, "usable", None)
    return np.ones(n, dtype=bool) if marked is None else np.asarray(marked, dtype=bool)


def _gains(rows: _Whole, order: Int[np.ndarray, " m"], alpha: float) -> Float[np.ndarray, " m"]:
    count, dim = len(order), rows.shape[1]
    if not count:
        return np.zeros(0)
    if count <= dim:
        held = np.concatenate([block for _, block in rows.blocks(order)])
        return 2.0 * np.log(np.diagonal(cholesky(_shifted(held @ held.T, alpha))))
    fisher, gains = np.eye(dim), np.zeros(count)
    for start, block in rows.blocks(order, max(BLOCK_ROWS, dim)):
        # The first block stands before an identity, which needs no factor.
        solved = block.T if not start else solve_lower(cholesky(fisher), np.ascontiguousarray(block.T))
        within = cholesky(_shifted(solved.T @ solved, alpha))
        gains[start : start + len(block)] = 2.0 * np.log(np.diagonal(within))
        fisher += alpha * (block.T @ block)
    return gains


def _shifted(gram: Float[np.ndarray, "m m"], alpha: float) -> Float[np.ndarray, "m m"]:
    matrix = alpha * gram
    matrix.flat[:: len(matrix) + 1] += 1.0
    return matrix


def _reference(
    rows: _Whole, reference: ReferenceName, hinge: float | str, members: Bool[np.ndarray, " n"] | None
) -> Conflict:
    options = Options(reference=reference, hinge=hinge)
    options.check()
    value, quantile = options.hinge_value()
    n, dim = rows.shape
    if reference == "selected":
        return Conflict(dim, value)
    within = np.ones(n, dtype=bool) if members is None else np.array(members, dtype=bool)
    total, dots, norms = np.zeros(dim), np.zeros(n), np.zeros(n)
    for _, block in rows.blocks(np.flatnonzero(within)):
        total += block.sum(axis=0)
    for start, block in rows.blocks(np.arange(n)):
        stop = start + len(block)
        dots[start:stop], norms[start:stop] = block @ total, np.sqrt(np.einsum("ij,ij->i", block, block))
    fixed, value = against_pool(dots, float(np.sqrt(total @ total)), norms, within, value, quantile=quantile)
    return Conflict(dim, value, fixed)
