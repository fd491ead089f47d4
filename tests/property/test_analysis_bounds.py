"""The assumption-free bound always holds, and Theorem 4's wherever its assumptions do."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.analysis.bounds import free_bound, theorem4
from spice_select.analysis.chosen import open_rows
from spice_select.analysis.decomposition import Pairs, decompose_picks
from spice_select.selection import log_det, select


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, dim = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    common = generator.standard_normal(dim) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    rows = (generator.standard_normal((size + 1, dim)) + common) * np.exp(spread * generator.normal(size=(size + 1, 1)))
    if draw(st.booleans()):
        rows[0] = rows[-1] * draw(st.sampled_from([0.0, 1.0, -1.0, 1e-6]))
    return rows[:-1], rows[-1], draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4]))


@settings(max_examples=1500)
@given(cases())
def test_free_bound_is_never_violated(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    held, row, alpha = case
    base = float(np.log1p(alpha * row @ row))
    lost = base - (log_det(np.vstack([held, row]), alpha) - log_det(held, alpha))
    bound = float(free_bound(np.array([np.square(held @ row).sum()]), np.array([row @ row]), alpha)[0])
    # A determinant is rounded in proportion to the condition of its matrix.
    rounding = 1e-10 + 1e-14 * alpha * (np.square(held).sum() + row @ row)
    assert lost <= bound + rounding
    assert 0.0 <= bound <= base


@settings(max_examples=1000)
@given(cases(), st.floats(0.01, 0.99))
def test_theorem4_holds_where_it_applies(case: tuple[np.ndarray, np.ndarray, float], share: float) -> None:
    held, row, _ = case
    largest = float(np.linalg.norm(held, 2)) ** 2
    alpha = share / largest if largest > 0 else 1.0
    found = theorem4(held, row, alpha=alpha)
    assert (found.bound is None) == (found.reason is not None)
    if found.bound is None:
        assert found.denominator <= 0 or found.rho >= 1
        return
    lost = np.log1p(alpha * row @ row) - (log_det(np.vstack([held, row]), alpha) - log_det(held, alpha))
    assert lost <= found.bound + 1e-10 * (1.0 + found.bound)


@given(cases())
def test_closed_form_of_epsilon(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    held, row, alpha = case
    rows = open_rows(np.vstack([held, row]))
    size = len(held)
    pair = Pairs(rows, np.arange(size), np.array([size]))
    expected = pair.gains(alpha)[0] - np.log1p(alpha * row @ row)
    # Both sides lose digits as a |F_S| grows.
    rounding = 1e-13 * (1.0 + alpha * np.square(held).sum() + alpha * row @ row)
    assert abs(pair.epsilons(alpha)[0] - expected) <= 1e-9 + rounding
    assert pair.epsilons(alpha)[0] <= 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_picks_of_any_selection(seed: int, weight: float, unit: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((15, 5)) * np.exp(generator.normal(size=(15, 1)))
    selection = select(
        rows, budget=9, alpha="auto", conflict_weight=weight, normalize="unit" if unit else "none", initial=[2]
    )
    found = decompose_picks(
        rows, selection.indices, selection.gains, alpha=selection.alpha, factors=selection.factors, initial=[2]
    )
    assert found.error < 1e-9
    assert max(found.epsilon) <= 0
