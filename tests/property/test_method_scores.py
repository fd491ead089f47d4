"""Invariants of the methods that score rows by themselves, and of random draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.methods import Inputs, make_method
from spice_select.selection.budget import Budget
from tests.method_inputs import make_inputs, require_sound

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("random", {}),
    ("length", {}),
    ("length", {"order": "shortest"}),
    ("loss", {}),
    ("loss", {"order": "lowest", "low": 0.2}),
    ("loss", {"order": "middle", "low": 0.1, "high": 0.8}),
    ("ifd", {}),
    ("ifd", {"variant": "superfiltering"}),
    ("ifd", {"keep_above": True}),
]


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    """Rows with few distinct numbers, so that there are ties, some NaN, and some left out."""
    n = draw(st.integers(1, 14))
    loss = st.sampled_from([0.25, 0.5, 1.0, 1.0, 2.0, 3.5, np.nan])
    listed = {name: draw(st.lists(loss, min_size=n, max_size=n)) for name in ("losses", "direct_losses")}
    found: dict[str, Any] = {name: np.array(values) for name, values in listed.items()}
    found["tokens"] = np.array(draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)))
    out = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    found["leave_out"] = sorted(out)
    kept = n - len(out)
    form = draw(st.sampled_from(["rows", "tokens", "quotas"]))
    if form == "tokens":
        found["budget"] = Budget(kept, draw(st.integers(1, 30)))
    else:
        found["budget"] = draw(st.integers(1, kept))
    if form == "quotas":
        found["labels"] = [draw(st.sampled_from("ab")) for _ in range(n)]
        found["quotas"] = "proportional"
    return {"n": n, "seed": draw(st.integers(0, 5)), **found}


def inputs_of(pool: dict[str, Any]) -> Inputs:
    return make_inputs(**pool)


@given(st.sampled_from(METHODS), pools())
@settings(max_examples=250)
def test_sound_and_repeatable(method: tuple[str, dict[str, Any]], pool: dict[str, Any]) -> None:
    made, inputs = make_method(*method), inputs_of(pool)
    choice = made.choose(inputs)
    require_sound(choice, inputs)
    again = made.choose(inputs)
    assert np.array_equal(choice.indices, again.indices) and np.array_equal(choice.scores, again.scores)
    assert choice.pool_scores is not None and np.array_equal(choice.pool_scores[choice.indices], choice.scores)
    assert not np.isnan(choice.scores).any()
    if inputs.groups is None and inputs.budget.tokens is None:
        assert (np.diff(choice.scores) <= 0).all(), "the best first"
        tied = np.flatnonzero(np.diff(choice.scores) == 0)
        assert (choice.indices[tied] < choice.indices[tied + 1]).all(), "the earlier of equals first"


@given(st.sampled_from(METHODS[1:]), pools(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_the_order_of_the_rows_decides_ties_alone(
    method: tuple[str, dict[str, Any]], pool: dict[str, Any], random: Any
) -> None:
    if not isinstance(pool["budget"], int) or "quotas" in pool:
        return
    made, n = make_method(*method), pool["n"]
    order = np.array(random.sample(range(n), n))
    moved = {**pool, **{name: pool[name][order] for name in ("losses", "direct_losses", "tokens")}}
    place = np.argsort(order)
    moved["leave_out"] = sorted(int(place[row]) for row in pool["leave_out"])
    first, second = made.choose(inputs_of(pool)), made.choose(inputs_of(moved))
    assert np.array_equal(first.scores, second.scores)
    assert first.pool_scores is not None and second.pool_scores is not None
    assert np.array_equal(first.pool_scores[order], second.pool_scores, equal_nan=True)
    if len(np.unique(first.pool_scores[~np.isnan(first.pool_scores)])) == (~np.isnan(first.pool_scores)).sum():
        assert order[second.indices].tolist() == first.indices.tolist()


@given(pools())
def test_full_takes_all_whatever_is_asked(pool: dict[str, Any]) -> None:
    inputs = inputs_of(pool)
    choice = make_method("full").choose(inputs)
    assert np.array_equal(choice.indices, np.flatnonzero(inputs.candidates)) and not choice.warnings
