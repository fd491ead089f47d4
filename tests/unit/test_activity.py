"""Conflict activity: counts checked against plain loops over whole arrays, by rows and by inner products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from spice_select import select
from spice_select.analysis.activity import (
    ActivityStep,
    ConflictActivity,
    NormHistogram,
    activity_of_gram,
    measure_activity,
    merge_activities,
)
from spice_select.analysis.activity_record import norm_histogram
from spice_select.selection import select_gram
from spice_select.selection.rows import ArrayRows


@dataclass
class Picked:
    indices: list[int]
    reference: str = "selected"
    hinge: float = 0.0


def cloud(n: int = 60, dim: int = 9, seed: int = 0, drift: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, dim)) + drift
    return rows * np.exp(random.standard_normal(n))[:, None]


def by_hand(
    rows: np.ndarray, picked: Picked, members: np.ndarray, factors: np.ndarray, in_hand: list[int], t: int
) -> tuple[int, int]:
    """Candidates left and those in conflict, one row at a time from the definition."""
    scaled = rows * factors[:, None]
    within = np.flatnonzero(members).tolist() if picked.reference == "pool" else [*in_hand, *picked.indices[:t]]
    mean = scaled[within].mean(axis=0)
    left = [i for i in range(len(rows)) if members[i] and i not in picked.indices[:t] and i not in in_hand]
    against = 0
    for i in left:
        size = np.linalg.norm(scaled[i]) * np.linalg.norm(mean)
        if size > 0 and max(0.0, picked.hinge - scaled[i] @ mean / size) > 0:
            against += 1
    return len(left), against


@pytest.mark.parametrize("reference", ["selected", "pool"])
@pytest.mark.parametrize("hinge", [0.0, 0.25, -0.1])
@pytest.mark.parametrize("initial", [[], [2, 5]])
def test_every_step_is_the_definition(reference: str, hinge: float, initial: list[int]) -> None:
    rows = cloud()
    rows[7] = 0.0
    members = np.ones(60, dtype=bool)
    members[[1, 30]] = False
    factors = np.random.default_rng(1).uniform(0.2, 3.0, 60)
    picked = Picked([40, 3, 59, 12, 7, 22], reference, hinge)
    settings: dict[str, Any] = {"factors": factors, "candidates": members, "initial": initial}
    expected = [by_hand(rows, picked, members, factors, initial, t) for t in range(1, 7)]
    for found in (
        measure_activity(ArrayRows(rows), picked, **settings),
        measure_activity(ArrayRows(rows.astype(np.float32)), picked, **settings),
        activity_of_gram(rows @ rows.T, picked, **settings),
    ):
        assert [step.picks for step in found.steps] == [1, 2, 3, 4, 5, 6]
        assert [(step.remaining, step.opposing) for step in found.steps] == expected
        assert all(step.share == step.opposing / step.remaining for step in found.steps)
        assert (found.reference, found.hinge) == (reference, hinge)
    assert sum(against for _, against in expected) > 0


def test_pairs_are_counted_among_candidates_of_nonzero_norm() -> None:
    rows = cloud(1200, drift=0.1)
    rows[[5, 700]] = 0.0
    members = np.arange(1200) != 9
    kept = np.flatnonzero(members & (np.linalg.norm(rows, axis=1) > 0))
    units = rows[kept] / np.linalg.norm(rows[kept], axis=1, keepdims=True)
    cosines = (units @ units.T)[np.triu_indices(len(kept), 1)]
    whole = measure_activity(ArrayRows(rows), Picked([0]), candidates=members)
    exact = activity_of_gram(rows @ rows.T, Picked([0]), candidates=members)
    for found in (whole, exact):
        assert found.sampled == 1199
        assert found.pairs == len(cosines) == 1197 * 1196 // 2
        assert found.opposing_pairs == np.count_nonzero(cosines < 0)
        assert found.opposing_pairs_share == found.opposing_pairs / found.pairs
        assert found.mean_cosine == pytest.approx(cosines.mean(), abs=1e-9)


def test_a_sample_is_seeded_and_close_to_the_whole() -> None:
    rows = ArrayRows(cloud(900))
    whole = measure_activity(rows, Picked([0]))
    part, again = (measure_activity(rows, Picked([0]), sample=300, seed=4) for _ in range(2))
    other = measure_activity(rows, Picked([0]), sample=300, seed=5)
    assert part == again
    assert part.sampled == 300 and part.pairs == 300 * 299 // 2
    assert part.opposing_pairs != other.opposing_pairs
    assert part.opposing_pairs_share == pytest.approx(whole.opposing_pairs_share, abs=0.03)
    assert part.steps == whole.steps


def test_steps_are_spread_over_a_long_selection() -> None:
    rows = cloud(500)
    found = measure_activity(ArrayRows(rows), Picked(list(range(400))), steps=16)
    at = [step.picks for step in found.steps]
    assert at[0] == 1 and at[-1] == 400 and len(at) <= 16
    ratios = np.diff(np.log(at[5:]))
    assert ratios.max() < 1.2 * ratios.min()
    assert [step.remaining for step in found.steps] == [500 - t for t in at]


def test_conflicts_of_the_next_pick_agree_with_the_selection() -> None:
    rows = cloud(80, drift=0.1)
    for settings in ({"reference": "selected"}, {"reference": "pool", "hinge": "40%"}):
        for normalize in ("none", "unit"):
            picks = select(rows, budget=10, conflict_weight=0.5, normalize=normalize, **settings)
            gram = select_gram(rows @ rows.T, 10, conflict_weight=0.5, normalize=normalize, **settings)
            assert picks.indices.tolist() == gram.indices.tolist()
            one = measure_activity(ArrayRows(rows), picks, factors=picks.factors)
            two = activity_of_gram(rows @ rows.T, gram, factors=gram.factors)
            assert one.steps == two.steps
            for t, step in enumerate(one.steps[:-1], 1):
                # The next pick is one of the candidates that were counted.
                assert step.opposing >= int(picks.conflicts[t] > 0)


def test_one_direction_has_no_conflict_and_opposite_rows_have_nothing_else() -> None:
    line = np.outer(np.arange(1.0, 7.0), [1.0, 2.0])
    calm = measure_activity(ArrayRows(line), Picked([5, 4]))
    assert calm.opposing_pairs == 0 and calm.mean_cosine == pytest.approx(1.0)
    assert [step.opposing for step in calm.steps] == [0, 0]
    sign = np.array([1.0, -1.0, -1.0, -1.0])[:, None]
    torn = measure_activity(ArrayRows(sign * np.ones((4, 3))), Picked([0]))
    assert torn.steps == (ActivityStep(picks=1, remaining=3, opposing=3, share=1.0),)
    assert torn.opposing_pairs == 3


def test_a_mean_that_vanishes_is_no_direction() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.1], [-0.5, 0.1]])
    for hinge in (0.0, 0.5):
        for found in (
            measure_activity(ArrayRows(rows), Picked([0, 1], hinge=hinge)),
            activity_of_gram(rows @ rows.T, Picked([0, 1], hinge=hinge)),
        ):
            assert [step.opposing for step in found.steps] == [2, 0]


def test_rows_that_are_no_numbers_are_left_out() -> None:
    rows = cloud(20)
    rows[4] = np.nan
    members = np.arange(20) != 4
    for reference in ("selected", "pool"):
        picked = Picked([0, 1, 2], reference)
        found = measure_activity(ArrayRows(rows), picked, candidates=members)
        alone = measure_activity(ArrayRows(rows[members]), Picked([0, 1, 2], reference))
        assert found == alone
        assert activity_of_gram(rows @ rows.T, picked).steps == found.steps


def test_norms_fall_into_bins_that_pool_and_picks_share() -> None:
    norms = np.array([0.0, 1.0, 1.3, 1.5, 8.0, np.inf])
    members = np.array([True] * 6)
    found = norm_histogram(norms, members, np.array([4, 0, 1]))
    assert found.edges == pytest.approx([2 ** (at / 2) for at in range(0, 8)])
    assert found.pool == (2, 1, 0, 0, 0, 0, 1)
    assert found.picks == (1, 0, 0, 0, 0, 0, 1)
    assert list(found.to_pandas()["pool"]) == list(found.pool)
    assert norm_histogram(norms[:1], members[:1], np.array([0])) == NormHistogram(edges=(), pool=(), picks=())


def test_given_norms_stand_for_those_of_the_rows() -> None:
    rows = cloud(12)
    found = measure_activity(ArrayRows(rows), Picked([3]), squared_norms=np.full(12, 9.0))
    assert found.norms.pool == (12,) and found.norms.picks == (1,)
    assert found.norms.edges[0] <= 3.0 < found.norms.edges[1]


def test_pools_add_up() -> None:
    one = activity_of_gram(np.array([[1.0, -1.0], [-1.0, 1.0]]), Picked([0]))
    rows = 4.0 * np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    two = activity_of_gram(rows @ rows.T, Picked([2, 0]))
    both = merge_activities([one, two])
    assert both is not None
    assert (both.pools, both.sampled, both.pairs, both.opposing_pairs) == (2, 5, 4, 1)
    assert both.opposing_pairs_share == 0.25
    assert both.mean_cosine == pytest.approx((-1 + 0 + 2 * 0.5**0.5) / 4)
    assert both.steps == (
        ActivityStep(picks=1, remaining=3, opposing=1, share=1 / 3),
        ActivityStep(picks=2, remaining=1, opposing=0, share=0.0),
    )
    assert both.norms.edges == pytest.approx([2 ** (at / 2) for at in range(0, 7)])
    assert both.norms.pool == (2, 0, 0, 0, 2, 1) and both.norms.picks == (1, 0, 0, 0, 1, 1)
    assert merge_activities([both]) == both
    assert merge_activities([]) is None


def test_merging_parts_of_many_pools_does_not_depend_on_the_order() -> None:
    parts = []
    for seed in range(5):
        rows = cloud(30 + seed, seed=seed)
        parts.append(activity_of_gram(rows @ rows.T, Picked(list(range(3 + seed)))))
    forth, back = merge_activities(parts), merge_activities(parts[::-1])
    nested = merge_activities([x for x in (merge_activities(parts[:2]), merge_activities(parts[2:])) if x])
    assert forth is not None and back is not None and nested is not None
    for other in (back, nested):
        assert other.steps == forth.steps and other.norms == forth.norms
        assert other.mean_cosine == pytest.approx(forth.mean_cosine)
        assert other.pools == 5


def test_words_tables_and_json() -> None:
    found = measure_activity(ArrayRows(cloud(50)), Picked(list(range(20))))
    lines = found.describe()
    assert len(lines) <= 3
    assert lines[0].startswith("Pairs of rows with opposing gradients: ") and "1,225 pairs of 50 rows" in lines[0]
    assert "after 1 pick," in lines[1] and "after 20 picks" in lines[1] and "the picks' mean" in lines[1]
    table = found.to_pandas()
    assert list(table.columns) == ["picks", "remaining", "opposing", "share"] and len(table) == len(found.steps)
    assert ConflictActivity.model_validate_json(found.model_dump_json()) == found
    pool = measure_activity(ArrayRows(cloud(50)), Picked([1, 2], "pool", 0.1)).describe()
    assert "a cosine of 0.1 with the pool's mean" in pool[1]
    single = measure_activity(ArrayRows(cloud(1)), Picked([0]))
    assert single.steps == () and single.opposing_pairs_share is None and single.describe() == []
    nothing = measure_activity(ArrayRows(cloud(4)), Picked([]))
    assert nothing.steps == () and len(nothing.describe()) == 1
