"""Examples that are the same to the model, whose measured numbers differ by the rounding of their batches alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8


def first_of_equal(digests: UInt8[np.ndarray, "n 32"], usable: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """For every usable row the first usable one with its digest; any other row stands for itself.

    A row whose digest is all zeros is of unknown tokens, and stands for itself as well.
    """
    found = np.arange(len(digests))
    # Eight bytes of a SHA-256 tell nearly all rows apart; whole digests are compared among those that agree so far.
    heads = np.ascontiguousarray(digests[:, :8]).view("<u8").ravel()
    rows = np.flatnonzero(usable & (heads != 0))
    heads = heads[rows]
    order = np.argsort(heads, kind="stable")
    again = np.flatnonzero(heads[order][1:] == heads[order][:-1])
    if len(again):
        candidates = np.sort(rows[order[np.union1d(again, again + 1)]])
        keys = np.ascontiguousarray(digests[candidates]).view(np.dtype((np.void, digests.shape[1]))).ravel()
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        found[candidates] = candidates[first[which.ravel()]]
    return found


def firsts_of_equal(ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Int64[np.ndarray, " n"]:
    """For every one of a few examples the first of the same tokens and trained labels.

    Args:
        ids: Token ids of each example, ``[t]``.
        masks: True where the token is a trained label, ``[t]``.
    """
    seen: dict[tuple[bytes, bytes], int] = {}
    found = [
        seen.setdefault((np.ascontiguousarray(row, "<i8").tobytes(), np.ascontiguousarray(mask, bool).tobytes()), place)
        for place, (row, mask) in enumerate(zip(ids, masks, strict=True))
    ]
    return np.array(found, dtype=np.int64)
