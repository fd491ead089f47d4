"""Inputs of methods that compare rows by distance: the same vectors as embeddings and as gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spice_select.methods import Choice, Inputs, make_method
from spice_select.selection.budget import Budget
from spice_select.selection.quotas import resolve_groups
from spice_select.selection.rows import ArrayRows

METHODS = ["dpp", "kcenter", "semdedup"]
# From the worked answers: five directions in the plane, the last a copy of the first.
PLANE = np.array([(1.0, 0.0), (0.8, 0.6), (0.0, 1.0), (-0.6, 0.8), (1.0, 0.0)])


def vector_inputs(vectors: Any, budget: int | Budget, **given: Any) -> Inputs:
    """Inputs of a pool with these vectors; every row may be chosen and has one response token."""
    rows = np.asarray(vectors, dtype=np.float64)
    n = len(rows)
    values: dict[str, Any] = {
        "candidates": np.ones(n, dtype=bool),
        "response_tokens": np.ones(n, dtype=np.int64),
        "sources": ["rows"] * n,
        "budget": Budget(budget) if isinstance(budget, int) else budget,
        "embeddings": rows,
        "gradients": ArrayRows(rows),
    }
    return Inputs(n=n, **{**values, **given})


def with_quotas(vectors: Any, budget: int, labels: Sequence[str], quotas: Any, **given: Any) -> Inputs:
    """Inputs whose budget is shared by quotas."""
    everything = np.ones(len(vectors), dtype=bool)
    return vector_inputs(
        vectors,
        budget,
        groups=lambda: resolve_groups(labels, quotas, everything, everything, budget),
        labels=labels,
        quotas=quotas,
        **given,
    )


def choose(name: str, inputs: Inputs, **settings: Any) -> Choice:
    return make_method(name, settings).choose(inputs)


def picks(name: str, inputs: Inputs, **settings: Any) -> list[int]:
    return choose(name, inputs, **settings).indices.tolist()


def random_vectors(n: int, dim: int, seed: int, copies: int = 0) -> np.ndarray:
    """Random rows, of which some are copies of others."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, dim)) + 0.3
    for _ in range(min(copies, n)):
        rows[generator.integers(n)] = rows[generator.integers(n)]
    return rows
