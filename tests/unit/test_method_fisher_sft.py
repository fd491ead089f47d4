"""FisherSFT against worked answers, and what it does with settings, budgets and rows without states."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import make_method
from spice_select.methods.fisher_sft import FisherSft
from spice_select.selection.quotas import Groups
from tests.token_features import information, token_inputs

WORKED = [
    np.array([[1.0, 0.0], [0.0, 1.0]]),
    np.array([[2.0, 0.0]]),
    np.array([[1.0, 1.0], [1.0, 0.5]]),
    np.array([[0.0, 0.5]]),
]
LOOPS: tuple[Literal["lazy", "exact"], ...] = ("lazy", "exact")


def _random(count: int, dim: int, seed: int = 0, longest: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(generator.integers(1, longest), dim)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_worked_answer(loop: Literal["lazy", "exact"]) -> None:
    choice = FisherSft(loop=loop).choose(token_inputs(WORKED, 3))
    assert choice.indices.tolist() == [1, 2, 0]
    np.testing.assert_allclose(choice.scores, [1.609438, 0.993252, 0.564893], atol=1e-6)
    assert choice.scores.sum() == pytest.approx(3.167583, abs=1e-6)
    assert choice.stop_reason == "budget" and not choice.warnings


@pytest.mark.parametrize(
    ("in_hand", "gains"),
    [([], [1.386294, 1.609438, 1.504077, 0.223144]), ([1], [0.875469, None, 0.993252, 0.223144])],
)
def test_the_worked_gains_of_a_round(in_hand: list[int], gains: list[float | None]) -> None:
    # One row at a time may be chosen, so that its gain is seen.
    for index, gain in enumerate(gains):
        if gain is not None:
            candidates = np.arange(4) == index
            choice = FisherSft().choose(token_inputs(WORKED, 1, candidates=candidates, in_hand=in_hand))
            assert choice.scores == pytest.approx([gain], abs=1e-6)


def test_the_whole_pool_is_ranked_and_gains_add_up() -> None:
    rows = _random(30, 7)
    choice = FisherSft(sigma0=0.3).choose(token_inputs(rows, 30))
    assert sorted(choice.indices.tolist()) == list(range(30))
    np.testing.assert_allclose(
        np.cumsum(choice.scores),
        [information(rows, choice.indices[: k + 1].tolist(), 0.3) for k in range(30)],
        rtol=1e-9,
    )


def test_a_single_row() -> None:
    choice = FisherSft().choose(token_inputs([np.array([[3.0]])], 1))
    assert choice.indices.tolist() == [0] and choice.scores == pytest.approx([np.log(10)])


@pytest.mark.parametrize("loop", LOOPS)
def test_equal_rows_go_by_their_number(loop: Literal["lazy", "exact"]) -> None:
    row = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 1.0]])
    assert FisherSft(loop=loop).choose(token_inputs([row] * 5, 5)).indices.tolist() == [0, 1, 2, 3, 4]
    # The order of a row's tokens does not matter, but rounding may differ with it.
    rows = [row[::-1], row, 0.1 * row, row]
    assert FisherSft(loop=loop).choose(token_inputs(rows, 3)).indices.tolist() == [0, 1, 3]


def test_rows_without_states_are_never_chosen_and_missed() -> None:
    rows = [np.zeros((0, 2)), np.array([[1.0, 0.0]]), np.zeros((3, 2))]
    choice = FisherSft().choose(token_inputs(rows, 3))
    assert choice.indices.tolist() == [1, 2] and choice.scores[1] == 0
    assert choice.stop_reason == "exhausted"
    assert choice.warnings[0].startswith("2 of the 3 rows asked for were chosen, as no other row has hidden states")


def test_lazy_looks_at_few_rows_and_says_at_how_many() -> None:
    rows = [row * scale for row, scale in zip(_random(200, 24, longest=6), np.geomspace(1, 0.05, 200), strict=True)]
    lazy, exact = (FisherSft(loop=loop).choose(token_inputs(rows, 20)) for loop in LOOPS)
    assert lazy.indices.tolist() == exact.indices.tolist()
    np.testing.assert_allclose(lazy.scores, exact.scores, rtol=1e-10)
    seen = [int(choice.notes[0].split()[4].replace(",", "")) for choice in (lazy, exact)]
    assert seen[1] == sum(range(181, 201)) and seen[0] < seen[1] / 3


def test_normalised_tokens_take_the_lead_of_length_away() -> None:
    rows = [np.full((50, 1), 1.0), np.full((2, 1), 1.5)]
    assert FisherSft().choose(token_inputs(rows, 1)).indices.tolist() == [0]
    choice = FisherSft(normalize_tokens=True).choose(token_inputs(rows, 1))
    assert choice.indices.tolist() == [1] and choice.scores == pytest.approx([np.log(1 + 1.5**2)])


def test_large_states_keep_their_digits() -> None:
    # Hidden states of trained models have a few coordinates in the thousands.
    rows = [row * np.array([1e5, 1.0, 1.0, 1e-2]) for row in _random(12, 4, seed=3)]
    lazy, exact = (FisherSft(loop=loop).choose(token_inputs(rows, 12)) for loop in LOOPS)
    assert lazy.indices.tolist() == exact.indices.tolist()
    assert lazy.scores.sum() == pytest.approx(information(rows, range(12)), rel=1e-10)


def test_a_prior_too_small_for_float64_is_refused() -> None:
    rows = [np.full((2, 3), 1e9), np.full((2, 3), 2e9)]
    with pytest.raises(ConfigError, match=r"method\.sigma0 is 1e-06, too small .*; raise it\."):
        FisherSft(sigma0=1e-6).choose(token_inputs(rows, 2))


def test_a_budget_in_tokens() -> None:
    rows = _random(20, 4)
    choice = FisherSft().choose(token_inputs(rows, 20, tokens=25))
    spent = sum(len(rows[index]) for index in choice.indices)
    left = [len(row) for index, row in enumerate(rows) if index not in choice.indices.tolist()]
    assert spent <= 25 and min(left) > 25 - spent
    assert choice.stop_reason == "tokens"


def test_quotas_are_kept() -> None:
    codes = np.arange(20) % 2
    choice = FisherSft().choose(
        token_inputs(_random(20, 4), 8, groups=lambda: Groups(codes, np.array([6, 0]), np.array([20, 2])))
    )
    assert len(choice) == 8 and (codes[choice.indices] == 0).sum() == 6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"sigma0": 0}, "sigma0"), ({"positions": "prompt"}, "positions"), ({"dim": 0}, "dim"), ({"lopp": 1}, "loop")],
)
def test_bad_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_method("fisher_sft", settings)
