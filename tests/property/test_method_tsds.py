"""TSDS against a linear programme, and what holds for any rows and targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from spice_select.methods import Inputs, Target, make_method
from spice_select.methods.tsds import kernel_density, knn_kde
from spice_select.selection.budget import Budget


def _optimum(distances: np.ndarray, density: np.ndarray, alpha: float, scale: float) -> float:
    """The least of alpha / scale * sum(mass * distance) + (1 - alpha) * max(m * density * mass), by linear programming.

    The variables are the mass from every target example to every row, and the maximum.
    """
    m, n = distances.shape
    cost = np.append(alpha / scale * distances.ravel(), 1.0 - alpha)
    below = np.hstack([np.diag(np.tile(density, m) * m), -np.ones((m * n, 1))])
    equal = np.hstack([np.kron(np.eye(m), np.ones(n)), np.zeros((m, 1))])
    found = linprog(cost, below, np.zeros(m * n), equal, np.full(m, 1 / m))
    assert found.status == 0
    return float(found.fun)


def _objective(
    distances: np.ndarray, density: np.ndarray, s: float, p: np.ndarray, alpha: float, scale: float
) -> float:
    """The same for what a sweep that ended at s does: every example fills rows up to 1 / (s density) of its mass."""
    m = len(distances)
    moved, largest, total = 0.0, 0.0, np.zeros(len(density))
    for row in distances:
        left = 1.0
        for index in np.argsort(row, kind="stable"):
            mass = min(left, 1.0 / (s * density[index]))
            left -= mass
            moved += mass * row[index] / m
            largest = max(largest, mass * density[index])
            total[index] += mass / m
    assert np.allclose(total, p, atol=1e-9)
    return float(alpha / scale * moved + (1.0 - alpha) * largest)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 8),
    m=st.integers(1, 4),
    alpha=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    sigma=st.sampled_from([0.0, 0.75, 3.0]),
    whole=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_no_plan_is_better(seed: int, n: int, m: int, alpha: float, scale: float, sigma: float, whole: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 4, size=(n, 2)).astype(float) if whole else generator.normal(size=(n, 2))
    queries = generator.normal(size=(m, 2))
    found = knn_kde(rows, queries, alpha=alpha, scale=scale, sigma=sigma, neighbours=n, kde_neighbours=n)
    distances = np.sqrt(((rows[None] - queries[:, None]) ** 2).sum(axis=2))
    density = kernel_density(rows, sigma, n)
    reached = _objective(distances, density, found.s, found.p, alpha, scale)
    assert reached <= _optimum(distances, density, alpha, scale) + 1e-9


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    m=st.integers(1, 6),
    neighbours=st.integers(1, 40),
    unit=st.sampled_from(["nearest", "raw"]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_probabilities_are_some_and_move_with_the_rows(
    seed: int, n: int, m: int, neighbours: int, unit: Any, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    rows, queries = generator.normal(size=(n, 3)), generator.normal(size=(m, 3))
    given_settings: dict[str, Any] = {
        "alpha": 0.5, "scale": data.draw(st.sampled_from([0.3, 5.0])), "sigma": data.draw(st.sampled_from([0.0, 0.75])),
        "neighbours": neighbours, "kde_neighbours": neighbours, "unit": unit,
    }  # fmt: skip
    p = knn_kde(rows, queries, **given_settings).p
    assert abs(p.sum() - 1) < 1e-12 and (p >= 0).all()
    order = generator.permutation(n)
    assert np.allclose(knn_kde(rows[order], queries, **given_settings).p, p[order], atol=1e-9)
    assert np.allclose(knn_kde(rows, queries[generator.permutation(m)], **given_settings).p, p, atol=1e-9)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 30),
    share=st.floats(0, 1),
    sample=st.sampled_from(["gumbel", "largest"]),
    copies=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_as_many_rows_as_asked_for_and_none_twice(seed: int, n: int, share: float, sample: str, copies: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, 4))
    if copies:
        rows[n // 2 :] = rows[: n - n // 2]
    k = max(1, round(share * n))
    inputs = Inputs(
        n=n,
        candidates=np.ones(n, dtype=bool),
        response_tokens=np.ones(n, dtype=np.int64),
        sources=["a"] * n,
        budget=Budget(k),
        seed=seed,
        embeddings=rows,
        target=Target(["t"] * 3, generator.normal(size=(3, 4))),
    )
    method = make_method("tsds", {"sample": sample})
    choice = method.choose(inputs)
    assert len(choice) == k == len(set(choice.indices.tolist()))
    assert np.array_equal(choice.indices, method.choose(inputs).indices)
    if sample == "largest":
        assert (np.diff(np.round(choice.scores / choice.scores.max(), 12)) <= 0).all()
