"""SemDeDup: worked answers, thresholds, which of several copies is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import Need, make_method, semdedup
from spice_select.selection.budget import Budget
from tests.vectors import PLANE, choose, picks, random_vectors, vector_inputs, with_quotas


def test_worked_answer() -> None:
    # The direction of the mean is (.676, .737), and the cosines with it are .676, .983, .737, .184 and .676, so that
    # the order from the farthest on is 3, 0, 4, 2, 1. Largest cosines with an earlier row: none, -.6, 1, .8, .8.
    found = choose("semdedup", vector_inputs(PLANE, 5), clusters=1)
    assert found.pool_scores is not None
    assert found.pool_scores.tolist() == pytest.approx([1.6, 0.2, 0.2, 2.0, 0.0])
    assert found.indices.tolist() == [3, 0, 1, 2, 4]
    assert found.scores.tolist() == pytest.approx([2.0, 1.6, 0.2, 0.2, 0.0])
    assert picks("semdedup", vector_inputs(PLANE, 2), clusters=1) == [3, 0]
    # From the nearest on: 1, 2, 0, 4, 3.
    near = choose("semdedup", vector_inputs(PLANE, 5), clusters=1, keep="nearest")
    assert near.pool_scores is not None
    assert near.pool_scores.tolist() == pytest.approx([0.2, 2.0, 0.4, 0.2, 0.0])


@pytest.mark.parametrize(("eps", "left"), [(0.1, [0, 1, 2, 3]), (0.2 - 1e-9, [0, 1, 2, 3]), (0.3, [0, 3]), (1.7, [3])])
def test_a_fixed_eps_draws_from_what_is_left(eps: float, left: list[int]) -> None:
    found = choose("semdedup", vector_inputs(PLANE, len(left)), clusters=1, eps=eps)
    assert sorted(found.indices.tolist()) == left
    assert f"{len(left)} of 5 rows are left without duplicates, 1 clusters." in found.notes
    drawn = {picks("semdedup", vector_inputs(PLANE, 1, seed=seed), clusters=1, eps=eps)[0] for seed in range(60)}
    assert drawn == set(left)


def test_too_few_left_is_told() -> None:
    found = choose("semdedup", vector_inputs(PLANE, 3), clusters=1, eps=0.3)
    assert sorted(found.indices.tolist()) == [0, 3] and found.stop_reason == "exhausted"
    assert found.warnings == (
        "2 of the 3 rows asked for were chosen, as all others are duplicates at eps 0.3; lower method.eps, or leave it "
        "out to have the least redundant rows.",
    )


def test_the_paper_compares_with_every_earlier_row_kept_or_not() -> None:
    # A chain in which each row is a duplicate of the next alone. From the center on: 1, 2, 0, 3. Row 3 is left out for
    # the sake of row 2, which is left out itself.
    angles = np.deg2rad([0.0, 20.0, 40.0, 60.0])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = choose("semdedup", vector_inputs(chain, 1), clusters=1, eps=0.1, keep="nearest")
    assert found.indices.tolist() == [1]
    assert "1 of 4 rows are left without duplicates, 1 clusters." in found.notes


def test_clusters_of_their_own_are_not_compared() -> None:
    generator = np.random.default_rng(0)
    centers = np.eye(4)
    vectors = np.concatenate([center + 0.01 * generator.normal(size=(10, 4)) for center in centers])
    found = choose("semdedup", vector_inputs(vectors, 4), clusters=4)
    assert sorted(row // 10 for row in found.indices) == [0, 1, 2, 3]
    assert found.scores.tolist() == [2.0] * 4
    assert "4 clusters." in found.notes
    # The farthest row of each from its center.
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    for pick in found.indices:
        members = unit[pick // 10 * 10 : pick // 10 * 10 + 10]
        center = members.mean(axis=0)
        assert np.argmin(members @ center) == pick % 10


def test_fewer_different_rows_than_clusters() -> None:
    found = choose("semdedup", vector_inputs(np.repeat(PLANE[:3], 4, axis=0), 3), clusters=6)
    assert sorted(row // 4 for row in found.indices) == [0, 1, 2]
    assert "3 clusters." in found.notes and not found.warnings
    assert [row % 4 for row in found.indices] == [0, 0, 0], "of copies the first row stays"


def test_chosen_copies_are_told() -> None:
    found = choose("semdedup", vector_inputs(np.repeat(PLANE[:3], 4, axis=0), 5), clusters=1)
    assert len(found) == 5
    assert found.warnings[0].startswith("2 of the 5 rows chosen are copies of others by their embeddings")


def test_auto_clusters() -> None:
    vectors = random_vectors(100, 6, seed=0)
    assert "10 clusters." in choose("semdedup", vector_inputs(vectors, 50)).notes
    assert "3 clusters." in choose("semdedup", vector_inputs(vectors, 3)).notes


def test_rows_in_hand_make_others_redundant() -> None:
    candidates = np.array([True, True, True, True, False])
    found = choose("semdedup", vector_inputs(PLANE, 4, candidates=candidates, in_hand=[4]), clusters=1)
    assert found.indices[-1] == 0 and found.scores[-1] == 0.0
    assert found.pool_scores is not None and np.isnan(found.pool_scores[4])


def test_keep_random_is_seeded() -> None:
    vectors = random_vectors(60, 5, seed=1)
    orders = [picks("semdedup", vector_inputs(vectors, 20, seed=seed), keep="random") for seed in (0, 0, 1)]
    assert orders[0] == orders[1] and orders[0] != orders[2]


def test_large_clusters_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(50, 5, seed=1)
    whole = choose("semdedup", vector_inputs(vectors, 50), clusters=1)
    monkeypatch.setattr(semdedup, "_PIECE", 7)
    pieces = choose("semdedup", vector_inputs(vectors, 50), clusters=1)
    assert whole.indices.tolist() == pieces.indices.tolist()
    np.testing.assert_allclose(whole.scores, pieces.scores, atol=1e-12)


def test_rows_of_zeros_are_never_chosen() -> None:
    vectors = np.concatenate([PLANE[:4], np.zeros((2, 2))])
    for settings in ({}, {"eps": 0.0}):
        found = choose("semdedup", vector_inputs(vectors, 6), clusters=1, **settings)
        assert sorted(found.indices.tolist()) == [0, 1, 2, 3] and found.warnings
        assert "2 rows have embeddings of nothing but zeros, and are never chosen." in found.notes
    assert len(choose("semdedup", vector_inputs(np.zeros((3, 2)), 2))) == 0


def test_tokens_and_quotas_with_a_fixed_eps() -> None:
    vectors = random_vectors(40, 20, seed=3)
    lengths = np.arange(1, 41)
    found = choose("semdedup", vector_inputs(vectors, Budget(40, tokens=90), response_tokens=lengths), eps=0.01)
    assert lengths[found.indices].sum() <= 90 and found.stop_reason == "tokens"
    shared = choose("semdedup", with_quotas(vectors, 10, ["a", "b"] * 20, {"a": {"min": 7}}), eps=0.01)
    assert sum(row % 2 == 0 for row in shared.indices) >= 7 and len(shared) == 10


def test_what_it_needs_and_refuses() -> None:
    assert make_method("semdedup").required() == {Need.EMBEDDINGS}
    bad: list[dict[str, Any]] = [{"eps": -0.1}, {"eps": 2.5}, {"clusters": 0}, {"keep": "easy"}]
    for settings in bad:
        (field,) = settings
        with pytest.raises(ConfigError, match=f"method.{field}"):
            make_method("semdedup", settings)
