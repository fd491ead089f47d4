"""What a given order of rows holds, against selections of the same rows and definitions written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from spice_select.analysis.given import certify_given, given_trace, information_of, scaling_of
from spice_select.errors import ConfigError
from spice_select.selection import log_det, select


def pool(n: int, d: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) * np.exp(random.normal(size=(n, 1)) * 0.7)


@pytest.mark.parametrize("dim", [6, 64])
@pytest.mark.parametrize(
    ("normalize", "alpha", "reference", "hinge"),
    [
        ("none", 1.0, "selected", 0.0),
        ("unit", "auto", "pool", "25%"),
        ("sqrt_tokens", "auto", "selected", 0.3),
        ("clip", 0.2, "pool", 0.1),
    ],
)
def test_the_trace_of_a_selections_own_order_is_its_trace(dim, normalize, alpha, reference, hinge) -> None:
    rows, lengths = pool(60, dim), np.arange(1, 61)
    left_out = [3, 17, 40]
    members = np.ones(60, bool)
    members[left_out] = False
    settings = {"normalize": normalize, "alpha": alpha, "reference": reference, "hinge": hinge, "lengths": lengths}
    selection = select(rows, budget=20, conflict_weight=0.1, initial=[5, 6], exclude=left_out, **settings)
    trace = given_trace(rows, selection.indices, members=members, initial=[5, 6], **settings)
    assert trace.alpha == pytest.approx(selection.alpha)
    assert trace.hinge == pytest.approx(selection.hinge)
    for name in ("gains", "bases", "epsilons", "conflicts"):
        np.testing.assert_allclose(getattr(trace, name), getattr(selection, name), atol=1e-10, err_msg=name)
    assert trace.information == pytest.approx(selection.information)
    factors, scale = scaling_of(rows, normalize, alpha, members=members, lengths=lengths)
    information = information_of(rows, selection.indices, alpha=scale, factors=factors, initial=[5, 6])
    assert information == pytest.approx(selection.information)


def test_blocks_give_what_the_definition_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spice_select.analysis.given.BLOCK_ROWS", 7)
    rows, order = pool(50, 4), np.random.default_rng(1).permutation(50)[:40]
    trace = given_trace(rows, order, alpha=0.7)
    steps = [log_det(rows[order[:t]], 0.7) for t in range(41)]
    np.testing.assert_allclose(trace.gains, np.diff(steps), atol=1e-10)
    assert information_of(rows, order, alpha=0.7) == pytest.approx(steps[-1])
    assert information_of(rows, order[::-1], alpha=0.7) == pytest.approx(steps[-1])
    assert (trace.epsilons <= 0).all()


def test_rows_that_hold_nothing_add_nothing() -> None:
    rows = pool(10, 30)
    rows[2], rows[5] = np.nan, 0.0
    trace = given_trace(rows, [2, 0, 5, 1], alpha=1.0)
    assert trace.gains[0] == trace.gains[2] == 0
    assert trace.information == pytest.approx(log_det(rows[[0, 1]], 1.0))
    assert given_trace(rows, [], alpha=1.0).information == 0 == information_of(rows, [], alpha=1.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_proven_share_never_exceeds_the_true_one(seed: int) -> None:
    rows = pool(9, 4, seed)
    best = max(log_det(rows[list(chosen)], 0.5) for chosen in combinations(range(9), 3))
    order = np.random.default_rng(seed).permutation(9)[:3]
    certificate = certify_given(rows, order, alpha=0.5, budget=3)
    true = information_of(rows, order, alpha=0.5) / best
    assert 0 < certificate.value <= true + 1e-12
    assert certificate.guarantee is None and certificate.best == certificate.value


def test_the_worst_rows_are_certified_no_better_than_they_are() -> None:
    rows = np.vstack([np.eye(6)[:3] * 10, np.eye(6)[3:] * 0.1])
    certificate = certify_given(rows, [3, 4, 5], alpha=1.0, budget=3)
    assert certificate.value <= 3 * np.log(1.01) / (3 * np.log(101)) + 1e-12
    assert "at least 0.2%" in certificate.sentence()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantile"):
        given_trace(pool(4, 3), [0], hinge="25%")
    with pytest.raises(ConfigError, match="lengths"):
        scaling_of(pool(4, 3), "sqrt_tokens", 1.0)
