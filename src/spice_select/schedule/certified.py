"""The certificate of one pool, from its inner products."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from spice_select.analysis.certificate import certify
from spice_select.selection import Selection
from spice_select.selection.kernel import GramPool
from spice_select.selection.rows import as_rows

Earlier = tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "m m"]]


def certify_gram(gram: Float[np.ndarray, "n n"], selection: Selection, earlier: Earlier | None = None) -> float | None:
    """Proven share of the information that any choice of as many rows of the pool could hold.

    Args:
        gram: Inner products of the gradients; rows whose own is NaN or Inf are no candidates.
        selection: What was picked.
        earlier: Inner products with rows of before, as the selection had them.

    Returns:
        A lower bound in [0, 1]; None without picks.
    """
    if not len(selection):
        return None
    pool = GramPool.of(gram, earlier)
    if selection.factors is not None:
        pool.rescale(selection.factors)
    kept = np.flatnonzero(pool.finite)
    inner = np.stack([pool.column(int(row))[kept] for row in kept])
    known = pool.known(selection.alpha)
    if known is not None:
        inner -= known[:, kept].T @ known[:, kept]
    # Rows with these inner products: what holds for them holds for the gradients.
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    rows = vectors * np.sqrt(np.maximum(values, 0.0))
    places = np.searchsorted(kept, selection.indices)
    return certify(as_rows(rows), places, alpha=selection.alpha, budget=len(places)).value
