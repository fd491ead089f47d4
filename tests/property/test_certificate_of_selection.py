"""The certificate of what ``select`` returns, over its settings, against every set of a small pool."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spice_select.analysis.certificate import certify, certify_selection
from spice_select.errors import ConfigError
from spice_select.selection import log_det, select
from spice_select.selection.rows import as_rows


def scaled(pool: np.ndarray, normalize: str, lengths: np.ndarray, members: list[int]) -> np.ndarray:
    norms = np.linalg.norm(pool, axis=1)
    if normalize == "unit":
        return pool / norms[:, None]
    if normalize == "sqrt_tokens":
        return pool * np.sqrt(lengths)[:, None]
    if normalize == "clip":
        return pool * np.minimum(1, np.median(norms[members]) / norms)[:, None]
    return pool


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["none", "unit", "sqrt_tokens", "clip"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(["absolute", "relative"]),
    st.sampled_from([2, 3, "40%", "12 tokens"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.6]),
)
def test_never_above_the_true_share(
    seed: int,
    normalize: Any,
    weight: float,
    penalty: Any,
    budget: Any,
    with_initial: bool,
    with_exclude: bool,
    stop_ratio: float | None,
) -> None:
    generator = np.random.default_rng(seed)
    pool = generator.standard_normal((8, 3)) * np.exp(generator.normal(size=(8, 1)))
    lengths = generator.integers(1, 9, size=8)
    initial = [2, 5] if with_initial else None
    exclude = [0] if with_exclude else None
    settings: dict[str, Any] = {"budget": budget, "lengths": lengths, "initial": initial, "exclude": exclude}
    selection = select(
        pool,
        alpha="auto",
        conflict_weight=weight,
        penalty=penalty,
        normalize=normalize,
        stop_ratio=stop_ratio,
        **settings,
    )
    certificate = certify_selection(pool, selection, **settings)
    assert certificate is not None
    members = [i for i in range(8) if i not in (exclude or [])]
    rows = scaled(pool, normalize, lengths, members)
    held = initial or []
    free = [i for i in members if i not in held]
    base = log_det(rows[held], selection.alpha) if held else 0.0
    sets = itertools.chain.from_iterable(itertools.combinations(free, r) for r in range(len(free) + 1))
    if isinstance(budget, str) and "tokens" in budget:
        fitting = [list(s) for s in sets if lengths[list(s)].sum() <= 12]
    else:
        fitting = [list(s) for s in sets if len(s) <= selection.k]
    best = max(log_det(rows[[*held, *s]], selection.alpha) - base for s in fitting if s) if any(fitting) else 0.0
    assert certificate.information == pytest.approx(selection.information, rel=1e-9, abs=1e-9)
    assert certificate.upper_bound >= best * (1 - 1e-9)
    assert certificate.best <= (selection.information / best if best > 1e-12 else 1.0) + 1e-9
    assert certificate.penalised is (weight > 0)


def test_quotas_are_narrower_than_the_bound() -> None:
    pool = np.random.default_rng(3).standard_normal((30, 5))
    groups = ["a"] * 20 + ["b"] * 10
    selection = select(pool, budget=6, conflict_weight=0.0, groups=groups, quotas="proportional")
    certificate = certify_selection(pool, selection, budget=6, constrained=True)
    assert certificate is not None
    assert certificate.guarantee is None
    assert 0.3 < certificate.value <= 1


def test_rows_that_hold_no_numbers_are_no_candidates() -> None:
    pool = np.random.default_rng(4).standard_normal((20, 4))
    broken = pool.copy()
    broken[7] = np.nan
    broken[8, 2] = np.inf
    exclude = [7, 8]
    expected = certify_selection(pool, select(pool, budget=4, exclude=exclude), budget=4, exclude=exclude)
    found = certify_selection(broken, select(broken, budget=4), budget=4)
    assert expected is not None and found is not None
    assert found.value == pytest.approx(expected.value, rel=1e-12)


@pytest.mark.parametrize("normalize", ["none", "unit"])
def test_tensors_and_arrays_agree(normalize: Any) -> None:
    pool = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    selection = select(pool, budget=5, normalize=normalize)
    assert certify_selection(pool, selection, budget=5) == certify_selection(pool.numpy(), selection, budget=5)


def test_diagonal_forms_have_no_certificate() -> None:
    pool = np.random.default_rng(4).standard_normal((20, 4))
    assert certify_selection(pool, select(pool, budget=4, fisher="diag-logdet"), budget=4) is None


def test_greedys_own_guarantee_is_not_claimed_where_all_gains_tie() -> None:
    pool = np.array([[0.01, 0.0], [1.0, 0.0]])
    selection = select(pool, budget=1, alpha=1e-10, conflict_weight=0.0)
    assert selection.indices.tolist() == [0]
    certificate = certify_selection(pool, selection, budget=1)
    assert certificate is not None
    assert certificate.best <= 1e-4 * (1 + 1e-6)


@pytest.mark.parametrize("narrowed", ["quotas", "per_token", "tokens"])
def test_greedys_own_guarantee_is_not_claimed_for_a_narrowed_choice(narrowed: str) -> None:
    pool = np.diag([10.0, 9.0, 8.0, 0.01, 0.01])
    lengths = np.array([100, 100, 100, 1, 1])
    asked: dict[str, Any] = {
        "quotas": {"budget": 2, "groups": ["a", "a", "a", "b", "b"], "quotas": {"b": {"min": 2}}},
        "per_token": {"budget": 1, "per_token": True, "lengths": [10**6, 10**6, 10**6, 1, 1]},
        "tokens": {"budget": "2 tokens", "lengths": lengths},
    }[narrowed]
    selection = select(pool, conflict_weight=0.0, **asked)
    rows = len(selection)
    certificate = certify_selection(pool, selection, budget=rows)
    assert certificate is not None
    best = log_det(pool[:rows], 1.0)
    assert certificate.best <= selection.information / best + 1e-9


def test_an_alpha_beyond_float64_is_one_sentence() -> None:
    pool = np.repeat(np.random.default_rng(0).standard_normal((5, 3)), 20, axis=0)
    with pytest.raises(ConfigError, match="alpha is too large"):
        certify(as_rows(pool), range(20), alpha=1e18, budget=20)
