"""The certificate is a proven bound: held against the best set of pools small enough to try every one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spice_select.analysis import knapsack, posterior
from spice_select.analysis import prefixes as module
from spice_select.analysis.certificate import certify


class Rows:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape

    def rows(self, indices: Any) -> np.ndarray:
        return self.values[indices]


def information(rows: np.ndarray, alpha: float) -> float:
    # By singular values: a determinant loses as many digits as the largest row is above 1.
    return float(np.log1p(alpha * np.linalg.svd(rows, compute_uv=False) ** 2).sum())


def greedy(gradients: np.ndarray, budget: int, alpha: float, start: tuple[int, ...] = ()) -> list[int]:
    chosen: list[int] = []
    for _ in range(budget):
        left = [i for i in range(len(gradients)) if i not in chosen and i not in start]
        chosen.append(max(left, key=lambda i: information(gradients[[*start, *chosen, i]], alpha)))
    return chosen


@st.composite
def pools(draw: st.DrawFn) -> np.ndarray:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(4, 9)), draw(st.integers(1, 6))
    gradients = generator.standard_normal((n, d)) * np.exp(
        generator.normal(size=(n, 1)) * draw(st.sampled_from([0, 1, 3]))
    )
    if draw(st.booleans()):
        gradients[draw(st.integers(0, n - 1))] = 0.0
    if draw(st.booleans()):
        gradients[1] = gradients[0]
    return gradients


def within_digits(pool: np.ndarray, alpha: float) -> None:
    """Leave out pools whose scale the selection warns of; nine digits hold below it."""
    assume(alpha * float((pool**2).sum(axis=1).max()) < 1e7)


@given(pools(), st.integers(1, 4), st.sampled_from([1e-3, 1.0, 50.0]), st.integers(0, 2**31))
def test_never_above_the_true_share_for_any_picks(pool: np.ndarray, budget: int, alpha: float, seed: int) -> None:
    within_digits(pool, alpha)
    picks = np.random.default_rng(seed).permutation(len(pool))[:budget]
    best = max(information(pool[list(s)], alpha) for s in itertools.combinations(range(len(pool)), budget))
    certificate = certify(Rows(pool), picks, alpha=alpha, budget=budget, penalised=True)
    held = information(pool[picks], alpha)
    assert certificate.information == pytest.approx(held, rel=1e-9, abs=1e-12)
    assert certificate.upper_bound >= best * (1 - 1e-9)
    assert certificate.value <= held / best + 1e-9 if best > 0 else certificate.value == 1.0


@given(pools(), st.integers(1, 4), st.sampled_from([1e-2, 1.0, 50.0]))
def test_never_above_the_true_share_for_greedy_picks(pool: np.ndarray, budget: int, alpha: float) -> None:
    within_digits(pool, alpha)
    picks = greedy(pool, budget, alpha)
    best = max(information(pool[list(s)], alpha) for s in itertools.combinations(range(len(pool)), budget))
    certificate = certify(Rows(pool), picks, alpha=alpha, budget=budget)
    share = information(pool[picks], alpha) / best if best > 0 else 1.0
    assert certificate.best <= share + 1e-9
    assert certificate.best >= 1 - np.exp(-1) - 1e-12


@given(pools(), st.integers(1, 3), st.integers(0, 2**31))
def test_rows_in_hand_and_excluded_rows(pool: np.ndarray, budget: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(pool))
    initial, excluded = (int(order[0]),), int(order[1])
    candidates = np.ones(len(pool), dtype=bool)
    candidates[excluded] = False
    free = [i for i in range(len(pool)) if i not in (*initial, excluded)]
    picks = order[2 : 2 + min(budget, len(free))]
    base = information(pool[list(initial)], 1.0)
    best = max(information(pool[[*initial, *s]], 1.0) for s in itertools.combinations(free, len(picks))) - base
    held = information(pool[[*initial, *picks]], 1.0) - base
    certificate = certify(
        Rows(pool), picks, alpha=1.0, budget=len(picks), candidates=candidates, initial=initial, penalised=True
    )
    # Both are differences of log-determinants, whose rounding grows with the information in hand.
    rounding = 1e-15 * np.linalg.norm(pool) ** 2
    assert certificate.upper_bound >= best * (1 - 1e-9) - 1e-12 - rounding
    assert certificate.value <= (held / best if best > rounding else 1.0) + 1e-9 + rounding / max(best, rounding)


@given(pools(), st.integers(2, 20), st.integers(0, 2**31))
def test_token_budget(pool: np.ndarray, capacity: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 9, size=len(pool))
    sets = itertools.chain.from_iterable(itertools.combinations(range(len(pool)), r) for r in range(1, len(pool) + 1))
    fitting = [list(s) for s in sets if tokens[list(s)].sum() <= capacity]
    if not fitting:
        return
    picks = fitting[generator.integers(len(fitting))]
    best = max(information(pool[s], 1.0) for s in fitting)
    certificate = certify(Rows(pool), picks, alpha=1.0, budget=capacity, tokens=tokens)
    assert certificate.unit == "tokens"
    assert certificate.value <= (information(pool[picks], 1.0) / best if best > 0 else 1.0) + 1e-9


@given(pools())
def test_everything_is_all_there_is(pool: np.ndarray) -> None:
    assert certify(Rows(pool), range(len(pool)), alpha=1.0, budget=len(pool)).value == 1.0


@given(pools(), st.integers(0, 2**31))
def test_scale_factors_are_those_of_scaled_rows(pool: np.ndarray, seed: int) -> None:
    factors = np.exp(np.random.default_rng(seed).normal(size=len(pool)))
    picks = range(len(pool) // 2)
    beside = certify(Rows(pool), picks, alpha=0.7, budget=len(pool) // 2, factors=factors)
    within = certify(Rows(pool * factors[:, None]), picks, alpha=0.7, budget=len(pool) // 2)
    assert beside.value == pytest.approx(within.value, rel=1e-9)


def everything_measured(
    pool: np.ndarray, picks: list[int], budget: int, alpha: float, prefixes: tuple[int, ...]
) -> float:
    """U without any short cut."""
    bounds = []
    for t in prefixes:
        base = information(pool[picks[:t]], alpha)
        inverse = np.linalg.inv(np.eye(pool.shape[1]) + alpha * pool[picks[:t]].T @ pool[picks[:t]])
        gains = np.log1p(alpha * np.einsum("ij,jk,ik->i", pool, inverse, pool))
        gains[picks[:t]] = 0
        bounds.append(base + np.sort(gains)[-budget:].sum())
    return min(bounds)


@pytest.mark.parametrize(("n", "d", "k"), [(600, 24, 150), (600, 200, 60), (500, 40, 500)])
@pytest.mark.parametrize("spread", [0.0, 1.5])
@pytest.mark.parametrize("cheap", [0, 10**12])
def test_short_cuts_change_nothing(
    monkeypatch: pytest.MonkeyPatch, n: int, d: int, k: int, spread: float, cheap: int
) -> None:
    generator = np.random.default_rng(n + d)
    pool = generator.standard_normal((n, d)).astype(np.float32) * np.exp(generator.normal(size=(n, 1)) * spread)
    pool = (pool / np.sqrt(d)).astype(np.float32)
    picks = np.argsort(-np.square(pool).sum(axis=1), kind="stable")[:k].tolist()
    for place in (module, knapsack, posterior):
        monkeypatch.setattr(place, "CHUNK_ROWS", 37)
    monkeypatch.setattr(module, "CHEAP_WORK", cheap)
    certificate = certify(Rows(pool), picks, alpha=2.0, budget=k)
    expected = everything_measured(pool.astype(np.float64), picks, k, 2.0, certificate.prefixes)
    assert certificate.upper_bound >= expected * (1 - 1e-12)
    assert certificate.upper_bound <= expected * (1 + (module.LOOSENESS if cheap == 0 else 1e-7))


def test_float32_overflow_falls_back() -> None:
    pool = np.full((6, 2), 1e25, dtype=np.float32)
    pool[3:] = 1.0
    certificate = certify(Rows(pool), [0, 3], alpha=1.0, budget=2)
    assert 0 < certificate.value <= 1
    assert np.isfinite(certificate.upper_bound)


def test_stopped_early_speaks_of_both_budgets() -> None:
    pool = np.random.default_rng(5).standard_normal((40, 6))
    certificate = certify(Rows(pool), greedy(pool, 3, 1.0), alpha=1.0, budget=10)
    assert certificate.value_at_size is not None
    assert certificate.value < certificate.value_at_size
    assert certificate.guarantee is None
    assert "10 rows" in certificate.sentence()
    assert "as many rows" in certificate.sentence()


def test_the_sentence_says_when_a_penalty_was_on_and_rounds_down() -> None:
    pool = np.random.default_rng(5).standard_normal((40, 6))
    picks = greedy(pool, 3, 1.0)
    plain = certify(Rows(pool), picks, alpha=1.0, budget=3)
    penalised = certify(Rows(pool), picks, alpha=1.0, budget=3, penalised=True)
    assert "conflict" in penalised.sentence()
    assert "conflict" not in plain.sentence()
    shown = float(plain.sentence().split("at least ")[1].split("%")[0]) / 100
    assert shown <= plain.best < shown + 0.001


def test_nothing_to_gain() -> None:
    assert certify(Rows(np.zeros((5, 3))), [0, 1], alpha=1.0, budget=2).value == 1.0
