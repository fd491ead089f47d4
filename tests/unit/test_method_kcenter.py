"""k-center: worked answers, an independent implementation, the covering radius and its guarantee."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from spice_select.methods import Choice, Need, make_method
from spice_select.methods import vectors as shared
from spice_select.selection.budget import Budget
from tests.vectors import choose, picks, random_vectors, vector_inputs, with_quotas

LINE = np.array([(1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (8.0, 1.0), (9.0, 1.0)])
"""Mean 4.8: the third row is nearest to it, the last farthest from it."""


def _radius(choice: Choice) -> float:
    (note,) = [note for note in choice.notes if note.startswith("Every row lies within")]
    found = re.search(r"distance of (\S+) of a chosen one", note)
    assert found is not None
    return float(found[1])


def test_worked_answer() -> None:
    found = choose("kcenter", vector_inputs(LINE, 4))
    assert found.indices.tolist() == [2, 4, 0, 1]
    assert np.isnan(found.scores[0])
    # Rows 1 and 3 are both at distance 1 from a pick, and the lower number wins.
    assert found.scores[1:].tolist() == pytest.approx([5.0, 3.0, 1.0])
    assert _radius(found) == pytest.approx(1.0)
    assert found.notes[0].endswith("no choice of as many rows has less than half of that (arXiv 1708.00489).")
    assert found.stop_reason == "budget" and not found.warnings


def test_where_it_starts() -> None:
    assert picks("kcenter", vector_inputs(LINE, 1)) == [2]
    assert picks("kcenter", vector_inputs(LINE, 1), start="farthest") == [4]
    drawn = {picks("kcenter", vector_inputs(LINE, 1, seed=seed), start="random")[0] for seed in range(40)}
    assert drawn == {0, 1, 2, 3, 4}
    again = [picks("kcenter", vector_inputs(LINE, 3, seed=7), start="random") for _ in range(2)]
    assert again[0] == again[1]


def test_cosine_compares_directions() -> None:
    vectors = np.array([(1.0, 0.0), (50.0, 1.0), (0.0, 3.0), (-0.1, 0.0), (2.0, 2.0)])
    found = choose("kcenter", vector_inputs(vectors, 4), metric="cosine")
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    for place in range(1, 4):
        earlier, left = found.indices[:place], np.setdiff1d(np.arange(5), found.indices[:place])
        distances = (1 - unit @ unit[earlier].T).min(axis=1)
        assert found.scores[place] == pytest.approx(distances[left].max(), abs=1e-12)
        assert distances[found.indices[place]] == pytest.approx(distances[left].max(), abs=1e-12)
    assert _radius(found) == pytest.approx((1 - unit @ unit[found.indices].T).min(axis=1).max(), rel=1e-4)
    assert "a quarter" in found.notes[0]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_submodlib(seed: int) -> None:
    # Maximising the least distance among the chosen picks the same row as farthest first does, whose distances never
    # grow. submodlib's first two picks are its own: one row has no distance, and its gain is no distance of the second
    # row to the first alone; both are handed to us as rows in hand.
    vectors = random_vectors(30, 5, seed)
    distances = cdist(vectors, vectors)
    with warnings.catch_warnings():
        # It names scipy's matrix class by its former place.
        warnings.simplefilter("ignore", DeprecationWarning)
        library = pytest.importorskip("submodlib", reason="submodlib-py is not installed")
        theirs = library.DisparityMinFunction(n=30, mode="dense", sijs=1 - distances / distances.max()).maximize(
            budget=10,
            optimizer="NaiveGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
    rows = [row for row, _ in theirs]
    candidates = np.ones(30, dtype=bool)
    candidates[rows[:2]] = False
    found = choose("kcenter", vector_inputs(vectors, 8, candidates=candidates, in_hand=rows[:2]))
    assert found.indices.tolist() == rows[2:]
    # Its gains are differences of the least distance, in units of the largest.
    values = np.cumsum([gain for _, gain in theirs])[2:] * distances.max()
    np.testing.assert_allclose(found.scores, values, rtol=1e-4)


def test_rows_in_hand_are_centers() -> None:
    candidates = np.array([True, True, True, True, False])
    inputs = vector_inputs(LINE, 2, candidates=candidates, in_hand=[4])
    found = choose("kcenter", inputs, start="random")
    assert found.indices.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([8.0, 3.0])
    assert _radius(found) == pytest.approx(1.0)
    assert "beside those in hand" in found.notes[0]


def test_copies_come_last_by_row_number() -> None:
    vectors = random_vectors(40, 300, seed=1).astype(np.float32) * 100 + 50
    twice = np.concatenate([vectors, vectors])
    found = choose("kcenter", vector_inputs(twice, 80))
    assert sorted(row % 40 for row in found.indices[:40]) == list(range(40))
    assert found.scores[40:].tolist() == [0.0] * 40
    assert found.indices[40:].tolist() == sorted(found.indices[40:])


def test_rows_of_zeros_are_never_chosen_nor_covered() -> None:
    vectors = np.concatenate([LINE, np.zeros((2, 2))])
    found = choose("kcenter", vector_inputs(vectors, 7))
    assert sorted(found.indices.tolist()) == [0, 1, 2, 3, 4]
    assert found.stop_reason == "exhausted"
    assert found.warnings[0].startswith("5 of the 7 rows asked for were chosen, as no other row that may be chosen has")
    assert "2 rows have embeddings of nothing but zeros, and are never chosen." in found.notes
    assert _radius(choose("kcenter", vector_inputs(vectors, 2))) == pytest.approx(3.0)
    assert len(choose("kcenter", vector_inputs(np.zeros((3, 2)), 2))) == 0


def test_no_guarantee_is_claimed_under_quotas_or_tokens() -> None:
    tokens = choose("kcenter", vector_inputs(LINE, Budget(5, tokens=2)))
    assert tokens.indices.tolist() == [2, 4] and tokens.stop_reason == "tokens"
    quotas = choose("kcenter", with_quotas(LINE, 2, list("aaabb"), {"b": {"max": 0}}))
    assert set(quotas.indices) <= {0, 1, 2}
    for found in (tokens, quotas):
        assert "half" not in " ".join(found.notes)


def test_embeddings_far_from_the_origin_lose_nothing() -> None:
    vectors = random_vectors(30, 4, seed=0)
    here = choose("kcenter", vector_inputs(vectors, 10))
    far = choose("kcenter", vector_inputs(vectors + 1e6, 10))
    assert here.indices.tolist() == far.indices.tolist()
    np.testing.assert_allclose(far.scores, here.scores, rtol=1e-6)
    small = choose("kcenter", vector_inputs(vectors * 1e-9, 10))
    assert here.indices.tolist() == small.indices.tolist()


def test_reading_anew_gives_the_same_as_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(60, 5, seed=2)
    held = choose("kcenter", vector_inputs(vectors, 20))
    monkeypatch.setattr(shared, "HELD_BYTES", 0)
    monkeypatch.setattr(shared, "_BLOCK_BYTES", 8 * 5 * 7)
    monkeypatch.setattr(shared, "AHEAD", 1)
    anew = choose("kcenter", vector_inputs(vectors, 20))
    assert held.indices.tolist() == anew.indices.tolist()
    np.testing.assert_allclose(held.scores, anew.scores, atol=1e-9)


def test_what_it_needs() -> None:
    assert make_method("kcenter").required() == {Need.EMBEDDINGS}
    assert make_method("kcenter", {"features": "gradients"}).required() == {Need.GRADIENTS}
