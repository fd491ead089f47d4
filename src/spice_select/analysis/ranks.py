"""Correlation of two columns, by rank and as they are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def average_ranks(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[place.reshape(-1)]


def pearson(left: Float[np.ndarray, " m"], right: Float[np.ndarray, " m"]) -> float | None:
    """Pearson's correlation over the pairs that are numbers; None below 3 of them, or where a side is constant."""
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < 3:
        return None
    left, right = left[known], right[known]
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    # Scaled first, so that squares of very small or large values stay in range.
    left, right = (part / np.abs(part).max() for part in (left - left.mean(), right - right.mean()))
    norm = float(np.sqrt((left @ left) * (right @ right)))
    return float(np.clip(left @ right / norm, -1.0, 1.0)) if norm > 0 else None


def spearman(left: Float[np.ndarray, " m"], right: Float[np.ndarray, " m"]) -> float | None:
    """Spearman's rank correlation, ties by mean rank; None below 3 pairs, or where a side is constant."""
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    known = np.isfinite(left) & np.isfinite(right)
    return pearson(average_ranks(left[known]), average_ranks(right[known])) if known.any() else None
