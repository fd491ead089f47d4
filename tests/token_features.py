"""Token features in memory, and inputs that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spice_select.methods import Inputs
from spice_select.selection.budget import Budget


@dataclass(frozen=True, eq=False)
class HeldTokens:
    """States of every row, kept in a list."""

    rows: Sequence[np.ndarray]

    @property
    def dim(self) -> int:
        return self.rows[0].shape[1]

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    def of(self, index: int) -> np.ndarray:
        return self.rows[index]


def token_inputs(rows: Sequence[np.ndarray], k: int, *, tokens: int | None = None, **more: Any) -> Inputs:
    """Inputs of rows whose states are given; a row has as many response tokens as it has states."""
    settings = {"candidates": np.ones(len(rows), dtype=bool), **more}
    return Inputs(
        n=len(rows),
        response_tokens=np.array([len(row) for row in rows]),
        sources=["rows"] * len(rows),
        budget=Budget(k, tokens),
        tokens=HeldTokens(rows),
        **settings,
    )


def information(rows: Sequence[np.ndarray], picks: Sequence[int], sigma0: float = 1.0) -> float:
    """Log-determinant of the picks' information over that of none, from the definition."""
    dim = rows[0].shape[1]
    total = sigma0**2 * np.eye(dim)
    for pick in picks:
        for state in np.asarray(rows[pick], dtype=np.float64):
            total = total + np.outer(state, state)
    return float(np.linalg.slogdet(total)[1] - dim * np.log(sigma0**2))
