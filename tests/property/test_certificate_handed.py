"""The certificate from what a run hands over: valid for every loop and setting, nearly as tight as a full measure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spice_select.analysis import certificate as module
from spice_select.analysis import handed, knapsack
from spice_select.analysis.certificate import Certificate, certify_selection
from spice_select.selection import Selection, log_det, select, select_gram

LOOPS = ["dense", "kernel", "lazy"]


def certified(gradients: Any, selection: Selection, chunk: int = 3, share: float = 0.0, **asked: Any) -> Certificate:
    """The certificate by way of the outlook, however small the pool, with this share of the run's work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHEAP_WORK", -1)
        patch.setattr(module, "SHARE", share)
        patch.setattr(handed, "LEAST_ROWS", chunk)
        patch.setattr(knapsack, "CHUNK_ROWS", chunk)
        # What is handed over is used even where a full measure would cost nothing.
        patch.setattr(module.Task, "work", property(lambda task: np.inf))
        found = certify_selection(gradients, selection, **asked)
    assert found is not None
    return found


def in_full(gradients: Any, selection: Selection, **asked: Any) -> Certificate:
    found = certify_selection(gradients, dataclasses.replace(selection, outlook=None), **asked)
    assert found is not None
    return found


def fitting(free: list[int], lengths: np.ndarray, budget: Any, most: int) -> Iterator[list[int]]:
    for size in range(1, len(free) + 1):
        for chosen in map(list, itertools.combinations(free, size)):
            if lengths[chosen].sum() <= 12 if isinstance(budget, str) and "tokens" in budget else size <= most:
                yield chosen


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(LOOPS),
    st.sampled_from(["none", "unit", "sqrt_tokens"]),
    st.sampled_from([("absolute", 0.0), ("absolute", 1.0), ("relative", 1.0)]),
    st.sampled_from(["selected", "pool"]),
    st.sampled_from([2, 3, 6, "12 tokens"]),
    st.sampled_from([1e-2, 1.0, 100.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.6]),
    st.sampled_from([0.0, 1e6]),
)
def test_never_above_the_true_share(
    seed: int,
    loop: Any,
    normalize: Any,
    penalty: tuple[Any, float],
    reference: Any,
    budget: Any,
    alpha: float,
    with_initial: bool,
    with_exclude: bool,
    stop_ratio: float | None,
    share: float,
) -> None:
    generator = np.random.default_rng(seed)
    pool = generator.standard_normal((8, 3)) * np.exp(generator.normal(size=(8, 1)))
    pool[3] = pool[1]
    lengths = generator.integers(1, 9, size=8)
    asked: dict[str, Any] = {
        "budget": budget,
        "lengths": lengths,
        "initial": [2, 5] if with_initial else None,
        "exclude": [0] if with_exclude else None,
    }
    fewer: dict[str, Any] = {"budget": 5} if with_initial and budget == 6 else {}
    selection = select(
        pool,
        alpha=alpha,
        penalty=penalty[0],
        conflict_weight=penalty[1],
        reference=reference,
        normalize=normalize,
        stop_ratio=stop_ratio,
        loop=loop,
        **(asked | fewer),
    )
    assert selection.outlook is not None
    asked["budget"] = selection.k if isinstance(budget, int) else budget
    found = certified(pool, selection, share=share, **asked)
    rows = pool if selection.factors is None else pool * selection.factors[:, None]
    held = asked["initial"] or []
    free = [i for i in range(8) if i not in held and i not in (asked["exclude"] or [])]
    base = log_det(rows[held], alpha) if held else 0.0
    best = max(
        (log_det(rows[[*held, *s]], alpha) - base for s in fitting(free, lengths, budget, selection.k)), default=0
    )
    assert found.information == pytest.approx(selection.information, rel=1e-12)
    assert found.upper_bound >= best * (1 - 1e-9)
    assert found.value <= (selection.information / best if best > 0 else 1.0) + 1e-9


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_everything_is_all_there_is(loop: Any, share: float) -> None:
    pool = np.random.default_rng(0).standard_normal((40, 6))
    selection = select(pool, budget=40, loop=loop)
    assert certified(pool, selection, share=share, budget=40).value == 1.0


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(LOOPS),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
    st.integers(1, 40),
)
def test_bounds_of_the_end_bound_the_end(
    seed: int, loop: Any, alpha: float, weight: float, per_token: bool, budget: int
) -> None:
    generator = np.random.default_rng(seed)
    pool = generator.standard_normal((60, 7)) * np.exp(generator.normal(size=(60, 1)))
    pool[5] = pool[6]
    pool[7] = 0.0
    initial = [3, 9]
    selection = select(
        pool,
        budget=budget,
        alpha=alpha,
        conflict_weight=weight,
        per_token=per_token,
        lengths=generator.integers(1, 30, size=60),
        initial=initial,
        loop=loop,
    )
    outlook = selection.outlook
    assert outlook is not None
    held = pool[[*initial, *selection.indices]]
    posterior = np.linalg.inv(np.eye(7) + alpha * held.T @ held)
    exact = np.log1p(alpha * np.einsum("ij,jk,ik->i", pool, posterior, pool))
    rounding = 1e-13 * alpha * np.square(pool).sum(axis=1) * (1.0 + outlook.held)
    assert (outlook.bounds >= exact - rounding).all()
    assert outlook.members == len(held)
    assert outlook.held >= alpha * np.linalg.norm(held, 2) ** 2 * (1 - 1e-12)
    if outlook.information is not None:
        before = pool[[*initial, *selection.indices[:-1]]]
        inverse = np.linalg.inv(np.eye(7) + alpha * before.T @ before)
        expected = np.einsum("ij,jk,ik->i", pool, inverse, pool)
        assert outlook.information.potentials(pool) == pytest.approx(
            expected, rel=1e-6, abs=float(rounding.max()) / alpha
        )


@pytest.mark.parametrize(("n", "d", "k"), [(600, 24, 150), (600, 200, 60), (900, 40, 300)])
@pytest.mark.parametrize("loop", LOOPS)
def test_nearly_as_tight_as_a_full_measure(n: int, d: int, k: int, loop: Any) -> None:
    generator = np.random.default_rng(n + d)
    pool = generator.standard_normal((n, d)) * np.exp(generator.normal(size=(n, 1)) * 0.7) / np.sqrt(d)
    selection = select(pool.astype(np.float32), budget=k, alpha="auto", loop=loop)
    full = in_full(pool.astype(np.float32), selection, budget=k)
    generous = certified(pool.astype(np.float32), selection, chunk=64, share=1e6, budget=k)
    assert generous.value >= full.value - 0.005
    frugal = certified(pool.astype(np.float32), selection, chunk=64, share=0.0, budget=k)
    assert frugal.value <= generous.value + 1e-12
    assert frugal.information == pytest.approx(full.information, rel=1e-12)


def test_a_prefix_on_the_way_is_tried_where_it_promises_most() -> None:
    # Gains hardly shrink: the end's bound counts as much again as was gained, and the start's overlooks what is shared.
    generator = np.random.default_rng(2)
    pool = generator.standard_normal((1500, 300)) + 3.0 * generator.standard_normal(300)
    selection = select(pool, budget=60, alpha="auto", conflict_weight=0.0, loop="lazy")
    found = certified(pool, selection, chunk=256, share=1e3, budget=60)
    assert 0 < found.prefix < 60
    assert found.prefixes == (0, found.prefix, 60)
    assert found.value >= in_full(pool, selection, budget=60).value - 0.005
    assert certified(pool, selection, chunk=256, share=0.0, budget=60).value < found.value


def test_work_is_limited() -> None:
    seen: list[int] = []

    class Counted:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.shape = values, values.shape

        def rows(self, indices: np.ndarray) -> np.ndarray:
            seen.append(len(indices))
            return self.values[indices]

        def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
            for start in range(0, len(self.values), size):
                yield start, self.values[start : start + size]

    generator = np.random.default_rng(0)
    pool = Counted(generator.standard_normal((5000, 32)) * np.exp(generator.normal(size=(5000, 1))))
    selection = select(pool, budget=400, alpha="auto", loop="lazy")
    seen.clear()
    certified(pool, selection, chunk=100, share=0.0, budget=400)
    assert sum(seen) <= 100
    seen.clear()
    certified(pool, selection, chunk=100, share=1e6, budget=400)
    assert 400 < sum(seen) <= 5000


def test_rows_that_hold_no_numbers_are_no_candidates() -> None:
    pool = np.random.default_rng(4).standard_normal((40, 4))
    broken = pool.copy()
    broken[7] = np.nan
    selection = select(broken, budget=8, loop="lazy")
    expected = certified(pool, select(pool, budget=8, exclude=[7], loop="lazy"), budget=8, exclude=[7])
    assert certified(broken, selection, budget=8).value == pytest.approx(expected.value, rel=1e-12)


def test_a_run_that_stopped_early_speaks_of_both_budgets() -> None:
    pool = np.random.default_rng(5).standard_normal((60, 6))
    selection = select(pool, budget=30, stop_ratio=0.5, loop="lazy")
    assert len(selection) < 30
    found = certified(pool, selection, share=1e6, budget=30)
    assert found.value_at_size is not None
    assert found.value < found.value_at_size
    assert found.guarantee is None


def test_what_another_run_handed_over_is_not_used() -> None:
    pool = np.random.default_rng(6).standard_normal((60, 6))
    selection = select(pool, budget=10, loop="lazy")
    other = dataclasses.replace(selection, outlook=select(pool, budget=10, alpha=0.1, loop="lazy").outlook)
    assert certified(pool, other, budget=10) == in_full(pool, selection, budget=10)


def test_rows_in_hand_that_are_not_named_make_it_another_run() -> None:
    pool = np.random.default_rng(6).standard_normal((60, 6))
    selection = select(pool, budget=10, initial=[1, 2], loop="lazy")
    assert certified(pool, selection, budget=10) == in_full(pool, selection, budget=10)


def test_nothing_is_handed_over_where_nothing_is_known() -> None:
    pool = np.random.default_rng(6).standard_normal((30, 4))
    assert select(pool, budget=3, loop="brute").outlook is None
    assert select(pool, budget=3, fisher="diag-logdet").outlook is None
    assert select(pool, budget=3, initial=np.ones((2, 4))).outlook is None
    assert select_gram(pool @ pool.T, 3).outlook is None


def test_what_is_handed_over_is_small() -> None:
    generator = np.random.default_rng(6)
    for budget in (3, 60):
        outlook = select(generator.standard_normal((80, 40)), budget=budget, loop="lazy").outlook
        assert outlook is not None and outlook.information is not None
        assert outlook.information._vectors.size <= 40 * max(1, budget if budget < 20 else 1)
