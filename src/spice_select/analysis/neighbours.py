"""Rows that point the same way as a pick: what a selection passed over as said already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.selection.rows import as_rows

if TYPE_CHECKING:
    import pandas as pd

NEAR = 0.95
"""Cosine of two gradients above which their examples teach nearly the same."""
MOST_WORK = 100_000_000_000
"""Multiply-adds in float32 that may be spent, a few seconds on one core; beyond it only the first picks take part."""
CHUNK_ROWS = 2048
_SLACK = 1e-3
"""What float32 may be off by; what it finds is measured again in float64."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Candidates whose nearest pick is nearly parallel, nearest first.

    Attributes:
        indices: Row numbers of the candidates, ``[m]``.
        picks: Row number of each one's nearest pick, ``[m]``.
        cosines: Cosine of the two gradients, ``[m]``.
        threshold: Cosine from which a candidate counts.
        compared: Picks that took part, the first ones.
        of: Picks in all.
    """

    indices: Int[np.ndarray, " m"]
    picks: Int[np.ndarray, " m"]
    cosines: Float[np.ndarray, " m"]
    threshold: float
    compared: int
    of: int

    def __len__(self) -> int:
        return len(self.indices)

    def to_pandas(self) -> pd.DataFrame:
        """One line a candidate."""
        import pandas as pd

        return pd.DataFrame({"index": self.indices, "pick": self.picks, "cosine": self.cosines})


def near_duplicates(
    gradients: Any,
    picks: Sequence[int] | Int[np.ndarray, " k"],
    candidates: Sequence[int] | Int[np.ndarray, " c"] | None = None,
    *,
    threshold: float = NEAR,
    most_work: int = MOST_WORK,
) -> Neighbours:
    """Candidates whose gradient has a cosine of at least ``threshold`` with that of a pick.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``. Rows of zeros are near nothing.
        picks: Rows chosen, in order of choice.
        candidates: Rows to look at; all that are no picks where absent.
        threshold: Least cosine, above 0.
        most_work: Multiply-adds that may be spent.
    """
    assert threshold > 0, "rows at right angles are no neighbours"
    rows = as_rows(gradients)
    n, dim = rows.shape
    chosen = np.asarray(picks, dtype=np.int64)
    others = np.setdiff1d(np.arange(n), chosen) if candidates is None else np.asarray(candidates, dtype=np.int64)
    others = np.setdiff1d(others, chosen)
    most = max(1, most_work // max(1, len(others) * dim))
    compared = chosen[:most]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    held = _unit(rows.rows(compared)).astype(np.float32)
    for start in range(0, len(others) if len(compared) else 0, CHUNK_ROWS):
        numbers = others[start : start + CHUNK_ROWS]
        block = _unit(rows.rows(numbers))
        products = block.astype(np.float32) @ held.T
        best = products.argmax(axis=1)
        likely = np.flatnonzero(products[np.arange(len(best)), best] >= threshold - _SLACK)
        if len(likely):
            partners = compared[best[likely]]
            cosines = np.einsum("ij,ij->i", block[likely], _unit(rows.rows(partners)))
            near = cosines >= threshold
            found.append((numbers[likely][near], partners[near], cosines[near]))
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return Neighbours(nothing, nothing, np.zeros(0), threshold, len(compared), len(chosen))
    indices, partners, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((indices, -np.round(cosines, 12)))
    return Neighbours(
        indices[order], partners[order], np.minimum(cosines[order], 1.0), threshold, len(compared), len(chosen)
    )


def _unit(block: Any) -> Float[np.ndarray, "b d"]:
    """Rows over their norms in float64; rows without a direction become zeros."""
    wide = np.array(block, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    sound = np.isfinite(norms) & (norms > 0)
    wide[~sound] = 0.0
    return wide / np.where(sound, norms, 1.0)[:, None]
