"""Budgets, settings, quotas and inputs: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from spice_select.errors import BudgetError, ConfigError, DataError
from spice_select.selection import Budget, proportional, resolve_budget, select, select_gram


@pytest.fixture
def g() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(20, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, Budget(1)),
        (1.0, Budget(20)),
        (20, Budget(20)),
        (0.1, Budget(2)),
        (0.001, Budget(1)),
        ("12", Budget(12)),
        ("1", Budget(1)),
        ("1.0", Budget(20)),
        ("10%", Budget(2)),
        ("10 %", Budget(2)),
        ("0.1", Budget(2)),
        ("50000 tokens", Budget(20, 50000)),
        (np.int64(3), Budget(3)),
        (np.float32(0.5), Budget(10)),
    ],
)
def test_budget_forms(budget, expected):
    assert resolve_budget(budget, 20, 20) == expected


@pytest.mark.parametrize(
    "budget", [0, -1, 21, 0.0, -0.1, 1.5, 12.0, "0", "0%", "101%", "12.5", "many", "0 tokens", "x tokens", "-5 tokens",
               True, float("nan"), float("inf"), "nan", "", "5 bananas", [3]]
)  # fmt: skip
def test_budget_refused(budget):
    with pytest.raises(BudgetError) as caught:
        resolve_budget(budget, 20, 20)
    assert str(budget) in str(caught.value)


def test_budget_names_the_usable_rows():
    with pytest.raises(BudgetError, match=r"asks for 20 rows, and 18 of 20 can be chosen"):
        resolve_budget(1.0, 20, 18)


def test_budget_may_be_absent_with_a_stop_ratio_only(g):
    with pytest.raises(BudgetError, match="budget is missing"):
        select(g)
    selection = select(g, stop_ratio=0.3)
    assert selection.k == 20
    assert selection.stop_reason == "stop_ratio"
    assert 1 <= len(selection) < 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0}, "alpha cannot be 0"),
        ({"alpha": "large"}, "alpha cannot be 'large'"),
        ({"alpha": float("nan")}, "alpha cannot be nan"),
        ({"conflict_weight": -0.1}, "conflict_weight cannot be -0.1"),
        ({"conflict_weight": 1.5, "penalty": "relative"}, "cannot be 1.5; give a number 0 at least and 1"),
        ({"penalty": "relativ"}, "did you mean 'relative'"),
        ({"reference": "mean"}, "selected or pool"),
        ({"hinge": "25%"}, "needs reference 'pool'"),
        ({"hinge": "120%", "reference": "pool"}, "hinge cannot be 120"),
        ({"hinge": 1.5}, "hinge cannot be 1.5"),
        ({"hinge": "steep"}, "hinge 'steep' is no number"),
        ({"normalize": "l2"}, "normalize cannot be 'l2'"),
        ({"normalize": "sqrt_tokens"}, "needs lengths"),
        ({"per_token": True}, "per_token needs lengths"),
        ({"budget": "9 tokens"}, "budget '9 tokens' needs lengths"),
        ({"stop_ratio": 0}, "stop_ratio cannot be 0"),
        ({"stop_ratio": 1.1}, "stop_ratio cannot be 1.1"),
        ({"fisher": "diagonal"}, "fisher cannot be 'diagonal'"),
        ({"fisher": "released", "loop": "kernel"}, "loop 'kernel'"),
        ({"loop": "fast"}, "loop cannot be 'fast'"),
        ({"lengths": [1, 2]}, "lengths has shape [2] for 20 rows"),
        ({"lengths": [-1] * 20}, "lengths of row 0 is -1"),
        ({"lengths": [0.5] * 20}, "whole numbers"),
        ({"exclude": [20]}, "exclude names row 20"),
        ({"exclude": [0.5]}, "exclude must be row numbers"),
        ({"exclude": [True]}, "mask of shape [1] for 20 rows"),
        ({"exclude": range(20)}, "exclude leaves none"),
        ({"initial": [-1]}, "initial names row -1"),
        ({"initial": np.ones((2, 5))}, "give rows of 6"),
        ({"initial": np.full((2, 6), np.nan)}, "Row 0 of initial holds NaN"),
        ({"quotas": "proportional"}, "quotas needs groups"),
        ({"quotas": "even", "groups": ["a"] * 20}, "quotas cannot be 'even'"),
        ({"quotas": "proportional", "groups": ["a"]}, "1 labels for 20 rows"),
        ({"quotas": {"b": {"min": 1}}, "groups": ["a"] * 20}, "group 'b', which no row has"),
        ({"quotas": {"a": {"least": 1}}, "groups": ["a"] * 20}, "give it as"),
        ({"quotas": {"a": {"min": -1}}, "groups": ["a"] * 20}, "min of group 'a' cannot be -1"),
        ({"quotas": {"a": {"min": 4, "max": 3}}, "groups": ["a"] * 20}, "minimum of 4 rows and a maximum of 3"),
        ({"quotas": {"a": {"min": 11}}, "groups": ["a"] * 10 + ["b"] * 10}, "minimum of 11 rows and 10"),
        ({"quotas": {"a": {"min": 6}}, "groups": ["a"] * 20}, "add up to 6 rows and the budget is 5"),
        ({"quotas": {"a": {"max": 4}}, "groups": ["a"] * 20}, "leave room for 4 rows and the budget is 5"),
        ({"quotas": {}, "groups": ["a"] * 20, "budget": "9 tokens", "lengths": [1] * 20}, "quotas count rows"),
    ],
)  # fmt: skip
def test_settings_refused_in_one_sentence(g, settings, words):
    with pytest.raises(ConfigError) as caught:
        select(g, **({"budget": 5} | settings))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gradients", "error", "words"),
    [
        (np.zeros(5), ConfigError, "two dimensions"),
        (np.zeros((0, 4)), DataError, "hold nothing"),
        (np.zeros((4, 0)), DataError, "hold nothing"),
        (np.array([["a", "b"]]), ConfigError, "real numbers"),
        (np.ones((2, 2), dtype=complex), ConfigError, "real numbers"),
        ([[1.0], [1.0, 2.0]], ConfigError, "one length"),
        ("gradients.npy", ConfigError, "type str"),
        (torch.ones(2, 2, dtype=torch.bool), ConfigError, "real numbers"),
        (np.full((3, 2), np.nan), DataError, "None of the 3"),
    ],
)
def test_gradients_refused(gradients, error, words):
    with pytest.raises(error, match=words):
        select(gradients, budget=1)


def test_gram_refused():
    with pytest.raises(ConfigError, match="square"):
        select_gram(np.ones((2, 3)), 1)
    with pytest.raises(DataError, match="row 0 and another"):
        select_gram(np.array([[1.0, np.nan], [np.nan, 1.0]]), 1)
    with pytest.raises(ConfigError, match="row numbers"):
        select_gram(np.eye(3), 1, initial=np.ones((1, 3)))
    assert select_gram(np.diag([1.0, np.nan, 2.0]), 2).indices.tolist() == [2, 0]


class Store:
    """What selection asks of a gradient store, and nothing more."""

    def __init__(self, array: np.ndarray, usable: np.ndarray, lengths: np.ndarray) -> None:
        self._array = array
        self.shape = array.shape
        self.usable = usable
        self.lengths = lengths
        self.largest = 0

    def rows(self, indices):
        self.largest = max(self.largest, len(indices))
        return self._array[indices]

    def blocks(self, size):
        for start in range(0, len(self._array), size):
            self.largest = max(self.largest, size)
            yield start, self._array[start : start + size]


@pytest.mark.parametrize("loop", ["brute", "dense", "kernel", "lazy"])
def test_all_inputs_give_the_same(g, tmp_path, loop):
    expected = select(g, budget=8, loop=loop)
    np.save(tmp_path / "g.npy", g)
    usable, lengths = np.ones(20, dtype=bool), np.ones(20, dtype=np.int64)
    inputs = [
        np.load(tmp_path / "g.npy", mmap_mode="r"),
        torch.from_numpy(g),
        torch.from_numpy(g).requires_grad_(),
        torch.from_numpy(g).double(),
        g.astype(np.float64),
        np.asfortranarray(g),
        g.tolist(),
        Store(g, usable, lengths),
    ]
    for gradients in inputs:
        selection = select(gradients, budget=8, loop=loop)
        assert selection.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(selection.gains, expected.gains, rtol=1e-12)


def test_bfloat16_tensors_are_taken_as_they_are(g):
    rounded = torch.from_numpy(g).bfloat16()
    assert select(rounded, budget=5).indices.tolist() == select(rounded.float(), budget=5).indices.tolist()


def test_inputs_are_left_alone(g):
    before = g.copy()
    g.flags.writeable = False
    for loop in ("brute", "dense", "kernel", "lazy"):
        select(g, budget=5, normalize="unit", loop=loop)
    np.testing.assert_array_equal(g, before)


def test_a_store_brings_its_lengths_and_unusable_rows(g):
    usable = np.arange(20) != int(select(g, budget=1).indices[0])
    lengths = np.arange(20) + 1
    store = Store(np.where(usable[:, None], g, 0.0), usable, lengths)
    selection = select(store, budget="30 tokens")
    assert usable[selection.indices].all()
    assert lengths[selection.indices].sum() <= 30
    assert selection.unusable == 1
    assert "marked" in selection.warnings[0]


def test_a_store_is_never_read_whole():
    array = np.random.default_rng(0).normal(size=(40000, 40)).astype(np.float32)
    store = Store(array, np.ones(40000, dtype=bool), np.ones(40000, dtype=np.int64))
    assert select(store, budget=300).loop == "lazy"
    assert store.largest * 40 * 8 <= 8 << 20
    assert store.largest < 40000


def test_rows_with_nan_are_named_counted_and_left_out(g):
    g[[3, 7], 2] = [np.nan, np.inf]
    for loop in ("brute", "dense", "kernel", "lazy"):
        selection = select(g, budget=18, loop=loop, reference="pool", alpha="auto")
        assert sorted(selection.indices.tolist()) == [i for i in range(20) if i not in (3, 7)]
        assert selection.unusable == 2
        assert selection.warnings == ("2 of 20 rows are unusable and were left out (2 of them hold NaN or Inf): 3, 7.",)
    with pytest.raises(BudgetError, match="18 of 20"):
        select(g, budget=19)


def test_shares_are_of_all_rows_given(g):
    g[:2] = np.nan
    assert len(select(g, budget=0.5)) == 10


def test_all_rows_are_returned_for_a_full_budget(g):
    for budget in (20, 1.0, "100%"):
        selection = select(g, budget=budget)
        assert sorted(selection.indices.tolist()) == list(range(20))
        assert selection.stop_reason == "budget"


def test_ties_go_to_the_lowest_number():
    for loop in ("brute", "dense", "kernel", "lazy"):
        assert select(np.ones((6, 3)), budget=3, loop=loop).indices.tolist() == [0, 1, 2]
        assert select(np.eye(5)[::-1], budget=5, loop=loop).indices.tolist() == [0, 1, 2, 3, 4]
        zeros = select(np.zeros((4, 3)), budget=4, loop=loop)
        assert zeros.indices.tolist() == [0, 1, 2, 3]
        assert not zeros.gains.any()
        assert not zeros.conflicts.any()


def test_nothing_opposes_the_mean_of_nothing():
    # A hinge above 0 makes even aligned rows conflict, yet the first pick has nothing to oppose.
    assert select(np.eye(3), budget=2, hinge=0.5).conflicts.tolist() == [0.0, 0.5]


def test_a_vanished_mean_points_nowhere():
    g = np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 0.1]])
    for loop in ("brute", "dense", "kernel", "lazy"):
        selection = select(g, budget=1, initial=[0, 1], loop=loop)
        assert selection.conflicts.tolist() == [0.0]


def test_pool_reference_is_known_from_the_start():
    g = np.array([[1.0, 0.0], [1.0, 0.1], [-2.0, 0.0], [1.5, 0.2]])
    plain = select(g, budget=1)
    pool = select(g, budget=1, reference="pool", conflict_weight=1.0)
    assert plain.indices.tolist() == [2]
    assert pool.indices.tolist() == [3]
    cosines = (g @ g.sum(0)) / np.linalg.norm(g, axis=1) / np.linalg.norm(g.sum(0))
    quantile = select(g, budget=4, reference="pool", hinge="50%")
    np.testing.assert_allclose(quantile.hinge, np.quantile(cosines, 0.5))
    np.testing.assert_allclose(
        quantile.conflicts, np.maximum(0, np.quantile(cosines, 0.5) - cosines)[quantile.indices], atol=1e-12
    )


def test_normalisations_scale_rows(g):
    lengths = np.arange(20) + 1
    norms = np.linalg.norm(g.astype(np.float64), axis=1)
    factors = {
        "unit": 1 / norms,
        "sqrt_tokens": np.sqrt(lengths),
        "clip": np.minimum(1, np.median(norms) / norms),
    }
    for name, factor in factors.items():
        ours = select(g, budget=9, normalize=name, lengths=lengths, alpha="auto")
        scaled = g.astype(np.float64) * factor[:, None]
        plain = select(scaled, budget=9, alpha="auto")
        assert ours.indices.tolist() == plain.indices.tolist()
        np.testing.assert_allclose(ours.bases, plain.bases)
        np.testing.assert_allclose(ours.alpha, 1 / np.median((scaled**2).sum(1)))


def test_auto_alpha_of_zero_gradients_warns():
    selection = select(np.zeros((3, 2)), budget=1, alpha="auto")
    assert selection.alpha == 1.0
    assert "alpha 'auto'" in selection.warnings[0]


def test_settings_without_effect_are_said(g):
    selection = select(g, budget=2, robust_stop=True, groups=["a"] * 20)
    assert selection.warnings == (
        "robust_stop has no effect without stop_ratio.",
        "groups has no effect without quotas.",
    )


def test_a_huge_first_gradient_is_reported_and_can_be_stood():
    g = np.eye(12)
    g[4] *= 1000
    plain = select(g, stop_ratio=0.5)
    assert plain.indices.tolist() == [4]
    assert plain.first_gain_outlier
    assert "robust_stop" in plain.warnings[0]
    robust = select(g, stop_ratio=0.5, robust_stop=True)
    assert len(robust) == 12
    assert not select(np.eye(12), stop_ratio=0.5).first_gain_outlier


def test_initial_rows_come_first_and_are_not_returned(g):
    lead = select(g, budget=4)
    for loop in ("brute", "dense", "kernel", "lazy"):
        rest = select(g, budget=4, initial=lead.indices, loop=loop)
        whole = select(g, budget=8, loop=loop)
        assert rest.indices.tolist() == whole.indices[4:].tolist()
        np.testing.assert_allclose(rest.gains, whole.gains[4:])
        np.testing.assert_allclose(rest.conflicts, whole.conflicts[4:], atol=1e-12)
        rows = select(g, budget=4, initial=g[lead.indices], exclude=lead.indices, loop=loop)
        assert rows.indices.tolist() == rest.indices.tolist()
        tensor = select(g, budget=4, initial=torch.from_numpy(g[lead.indices]), exclude=lead.indices, loop=loop)
        assert tensor.indices.tolist() == rest.indices.tolist()
    with pytest.raises(BudgetError, match="16 of 20"):
        select(g, budget=17, initial=lead.indices)


@pytest.mark.parametrize("normalize", ["unit", "clip"])
def test_initial_rows_are_normalised_as_the_pool(g, normalize):
    by_number = select(g, budget=5, initial=[2, 9], normalize=normalize)
    by_row = select(g, budget=5, initial=g[[2, 9]], exclude=[], normalize=normalize)
    kept = [i for i in by_row.indices.tolist() if i not in (2, 9)]
    assert by_number.indices.tolist()[: len(kept)] == kept
    with pytest.raises(ConfigError, match="no response lengths"):
        select(g, budget=5, initial=g[[2, 9]], normalize="sqrt_tokens", lengths=[1] * 20)


def test_excluded_rows_are_never_chosen(g):
    first = select(g, budget=3).indices
    mask = np.zeros(20, dtype=bool)
    mask[first] = True
    for exclude in (first, first.tolist(), mask, mask.tolist(), torch.from_numpy(first), set(first.tolist())):
        selection = select(g, budget=17, exclude=exclude)
        assert not set(selection.indices.tolist()) & set(first.tolist())


def test_quotas_bound_every_group(g):
    groups = ["maths"] * 4 + ["code"] * 6 + ["chat"] * 10
    for loop in ("brute", "dense", "kernel", "lazy"):
        selection = select(g, budget=10, groups=groups, quotas={"maths": {"min": 4}, "chat": {"max": 0.2}}, loop=loop)
        counts = [sum(groups[i] == name for i in selection.indices) for name in ("maths", "code", "chat")]
        assert counts[0] == 4
        assert counts[2] <= 2
        assert sum(counts) == 10


def test_a_minimum_only_binds_at_the_end(g):
    groups = ["rare"] + ["common"] * 19
    g[0] *= 1e-3
    selection = select(g, budget=6, groups=groups, quotas={"rare": {"min": 1}})
    assert selection.indices[-1] == 0
    assert selection.indices[:-1].tolist() == select(g, budget=5).indices.tolist()


def test_proportional_quotas_keep_the_shares(g):
    groups = np.array([1] * 5 + [2] * 15)
    selection = select(g, budget=8, groups=groups, quotas="proportional")
    assert np.bincount(groups[selection.indices]).tolist() == [0, 2, 6]


@pytest.mark.parametrize(
    ("counts", "available", "rows", "expected"),
    [
        ([5, 15], [5, 15], 8, [2, 6]),
        ([1, 1, 1], [1, 1, 1], 2, [1, 1, 0]),
        ([10, 10, 10], [10, 10, 10], 10, [4, 3, 3]),
        ([50, 25, 25], [2, 25, 25], 20, [2, 9, 9]),
        ([50, 50], [0, 50], 10, [0, 10]),
        ([0, 4], [0, 4], 4, [0, 4]),
    ],
)
def test_proportional_shares_sum_exactly(counts, available, rows, expected):
    assert proportional(np.array(counts), np.array(available), rows).tolist() == expected


def test_shares_that_add_up_to_one_can_always_be_met(g):
    groups = ["a", "b"] * 10
    for k in range(1, 21):
        for key in ("min", "max"):
            selection = select(g, budget=k, groups=groups, quotas={"a": {key: 0.5}, "b": {key: 0.5}})
            assert len(selection) == k


def test_tokens_pass_over_rows_that_no_longer_fit():
    g = np.diag([4.0, 3.0, 2.0, 1.0])
    selection = select(g, budget="10 tokens", lengths=[6, 5, 4, 1])
    assert selection.indices.tolist() == [0, 2]
    assert selection.stop_reason == "tokens"
    per_token = select(g, budget="10 tokens", lengths=[6, 5, 4, 1], per_token=True)
    assert per_token.indices.tolist() == [3, 0]
    np.testing.assert_allclose(per_token.scores, per_token.gains / [1, 6])


def test_loop_auto_says_what_it_took(g):
    assert select(g, budget=2).loop == "dense"
    assert select(g[:5], budget=2).loop == "kernel"
    assert select(np.random.default_rng(0).normal(size=(2048, 512)), budget=2).loop == "lazy"


def test_the_result_is_frozen_and_survives_a_copy(g):
    selection = select(g, budget=5, conflict_weight=0.5)
    with pytest.raises(AttributeError):
        selection.n = 3
    assert "changed_by_penalty" not in vars(selection)
    changed = selection.changed_by_penalty
    twin = pickle.loads(pickle.dumps(copy.copy(selection)))
    assert twin.changed_by_penalty == changed
    assert len(selection) == 5
    assert selection.opposing == np.mean(selection.conflicts > 0)


def test_the_global_random_state_is_left_alone(g):
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    select(g, budget=5)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_a_float64_tensor_of_inner_products_keeps_its_digits():
    rng = np.random.default_rng(0)
    g = 1e4 * rng.normal(size=6) + rng.normal(size=(40, 6))
    gram = g @ g.T
    plain, tensor = (select_gram(given, 20, conflict_weight=0.0) for given in (gram, torch.from_numpy(gram)))
    np.testing.assert_array_equal(tensor.indices, plain.indices)
    np.testing.assert_array_equal(tensor.gains, plain.gains)


@pytest.mark.parametrize(("norm", "expected"), [(1e5, "smaller"), (1e-6, "larger"), (1.0, None)])
def test_scales_at_which_rounding_decides_are_warned_of(norm: float, expected: str | None) -> None:
    rows = norm * np.random.default_rng(0).normal(size=(6, 4))
    said = [line for line in select(rows, budget=2).warnings if line.startswith("alpha |g|^2")]
    assert [expected in line for line in said] == ([True] if expected else [])
    assert not [line for line in select(rows, budget=2, alpha="auto").warnings if line.startswith("alpha |g|^2")]
