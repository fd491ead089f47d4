"""Pairs of gradients: how many oppose one another, and their mean cosine."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_BLOCK = 512


def pairs_of_rows(rows: Float[np.ndarray, "m d"]) -> tuple[int, int, float]:
    """Pairs, pairs of negative inner product, and the sum of the pairs' cosines."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    known = np.isfinite(norms) & (norms > 0.0)
    units = rows[known] / norms[known, None].astype(rows.dtype)
    count = len(units)
    if count < 2:
        return 0, 0, 0.0
    negative = 0
    for start in range(0, count, _BLOCK):
        below = units[start : start + _BLOCK] @ units[start:].T < 0.0
        negative += int(np.count_nonzero(np.triu(below[:, : len(below)], 1)) + np.count_nonzero(below[:, len(below) :]))
    total = units.sum(axis=0, dtype=np.float64)
    own = float(np.einsum("ij,ij->", units, units, dtype=np.float64))
    return count * (count - 1) // 2, negative, (float(total @ total) - own) / 2


def pairs_of_gram(gram: Float[np.ndarray, "m m"]) -> tuple[int, int, float]:
    """The same from inner products."""
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    known = np.flatnonzero(norms > 0.0)
    upper = np.triu_indices(len(known), 1)
    dots = gram[np.ix_(known, known)][upper]
    cosines = dots / (norms[known][upper[0]] * norms[known][upper[1]])
    return len(dots), int(np.count_nonzero(dots < 0.0)), float(cosines.sum())
