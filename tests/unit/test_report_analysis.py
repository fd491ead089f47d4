"""Projection, neighbours and rows left out: against what a few lines of linear algebra say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.analysis.neighbours import near_duplicates
from spice_select.analysis.projection import project
from spice_select.analysis.rejected import measure_rejected
from spice_select.selection import select


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) * 0.5 ** np.arange(d) + generator.standard_normal(d) * 0.2


def test_the_projection_is_that_of_the_singular_value_decomposition() -> None:
    gradients = rows(400, 30)
    found = project(gradients, components=3)
    unit = gradients / np.linalg.norm(gradients, axis=1)[:, None]
    centred = unit - unit.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(found.shares, (sizes**2 / (sizes**2).sum())[:3], rtol=1e-6)
    assert np.allclose(np.abs(found.axes @ axes[:3].T), np.eye(3), atol=1e-4)
    assert np.allclose(found.coordinates, centred @ found.axes.T, atol=1e-12)
    assert (found.axes[np.arange(3), np.abs(found.axes).argmax(axis=1)] > 0).all()
    assert found.fitted == 400
    assert list(found.to_pandas().columns) == ["index", "axis_1", "axis_2", "axis_3"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_the_projection_knows_no_norms_and_no_chance(scale: float) -> None:
    gradients = rows(200, 12)
    first = project(gradients)
    state = np.random.get_state()[1].copy()
    again = project(gradients * scale)
    assert np.allclose(first.coordinates, again.coordinates, atol=1e-9)
    assert np.array_equal(project(gradients).coordinates, first.coordinates)
    assert np.array_equal(np.random.get_state()[1], state)


def test_rows_are_placed_by_axes_that_others_made_and_zero_rows_are_nowhere() -> None:
    gradients = rows(300, 8)
    gradients[7] = 0.0
    gradients[9] = np.nan
    whole = project(gradients)
    some = project(gradients, [5, 7, 9, 5], members=np.arange(300))
    assert np.array_equal(some.coordinates[[0, 3]], whole.coordinates[[5, 5]])
    assert np.isnan(some.coordinates[1:3]).all()
    assert whole.fitted == 298
    sampled = project(gradients, members=np.arange(300), most_rows=50)
    assert sampled.fitted == 50
    assert np.isfinite(np.delete(sampled.coordinates, [7, 9], axis=0)).all()
    alike = project(np.ones((4, 3)))
    assert alike.shares == (0.0, 0.0) or max(alike.shares) <= 1.0
    assert np.allclose(alike.coordinates, 0.0, atol=1e-12)
    assert project(np.ones((4, 1))).coordinates.shape == (4, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.8, 0.95]))
def test_neighbours_are_those_of_all_cosines(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    n, d = int(generator.integers(2, 40)), int(generator.integers(1, 6))
    gradients = generator.integers(-2, 3, (n, d)).astype(np.float64)
    picks = generator.permutation(n)[: int(generator.integers(1, n + 1))]
    norms = np.linalg.norm(gradients, axis=1)
    safe = np.where(norms > 0, norms, 1.0)
    cosines = (gradients / safe[:, None]) @ (gradients / safe[:, None]).T
    best = {int(i): cosines[i, picks].max() for i in np.setdiff1d(np.arange(n), picks) if norms[i] > 0}
    near = near_duplicates(gradients, picks, threshold=threshold)
    # Those within rounding of the threshold may fall on either side.
    assert set(near.indices.tolist()) >= {i for i, cosine in best.items() if cosine >= threshold + 1e-9}
    assert set(near.indices.tolist()) <= {i for i, cosine in best.items() if cosine >= threshold - 1e-9}
    for index, pick, cosine in zip(near.indices, near.picks, near.cosines, strict=True):
        assert pick in picks
        assert cosine == pytest.approx(best[int(index)], abs=1e-6)
    assert (np.diff(near.cosines) <= 1e-9).all()
    assert len(near.to_pandas()) == len(near)


def test_neighbours_of_the_first_picks_when_there_is_too_much_work() -> None:
    gradients = rows(60, 5)
    gradients[50:55] = gradients[:5]
    near = near_duplicates(gradients, [0, 1, 2, 3, 4], [50, 51, 52, 53, 54, 3], threshold=0.9999, most_work=2 * 5 * 5)
    assert (near.compared, near.of) == (2, 5)
    assert set(near.indices.tolist()) == {50, 51}
    assert near_duplicates(gradients, [0]).compared == 1
    assert len(near_duplicates(gradients, np.arange(60))) == 0


@pytest.mark.parametrize("reference", ["selected", "pool"])
def test_rows_left_out_have_the_gains_and_conflicts_of_the_definitions(reference: str) -> None:
    generator = np.random.default_rng(3)
    gradients = generator.standard_normal((90, 7))
    gradients[11] = 0.0
    picks, initial, factors = np.array([4, 30, 8, 77]), [2, 60], generator.uniform(0.5, 2.0, 90)
    usable = np.ones(90, bool)
    usable[[20, 21]] = False
    found = measure_rejected(
        gradients, picks, alpha=0.7, candidates=usable, factors=factors, initial=initial, reference=reference, hinge=0.1
    )
    scaled = gradients * factors[:, None]
    held = scaled[[*initial, *picks]]
    inner = np.linalg.inv(np.eye(7) + 0.7 * held.T @ held)
    gains = np.log1p(0.7 * np.einsum("ij,jk,ik->i", scaled, inner, scaled))
    assert set(found.indices.tolist()) == set(range(90)) - {11, 20, 21, *initial, *picks.tolist()}
    assert np.allclose(found.gains, gains[found.indices], rtol=1e-9)
    assert (np.diff(found.gains) <= 0).all()
    assert found.leading == len(found.indices)
    mean = scaled[usable].sum(axis=0) if reference == "pool" else held.sum(axis=0)
    with np.errstate(invalid="ignore"):
        cosine = scaled @ mean / (np.linalg.norm(scaled, axis=1) * np.linalg.norm(mean))
    assert np.allclose(found.conflicts, np.maximum(0.0, 0.1 - np.nan_to_num(cosine, nan=1.0)), atol=1e-12)
    assert len(found.to_pandas()) == len(found.indices)


def test_the_leading_gains_are_proven_before_all_are_measured() -> None:
    generator = np.random.default_rng(5)
    gradients = generator.standard_normal((5000, 16)) * generator.lognormal(0, 1.2, 5000)[:, None]
    picks = select(gradients, budget=30, alpha=0.05, conflict_weight=0.0).indices
    usable = np.ones(5000, bool)
    found = measure_rejected(gradients, picks, alpha=0.05, candidates=usable, want=10)
    assert 10 <= found.leading < len(found.indices) < 4970
    whole = measure_rejected(gradients, picks, alpha=0.05, candidates=usable, want=5000)
    assert len(whole.indices) == 4970
    assert found.indices[: found.leading].tolist() == whole.indices[: found.leading].tolist()
    assert len(measure_rejected(gradients, picks, alpha=0.05, candidates=usable, want=0).indices) == 0
    brief = measure_rejected(gradients, picks, alpha=0.05, candidates=usable, want=5000, most_work=1)
    assert len(brief.indices) < 5000 and brief.leading < len(brief.indices)
