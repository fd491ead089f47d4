"""Curves, half-lives, fifths and correlations, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.analysis.chosen import open_rows, squared_norms
from spice_select.analysis.correlations import conflict_correlations, correlate, correlation_table
from spice_select.analysis.curves import checkpoints, half_life, information_at, most_picks
from spice_select.analysis.opposition import against_mean
from spice_select.analysis.ranks import average_ranks, pearson, spearman
from spice_select.analysis.trajectory import Trajectory, follow
from spice_select.selection import log_det, select

NONE = np.zeros(0, dtype=np.int64)


def pool(n: int, d: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) * np.exp(random.normal(size=(n, 1)) * 0.7)


def followed(rows: np.ndarray, budget: int, weight: float = 0.1, initial: list[int] | None = None) -> Trajectory:
    selection = select(rows, budget=budget, conflict_weight=weight, initial=initial)
    opened = open_rows(rows)
    everything = np.arange(len(rows))
    return follow(
        opened,
        selection.indices,
        selection.gains,
        everything,
        squared_norms(opened),
        against_mean(opened, everything),
        alpha=1.0,
        conflict_weight=weight,
        initial=np.array(initial or [], dtype=np.int64),
    )


def test_ranks_share_ties() -> None:
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1.0)
    # By hand: ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4).
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_correlation_of_what_is_constant_or_missing() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) is None
    assert pearson(np.arange(2.0), np.arange(2.0)) is None
    assert spearman(np.array([1.0, np.nan, 2, 3]), np.array([1.0, 7, 2, 3])) == pytest.approx(1.0)
    assert pearson(np.arange(4.0) * 1e300, np.arange(4.0) * 1e-300) == pytest.approx(1.0)
    assert spearman(np.full(3, np.nan), np.arange(3.0)) is None


def test_half_lives() -> None:
    found = half_life([4.0, 3.0, 2.0, 1.0])
    assert (found.gain, found.information) == (3, 2)
    assert half_life([4.0, 3.0]).gain is None
    assert half_life([]).information is None
    assert half_life([0.0, 0.0]).gain is None


def test_checkpoints() -> None:
    assert checkpoints(1) == [1]
    assert checkpoints(0) == []
    assert checkpoints(12) == [1, 2, 3, 4, 6, 8, 11, 12]
    assert most_picks(100, 100 * 50**2) == 50
    assert most_picks(100, 100**2 * 500) == 500


@pytest.mark.parametrize(("d", "initial"), [(40, []), (40, [5]), (6, []), (6, [5, 9])])
def test_information_at_checkpoints(d: int, initial: list[int]) -> None:
    rows = pool(30, d)
    picks = np.array([1, 2, 3, 10, 11, 12, 13, 14])
    start = log_det(rows[initial], 0.3) if initial else 0.0
    expected = [log_det(rows[[*initial, *picks[:t]]], 0.3) - start for t in (1, 4, 8)]
    found = information_at(open_rows(rows), picks, [1, 4, 8], alpha=0.3, initial=np.array(initial, dtype=np.int64))
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("initial", [None, [0, 1]])
def test_curves_at_equal_numbers(initial: list[int] | None) -> None:
    rows = pool(100, 10)
    found = followed(rows, 20, initial=initial)
    curves = {curve.name: curve for curve in found.curves}
    assert list(curves) == ["picks", "fisher", "top norm", "random"]
    assert len({curve.picks for curve in found.curves}) == 1
    plain = select(rows, budget=20, conflict_weight=0.0, initial=initial)
    assert curves["fisher"].information[-1] == pytest.approx(plain.information)
    assert curves["random"].runs == 5
    assert curves["random"].low[-1] < curves["random"].information[-1] < curves["random"].high[-1]
    assert curves["fisher"].information[-1] >= curves["top norm"].information[-1] > curves["random"].information[-1]
    for curve in found.curves:
        steps = np.diff([0, *curve.picks])
        assert float(steps @ np.array(curve.gains)) == pytest.approx(curve.information[-1])
    assert len(found.to_pandas()) == 4 * len(found.curves[0].picks)


def test_without_penalty_the_picks_are_fisher() -> None:
    found = followed(pool(50, 6), 10, weight=0.0)
    assert found.curves[0].information == found.curves[1].information
    assert found.curves[1].name == "fisher"


def test_rows_that_agree_hold_less() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, 16))
    rows[:100] += 4.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    low, high = followed(rows, 20).fifths
    assert (low.name, high.name) == ("low", "high")
    assert low.rows == high.rows == 40
    assert low.budget == 20
    assert low.conflict < high.conflict
    assert low.random < high.random
    assert low.greedy > low.random
    assert low.random_unit == pytest.approx(low.random, rel=1e-9)


def test_too_few_rows_for_fifths() -> None:
    assert followed(pool(8, 3), 2).fifths == ()


def test_correlations_by_definition() -> None:
    rows = pool(80, 9)
    selection = select(rows, budget=15, reference="selected")
    opened = open_rows(rows)
    found = conflict_correlations(
        opened,
        selection.indices,
        selection.gains,
        selection.conflicts,
        np.arange(80),
        squared_norms(opened),
        alpha=1.0,
        initial=NONE,
    )
    along, across, between = found
    assert [one.setting for one in found] == ["picks", "pool", "pairs"]
    assert along.pairs == 14
    assert along.gain == spearman(selection.conflicts[1:], selection.gains[1:])
    assert along.epsilon == spearman(selection.conflicts[1:], -selection.epsilons[1:])
    assert across.size == 15
    assert across.pairs == 65
    outside = np.setdiff1d(np.arange(80), selection.indices)
    held = rows[selection.indices]
    gains = np.array([log_det(np.vstack([held, rows[i]]), 1.0) for i in outside]) - log_det(held, 1.0)
    mean = held.mean(axis=0)
    cosine = rows[outside] @ mean / np.linalg.norm(rows[outside], axis=1) / np.linalg.norm(mean)
    assert across.signed_gain == pytest.approx(spearman(-cosine, gains))
    assert across.signed_epsilon == pytest.approx(
        spearman(-cosine, np.log1p(np.square(rows[outside]).sum(axis=1)) - gains)
    )
    assert across.gain == pytest.approx(spearman(np.maximum(-cosine, 0), gains))
    assert between.size == 1
    assert between.pairs == 40
    assert len(correlation_table(found)) == 3


def test_pairs_of_rows_lose_by_their_squared_cosine() -> None:
    angles = np.linspace(0, 2 * np.pi, 2001)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    opened = open_rows(rows)
    found = conflict_correlations(
        opened,
        np.array([0]),
        np.array([np.log(2.0)]),
        np.zeros(1),
        np.arange(2001),
        np.ones(2001),
        alpha=1.0,
        initial=NONE,
    )
    between = found[-1]
    assert between.pairs == 1000
    assert between.opposing == pytest.approx(0.5, abs=0.05)
    assert between.epsilon is not None and between.epsilon > 0.1
    # Opposing rows lose as agreeing ones do, so that without the hinge the sign says little.
    assert between.signed_epsilon is not None and abs(between.signed_epsilon) < 0.1


def test_columns_that_say_nothing() -> None:
    found = correlate("picks", None, np.zeros(4), np.ones(4), np.array([-0.1, -0.2, -0.3, -0.4]))
    assert found.gain is None
    assert found.opposing == 0
