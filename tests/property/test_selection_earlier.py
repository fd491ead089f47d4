"""Rows of before lessen information and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spice_select import select_gram
from spice_select.errors import ConfigError


def _log_det(rows: np.ndarray, alpha: float) -> float:
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + alpha * rows.T @ rows)[1])


def _brute(rows: np.ndarray, before: np.ndarray, budget: int, alpha: float, weight: float) -> list[tuple[int, float]]:
    picks: list[tuple[int, float]] = []
    known, total = before, np.zeros(rows.shape[1])
    for _ in range(budget):
        scored = []
        for x in sorted(set(range(len(rows))) - {pick for pick, _ in picks}):
            gain = _log_det(np.vstack([known, rows[x : x + 1]]), alpha) - _log_det(known, alpha)
            norms = np.linalg.norm(total) * np.linalg.norm(rows[x])
            conflict = max(0.0, -float(rows[x] @ total) / norms) if norms > 0 else 0.0
            scored.append((gain - weight * conflict, -x, gain))
        best = max(scored)
        picks.append((-best[1], best[2]))
        known = np.vstack([known, rows[-best[1]][None]])
        total = total + rows[-best[1]]
    return picks


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    m=st.integers(1, 7),
    d=st.integers(1, 6),
    alpha=st.sampled_from([0.1, 1.0, 30.0]),
    weight=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_gains_beyond_earlier_rows_are_those_of_the_definition(
    seed: int, n: int, m: int, d: int, alpha: float, weight: float
) -> None:
    generator = np.random.default_rng(seed)
    rows, before = generator.normal(size=(n, d)), generator.normal(size=(m, d))
    found = select_gram(
        rows @ rows.T, n, alpha=alpha, conflict_weight=weight, earlier=(rows @ before.T, before @ before.T)
    )
    expected = _brute(rows, before, n, alpha, weight)
    assert found.indices.tolist() == [pick for pick, _ in expected]
    np.testing.assert_allclose(found.gains, [gain for _, gain in expected], rtol=1e-7, atol=1e-9)
    assert np.all(found.epsilons <= 1e-9)


def test_a_row_that_was_there_before_brings_less_than_a_new_one() -> None:
    rows = np.array([[2.0, 0.0], [0.0, 1.5]])
    fresh = select_gram(rows @ rows.T, 1)
    again = select_gram(rows @ rows.T, 1, earlier=(rows @ rows[:1].T, rows[:1] @ rows[:1].T))
    assert fresh.indices.tolist() == [0]
    assert again.indices.tolist() == [1]


def test_earlier_rows_of_another_shape_are_refused() -> None:
    gram = np.eye(3)
    with pytest.raises(ConfigError, match=r"earlier must be matrices of shape \[3, m\] and \[m, m\]"):
        select_gram(gram, 1, earlier=(np.ones((2, 1)), np.eye(1)))
    with pytest.raises(ConfigError, match="earlier holds NaN or Inf"):
        select_gram(gram, 1, earlier=(np.full((3, 1), np.nan), np.eye(1)))
