"""Decomposition, bounds, curvature and the whole report: worked answers, and definitions written out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.analysis import curvature as curvature_module
from spice_select.analysis.bounds import check_bounds, free_bound, theorem4
from spice_select.analysis.chosen import open_rows
from spice_select.analysis.curvature import LeaveOneOut, guarantee_of, measure_curvature, most_rows
from spice_select.analysis.decomposition import decompose_picks, decompose_random, random_pairs
from spice_select.analysis.opposition import against_mean, against_running_mean
from spice_select.analysis.pool_theory import analyse_pool
from spice_select.analysis.theory import TheoryReport, analyse_theory
from spice_select.errors import ConfigError
from spice_select.gradients.store import GradientStore
from spice_select.selection import log_det, select
from tests.stores import FakeEngine, examples, fill

WORKED = np.array([[2.0, 0, 0], [-0.9, 0.9, 0], [0, 0.93, 0], [0, 0, 0.5]])


def pool(n: int = 120, d: int = 12, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) * np.exp(random.normal(size=(n, 1)) * 0.7)


def analysed(rows: Any, selection: Any, **changes: Any) -> TheoryReport:
    settings = {"sizes": (4, 16), "samples": 30} | changes
    return analyse_theory(
        rows,
        selection.indices,
        alpha=selection.alpha,
        factors=selection.factors,
        conflict_weight=selection.conflict_weight,
        gains=selection.gains,
        conflicts=selection.conflicts,
        **settings,
    )


def test_epsilon_worked_answer() -> None:
    gains = [np.log1p(4.0), log_det(WORKED[:2], 1.0) - log_det(WORKED[:1], 1.0)]
    found = decompose_picks(WORKED, [0, 1], gains, alpha=1.0)
    assert found.epsilon == pytest.approx((0.0, -0.284126), abs=1e-6)
    assert found.error < 1e-12
    assert found.squares == pytest.approx((0.0, 3.24))
    assert found.cosines == pytest.approx((0.0, 0.5))


def test_curvature_worked_answer() -> None:
    rows = open_rows(WORKED)
    found = measure_curvature(rows, np.arange(4), np.zeros(4), alpha=1.0)[0]
    assert found.value == pytest.approx(0.514404, abs=1e-6)
    assert found.guarantee == pytest.approx(0.781765, abs=1e-6)
    assert guarantee_of(0.0) == 1.0
    assert guarantee_of(1.0) == pytest.approx(1 - np.exp(-1))


def test_a_sample_proves_no_more_than_any_pool() -> None:
    rows = np.vstack([np.eye(30), np.eye(30)[:1]])
    found = measure_curvature(open_rows(rows), np.arange(31), np.zeros(31), alpha=1.0, work=10.0**3)[0]
    assert found.sampled
    assert found.guarantee == pytest.approx(1 - np.exp(-1))


def test_theorem4_worked_answer() -> None:
    small = 0.3 * WORKED
    held, row = small[[0, 2, 3]], small[1]
    found = theorem4(held, row, alpha=1.0)
    assert found.rho == pytest.approx(0.36)
    assert found.constant == pytest.approx(1.959248, abs=1e-6)
    assert found.bound == pytest.approx(0.054579, abs=1e-6)
    epsilon = log_det(np.vstack([held, row]), 1.0) - log_det(held, 1.0) - np.log1p(row @ row)
    assert epsilon == pytest.approx(-0.021670, abs=1e-6)


def test_theorem4_says_nothing_where_an_assumption_fails() -> None:
    too_large = theorem4(WORKED[[0, 2, 3]], WORKED[1], alpha=1.0)
    assert too_large.bound is None
    assert too_large.constant is None
    assert too_large.reason is not None and "|F_S|" in too_large.reason
    held = np.eye(3) * 0.9
    negative = theorem4(held, np.array([3.0, 0, 0]), alpha=1.0)
    assert negative.rho < 1 and negative.denominator <= 0
    assert negative.bound is None
    assert negative.reason is not None and "denominator" in negative.reason
    elsewhere = theorem4(0.3 * WORKED[[0, 2]], 0.3 * WORKED[1], alpha=1.0, largest_norm=5.0)
    assert elsewhere.bound is None


def test_conflict_worked_answer() -> None:
    rows = open_rows(WORKED)
    none = np.zeros(0, dtype=np.int64)
    assert against_running_mean(rows, np.array([0, 1]), none) == pytest.approx([0.0, 0.707107], abs=1e-6)
    assert against_running_mean(rows, np.array([1]), np.array([0])) == pytest.approx([0.707107], abs=1e-6)
    assert against_mean(rows, np.array([0]), np.array([1, 2])) == pytest.approx([0.707107, 0.0], abs=1e-6)
    assert against_mean(open_rows(np.zeros((3, 2))), np.arange(3)) == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize("dim", [12, 600])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_base_and_epsilon_make_the_gain(dim: int, alpha: float) -> None:
    rows = open_rows(pool(80, dim))
    pairs = random_pairs(rows, np.arange(80), 16, 25, np.random.default_rng(1))
    found = decompose_random(pairs, alpha)
    assert len(found) == 25 == len(set(zip(found.rows, found.squares, strict=True)))
    assert found.error < 1e-6
    assert max(found.epsilon) <= 0
    assert found.size == 16
    assert ("d x d" in found.method) is (dim == 12)
    for pair in pairs:
        # No x is in its own S.
        assert not (pair.others[:, None] == pair.held).all(axis=2).any()


def test_decomposition_with_rows_in_hand_and_factors() -> None:
    rows = pool()
    selection = select(rows, budget=20, alpha="auto", normalize="unit", initial=[3, 7])
    found = decompose_picks(
        rows, selection.indices, selection.gains, alpha=selection.alpha, factors=selection.factors, initial=[3, 7]
    )
    assert found.error < 1e-9
    assert found.epsilon == pytest.approx(selection.epsilons, abs=1e-9)
    assert decompose_picks(rows, selection.indices, selection.gains, alpha=1.0).error > 0.1


def test_first_picks_where_there_are_many() -> None:
    rows = pool()
    selection = select(rows, budget=50)
    found = decompose_picks(rows, selection.indices, selection.gains, alpha=1.0, limit=9)
    assert len(found) == 9
    assert found.of == 50
    assert found.error < 1e-9


def test_rows_of_zeros_lose_nothing() -> None:
    rows = np.zeros((6, 3))
    rows[0] = 1.0
    found = decompose_picks(rows, [0, 1, 2], [np.log(4.0), 0.0, 0.0], alpha=1.0)
    assert found.error < 1e-12
    assert found.cosines == (0.0, 0.0, 0.0)
    assert found.correlates.spearman is None


def test_both_bounds_over_random_pairs() -> None:
    pairs = random_pairs(open_rows(pool(300, 40)), np.arange(300), 16, 100, np.random.default_rng(0))
    run = check_bounds(pairs, alpha=1.0)
    assert run.applies == 0
    assert run.theorem_violations is None and run.theorem_spearman is None and run.theorem_looseness is None
    assert run.reason is not None
    assert run.free_violations == 0
    paper = check_bounds(pairs, alpha=1.0, scale="paper-table-4")
    assert paper.rho == pytest.approx(0.5)
    assert paper.applies > 0.5
    assert paper.theorem_violations == 0 == paper.free_violations
    assert paper.theorem_spearman is not None and paper.theorem_spearman > 0.7
    assert paper.free_looseness is not None and paper.theorem_looseness is not None
    assert 1 <= paper.free_looseness < paper.theorem_looseness


def test_free_bound_at_the_edges() -> None:
    assert free_bound(np.array([0.0, 0.0]), np.array([0.0, 4.0]), 1.0).tolist() == [0.0, 0.0]
    huge = free_bound(np.array([1e300]), np.array([1e150]), 1e150)
    assert huge <= np.log1p(1e300)
    assert np.isfinite(huge).all()


@pytest.mark.parametrize(("n", "d"), [(10, 30), (30, 10)])
def test_leaving_out_by_definition(n: int, d: int) -> None:
    rows = pool(n, d)
    rows[4] = 0.0
    whole = LeaveOneOut(open_rows(rows), np.arange(n))
    gains = [log_det(rows, 0.5) - log_det(np.delete(rows, i, axis=0), 0.5) for i in range(n)]
    assert whole.gains(0.5) == pytest.approx(gains, abs=1e-9)
    assert whole.form == ("n x n" if n <= d else "d x d")
    assert np.isnan(whole.ratios(0.5)[4])
    assert whole.largest() == pytest.approx(np.linalg.norm(rows, 2) ** 2, rel=1e-6)


def test_curvature_of_thirds() -> None:
    rows = pool(60, 8)
    opened = open_rows(rows)
    opposition = against_mean(opened, np.arange(60))
    run, paper = measure_curvature(opened, np.arange(60), opposition, alpha=1.0)
    assert [third.name for third in run.terciles] == ["low", "medium", "high"]
    assert run.value == max(third.curvature for third in run.terciles)
    assert sum(third.rows for third in run.terciles) == 60
    assert [third.conflict for third in run.terciles] == sorted(third.conflict for third in run.terciles)
    # A pool takes more from a row than a part of it does.
    assert all(third.alone <= third.curvature + 1e-12 for third in run.terciles)
    assert paper.alpha == pytest.approx(0.5 / np.linalg.norm(rows, 2) ** 2, rel=1e-6)
    assert paper.value < run.value
    assert len(run.to_pandas()) == 3


def test_curvature_of_a_large_pool_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = open_rows(pool(60, 8))
    opposition = against_mean(rows, np.arange(60))
    whole = measure_curvature(rows, np.arange(60), opposition, alpha=1.0)[0]
    part = measure_curvature(rows, np.arange(60), opposition, alpha=1.0, work=40 * 64)[0]
    assert part.rows == 40
    assert part.of == 60
    assert part.sampled and not whole.sampled
    assert part.value <= whole.value
    assert most_rows(100, 1001.0) == 10
    monkeypatch.setattr(curvature_module, "CHUNK_ROWS", 7)
    assert measure_curvature(rows, np.arange(60), opposition, alpha=1.0)[0].value == pytest.approx(whole.value)


def test_two_rows_that_are_one_have_a_known_curvature() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = measure_curvature(open_rows(rows), np.arange(2), np.zeros(2), alpha=1.0)[0]
    assert found.value == pytest.approx(1 - np.log(3 / 2) / np.log(2))
    assert found.terciles == ()


@pytest.mark.parametrize("normalize", ["none", "unit"])
def test_arrays_tensors_and_stores_agree(tmp_path: Path, normalize: Any) -> None:
    store = fill(tmp_path / "store", examples(60), FakeEngine()).store
    assert isinstance(store, GradientStore)
    values = store.rows(np.arange(60))
    selection = select(store, budget=12, alpha="auto", normalize=normalize)
    found = analysed(store, selection)
    assert found == analysed(values, selection) == analysed(torch.from_numpy(values), selection)
    assert found.error < 1e-6


def test_report_is_json_and_tables() -> None:
    rows = pool(150, 20)
    selection = select(rows, budget=30, alpha="auto")
    report = analysed(rows, selection, sizes=(4, 16, 1000))
    assert TheoryReport.model_validate_json(report.model_dump_json()) == report
    assert report.error < 1e-6
    assert [one.size for one in report.random] == [4, 16]
    assert any("1,000" in note for note in report.notes)
    assert any("Theorem 4 says nothing" in note for note in report.notes)
    assert [(check.size, check.scale) for check in report.bounds] == [
        (4, "run"),
        (4, "paper-table-4"),
        (16, "run"),
        (16, "paper-table-4"),
    ]
    tables = report.to_pandas()
    assert set(tables) == {"picks", "random", "bounds", "curvature", "curves", "fifths", "correlations"}
    assert len(tables["picks"]) == 30
    assert len(tables["random"]) == 60
    assert len(tables["bounds"]) == 4
    assert len(tables["curvature"]) == 6
    text = "\n".join(report.describe())
    assert "Theorem 4 does not apply" in text
    assert "nan" not in text.lower() and "inf " not in text.lower()
    assert report == analysed(rows, selection, sizes=(4, 16, 1000))
    assert report != analysed(rows, selection, sizes=(4, 16, 1000), seed=1)


def test_gains_of_another_objective_are_told() -> None:
    rows = pool()
    selection = select(rows, budget=10, fisher="paper-diag")
    assert any("log-determinant" in note for note in analysed(rows, selection).notes)


def test_scales_at_which_rounding_decides_are_said() -> None:
    rows = pool(100, 12)
    rows[3] = rows[4]
    large = select(rows, budget=30, alpha=1e11)
    assert any("rounding" in note for note in analysed(rows, large).notes)
    with pytest.raises(ConfigError, match="alpha is too large"):
        analysed(rows, dataclasses.replace(large, alpha=1e18))


def test_rows_that_hold_no_numbers_and_excluded_rows_play_no_part() -> None:
    rows = pool()
    broken = rows.copy()
    broken[5] = np.nan
    candidates = np.ones(len(rows), dtype=bool)
    candidates[5] = False
    selection = select(rows, budget=10, exclude=[5])
    assert analysed(broken, selection, candidates=candidates) == analysed(rows, selection, candidates=candidates)
    assert analysed(broken, selection).usable == len(rows) - 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"indices": []}, "no pick"),
        ({"gains": [1.0]}, "don't go together"),
        ({"indices": [0, 500, 2]}, "row 500"),
        ({"indices": [0, 9, 2]}, "NaN"),
        ({"initial": [-1]}, "row -1"),
        ({"samples": 0}, "samples"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], said: str) -> None:
    rows = pool(20, 4)
    rows[9, 0] = np.nan
    given: dict[str, Any] = {"indices": [0, 1, 2], "gains": [1.0, 1.0, 1.0], "conflicts": [0.0, 0.0, 0.0]} | changes
    if not given["indices"]:
        given |= {"gains": [], "conflicts": []}
    with pytest.raises(ConfigError, match=said):
        analyse_theory(rows, alpha=1.0, conflict_weight=0.1, **given)


@pytest.mark.parametrize(("n", "picks"), [(1, 1), (2, 1), (3, 3), (6, 6)])
def test_tiny_pools(n: int, picks: int) -> None:
    rows = pool(n, 3)
    report = analysed(rows, select(rows, budget=picks), sizes=(1, 2))
    assert report.error < 1e-9
    assert report.describe()
    assert set(report.to_pandas()) >= {"picks", "curves"}


def test_a_pool_of_zeros() -> None:
    rows = np.zeros((12, 3))
    report = analysed(rows, select(rows, budget=3), sizes=(2,))
    assert report.error == 0
    assert report.curvature[0].value == 0
    assert report.trajectory.half_life.gain is None
    assert all(value is None for value in report.correlations[0].model_dump(include={"gain", "epsilon"}).values())


@pytest.mark.parametrize("scale", [1e-100, 1e-150, 1e100, 1e150])
def test_gradients_whose_squares_float64_does_not_hold_are_one_sentence(scale: float) -> None:
    rows = pool(40, 4) * scale
    selection = select(rows, budget=5, alpha="auto")
    with pytest.raises(ConfigError, match="beyond float64"):
        analysed(rows, selection)
    with pytest.raises(ConfigError, match="beyond float64"):
        analyse_pool(rows, alpha=selection.alpha)


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e30, 1e60])
def test_the_theory_does_not_depend_on_the_unit_of_gradients(scale: float) -> None:
    rows, found = pool(40, 4), []
    for unit in (1.0, scale):
        found.append(analysed(rows * unit, select(rows * unit, budget=5, alpha="auto")))
    one, other = found
    assert [c.value for c in other.curvature] == pytest.approx([c.value for c in one.curvature], rel=1e-9)
    assert [b.free_looseness for b in other.bounds] == pytest.approx([b.free_looseness for b in one.bounds], rel=1e-6)
    assert not any(b.free_violations for b in other.bounds)


@pytest.mark.parametrize("alpha", [1e-12, 1.0, 1e6, 1e10, 1e12])
def test_rounding_is_not_taken_for_a_violation(alpha: float) -> None:
    rows = open_rows(np.random.default_rng(3).standard_normal((120, 20)))
    pairs = random_pairs(rows, np.arange(120), 64, 200, np.random.default_rng(1))
    found = check_bounds(pairs, alpha=alpha)
    assert found.free_violations == 0.0
