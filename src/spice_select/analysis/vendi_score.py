"""Vendi and G-Vendi: how many different rows a set is worth, from the eigenvalues of its similarities.

References:
    Vendi score, arXiv 2210.02410, and its orders q, arXiv 2310.12952. G-Vendi, arXiv 2505.20161.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.directions import MOST_ROWS, READ_ROWS, Directions, Score, directions
from spice_select.errors import ConfigError, DataError
from spice_select.selection.options import row_numbers
from spice_select.selection.rows import as_rows

NEAR_ONE = 1e-8
"""Orders so near to 1 are taken for 1: the limit is nearer than rounding would let the formula come."""
_COLUMNS = 4096
"""Columns whose random signs are made at once."""


def vendi(
    features: Any,
    *,
    q: float = 1.0,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = MOST_ROWS,
    seed: int = 0,
) -> Score:
    """Vendi score of rows by cosine similarity: the exponential of the entropy of the eigenvalues of K / n.

    The smaller of K = X X^T / n and X^T X / n is decomposed: both have the same eigenvalues but for zeros.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        q: Order of the entropy: 1 is Shannon's, 2 counts common kinds more, ``math.inf`` the most common alone, 0 the
            rank.
        indices: Rows of ``features`` to measure; all where absent.
        most: Rows to sample where there are more.
        seed: Seed of the sample.

    Returns:
        The score, from 1 (all rows alike) to n (all orthogonal).

    Raises:
        ConfigError: A negative order.
        DataError: NaN or Inf, or no row with a direction.
    """
    _check_order(q)
    return _of_directions(directions(features, indices=indices, most=most, seed=seed), q, "Vendi")


def vendi_of_kernel(kernel: Float[np.ndarray, "n n"], *, q: float = 1.0) -> float:
    """Vendi score of a similarity matrix.

    Args:
        kernel: Symmetric and positive semidefinite, with 1 on the diagonal.
        q: Order of the entropy.

    Raises:
        ConfigError: A negative order.
        DataError: No such matrix.
    """
    _check_order(q)
    matrix = np.asarray(kernel, dtype=np.float64)
    square = matrix.ndim == 2 and len(matrix) == matrix.shape[-1] > 0
    if not square or not np.isfinite(matrix).all() or not np.allclose(np.diag(matrix), 1.0, atol=1e-6):
        raise DataError("kernel must be a square matrix of similarities with 1 on its diagonal.")
    if not np.allclose(matrix, matrix.T, atol=1e-6):
        raise DataError("kernel must be symmetric, the similarity of a row with another being mutual.")
    values = np.linalg.eigvalsh(matrix)
    if values[0] < -1e-6 * len(matrix):
        raise DataError(f"kernel must be positive semidefinite, and has the eigenvalue {values[0]:.3g}.")
    return effective_number(values, q)


def g_vendi(
    gradients: Any,
    *,
    q: float = 1.0,
    dim: int | None = 1024,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Score:
    """G-Vendi: the Vendi score of loss gradients, projected by random signs and divided by their norms.

    Gradients of at most ``dim`` numbers, such as those of a small sketch, are taken as they are. Rows are read in
    chunks, and beyond ``dim`` of them only their ``dim`` x ``dim`` second moment is held, so that all can be used.

    Args:
        gradients: ``[n, d]`` array, tensor or gradient store.
        q: Order of the entropy.
        dim: Numbers that a projected gradient has; None projects nothing.
        indices: Rows to measure; all where absent.
        most: Rows to sample where there are more; None takes all.
        seed: Seed of the signs and of the sample.

    Returns:
        The score, from 1 to the smaller of n and ``dim``.

    Raises:
        ConfigError: An option that cannot be used.
        DataError: NaN or Inf, or no row with a direction.
    """
    _check_order(q)
    if dim is not None and dim < 1:
        raise ConfigError(f"dim cannot be {dim}; give at least 1, or None for no projection.")
    rows = as_rows(gradients)
    n, width = rows.shape
    chosen = np.arange(n) if indices is None else row_numbers("indices", indices, n)
    given = len(chosen)
    if most is not None and given > most:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
    projects = dim is not None and width > dim
    size = width if dim is None or not projects else dim
    dual = len(chosen) > size
    held = np.zeros((size, size)) if dual else np.empty((len(chosen), size))
    kept = 0
    for start in range(0, len(chosen), READ_ROWS):
        numbers = chosen[start : start + READ_ROWS]
        block = np.asarray(rows.rows(numbers), dtype=np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise DataError(f"Gradient row {numbers[~finite][0]} holds NaN or Inf; leave such rows out.")
        block = _projected(block, size, seed) if projects else block
        block = block[block.any(axis=1)]
        if not len(block):
            continue
        unit = directions(block, most=None).unit
        if dual:
            held += unit.T @ unit
        else:
            held[kept : kept + len(unit)] = unit
        kept += len(unit)
    if not kept:
        raise DataError(f"None of the {given} gradients has a direction; each is zero.")
    matrix = held if dual else smaller_gram(held[:kept])
    return Score(
        measure="G-Vendi" if q == 1 else f"G-Vendi, order {q:g}",
        value=effective_number(np.linalg.eigvalsh(matrix / kept), q, n=kept),
        rows=kept,
        given=given,
        without_direction=len(chosen) - kept,
    )


def _of_directions(rows: Directions, q: float, name: str) -> Score:
    values = np.linalg.eigvalsh(smaller_gram(rows.unit))
    return rows.score(name if q == 1 else f"{name}, order {q:g}", effective_number(values, q, n=len(rows.unit)))


def smaller_gram(unit: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m m"]:
    """X X^T or X^T X, whichever is smaller: both have the same eigenvalues but for zeros."""
    n, dim = unit.shape
    return unit.T @ unit if dim < n else unit @ unit.T


def effective_number(values: Float[np.ndarray, " m"], q: float, *, n: int | None = None) -> float:
    """Effective number of kinds, in [1, n].

    Args:
        values: Eigenvalues in ascending order, up to a common factor; those that rounding makes of zeros are dropped.
        q: Order of the entropy.
        n: Most that the number can be; as many as there are values where absent.
    """
    floor = len(values) * np.finfo(np.float64).eps * float(values[-1])
    shares = values[values > floor]
    shares = shares / shares.sum()
    if abs(q - 1) < NEAR_ONE:
        score = math.exp(-float((shares * np.log(shares)).sum()))
    elif math.isinf(q):
        score = 1.0 / float(shares.max())
    else:
        # By logarithms from the largest share on, as powers of large orders vanish.
        largest = float(shares.max())
        score = math.exp((q * math.log(largest) + math.log(float(((shares / largest) ** q).sum()))) / (1.0 - q))
    return float(min(max(score, 1.0), len(values) if n is None else n))


def _projected(block: Float[np.ndarray, "b width"], dim: int, seed: int) -> Float[np.ndarray, "b dim"]:
    """Rows times random signs over sqrt(dim), which keeps inner products without bias; the same signs every time."""
    product = np.zeros((len(block), dim))
    for chunk, start in enumerate(range(0, block.shape[1], _COLUMNS)):
        part = block[:, start : start + _COLUMNS]
        signs = np.random.default_rng([seed, chunk]).integers(0, 2, (part.shape[1], dim), dtype=np.int8)
        product += part @ (2.0 * signs - 1.0)
    return product / math.sqrt(dim)


def _check_order(q: float) -> None:
    if not q >= 0:
        raise ConfigError(f"q cannot be {q!r}; give an order of 0 at least.")
