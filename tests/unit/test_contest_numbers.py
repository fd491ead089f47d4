from __future__ import annotations

import math

import numpy as np
import pytest

from spice_select.analysis.contest_numbers import Ground, imbalance, measure_picks, measure_scale, opposing_share
from spice_select.analysis.coverage import measure_coverage
from spice_select.selection import select
from spice_select.selection.budget import Budget


def ground(rows: np.ndarray, **given: object) -> Ground:
    n = len(rows)
    settings = {
        "candidates": np.ones(n, bool),
        "response_tokens": np.arange(1, n + 1),
        "labels": {"source": ["a" if place % 3 else "b" for place in range(n)]},
        "gradients": rows,
        "squared_norms": np.square(rows).sum(axis=1),
        "known": np.ones(n, bool),
    }
    return Ground(**{**settings, **given})  # pyright: ignore[reportArgumentType]


def log_det(rows: np.ndarray, alpha: float) -> float:
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + alpha * rows.T @ rows)[1])


@pytest.fixture(scope="module")
def gradients() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(40, 12)) * np.geomspace(0.2, 3, 40)[:, None]


@pytest.mark.parametrize("normalize", ["none", "unit", "sqrt_tokens", "clip"])
def test_information_is_the_definition_under_one_scale(gradients: np.ndarray, normalize: str) -> None:
    pool = ground(gradients)
    scale = measure_scale(pool, Budget(8), alpha="auto", normalize=normalize)  # pyright: ignore[reportArgumentType]
    norms = np.linalg.norm(gradients, axis=1)
    factors = {
        "none": np.ones(40),
        "unit": 1 / norms,
        "sqrt_tokens": np.sqrt(np.arange(1, 41)),
        "clip": np.minimum(1, np.median(norms) / norms),
    }[normalize]
    rows = gradients * factors[:, None]
    alpha = 1 / np.median(np.square(rows).sum(axis=1))
    assert scale.yardstick.alpha == pytest.approx(alpha)
    picks = [3, 17, 39, 0, 8, 21, 30, 5]
    found = measure_picks(pool, picks, scale)
    assert found.information == pytest.approx(log_det(rows[picks], alpha))
    # One scale: greedy's own answer under the same settings is the one that the bound was measured at.
    own = select(gradients, budget=8, alpha="auto", conflict_weight=0, normalize=normalize, lengths=np.arange(1, 41))  # pyright: ignore[reportArgumentType]
    assert measure_picks(pool, own.indices, scale).information == pytest.approx(scale.yardstick.greedy)


def test_no_set_of_the_budget_holds_more_than_the_bound(gradients: np.ndarray) -> None:
    pool = ground(gradients[:12])
    scale = measure_scale(pool, Budget(3), alpha=0.7, normalize="none")
    bound = scale.yardstick.upper_bound
    assert bound is not None
    best = max(
        log_det(gradients[[i, j, k]], 0.7) for i in range(12) for j in range(i + 1, 12) for k in range(j + 1, 12)
    )
    assert best <= bound
    share = measure_picks(pool, [9, 10, 11], scale).share_of_best
    assert share == pytest.approx(log_det(gradients[9:12], 0.7) / bound)
    assert measure_picks(pool, [8, 9, 10, 11], scale).share_of_best is None
    assert measure_picks(pool, [11], scale).share_of_best is not None


def test_a_token_budget_bounds_tokens(gradients: np.ndarray) -> None:
    pool = ground(gradients)
    scale = measure_scale(pool, Budget(40, tokens=30), alpha=1.0, normalize="none")
    assert measure_picks(pool, [9, 19], scale).share_of_best is not None
    assert measure_picks(pool, [9, 20], scale).share_of_best is None


def test_rows_in_hand_hold_what_the_picks_then_do_not(gradients: np.ndarray) -> None:
    candidates = np.ones(40, bool)
    candidates[[2, 39]] = False
    pool = ground(gradients, candidates=candidates, in_hand=[2, 39])
    scale = measure_scale(pool, Budget(4), alpha=1.0, normalize="none")
    found = measure_picks(pool, [1, 5, 6, 38], scale).information
    assert found == pytest.approx(log_det(gradients[[1, 2, 5, 6, 38, 39]], 1.0) - log_det(gradients[[2, 39]], 1.0))
    assert scale.yardstick.greedy is not None and found is not None and found <= scale.yardstick.greedy


def test_picks_without_a_gradient_are_counted_and_hold_nothing(gradients: np.ndarray) -> None:
    known = np.ones(40, bool)
    known[[4, 5]] = False
    rows = np.where(known[:, None], gradients, 0.0)
    pool = ground(rows, known=known, squared_norms=np.square(rows).sum(axis=1))
    scale = measure_scale(pool, Budget(4), alpha=1.0, normalize="none")
    found = measure_picks(pool, [1, 4, 5, 9], scale)
    assert found.without_gradient == 2 and found.diversity_rows == 2
    assert found.information == pytest.approx(log_det(gradients[[1, 9]], 1.0))
    assert found.norm_median == pytest.approx(np.median(np.linalg.norm(gradients[[1, 9]], axis=1)))


def test_without_gradients_the_rest_is_known() -> None:
    pool = ground(np.ones((6, 2)), gradients=None, squared_norms=None, known=None)
    found = measure_picks(pool, [0, 5])
    assert (found.k, found.tokens, found.tokens_median) == (2, 7, 3.5)
    assert found.information is None and found.vendi is None and found.opposing_share is None
    assert pool.numbers().norm_median is None and pool.numbers().sources == ("b", "a")


def test_imbalance_is_total_variation() -> None:
    labels = ["a", "a", "b", "b", "c", "c", "c", "c"]
    # Pool 1/4, 1/4, 1/2; picks 1/2, 0, 1/2: 0.5 * (1/4 + 1/4 + 0).
    assert imbalance(measure_coverage(labels, [0, 4], by="source")) == pytest.approx(0.25)
    assert imbalance(measure_coverage(labels, range(8), by="source")) == pytest.approx(0.0)
    assert imbalance(measure_coverage(["a"] * 4, [0], by="source")) is None


def test_the_grouping_column_decides_the_imbalance_where_there_is_one() -> None:
    labels = {"source": ["one"] * 4, "domain": ["x", "x", "y", "y"]}
    pool = ground(np.ones((4, 2)), gradients=None, squared_norms=None, known=None, labels=labels)
    found = measure_picks(pool, [0, 1])
    assert found.imbalance == pytest.approx(0.5)
    assert [each.by for each in found.balance] == ["source", "domain"]


def test_opposing_picks_are_those_against_the_sum_of_the_others() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 0.0]])
    assert opposing_share(rows, np.array([0, 1, 2])) == pytest.approx(1 / 3)
    assert opposing_share(rows, np.array([0, 2])) == pytest.approx(1.0)
    # A factor turns the sum: the opposing row is now the heavier.
    assert opposing_share(rows, np.array([0, 1, 2]), np.array([1.0, 1.0, 9.0, 1.0])) == pytest.approx(1.0)
    assert opposing_share(rows, np.array([0, 3])) == 0.0
    assert opposing_share(rows, np.array([0])) is None


def test_rows_of_zeros_have_no_diversity() -> None:
    rows = np.zeros((5, 3))
    rows[4] = 1.0
    pool = ground(rows)
    scale = measure_scale(pool, Budget(2), alpha="auto", normalize="none")
    found = measure_picks(pool, [0, 1], scale)
    assert found.information == 0.0 and found.vendi is None and found.diversity_rows == 0


def test_one_pick_and_the_whole_pool(gradients: np.ndarray) -> None:
    pool = ground(gradients)
    scale = measure_scale(pool, Budget(40), alpha=1.0, normalize="none")
    assert measure_picks(pool, range(40), scale).share_of_best == pytest.approx(1.0, abs=1e-6)
    one = measure_picks(pool, [7], scale)
    assert one.information == pytest.approx(math.log1p(float(gradients[7] @ gradients[7])))
    assert one.opposing_share is None and one.vendi is None
