"""The most value that fits a budget, from upper bounds that are tightened only where it matters.

Weights are 1 for a budget of rows, and response tokens for one of tokens, whose rows may then be cut: a relaxation, and
so an upper bound itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.posterior import CHUNK_ROWS


def measure_leading(
    bounds: Float[np.ndarray, " n"],
    measure: Callable[[Int[np.ndarray, " b"]], Float[np.ndarray, " b"]],
    weights: Float[np.ndarray, " n"],
    capacity: float,
    most: int | None = None,
) -> Float[np.ndarray, " n"]:
    """Tighten bounds from the most promising row down, until none that is left can help to fill the capacity.

    Args:
        bounds: Upper bound of each row's value.
        measure: Tighter ones for some rows.
        weights: What each row costs.
        capacity: What all may cost.
        most: Rows to measure at most; what is left keeps its bound.
    """
    tightened = bounds.copy()
    density = _density(bounds, weights)
    order = np.argsort(-density, kind="stable")
    order = order[density[order] > 0]
    order = order if most is None else order[:most]
    done = 0
    while done < len(order):
        chunk = np.sort(order[done : done + CHUNK_ROWS])
        tightened[chunk] = np.fmin(tightened[chunk], measure(chunk))
        done += len(chunk)
        seen = order[:done]
        if done < len(order) and _marginal_density(tightened[seen], weights[seen], capacity) >= density[order[done]]:
            break
    return tightened


def _density(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Value for each unit of weight; a row that costs nothing comes before all others."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, values / weights, 0.0)


def _marginal_density(values: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], capacity: float) -> float:
    """Density of the row with which the densest first fill the capacity; 0 where they don't."""
    density = _density(values, weights)
    order = np.argsort(-density, kind="stable")
    filled = np.cumsum(weights[order])
    place = int(np.searchsorted(filled, capacity))
    return float(density[order[place]]) if place < len(order) else 0.0


def fractional_sum(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], capacity: float) -> float:
    """Most value that fits the capacity when rows can be cut: at least what any whole rows reach."""
    order = np.argsort(-_density(values, weights), kind="stable")
    before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(weights[order] > 0, (capacity - before) / weights[order], 1.0)
    return float((values[order] * np.clip(part, 0.0, 1.0)).sum())
