"""The methods that look at no more than numbers of rows and tokens: full, random, length."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import make_method
from spice_select.methods.full import Full
from spice_select.methods.length import Length
from spice_select.methods.random import Random
from spice_select.selection.budget import Budget
from tests.method_inputs import make_inputs, picks, require_sound


def test_full_takes_every_candidate_in_order() -> None:
    choice = Full().choose(make_inputs(6, 5, leave_out=[2]))
    assert choice.indices.tolist() == [0, 1, 3, 4, 5]
    assert choice.scores.tolist() == [1.0] * 5 and choice.pool_scores is None
    assert (choice.stop_reason, choice.notes, choice.warnings) == ("budget", (), ())


@pytest.mark.parametrize(
    ("inputs", "unmet"),
    [
        (make_inputs(6, 2), "the budget of 2 rows"),
        (make_inputs(6, Budget(6, 20)), "the budget of 20 tokens"),
        (make_inputs(6, 6, labels="aabbbb", quotas={"b": {"max": 4}, "a": {"max": 2}}), ""),
        (make_inputs(6, Budget(6, 21)), ""),
    ],
)
def test_full_says_what_it_does_not_keep_to(inputs, unmet: str) -> None:
    choice = Full().choose(inputs)
    assert choice.indices.tolist() == list(range(6)) and choice.stop_reason == "budget"
    if unmet:
        assert choice.notes == (f"Method 'full' takes all 6 rows that can be chosen, whatever {unmet} asks for.",)
    else:
        assert choice.notes == ()


def test_full_says_that_quotas_do_not_apply() -> None:
    inputs = make_inputs(6, 4, labels="aabbbb", quotas={"b": {"max": 2}}, leave_out=[])
    (note,) = Full().choose(inputs).notes
    assert "the budget of 4 rows" in note


def test_random_is_seeded_and_does_not_touch_the_global_state() -> None:
    np.random.seed(1)
    following = np.random.random()
    np.random.seed(1)
    first = picks(Random(), make_inputs(50, 10, seed=3))
    assert picks(Random(), make_inputs(50, 10, seed=3)) == first
    assert picks(Random(), make_inputs(50, 10, seed=4)) != first
    assert np.random.random() == following


def test_random_is_uniform_over_rows_and_pairs() -> None:
    drawn = [picks(Random(), make_inputs(5, 2, seed=seed)) for seed in range(4000)]
    counts = np.zeros((5, 5))
    for first, second in drawn:
        counts[first, second] += 1
    assert not counts.diagonal().any(), "no row twice"
    # Twenty ordered pairs at 200 each; the standard deviation of a count is 13.8.
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 200).max() < 5 * 13.8


def test_random_picks_of_a_small_budget_are_the_first_of_a_large_one() -> None:
    large = picks(Random(), make_inputs(40, 40, seed=2))
    assert sorted(large) == list(range(40))
    for budget in (1, 7, 39):
        assert picks(Random(), make_inputs(40, budget, seed=2)) == large[:budget]


def test_random_rows_left_out_or_appended_change_no_other_draw() -> None:
    large = picks(Random(), make_inputs(40, 40, seed=2))
    without = picks(Random(), make_inputs(40, 37, seed=2, leave_out=large[:3]))
    assert without == large[3:]
    longer = picks(Random(), make_inputs(60, 60, seed=2))
    assert [row for row in longer if row < 40] == large


def test_random_keeps_to_tokens_and_quotas() -> None:
    tokens = np.random.default_rng(0).integers(1, 50, 60)
    inputs = make_inputs(60, Budget(60, 200), tokens=tokens)
    choice = Random().choose(inputs)
    require_sound(choice, inputs)
    left = 200 - int(tokens[choice.indices].sum())
    assert choice.stop_reason == "tokens" and left < tokens[np.setdiff1d(np.arange(60), choice.indices)].min()
    labels = ["a"] * 50 + ["b"] * 10
    inputs = make_inputs(60, 12, labels=labels, quotas="proportional")
    chosen = picks(Random(), inputs)
    assert [sum(labels[row] == name for row in chosen) for name in "ab"] == [10, 2]
    chosen = picks(Random(), make_inputs(60, 12, labels=labels, quotas={"b": {"min": 9}}))
    assert sum(labels[row] == "b" for row in chosen) >= 9 and len(chosen) == 12


def test_length_takes_the_longest_first_and_the_earlier_of_equals() -> None:
    tokens = [5, 9, 9, 1, 7]
    choice = Length().choose(make_inputs(5, 3, tokens=tokens))
    assert choice.indices.tolist() == [1, 2, 4] and choice.scores.tolist() == [9, 9, 7]
    shortest = make_method("length", {"order": "shortest"}).choose(make_inputs(5, 5, tokens=tokens))
    assert shortest.indices.tolist() == [3, 0, 4, 1, 2] and shortest.score_name == "response tokens, negative"
    assert shortest.pool_scores is not None and shortest.pool_scores.tolist() == [-5, -9, -9, -1, -7]


def test_length_within_a_budget_of_tokens() -> None:
    assert picks(Length(), make_inputs(5, Budget(5, 15), tokens=[5, 9, 9, 1, 7])) == [1, 0, 3]
    assert picks(Length(order="shortest"), make_inputs(5, Budget(5, 15), tokens=[5, 9, 9, 1, 7])) == [3, 0, 4]


@pytest.mark.parametrize("name", ["full", "random", "length"])
def test_a_pool_of_one_row(name: str) -> None:
    assert picks(make_method(name), make_inputs(1, 1)) == [0]


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"'method.order' of method 'length' cannot be 'long'"):
        make_method("length", {"order": "long"})
    with pytest.raises(ConfigError, match="Method 'random' has no settings"):
        make_method("random", {"seed": 1})
