"""Samples, partitions and torch devices: what each shares with the exact greedy, and what it promises."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from spice_select.analysis.certificate import certify_selection
from spice_select.errors import ConfigError
from spice_select.selection import log_det, select, stochastic
from spice_select.selection.bounds import Bounds
from spice_select.selection.budget import Budget
from spice_select.selection.conflict import Conflict, Score, against_pool
from spice_select.selection.engines import threads_of
from spice_select.selection.fisher import LogDet
from spice_select.selection.greedy import run_greedy
from spice_select.selection.on_device import DeviceDense, DeviceLazy
from spice_select.selection.partition import deal
from spice_select.selection.quotas import Limits
from spice_select.selection.rows import ArrayRows, Pool
from spice_select.selection.stochastic import Stochastic, sample_size
from spice_select.selection.stopping import StopRule
from spice_select.selection.symmetric import SCREENING_ERROR, WAITING, Symmetric
from tests.property.test_selection_loops import SETTINGS, pools, resolve, same

EVERYTHING = 5e-324
"""An epsilon so small that every sample is the whole pool."""


def clustered(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, dim))
    norms = np.exp(0.6 * rng.standard_t(4, size=(rows, 1)).clip(-6, 6))
    return ((0.5 * centres[rng.integers(0, 8, rows)] + rng.normal(size=(rows, dim))) * norms).astype(np.float32)


@settings(max_examples=150)
@given(pools(), SETTINGS, st.data())
def test_a_sample_of_everything_gives_the_exact_picks(g, options, data):
    options = resolve(options, len(g))
    k = data.draw(st.integers(1, len(g)))
    found = select(g, budget=k, loop="stochastic", sampling_epsilon=EVERYTHING, **options)
    same(found, select(g, budget=k, loop="brute", **options))


@settings(max_examples=60)
@given(pools(max_rows=40, max_dim=4), SETTINGS, st.integers(0, 5), st.sampled_from([0.01, 0.3, 0.9]), st.data())
def test_each_pick_is_the_best_of_the_last_samples(g, options, seed, epsilon, data):
    """The same samples drawn here, and every gain in them measured by the definition."""
    options = resolve(options, len(g))
    k = data.draw(st.integers(1, len(g)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stochastic, "AHEAD", data.draw(st.sampled_from([1, 2, 3, 7])))
        patch.setattr(stochastic, "DRAWN", data.draw(st.sampled_from([1, 8, 30, 1000])))
        ahead = stochastic.samples_together(sample_size(len(g), k, epsilon))
        found = select(g, budget=k, loop="stochastic", sampling_epsilon=epsilon, seed=seed, **options)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0])))
    left = list(range(len(g)))
    size = sample_size(len(g), k, epsilon)
    samples: list[list[int]] = []
    turn = 0
    for step, pick in enumerate(found.indices.tolist()):
        shown: set[int] = set()
        # A sample may hold nothing but rows that were picked since it was drawn.
        while not shown:
            if turn == len(samples[-ahead:]):
                everything = [range(len(left))] * ahead
                drawn = random.integers(len(left), size=(ahead, size)) if size < len(left) else everything
                samples, turn = samples[-ahead:] + [[left[at] for at in sample] for sample in drawn], 0
            last = samples[-ahead:][: turn + 1] + samples[:-ahead][turn + 1 :]
            shown = set(left).intersection({row for sample in last for row in sample})
            turn = turn + 1 if shown else ahead
        assert pick in shown
        among = np.setdiff1d(np.arange(len(g)), list(shown))
        before = found.indices[:step]
        alone = select(
            g,
            budget=1,
            loop="brute",
            exclude=np.setdiff1d(among, before),
            initial=before,
            **{**options, "alpha": found.alpha},
        )
        # With quantiles and medians an excluded row would count, so that those settings are compared elsewhere.
        if options["normalize"] != "clip" and options["reference"] == "selected":
            assert alone.indices.tolist() == [pick]
        place = left.index(pick)
        left[place] = left[-1]
        left.pop()


@pytest.mark.parametrize("loop", ["stochastic", "lazy"])
def test_linear_algebra_keeps_to_one_thread_only_while_samples_are_shown(loop: str, monkeypatch):
    seen = []
    measured = LogDet.potentials

    def watched(self, rows):
        seen.append(max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"))
        return measured(self, rows)

    monkeypatch.setattr(LogDet, "potentials", watched)
    g = clustered(2000, 16)
    with threadpool_limits(2, user_api="blas"):
        select(g, budget=60, loop=loop)
        after = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        select(g, budget=60, loop=loop, partitions=2)
    # The second round of partitions is exact.
    assert set(seen) == ({1, 2} if loop == "stochastic" else {2})
    assert after == 2


def test_loops_that_overlap_give_the_threads_back_together():
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyboardInterrupt), threads_of("stochastic"):
            raise KeyboardInterrupt
        first, second = threads_of("stochastic"), threads_of("stochastic")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        within = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        second.__exit__(None, None, None)
        after = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    assert (within, after) == (1, 2)


def test_the_largest_eigenvalue_is_looked_at_oftener_while_it_falls_fast(monkeypatch):
    looks: list[int] = []
    largest = Symmetric.largest
    monkeypatch.setattr(Symmetric, "largest", lambda self: looks.append(1) or largest(self))
    g = clustered(400, 100)
    pool, information = Pool(ArrayRows(g)), LogDet(1.0, 100)
    known = Bounds(pool, information, Conflict(100), Score(), np.ones(400, bool), at_first=1.25)
    seen = []
    for row in g.astype(np.float64):
        information.add(row)
        before = len(looks)
        known.tighten()
        if len(looks) > before:
            seen.append(information.size)
    assert seen == [100, 126, 158, 198, 248, 298, 358]


def test_a_row_is_not_screened_again_within_a_few_picks(monkeypatch):
    """Where bounds tell nothing apart, every pick would otherwise screen every row that it is shown."""
    screened: list[tuple[int, int]] = []
    screen = Bounds.screen

    def watched(self, pool, ids, norms):
        screened.extend((row, self._information.size) for row in ids.tolist())
        screen(self, pool, ids, norms)

    monkeypatch.setattr(Bounds, "screen", watched)
    g = clustered(3000, 24)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    select(g, budget=120, loop="stochastic", sampling_epsilon=0.1)
    last: dict[int, int] = {}
    for row, step in screened:
        assert step - last.get(row, -stochastic.SCREENED_FOR) >= stochastic.SCREENED_FOR
        last[row] = step
    assert len(screened) > 1.5 * len(last)


def test_sample_sizes():
    assert sample_size(1000, 100, 0.01) == math.ceil(-10 * math.log(0.01))
    assert sample_size(10, 10, 0.9) == 1
    assert sample_size(10, 1, 1e-12) == 10
    assert sample_size(5, 100, 0.5) == 1


def test_samples_keep_most_of_the_information_and_carry_no_guarantee_of_greedy():
    g = clustered(4000, 32)
    exact = select(g, budget=200, conflict_weight=0.0, alpha="auto")
    found = select(g, budget=200, conflict_weight=0.0, alpha="auto", loop="stochastic", seed=3)
    assert 0.99 * exact.information < found.information <= exact.information + 1e-9
    assert found.information == pytest.approx(log_det(g[found.indices], found.alpha), rel=1e-9)
    assert found.constrained and found.sampling_epsilon == 0.01 and not exact.constrained
    certificate = certify_selection(g, found, budget=200)
    assert certificate is not None and certificate.guarantee is None
    assert certificate.value <= found.information / exact.information + 1e-9
    again = select(g, budget=200, conflict_weight=0.0, alpha="auto", loop="stochastic", seed=3)
    other = select(g, budget=200, conflict_weight=0.0, alpha="auto", loop="stochastic", seed=4)
    assert again.indices.tolist() == found.indices.tolist() != other.indices.tolist()


def test_bounds_that_a_stochastic_run_hands_over_hold():
    g = clustered(600, 12)
    pool = Pool(ArrayRows(g))
    information = LogDet(0.5, 12)
    limits = Limits(np.ones(600, bool), Budget(60))
    engine = Stochastic(pool, information, Conflict(12), Score(), limits.eligible, 40, seed=1)
    trace = run_greedy(engine, limits, StopRule())
    ending = engine.ending()
    inverse = np.linalg.inv(np.eye(12) + 0.5 * g[trace.indices[:-1]].T.astype(np.float64) @ g[trace.indices[:-1]])
    wide = g.astype(np.float64)
    exact = np.einsum("ij,jk,ik->i", wide, inverse, wide)
    assert np.all(ending.potentials >= exact - 1e-9 * (1 + exact))


@pytest.mark.parametrize("factor", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_over_their_norms_in_float32(factor: float, scaled: bool):
    """The short way for float32 rows, and the long one for norms that float32 cannot hold."""
    g = clustered(40, 6) * np.float32(factor)
    g[3] = 0.0
    factors = np.linspace(0.5, 2.0, 40) * (1e12 if factor > 1 else 1.0) if scaled else None
    pool = Pool(ArrayRows(g), factors=factors)
    norms = np.sqrt(pool.squared_norms)
    wide = g.astype(np.float64)
    for ids in (np.array([5, 9, 9, 0]), np.array([2, 3])):
        units = pool.units(ids, norms[ids])
        expected = wide[ids] / np.maximum(np.linalg.norm(wide[ids], axis=1, keepdims=True), 1e-300)
        assert units.dtype == np.float32
        np.testing.assert_allclose(units, expected, atol=3e-7)


def test_quotas_and_token_budgets_hold_with_samples():
    g = clustered(300, 8)
    lengths = np.arange(300) % 7 + 1
    found = select(g, budget="100 tokens", lengths=lengths, loop="stochastic")
    assert found.stop_reason == "tokens" and lengths[found.indices].sum() <= 100
    assert lengths[found.indices].sum() > 90
    groups = [str(i % 3) for i in range(300)]
    found = select(g, budget=30, groups=groups, quotas="proportional", loop="stochastic")
    assert sorted(np.bincount(found.indices % 3).tolist()) == [10, 10, 10]


@settings(max_examples=120)
@given(pools(max_rows=20), SETTINGS, st.data())
def test_partitions_whose_picks_are_everything_give_the_exact_picks(g, options, data):
    options = resolve(options, len(g))
    partitions = data.draw(st.integers(2, max(2, len(g))))
    k = data.draw(st.integers(math.ceil(len(g) / partitions), len(g)))
    found = select(g, budget=k, partitions=partitions, **options)
    exact = select(g, budget=k, loop="brute", **options)
    # Greedy is not the best there is: where a partition is as large as the budget, its picks may be worth more.
    if k > math.ceil(len(g) / partitions) or found.scores.sum() <= exact.scores.sum():
        same(found, exact)
    assert len(found) == len(exact)
    assert found.partitions == partitions and found.constrained


@settings(max_examples=80)
@given(pools(max_rows=30), st.integers(2, 5), st.integers(0, 3), st.sampled_from(["auto", "stochastic"]), st.data())
def test_partition_greedy_is_at_least_its_best_partition(g, partitions, seed, loop, data):
    k = data.draw(st.integers(1, len(g)))
    rounds = []

    def watched(function, parts):
        sent = [pickle.loads(pickle.dumps(part)) for part in parts]
        rounds.extend(function(part) for part in reversed(sent))
        return rounds

    settings = {"budget": k, "conflict_weight": 0.0, "loop": loop, "seed": seed, "partitions": partitions}
    found = select(g, partition_map=watched, **settings)
    assert len(set(found.indices.tolist())) == len(found) == k or found.stop_reason == "exhausted"
    assert found.information >= max(part.worth for part in rounds) - 1e-9
    if len(found):
        assert found.information == pytest.approx(log_det(g[found.indices], found.alpha), rel=1e-6, abs=1e-7)
    # Neither the order nor the process of the first round plays a part.
    same(found, select(g, **settings))


@pytest.mark.parametrize("initial", [None, [3, 5], np.ones((2, 8))])
@pytest.mark.parametrize("reference", ["selected", "pool"])
def test_partitions_know_what_is_in_hand_and_what_opposes(initial, reference):
    g = clustered(400, 8)
    settings = {"conflict_weight": 0.5, "reference": reference, "normalize": "clip", "initial": initial, "alpha": 0.3}
    exact = select(g, budget=40, **settings)
    found = select(g, budget=40, partitions=4, **settings)
    assert not {3, 5} & set(found.indices.tolist()) or initial is None or not isinstance(initial, list)
    assert found.scores.sum() > 0.9 * exact.scores.sum()


@pytest.mark.parametrize("weight", [0.1, 10.0])
def test_partitions_smaller_than_the_budget_are_no_answer(weight):
    """Where every score is negative, fewer picks are worth more."""
    g = clustered(100, 6)
    settings = {"budget": 60, "conflict_weight": weight, "hinge": 1.0, "alpha": 1e-3}
    found = select(g, partitions=4, **settings)
    same(found, select(g, loop="brute", **settings))
    assert found.scores.sum() < 0
    lengths = np.full(100, 2)
    tokens = select(g, lengths=lengths, partitions=4, **{**settings, "budget": "120 tokens"})
    assert tokens.indices.tolist() == found.indices.tolist()


def test_rows_are_dealt_once_and_evenly():
    candidates = np.arange(100) % 3 > 0
    dealt = deal(candidates, 7, seed=2)
    assert sorted(np.concatenate(dealt).tolist()) == np.flatnonzero(candidates).tolist()
    assert {len(part) for part in dealt} <= {9, 10}
    assert [len(part) for part in deal(np.ones(3, bool), 8, 0)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loop": "stochastic", "fisher": "released"}, "cannot go with fisher 'released'"),
        ({"loop": "stochastic", "budget": None, "stop_ratio": 0.5}, "needs a budget"),
        ({"partitions": 2, "budget": None, "stop_ratio": 0.5}, "partitions 2 needs a budget"),
        ({"partitions": 0}, "partitions cannot be 0; give a whole number"),
        ({"partitions": True}, "partitions cannot be True"),
        ({"partitions": 2, "groups": ["a"] * 6, "quotas": "proportional"}, "cannot go with quotas"),
        ({"sampling_epsilon": 0.0, "loop": "stochastic"}, "give a number above 0 and below 1"),
        ({"sampling_epsilon": 1.0, "loop": "stochastic"}, "give a number above 0 and below 1"),
        ({"loop": "stochastic", "seed": -1}, "seed cannot be -1"),
        ({"partitions": 2, "seed": 1.5}, "seed cannot be 1.5"),
        ({"alpha": 1e308, "loop": "stochastic"}, "beyond all numbers"),
        ({"device": "cuda", "loop": "kernel"}, "not loop 'kernel'; use device 'cpu'"),
        ({"device": "cuda", "fisher": "released"}, "not fisher 'released'"),
        ({"device": "a toaster"}, "device 'a toaster' cannot be used here"),
        ({"device": "meta"}, "device 'meta'"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(settings, said):
    with pytest.raises(ConfigError, match="; ") as error:
        select(10.0 * np.ones((6, 3)), **{"budget": 2, **settings})
    assert said in str(error.value) and str(error.value).count("\n") == 0


def test_an_epsilon_without_samples_is_told():
    assert any("sampling_epsilon" in line for line in select(np.eye(3), budget=1, sampling_epsilon=0.5).warnings)


@settings(max_examples=120, deadline=None)
@given(pools(), SETTINGS, st.sampled_from(["dense", "lazy"]), st.data())
def test_torch_on_a_device_gives_the_picks_of_the_processor(g, options, loop, data):
    """``cpu:0`` names the processor as a torch device, so that the loops for devices run where there is no GPU."""
    options = resolve(options, len(g))
    k = data.draw(st.integers(1, len(g)))
    found = select(g, budget=k, loop=loop, device="cpu:0", **options)
    same(found, select(g, budget=k, loop="brute", **options))


@pytest.mark.parametrize("engine", [DeviceDense, DeviceLazy])
@pytest.mark.parametrize("reference", ["selected", "pool"])
@pytest.mark.parametrize("relative", [False, True])
def test_float32_rows_on_a_device_are_confirmed_in_float64(engine, reference, relative):
    """Rows that float32 holds exactly: rounding happens in products alone, and the picks are those of float64."""
    g = clustered(1500, 24, seed=5)
    g[700:900] = g[:200] * np.float32(1 + 1e-6)
    pool = Pool(ArrayRows(g))
    conflict = Conflict(24)
    if reference == "pool":
        dots, norm = pool.mean_dots(np.ones(1500, bool))
        fixed, hinge = against_pool(dots, norm, np.sqrt(pool.squared_norms), np.ones(1500, bool), 0.2)
        conflict = Conflict(24, hinge, fixed)
    score = Score(0.4, relative)
    limits = Limits(np.ones(1500, bool), Budget(300))
    trace = run_greedy(engine(pool, 0.2, conflict, score, limits.eligible, "cpu", torch.float32), limits, StopRule())
    wanted = select(
        g,
        budget=300,
        alpha=0.2,
        conflict_weight=0.4,
        penalty="relative" if relative else "absolute",
        reference=reference,
        hinge=0.2 if reference == "pool" else 0.0,
        loop="dense",
    )
    assert trace.indices == wanted.indices.tolist()
    np.testing.assert_allclose(trace.gains, wanted.gains, rtol=1e-8)


@pytest.mark.parametrize("engine", [DeviceDense, DeviceLazy])
@pytest.mark.parametrize("rounded", [False, True])
def test_float32_rows_on_a_device_are_scaled_in_float64(engine, rounded):
    """Rows of one norm tie at first: rounding them once more, scaled, would let chance decide all picks."""
    g = clustered(1500, 24, seed=3)
    wide = g.astype(np.float64) * (1 + 1e-4 * rounded)
    pool = Pool(ArrayRows(wide))
    if not rounded:
        pool.rescale(1.0 / np.sqrt(pool.squared_norms))
    limits = Limits(np.ones(1500, bool), Budget(100))
    trace = run_greedy(
        engine(pool, 1.0, Conflict(24), Score(0.1), limits.eligible, "cpu", torch.float32), limits, StopRule()
    )
    seen = wide.astype(np.float32)
    wanted = select(seen, budget=100, normalize="none" if rounded else "unit", loop="dense")
    assert trace.indices == wanted.indices.tolist()


@settings(max_examples=40)
@given(st.integers(1, 40), st.lists(st.integers(1, WAITING + 5), min_size=1, max_size=8), st.integers(0, 2**31))
def test_updates_that_wait_count(dim, sizes, seed):
    """Whatever the sizes of the updates, products and forms are those of the matrix itself."""
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(size, dim)) * 0.5 / np.sqrt(dim * sum(sizes)) for size in sizes]
    matrix = Symmetric(vectors[0])
    narrow_first = matrix.screening_forms(np.eye(dim, dtype=np.float32))
    for part in vectors[1:]:
        matrix.subtract(part)
    whole = np.concatenate(vectors)
    plain = np.eye(dim) - whole.T @ whole
    rows = rng.normal(size=(5, dim))
    np.testing.assert_allclose(matrix.times(rows), rows @ plain, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(matrix.forms(rows), np.einsum("ij,jk,ik->i", rows, plain, rows), rtol=1e-9, atol=1e-9)
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    exact = np.einsum("ij,jk,ik->i", units.astype(np.float64), plain, units.astype(np.float64))
    assert np.max(np.abs(matrix.screening_forms(units) - exact)) < SCREENING_ERROR
    assert len(narrow_first) == dim


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 60), st.floats(0.001, 1000.0), st.integers(0, 2**31))
def test_no_eigenvalue_exceeds_the_largest(dim, picks, alpha, seed):
    """The inverse of a growing information: the proven bound is one, and close where the largest stands out."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(picks, dim)) * np.exp(rng.normal(size=(picks, 1)))
    information = LogDet(alpha, dim, largest_inverse=0)
    for row in rows:
        information.add(row)
    matrix = Symmetric(information.vectors(0))
    exact = float(np.linalg.eigvalsh(np.linalg.inv(np.eye(dim) + alpha * rows.T @ rows))[-1])
    found = matrix.largest()
    assert exact - 1e-9 <= found <= 1.0
    assert found <= 2.1 * exact + 1e-9 or found == 1.0


def test_bounds_are_brought_down_and_stay_bounds():
    g = clustered(3000, 16)
    pool = Pool(ArrayRows(g))
    information = LogDet(1.0, 16)
    limits = Limits(np.ones(3000, bool), Budget(300))
    engine = Stochastic(pool, information, Conflict(16), Score(), limits.eligible, 30, seed=1)
    trace = run_greedy(engine, limits, StopRule())
    ending = engine.ending()
    wide = g.astype(np.float64)
    members = wide[trace.indices[:-1]]
    inverse = np.linalg.inv(np.eye(16) + members.T @ members)
    exact = np.einsum("ij,jk,ik->i", wide, inverse, wide)
    assert np.all(ending.potentials >= exact * (1 - 1e-9))
    # Most rows were drawn never or long ago, and yet are known to be worth a fraction of what they were at first.
    assert np.median(ending.potentials / pool.squared_norms) < 0.05


def test_partitions_hand_over_what_bounds_rows_that_no_second_round_looked_at():
    g = clustered(20_000, 64)
    exact = select(g, budget=600, conflict_weight=0.0, alpha="auto")
    found = select(g, budget=600, conflict_weight=0.0, alpha="auto", partitions=8)
    assert found.information > 0.99 * exact.information
    assert found.outlook is not None and exact.outlook is not None
    wide = g.astype(np.float64)
    members = wide[found.indices[:-1]]
    inverse = np.linalg.inv(np.eye(64) + found.alpha * members.T @ members)
    left = np.einsum("ij,jk,ik->i", wide, inverse, wide)
    assert np.all(found.outlook.potentials >= left * (1 - 1e-9))
    # Without the largest eigenvalue the other rows would be known by their norms alone, some fifty times as much.
    assert np.median(found.outlook.potentials / np.maximum(left, 1e-300)) < 10
    # What the certificate may spend is a share of the work of both rounds.
    assert found.outlook.work > exact.outlook.work
    reached = certify_selection(g, found, budget=600)
    assert reached is not None and reached.value <= found.information / exact.information + 1e-9
