"""Brute force, dense, kernel and lazy give one answer, and it has the properties that the method promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.selection import log_det, select, select_gram
from spice_select.selection.blocked import BlockedLazy
from spice_select.selection.budget import Budget
from spice_select.selection.conflict import Conflict, Score, against_pool
from spice_select.selection.fisher import LogDet
from spice_select.selection.greedy import Dense, run_greedy
from spice_select.selection.lazy import Lazy
from spice_select.selection.quotas import Limits
from spice_select.selection.rows import ArrayRows, Pool
from spice_select.selection.stopping import StopRule


@st.composite
def pools(draw, max_rows: int = 14, max_dim: int = 6):
    n = draw(st.integers(1, max_rows))
    d = draw(st.integers(1, max_dim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "duplicated", "zero", "collinear", "heavy", "grid", "opposed"]))
    g = rng.normal(size=(n, d))
    if kind == "duplicated":
        g = g[rng.integers(0, max(1, n // 2), size=n)]
    elif kind == "zero":
        g[rng.random(n) < 0.5] = 0.0
    elif kind == "collinear":
        g = rng.normal(size=(n, 1)) * g[:1]
    elif kind == "heavy":
        g *= np.exp(2.0 * rng.normal(size=(n, 1)))
    elif kind == "grid":
        g = rng.integers(-1, 2, size=(n, d)).astype(float)
    elif kind == "opposed":
        g[n // 2 :] = -g[: n - n // 2]
    return g.astype(np.float32)


SETTINGS = st.fixed_dictionaries(
    {
        "penalty_and_weight": st.one_of(
            st.tuples(st.just("absolute"), st.sampled_from([0.0, 0.1, 0.5, 1.0, 20.0])),
            st.tuples(st.just("relative"), st.sampled_from([0.0, 0.3, 1.0])),
        ),
        "alpha": st.sampled_from([0.01, 1.0, 30.0, "auto"]),
        "normalize": st.sampled_from(["none", "unit", "clip", "sqrt_tokens"]),
        "reference_and_hinge": st.one_of(
            st.tuples(st.just("selected"), st.sampled_from([0.0, 0.2, -0.3])),
            st.tuples(st.just("pool"), st.sampled_from([0.0, 0.4, "25%", "80%"])),
        ),
        "per_token": st.booleans(),
    }
)


def resolve(options, n):
    options = dict(options)
    options["penalty"], options["conflict_weight"] = options.pop("penalty_and_weight")
    options["reference"], options["hinge"] = options.pop("reference_and_hinge")
    options["lengths"] = (np.arange(n) * 7) % 5 + 1
    return options


def same(one, other) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(one.conflicts, other.conflicts, rtol=1e-5, atol=1e-6)
    assert one.stop_reason == other.stop_reason


@settings(max_examples=150)
@given(pools(), SETTINGS, st.data())
def test_all_loops_give_the_same_picks(g, options, data):
    options = resolve(options, len(g))
    k = data.draw(st.integers(1, len(g)))
    brute = select(g, budget=k, loop="brute", **options)
    for loop in ("dense", "kernel", "lazy"):
        same(select(g, budget=k, loop=loop, **options), brute)
    gram = g.astype(np.float64) @ g.T.astype(np.float64)
    same(select_gram(gram, k, **options), brute)


@settings(max_examples=120)
@given(pools(), SETTINGS, st.sampled_from(["diag-logdet", "paper-diag", "released"]), st.data())
def test_diagonal_forms_agree_between_loops(g, options, fisher, data):
    options = resolve(options, len(g))
    k = data.draw(st.integers(1, len(g)))
    brute = select(g, budget=k, loop="brute", fisher=fisher, **options)
    for loop in ("dense", "lazy"):
        same(select(g, budget=k, loop=loop, fisher=fisher, **options), brute)


@settings(max_examples=150)
@given(pools(), st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.booleans(), st.data())
def test_limits_agree_between_loops(g, ratio, robust, data):
    n = len(g)
    lengths = np.arange(n) % 4 + 1
    options = {"stop_ratio": data.draw(st.sampled_from([None, ratio])), "robust_stop": robust, "lengths": lengths}
    which = data.draw(st.sampled_from(["tokens", "quotas", "initial", "rows in hand", "exclude"]))
    budget: int | str = n
    if which == "tokens":
        budget = f"{data.draw(st.integers(1, int(lengths.sum())))} tokens"
    elif which == "quotas":
        budget = data.draw(st.integers(1, n))
        options |= {"groups": [f"group {i % 3}" for i in range(n)], "quotas": "proportional"}
    elif which == "rows in hand":
        options["initial"] = np.ones((2, g.shape[1]))
    elif n > 1:
        budget = n - 1
        options[which] = [data.draw(st.integers(0, n - 1))]
    brute = select(g, budget=budget, loop="brute", **options)
    for loop in ("dense", "kernel", "lazy"):
        same(select(g, budget=budget, loop=loop, **options), brute)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    st.booleans(),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from(["plain", "duplicated", "zeros", "pool", "huge d"]),
)
def test_blocked_lazy_survives_tiny_active_sets(seed, weight, relative, active, most, chunk, kind):
    rng = np.random.default_rng(seed)
    n, d = 160, 12
    g = (rng.normal(size=(n, d)) + rng.normal(size=(6, d))[rng.integers(0, 6, n)]) * np.exp(rng.normal(size=(n, 1)))
    if kind == "duplicated":
        g = g[rng.integers(0, 20, n)]
    elif kind == "zeros":
        g[rng.random(n) < 0.7] = 0.0
    if relative:
        weight = min(weight, 1.0)
    pool = Pool(ArrayRows(g.astype(np.float32)))
    eligible = np.ones(n, dtype=bool)
    score = Score(weight, relative)

    def conflict():
        if kind != "pool":
            return Conflict(d)
        dots, norm = pool.mean_dots(eligible)
        fixed, hinge = against_pool(dots, norm, np.sqrt(pool.squared_norms), eligible, 0.1)
        return Conflict(d, hinge, fixed)

    def run(engine):
        return run_greedy(engine, Limits(eligible, Budget(120)), StopRule())

    information = LogDet(0.7, d, window=4, largest_inverse=1 if kind == "huge d" else 8192)
    blocked = run(
        BlockedLazy(pool, information, conflict(), score, eligible, active=active, most=max(most, active), chunk=chunk)
    )
    dense = run(Dense(pool, LogDet(0.7, d), conflict(), score, eligible))
    lazy = run(Lazy(pool, LogDet(0.7, d), conflict(), score, eligible, batch=active))
    assert blocked.indices == dense.indices == lazy.indices
    np.testing.assert_allclose(blocked.gains, dense.gains, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(blocked.conflicts, dense.conflicts, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("seed", "n", "d", "active"), [(6, 71, 9, 32), (12, 71, 9, 32), (39, 93, 6, 16)])
def test_blocked_lazy_knows_what_lies_outside_an_active_set_that_cannot_grow(seed, n, d, active):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(n, d)) * np.exp(rng.normal(size=(n, 1)))
    if seed % 2:
        g[rng.random(n) < 0.3] = 0.0
    pool, eligible, score = Pool(ArrayRows(g)), np.ones(n, dtype=bool), Score(1.0)
    dense = Dense(pool, LogDet(100.0, d), Conflict(d, 0.5), score, eligible)
    blocked = BlockedLazy(
        pool, LogDet(100.0, d, window=4), Conflict(d, 0.5), score, eligible, active=active, most=active
    )
    first, second = (run_greedy(engine, Limits(eligible, Budget(40)), StopRule()) for engine in (dense, blocked))
    assert first.indices == second.indices


@pytest.mark.parametrize("loop", ["brute", "dense", "kernel", "lazy"])
def test_what_ties_is_measured_from_the_best_and_not_from_another_tie(loop):
    # Row 1 ties with row 2, the best; row 0, of zero norm, ties with row 1 but not with the best.
    g = np.sqrt([[0.0], [0.9e-9], [1.5e-9]])
    assert select(g, budget=1, loop=loop).indices.tolist() == [1]


@given(pools(), st.sampled_from(["exact", "diag-logdet", "paper-diag", "released"]))
def test_gains_never_grow_without_penalty(g, fisher):
    gains = select(g, budget=len(g), conflict_weight=0.0, fisher=fisher).gains
    assert np.all(np.diff(gains) <= 1e-9)
    assert np.all(gains >= 0)


@given(pools(), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.0, 0.1, 1.0]))
def test_gains_sum_to_the_log_determinant(g, alpha, weight):
    selection = select(g, budget=len(g), alpha=alpha, conflict_weight=weight)
    np.testing.assert_allclose(selection.information, log_det(g[selection.indices], alpha), rtol=1e-9, atol=1e-9)


@given(pools(), SETTINGS)
def test_epsilons_are_never_positive_and_conflicts_in_range(g, options):
    options = resolve(options, len(g))
    selection = select(g, budget=len(g), **options)
    assert np.all(selection.epsilons <= 1e-9)
    np.testing.assert_allclose(selection.bases + selection.epsilons, selection.gains, atol=1e-12)
    assert np.all(selection.conflicts >= 0)
    assert np.all(selection.conflicts <= 1 + max(selection.hinge, 0.0) + 1e-12)
    assert sorted(selection.indices.tolist()) == list(range(len(g)))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["brute", "dense", "kernel", "lazy"]), st.sampled_from([0.0, 0.1, 1]))
def test_permuting_the_rows_permutes_the_answer(seed, loop, weight):
    # Continuous random rows: no two scores tie.
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(12, 5))
    order = rng.permutation(12)
    plain = select(g, budget=6, loop=loop, conflict_weight=weight)
    permuted = select(g[order], budget=6, loop=loop, conflict_weight=weight)
    assert order[permuted.indices].tolist() == plain.indices.tolist()


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_auto_alpha_makes_the_picks_free_of_scale(seed, factor):
    g = np.random.default_rng(seed).normal(size=(15, 4))
    one = select(g, budget=8, alpha="auto")
    other = select(factor * g, budget=8, alpha="auto")
    assert one.indices.tolist() == other.indices.tolist()
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-9)


@given(pools(), st.floats(0.01, 1.0))
def test_a_share_takes_exactly_that_many_rows(g, share):
    selection = select(g, budget=share)
    assert len(selection) == max(1, round(share * len(g)))
    assert len(set(selection.indices.tolist())) == len(selection)


@given(pools(), st.integers(1, 60))
def test_tokens_are_never_exceeded_and_no_row_that_fits_is_left(g, tokens):
    lengths = np.arange(len(g)) % 6 + 1
    selection = select(g, budget=f"{tokens} tokens", lengths=lengths)
    used = int(lengths[selection.indices].sum())
    assert used <= tokens
    left = np.setdiff1d(np.arange(len(g)), selection.indices)
    assert not len(left) or lengths[left].min() > tokens - used


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_medium_pool_agrees_between_all_loops(seed):
    rng = np.random.default_rng(seed)
    g = (rng.normal(size=(300, 16)) * np.exp(0.8 * rng.normal(size=(300, 1)))).astype(np.float32)
    runs = [select(g, budget=90, conflict_weight=0.3, loop=loop) for loop in ("dense", "kernel", "lazy")]
    same(runs[1], runs[0])
    same(runs[2], runs[0])


# submodlib 0.0.3 still names scipy's old module paths.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_submodlib_picks_the_same_without_penalty():
    submodlib = pytest.importorskip("submodlib", reason="needs submodlib-py, an independent implementation")
    g = np.random.default_rng(5).normal(size=(200, 24))
    kernel = np.eye(200) + g @ g.T
    oracle = submodlib.functions.logDeterminant.LogDeterminantFunction(n=200, mode="dense", lambdaVal=0.0, sijs=kernel)
    greedy = oracle.maximize(budget=40, optimizer="LazyGreedy", show_progress=False)
    expected = [index for index, _ in greedy]
    for loop in ("dense", "kernel", "lazy"):
        assert select(g, budget=40, conflict_weight=0.0, loop=loop).indices.tolist() == expected
