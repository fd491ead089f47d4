"""Log-determinant measures of diversity, under two names because the literature uses one name for two things.

``ldd_wang`` is the log-determinant distance of arXiv 2402.02318: to a maximally diverse set of as many points, lower is
more diverse. ``logdet_similarity`` is the log-determinant of the cosine similarities themselves, which toolkits also
call a log-det distance: higher is more diverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.directions import MOST_ROWS, Score, directions
from spice_select.errors import ConfigError


def ldd_wang(
    features: Any,
    *,
    reference: Any = None,
    gamma: float = 1.0,
    ridge: float = 0.0,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = MOST_ROWS,
    seed: int = 0,
) -> Score:
    """Log-determinant distance (1/N) (log det L_reference - log det L), L_ij = exp(-gamma |x_i - x_j|^2) of unit rows.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        reference: As many maximally diverse points; where absent, points spread over the unit sphere: orthogonal axes
            for n up to d, the axes and their opposites for n up to 2 d, uniform random ones beyond.
        gamma: Width of the kernel.
        ridge: Added to both diagonals; with 0 the distance is infinite where two rows share a direction.
        indices: Rows of ``features`` to measure; all where absent.
        most: Rows to sample where there are more: the cost is n^3.
        seed: Seed of the sample and of the random points.

    Returns:
        The distance, in nats per row; lower is more diverse.

    Raises:
        ConfigError: An option that cannot be used.
        DataError: NaN or Inf, or no row with a direction.
    """
    _at_least("gamma", gamma, above=True)
    _at_least("ridge", ridge)
    rows = directions(features, indices=indices, most=most, seed=seed)
    n, dim = rows.unit.shape
    ours = _logdet(_rbf(rows.unit @ rows.unit.T, gamma), ridge)
    if reference is None:
        theirs = _logdet(_rbf(_spread_gram(n, dim, seed), gamma), ridge)
    else:
        spread = directions(reference, most=None).unit
        if len(spread) != n:
            raise ConfigError(f"reference has {len(spread)} rows for {n} of features; give as many.")
        theirs = _logdet(_rbf(spread @ spread.T, gamma), ridge)
    return rows.score(f"LDD (Wang), gamma {gamma:g}", (theirs - ours) / n)


def logdet_similarity(
    features: Any,
    *,
    ridge: float = 1.0,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = MOST_ROWS,
    seed: int = 0,
) -> Score:
    """Log det (K + ridge I) of the cosine similarities K.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        ridge: Added to the diagonal; with 0 the value is minus infinity where n > d.
        indices: Rows of ``features`` to measure; all where absent.
        most: Rows to sample where there are more.
        seed: Seed of the sample.

    Returns:
        The value in nats; higher is more diverse. It grows with n, so compare sets of one size.

    Raises:
        ConfigError: An option that cannot be used.
        DataError: NaN or Inf, or no row with a direction.
    """
    _at_least("ridge", ridge)
    rows = directions(features, indices=indices, most=most, seed=seed)
    n, dim = rows.unit.shape
    if n <= dim:
        value = _logdet(rows.unit @ rows.unit.T, ridge)
    elif ridge == 0:
        value = -math.inf
    else:
        value = _logdet(rows.unit.T @ rows.unit, ridge) + (n - dim) * math.log(ridge)
    return rows.score(f"log det of similarities, ridge {ridge:g}", value)


def _rbf(gram: Float[np.ndarray, "n n"], gamma: float) -> Float[np.ndarray, "n n"]:
    kernel = np.exp(-gamma * np.maximum(2.0 - 2.0 * gram, 0.0))
    np.fill_diagonal(kernel, 1.0)
    return kernel


def _spread_gram(n: int, dim: int, seed: int) -> Float[np.ndarray, "n n"]:
    """Inner products of n points that are spread over the unit sphere."""
    if n > 2 * dim:
        points = np.random.default_rng(seed).standard_normal((n, dim))
        points /= np.linalg.norm(points, axis=1)[:, None]
        return points @ points.T
    gram = np.eye(n)
    opposites = np.arange(dim, n)
    gram[opposites, opposites - dim] = gram[opposites - dim, opposites] = -1.0
    return gram


def _logdet(matrix: Float[np.ndarray, "m m"], ridge: float) -> float:
    shifted = matrix.copy()
    shifted.flat[:: len(shifted) + 1] += ridge
    # A determinant that rounding cannot tell from 0 is 0: its sign and size would be noise.
    values = np.linalg.eigvalsh(shifted)
    if values[0] <= len(values) * np.finfo(np.float64).eps * values[-1]:
        return -math.inf
    return float(np.log(values).sum())


def _at_least(name: str, value: float, *, above: bool = False) -> None:
    if not (math.isfinite(value) and value >= 0 and (value > 0 or not above)):
        raise ConfigError(f"{name} cannot be {value!r}; give a number {'above 0' if above else 'of 0 at least'}.")
