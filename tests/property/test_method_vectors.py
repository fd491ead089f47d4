"""DPP, k-center and SemDeDup on random pools: against brute force, and what holds of every choice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from spice_select.selection.budget import Budget
from tests.vectors import METHODS, choose, picks, random_vectors, vector_inputs, with_quotas

SEEDS = st.integers(0, 10_000)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1)[:, None]


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 14),
    dim=st.integers(1, 5),
    copies=st.integers(0, 3),
    kernel=st.sampled_from(["rbf", "linear", "cosine"]),
)
def test_dpp_is_greedy_by_the_log_determinant(seed: int, n: int, dim: int, copies: int, kernel: str) -> None:
    vectors = random_vectors(n, dim, seed, copies)
    found = choose("dpp", vector_inputs(vectors, n), kernel=kernel, **({"gamma": 1.0} if kernel == "rbf" else {}))
    cosines = _unit(vectors) @ _unit(vectors).T
    matrix = {"rbf": np.exp(2 * cosines - 2), "linear": (cosines + 1) / 2, "cosine": cosines}[kernel]

    def gains(chosen: list[int]) -> dict[int, float]:
        """What is left of each row beside the chosen ones: a ratio of determinants, by least squares."""
        left = [row for row in range(n) if row not in chosen]
        part = matrix[np.ix_(chosen, left)]
        solved = np.linalg.solve(matrix[np.ix_(chosen, chosen)], part) if chosen else part
        return {row: matrix[row, row] - float(part[:, place] @ solved[:, place]) for place, row in enumerate(left)}

    chosen: list[int] = []
    for pick, score in zip(found.indices.tolist(), found.scores.tolist(), strict=True):
        values = gains(chosen)
        if min(np.exp(found.scores[: len(chosen) + 1])) < 1e-6:
            return  # the solution by least squares has no digits left
        assert np.exp(score) == pytest.approx(values[pick], rel=1e-4)
        assert values[pick] >= max(values.values()) * (1 - 1e-4)
        chosen.append(pick)
    if len(chosen) < n:
        assert max(gains(chosen).values()) < 1e-6
        assert found.warnings and found.stop_reason == "exhausted"


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 14),
    dim=st.integers(1, 4),
    copies=st.integers(0, 3),
    start=st.sampled_from(["centroid", "farthest", "random"]),
)
def test_kcenter_is_farthest_first(seed: int, n: int, dim: int, copies: int, start: str) -> None:
    vectors = random_vectors(n, dim, seed, copies)
    found = choose("kcenter", vector_inputs(vectors, n, seed=seed), start=start)
    distances = cdist(vectors, vectors)
    to_mean = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    first = int(found.indices[0])
    if start != "random":
        assert to_mean[first] == pytest.approx(to_mean.min() if start == "centroid" else to_mean.max(), abs=1e-7)
    nearest = distances[first]
    chosen = [first]
    for pick, score in zip(found.indices[1:].tolist(), found.scores[1:].tolist(), strict=True):
        left = [row for row in range(n) if row not in chosen]
        assert nearest[pick] == pytest.approx(max(nearest[left]), abs=1e-6)
        assert score == pytest.approx(nearest[pick], abs=1e-6)
        chosen.append(pick)
        nearest = np.minimum(nearest, distances[pick])
    assert len(chosen) == n


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(2, 9), k=st.integers(1, 4), metric=st.sampled_from(["euclidean", "cosine"]))
def test_kcenter_keeps_its_guarantee(seed: int, n: int, k: int, metric: str) -> None:
    vectors = random_vectors(n, 2, seed)
    k = min(k, n)
    distances = cdist(vectors, vectors) if metric == "euclidean" else 1 - _unit(vectors) @ _unit(vectors).T
    found = picks("kcenter", vector_inputs(vectors, k), metric=metric)
    reached = distances[found].min(axis=0).max()
    best = min(distances[list(chosen)].min(axis=0).max() for chosen in combinations(range(n), k))
    assert reached <= (2 if metric == "euclidean" else 4) * best + 1e-9


@settings(max_examples=50, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 20),
    dim=st.integers(1, 4),
    copies=st.integers(0, 4),
    keep=st.sampled_from(["farthest", "nearest"]),
)
def test_semdedup_removes_the_most_redundant_first(seed: int, n: int, dim: int, copies: int, keep: str) -> None:
    vectors = random_vectors(n, dim, seed, copies)
    found = choose("semdedup", vector_inputs(vectors, n), clusters=1, keep=keep)
    unit = _unit(vectors)
    center = unit.mean(axis=0)
    to_center = np.round(unit @ center / max(np.linalg.norm(center), 1e-300), 9)
    order = sorted(range(n), key=lambda row: (to_center[row] if keep == "farthest" else -to_center[row], row))
    redundancy = np.full(n, -1.0)
    for place, row in enumerate(order[1:], 1):
        redundancy[row] = max(unit[row] @ unit[earlier] for earlier in order[:place])
    assert found.pool_scores is not None
    np.testing.assert_allclose(found.pool_scores, 1 - redundancy, atol=1e-9)
    assert (np.diff(found.scores) <= 1e-12).all()
    for k in range(1, n):
        smaller = choose("semdedup", vector_inputs(vectors, k), clusters=1, keep=keep)
        assert smaller.indices.tolist() == found.indices[:k].tolist()
        # The picks are what the largest eps that leaves k rows would leave, when that eps leaves no more.
        eps = max(0.0, float(smaller.scores.min()) - 1e-7)
        if (found.pool_scores >= eps).sum() == k and eps > 0:
            drawn = picks("semdedup", vector_inputs(vectors, k), clusters=1, keep=keep, eps=min(eps, 2.0))
            assert sorted(drawn) == sorted(smaller.indices.tolist())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(METHODS),
    seed=SEEDS,
    n=st.integers(1, 25),
    share=st.floats(0.0, 1.0),
    copies=st.integers(0, 5),
    zeros=st.integers(0, 3),
)
def test_what_holds_of_every_choice(name: str, seed: int, n: int, share: float, copies: int, zeros: int) -> None:
    vectors = random_vectors(n, 4, seed, copies)
    generator = np.random.default_rng(seed)
    vectors[generator.choice(n, min(zeros, n), replace=False)] = 0.0
    candidates = generator.random(n) < 0.8
    if not candidates.any():
        candidates[0] = True
    k = max(1, round(share * int(candidates.sum())))
    inputs = vector_inputs(vectors, k, candidates=candidates, seed=seed)
    before = vectors.copy()
    found = choose(name, inputs)
    assert len(set(found.indices.tolist())) == len(found) <= k
    assert candidates[found.indices].all() and vectors[found.indices].any(axis=1).all()
    assert len(found.scores) == len(found)
    assert (len(found) == k) == (found.stop_reason == "budget")
    if len(found) < k:
        assert found.warnings and f"{len(found)} of the {k} rows asked for" in found.warnings[0]
    again = choose(name, inputs)
    assert found.indices.tolist() == again.indices.tolist()
    np.testing.assert_array_equal(found.scores, again.scores)
    np.testing.assert_array_equal(vectors, before)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(METHODS), seed=SEEDS, n=st.integers(1, 25), tokens=st.integers(1, 200))
def test_a_token_budget_is_respected(name: str, seed: int, n: int, tokens: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    inputs = vector_inputs(random_vectors(n, 4, seed), Budget(n, tokens=tokens), response_tokens=lengths)
    found = choose(name, inputs)
    left = tokens - int(lengths[found.indices].sum())
    assert left >= 0
    others = np.setdiff1d(np.arange(n), found.indices)
    assert not (lengths[others] <= left).any(), "a row that fits was left"
    assert found.stop_reason == ("tokens" if len(others) else "budget")


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(METHODS), seed=SEEDS, share=st.floats(0.0, 1.0))
def test_quotas_are_respected(name: str, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    labels = [*"abc", *generator.choice(list("abc"), 21)]
    k = max(3, round(share * 24))
    room = labels.count("b")
    quotas = {"a": {"min": 1}, "c": {"min": 1, "max": 2}, "b": {"min": 1}}
    k = min(k, labels.count("a") + room + min(2, labels.count("c")))
    found = choose(name, with_quotas(random_vectors(24, 30, seed), k, labels, quotas))
    given_ = [labels[row] for row in found.indices]
    assert len(given_) == k
    assert given_.count("a") >= 1 and given_.count("b") >= 1 and 1 <= given_.count("c") <= 2


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(4, 20), case=st.sampled_from(["dpp", "kcenter", "kcenter-cosine", "semdedup"]))
def test_the_order_of_rows_does_not_matter(seed: int, n: int, case: str) -> None:
    # Where nothing ties: before its first pick, DPP without a quality sees all rows alike; two rows are equally far
    # from their mean; k-means draws its start.
    vectors = random_vectors(n, 6, seed)
    generator = np.random.default_rng(seed)
    losses = generator.uniform(0.5, 3, n)
    order = generator.permutation(n)
    name, _, metric = case.partition("-")
    more = {"dpp": {"quality": "loss"}, "semdedup": {"clusters": 1}, "kcenter": {"metric": metric or "euclidean"}}[name]
    k = max(1, n // 2)
    here = picks(name, vector_inputs(vectors, k, losses=losses), **more)
    there = picks(name, vector_inputs(vectors[order], k, losses=losses[order]), **more)
    assert sorted(order[there].tolist()) == sorted(here)


@pytest.mark.parametrize("name", METHODS)
def test_one_row(name: str) -> None:
    found = choose(name, vector_inputs(np.ones((1, 3)), 1))
    assert (found.indices.tolist(), found.stop_reason, found.warnings) == ([0], "budget", ())


@pytest.mark.parametrize("name", METHODS)
def test_all_rows(name: str) -> None:
    found = choose(name, vector_inputs(random_vectors(40, 10, 0), 40))
    assert sorted(found.indices.tolist()) == list(range(40))
    assert found.stop_reason == "budget" and not found.warnings


@pytest.mark.parametrize("name", METHODS)
def test_float32_and_large_numbers(name: str) -> None:
    vectors = random_vectors(30, 5, 1)
    scaled = (vectors * 1e18).astype(np.float32)
    here = picks(name, vector_inputs(vectors.astype(np.float32), 10))
    assert picks(name, vector_inputs(scaled, 10)) == here
