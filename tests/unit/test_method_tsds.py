"""TSDS on worked answers, and what it does with copies, small pools, and more picks than probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError, DataError
from spice_select.methods import Choice, Inputs, Target, make_method
from spice_select.methods.tsds import kernel_density, knn_kde, nearest, nearest_distance
from spice_select.selection.budget import Budget

ROWS = np.array([1.0, 2.0, 2.05, 3.0, 6.0, 8.0])[:, None]
QUERIES = np.array([0.0, 7.0])[:, None]


def _points(seed: int, n: int, d: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def _inputs(rows: np.ndarray, queries: np.ndarray, k: int, **given: Any) -> Inputs:
    n = len(rows)
    values: dict[str, Any] = {
        "candidates": np.ones(n, dtype=bool),
        "response_tokens": np.full(n, 10),
        "sources": ["a"] * n,
        "budget": Budget(k),
        "embeddings": rows,
        "target": Target(["target"] * len(queries), queries),
    }
    return Inputs(n=n, **{**values, **given})


def _choose(inputs: Inputs, **settings: Any) -> Choice:
    return make_method("tsds", settings).choose(inputs)


@pytest.mark.parametrize(
    ("alpha", "sigma", "p", "s", "last"),
    [
        (0.5, 0.0, [0.25, 0.25, 0, 0, 0.25, 0.25], 2.0, [1, 0]),
        (0.5, 0.75, [0.25, 0.125278, 0.124722, 0, 0.25, 0.25], 2.0, [1, 0]),
        (0.9, 0.75, [0.5, 0, 0, 0, 0.5, 0], 1.0, [0, 0]),
        (0.1, 0.75, [0.142812, 0.071565, 0.143130, 0.285623, 0.214059, 0.142812], 3.501114, [3, 3]),
    ],
)
def test_worked_answers(alpha: float, sigma: float, p: list[float], s: float, last: list[int]) -> None:
    found = knn_kde(ROWS, QUERIES, alpha=alpha, scale=3.0, sigma=sigma, neighbours=5, kde_neighbours=5)
    assert found.p == pytest.approx(p, abs=1e-6)
    assert found.s == pytest.approx(s, abs=1e-6)
    assert found.last.tolist() == last
    assert found.p.sum() == pytest.approx(1.0, abs=1e-15)


def test_the_density_of_the_worked_answers() -> None:
    assert kernel_density(ROWS, 0.75, 5) == pytest.approx([1, 1.995556, 1.995556, 1, 1, 1], abs=1e-6)
    assert kernel_density(ROWS, 0.0, 5).tolist() == [1.0] * 6
    assert kernel_density(ROWS, 100.0, 1).tolist() == [1.0] * 6
    # Two neighbours are the row and the one nearest to it.
    assert kernel_density(ROWS, 2.0, 2) == pytest.approx(
        [1 + 1 - 1 / 4, 2 - 0.05**2 / 4, 2 - 0.05**2 / 4, 2 - 0.95**2 / 4, 1, 1]
    )


def test_near_duplicates_share_a_part() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.001], [-1.0, -0.001]])
    found = knn_kde(rows, np.zeros((1, 2)), alpha=0.1, scale=5.0, sigma=0.5, neighbours=4, kde_neighbours=4)
    assert found.p[0] == pytest.approx(0.5, abs=1e-3)
    assert found.p[1:].sum() == pytest.approx(0.5, abs=1e-3)


def test_nearest_neighbours_are_exact_and_ties_go_to_the_lowest_number() -> None:
    rows, queries = _points(0, 200, 5), _points(1, 7, 5)
    rows[150:] = rows[:50]
    distances, indices = nearest(rows, queries, 60)
    for j, query in enumerate(queries):
        direct = np.sqrt(((rows - query) ** 2).sum(axis=1))
        assert indices[j].tolist() == np.argsort(direct, kind="stable")[:60].tolist()
        assert distances[j] == pytest.approx(np.sort(direct)[:60])
    assert nearest_distance(rows, queries) == pytest.approx(
        np.sqrt(((rows[:, None] - queries[None]) ** 2).sum(axis=2)).min(axis=1)
    )


def test_far_from_the_origin_neighbours_are_still_exact() -> None:
    rows, queries = _points(2, 50) + 1e6, _points(3, 4) + 1e6
    expected = np.argsort(((rows[None] - queries[:, None]) ** 2).sum(axis=2), axis=1, kind="stable")[:, :9]
    assert nearest(rows, queries, 9)[1].tolist() == expected.tolist()


def test_all_the_mass_of_a_query_goes_to_its_nearest_row_where_distance_alone_counts() -> None:
    rows, queries = _points(4, 30), _points(5, 6)
    # The first query's nearest row is dense, and would overflow if the sweep's end alone decided.
    rows[1:4] = rows[0] + 1e-3
    found = knn_kde(rows, queries, alpha=1.0, scale=5.0, sigma=0.75, neighbours=10, kde_neighbours=10)
    expected = np.bincount(nearest(rows, queries, 1)[1][:, 0], minlength=30) / 6
    assert found.p == pytest.approx(expected)


def test_where_only_spread_counts_every_row_has_the_same_part() -> None:
    found = knn_kde(_points(6, 9), _points(7, 2), alpha=0.0, scale=5.0, sigma=0.0, neighbours=9, kde_neighbours=9)
    assert found.p == pytest.approx(np.full(9, 1 / 9))
    assert found.s == pytest.approx(9)


def test_used_up_neighbours_take_all_and_the_sweep_ends() -> None:
    # The three neighbours of the first query are near duplicates, which together take one part; those of the second
    # would take three.
    rows = np.array([[0.0], [0.001], [0.002], [50.0], [51.0], [52.0], [53.0]])
    found = knn_kde(rows, np.array([[0.0], [50.0]]), alpha=0.0, scale=1.0, sigma=0.5, neighbours=3, kde_neighbours=3)
    assert found.p == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 19])
@pytest.mark.parametrize("sample", ["gumbel", "largest"])
def test_pools_too_small_for_a_tenth_of_neighbours(n: int, sample: str) -> None:
    for k in {1, n}:
        choice = _choose(_inputs(_points(n, n), _points(20, 4), k), sample=sample)
        assert len(set(choice.indices.tolist())) == len(choice) == k
        assert choice.stop_reason == "budget" and not choice.warnings


def test_the_most_probable_rows_are_taken_with_ties_to_the_lowest_row() -> None:
    rows = np.array([[5.0, 0.0], [0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    choice = _choose(_inputs(rows, np.array([[0.0, 2.0]]), 3), sample="largest", sigma=0.0, scale=0.1)
    assert choice.indices.tolist() == [1, 2, 4]
    assert choice.pool_scores is not None and choice.pool_scores.sum() == pytest.approx(1.0)
    assert choice.scores == pytest.approx(choice.pool_scores[[1, 2, 4]])


def test_draws_follow_the_probabilities() -> None:
    settings = {"unit": "raw", "normalize": False, "scale": 3.0}
    counts = np.zeros(6)
    for seed in range(1000):
        inputs = _inputs(ROWS + 1, QUERIES + 1, 1, seed=seed)
        counts[_choose(inputs, alpha=0.5, **settings).indices[0]] += 1
    expected = knn_kde(ROWS, QUERIES, alpha=0.5, scale=3, sigma=0.75, neighbours=6, kde_neighbours=6).p
    assert counts / 1000 == pytest.approx(expected, abs=0.045)


def test_a_seed_gives_the_same_draw_and_a_smaller_budget_its_beginning() -> None:
    rows, queries = _points(8, 300), _points(9, 5)
    first = _choose(_inputs(rows, queries, 40, seed=3))
    assert first.indices.tolist() == _choose(_inputs(rows, queries, 40, seed=3)).indices.tolist()
    assert first.indices[:7].tolist() == _choose(_inputs(rows, queries, 7, seed=3)).indices.tolist()
    assert first.indices.tolist() != _choose(_inputs(rows, queries, 40, seed=4)).indices.tolist()
    largest = [_choose(_inputs(rows, queries, 9, seed=seed), sample="largest").indices.tolist() for seed in (1, 2)]
    assert largest[0] == largest[1]


def test_beyond_the_probabilities_the_nearest_rows_are_taken_and_said_so() -> None:
    rows, queries = _points(10, 40), _points(11, 2)
    choice = _choose(_inputs(rows, queries, 30), alpha=0.9, scale=0.2, sample="largest", normalize=False)
    assert choice.pool_scores is not None
    support = int((choice.pool_scores > 0).sum())
    assert 2 <= support < 30
    assert len(choice) == 30 and not choice.warnings
    assert any(f"{30 - support} picks have no probability" in note for note in choice.notes)
    distances = nearest_distance(rows, queries)
    assert (np.diff(distances[choice.indices[support:]]) >= 0).all()
    left = np.setdiff1d(np.arange(40), choice.indices)
    assert distances[left].min() >= distances[choice.indices[support:]].max()


def test_without_filling_fewer_rows_come_with_a_warning() -> None:
    choice = _choose(_inputs(_points(10, 40), _points(11, 2), 30), alpha=0.9, scale=0.2, fill=False)
    assert choice.pool_scores is not None and len(choice) == (choice.pool_scores > 0).sum() < 30
    assert choice.stop_reason == "exhausted" and "of the 30 rows asked for" in choice.warnings[0]


def test_the_unit_makes_the_scale_of_the_embeddings_irrelevant() -> None:
    rows, queries = _points(12, 120), _points(13, 6)
    settings: dict[str, Any] = {"alpha": 0.5, "scale": 5.0, "sigma": 0.75, "neighbours": 60, "kde_neighbours": 60}
    one = knn_kde(rows, queries, **settings, unit="nearest")
    other = knn_kde(rows * 1000, queries * 1000, **settings, unit="nearest")
    assert one.p == pytest.approx(other.p) and other.unit == pytest.approx(1000 * one.unit)
    assert knn_kde(rows / one.unit, queries / one.unit, **settings).p == pytest.approx(one.p)


def test_a_target_that_lies_in_the_pool_leaves_the_unit_above_zero() -> None:
    rows = _points(14, 50)
    found = knn_kde(rows, rows[:5], alpha=0.5, scale=5.0, sigma=0.75, neighbours=50, kde_neighbours=50, unit="nearest")
    assert found.unit > 1e-3
    same = knn_kde(
        np.ones((4, 2)), np.ones((2, 2)), alpha=0.5, scale=5.0, sigma=0.75, neighbours=4, kde_neighbours=4,
        unit="nearest",
    )  # fmt: skip
    assert same.unit == 1.0 and same.p == pytest.approx(np.full(4, 0.25))


def test_rows_without_an_embedding_or_left_out_are_never_taken() -> None:
    rows = _points(15, 12)
    rows[3] = 0
    candidates = np.ones(12, dtype=bool)
    candidates[5] = False
    choice = _choose(_inputs(rows, _points(16, 3), 11, candidates=candidates))
    assert sorted(choice.indices.tolist()) == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
    assert choice.warnings
    assert choice.pool_scores is not None and np.isnan(choice.pool_scores[[3, 5]]).all()


def test_a_token_budget_is_kept() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=80)
    inputs = _inputs(_points(17, 80), _points(18, 4), 80, response_tokens=lengths, budget=Budget(80, 200))
    choice = _choose(inputs)
    spent = int(lengths[choice.indices].sum())
    assert spent <= 200 and choice.stop_reason == "tokens"
    left = np.setdiff1d(np.arange(80), choice.indices)
    assert lengths[left].min() > 200 - spent


def test_faults_are_told() -> None:
    with pytest.raises(DataError, match="No target example has an embedding other than zero"):
        _choose(_inputs(_points(0, 5), np.zeros((2, 3)), 2))
    with pytest.raises(DataError, match="No row that may be chosen has an embedding"):
        _choose(_inputs(np.zeros((5, 3)), _points(0, 2), 2))
    with pytest.raises(ConfigError, match="scale"):
        make_method("tsds", {"scale": 0})
    with pytest.raises(ConfigError, match="alpha"):
        make_method("tsds", {"alpha": 1.5})


def test_the_most_probable_rows_need_no_seed() -> None:
    assert make_method("tsds").varying() == "draw"
    assert make_method("tsds", {"sample": "largest"}).varying() == "no"
