"""Facility location by lazy greedy, against submodlib and against the definition; the second stage of ``ifd``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from submodlib.functions.facilityLocation import FacilityLocationFunction

from spice_select.methods import Need, facility, make_method
from spice_select.methods.facility import Similarities, spread
from spice_select.methods.ifd import Ifd
from spice_select.selection.budget import Budget
from spice_select.selection.quotas import Limits
from tests.method_inputs import make_inputs, picks, require_sound


def chosen(points: np.ndarray, budget: int, in_hand: np.ndarray | None = None) -> tuple[list[int], list[float]]:
    n = len(points)
    return spread(points, np.arange(n), Limits(np.ones(n, dtype=bool), Budget(budget)), in_hand)


def by_definition(points: np.ndarray, budget: int, in_hand: np.ndarray | None = None) -> tuple[list[int], list[float]]:
    """Every gain of every row at every pick, from the differences of the vectors."""
    table = np.exp(-np.linalg.norm(points[:, None] - points[None], axis=2) / points.shape[1])
    covered = np.zeros(len(points))
    for other in [] if in_hand is None else in_hand:
        covered = np.maximum(covered, np.exp(-np.linalg.norm(points - other, axis=1) / points.shape[1]))
    found: list[int] = []
    gains: list[float] = []
    for _ in range(budget):
        all_gains = np.maximum(table - covered, 0).sum(axis=1)
        all_gains[found] = -np.inf
        best = all_gains.max()
        place = int(np.argmax(all_gains >= best - 1e-9 * max(1, abs(best))))
        found.append(place)
        gains.append(all_gains[place])
        covered = np.maximum(covered, table[place])
    return found, gains


@pytest.mark.parametrize("seed", range(4))
def test_the_picks_are_those_of_submodlib(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(60, 5)) * [3, 1, 1, 1, 0.2]
    theirs = FacilityLocationFunction(60, mode="dense", separate_rep=False, data=points, metric="euclidean")
    expected = theirs.maximize(budget=15, optimizer="LazyGreedy", show_progress=False)
    found, gains = chosen(points, 15)
    # Two rows that are each other's nearest have the same gain once all others are covered; submodlib, in float32, may
    # then take the other of the two.
    same = next((place for place in range(15) if found[place] != expected[place][0]), 15)
    assert same >= 9
    np.testing.assert_allclose(gains[: same + 1], [gain for _, gain in expected[: same + 1]], rtol=1e-5)
    assert same == 15 or theirs.evaluate(set(found)) >= theirs.evaluate({index for index, _ in expected}) * 0.999


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6), st.booleans())
def test_lazy_greedy_is_greedy(n: int, d: int, seed: int, held: bool) -> None:
    random = np.random.default_rng(seed)
    # A grid, so that there are copies and ties.
    points = random.integers(-2, 3, size=(n, d)).astype(float)
    in_hand = random.integers(-2, 3, size=(2, d)).astype(float) if held else None
    budget = int(random.integers(1, n + 1))
    found, gains = chosen(points, budget, in_hand)
    expected, expected_gains = by_definition(points, budget, in_hand)
    assert found == expected
    np.testing.assert_allclose(gains, expected_gains, atol=1e-9)


def test_lazy_greedy_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting(Similarities):
        def gain(self, place: int, covered: np.ndarray) -> float:
            calls.append(place)
            return super().gain(place, covered)

    monkeypatch.setattr(facility, "Similarities", Counting)
    chosen(np.random.default_rng(0).normal(size=(300, 4)), 20)
    assert 19 <= len(calls) < 19 * 300 / 4


@pytest.mark.parametrize("table", [True, False])
def test_blocks_and_the_table_do_not_show(monkeypatch: pytest.MonkeyPatch, table: bool) -> None:
    points = np.random.default_rng(1).normal(size=(50, 3))
    whole = chosen(points, 12)
    monkeypatch.setattr(facility, "_BLOCK_BYTES", 8 * 50 * 7)
    monkeypatch.setattr(facility, "_TABLE_BYTES", 8 * 50 * 50 - (not table))
    found = chosen(points, 12)
    assert found[0] == whole[0]
    np.testing.assert_allclose(found[1], whole[1], rtol=1e-12)


# Two tight pairs and an outlier; the pair by the x axis is the hardest.
POINTS = np.array([(1, 0), (1, 0.01), (0, 1), (0.01, 1), (-1, 0), (0, -1)], dtype=float)
HARD = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 1.4])


def inputs_of(budget: int | Budget, **more: Any):
    settings: dict[str, Any] = {"losses": HARD, "direct_losses": np.ones(6), "embeddings": POINTS, **more}
    return make_inputs(6, budget, **settings)


def test_the_second_stage_takes_one_of_each() -> None:
    assert picks(Ifd(), inputs_of(2)) == [0, 1]
    assert picks(Ifd(diverse=1), inputs_of(2)) == [0, 1], "of two rows, both"
    found = picks(Ifd(diverse=2), inputs_of(2))
    assert len({row // 2 for row in found}) == 2 and max(found) < 4, "one of each pair, and none from further down"
    choice = Ifd(diverse=2).choose(inputs_of(2))
    assert choice.score_name == "gain in facility location" and choice.scores[0] > choice.scores[1] > 0
    assert choice.pool_scores is not None and np.array_equal(choice.pool_scores, HARD)
    assert choice.notes[-1] == "The picks are of the 4 rows with the highest difficulty."
    assert 5 not in picks(Ifd(diverse=9), inputs_of(5)), "its difficulty is above 1"


def test_the_second_stage_needs_embeddings_only_if_asked_for() -> None:
    assert Need.EMBEDDINGS not in Ifd().required() and Need.EMBEDDINGS in Ifd(diverse=10).required()


def test_rows_without_embedding_are_left_out() -> None:
    points = POINTS.copy()
    points[0] = 0
    choice = Ifd(diverse=3).choose(inputs_of(5, embeddings=points))
    assert sorted(choice.indices) == [1, 2, 3, 4] and choice.stop_reason == "exhausted" and choice.warnings
    assert any("embeddings of nothing but zeros" in note for note in choice.notes)


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
def test_the_second_stage_keeps_to_tokens_and_quotas(factor: float) -> None:
    random = np.random.default_rng(5)
    measured = {
        "losses": random.uniform(0.1, 1, 40),
        "direct_losses": np.ones(40),
        "embeddings": random.normal(size=(40, 3)),
    }
    labels = ["a"] * 32 + ["b"] * 8
    method = make_method("ifd", {"diverse": factor})
    for inputs in (
        make_inputs(40, Budget(40, 60), tokens=random.integers(1, 20, 40), **measured),
        make_inputs(40, 10, labels=labels, quotas={"b": {"min": 6}}, **measured),
        make_inputs(40, 10, labels=labels, quotas="proportional", leave_out=[3, 35], **measured),
        make_inputs(40, 40, **measured),
    ):
        choice = method.choose(inputs)
        require_sound(choice, inputs)
        assert np.array_equal(method.choose(inputs).indices, choice.indices)


def test_nothing_to_choose_from_is_said() -> None:
    choice = Ifd(diverse=2).choose(inputs_of(3, losses=np.full(6, np.nan)))
    assert len(choice) == 0 and choice.warnings[0].startswith("0 of the 3 rows")
