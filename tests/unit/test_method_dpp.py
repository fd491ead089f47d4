"""DPP: worked answers, an independent implementation, early stops, and what the settings refuse."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import Need, make_method
from spice_select.methods import vectors as shared
from spice_select.selection.budget import Budget
from tests.vectors import PLANE, choose, picks, random_vectors, vector_inputs


def _rbf(vectors: np.ndarray, gamma: float) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    return np.exp(-gamma * ((unit[:, None] - unit[None]) ** 2).sum(axis=-1))


def test_worked_answer() -> None:
    kernel = _rbf(PLANE, 1.0)
    assert kernel[0, 1:4].tolist() == pytest.approx([0.670320, 0.135335, 0.040762], abs=1e-6)
    assert [kernel[1, 2], kernel[1, 3], kernel[2, 3]] == pytest.approx([0.449329, 0.135335, 0.670320], abs=1e-6)
    found = choose("dpp", vector_inputs(PLANE, 5), gamma=1.0)
    assert found.indices.tolist() == [0, 3, 1, 2]
    assert np.exp(found.scores).tolist() == pytest.approx([1, 0.998338, 0.538985, 0.386498], abs=1e-6)
    assert np.cumsum(found.scores).tolist() == pytest.approx([0, -0.001663, -0.619730, -1.570359], abs=1e-6)
    assert found.stop_reason == "exhausted"
    (warning,) = found.warnings
    assert warning.startswith("4 of the 5 rows asked for were chosen, as the gradients of all other rows are copies")


@pytest.mark.parametrize(("theta", "expected"), [(0.5, [1, 3, 4]), (0.9, [1, 4, 3])])
def test_worked_answers_with_quality(theta: float, expected: list[int]) -> None:
    quality = np.array([1, 2, 1, 1, 1.5])
    inputs = vector_inputs(PLANE, 3, losses=quality)
    assert picks("dpp", inputs, gamma=1.0, quality="loss", theta=theta) == expected
    # A perplexity ratio of e^x has the logarithm x.
    inputs = vector_inputs(PLANE, 3, losses=np.log(quality) + 2.0, direct_losses=np.full(5, 2.0))
    assert picks("dpp", inputs, gamma=1.0, quality="ifd", theta=theta) == expected


def test_theta_zero_is_diversity_alone_and_one_quality_alone() -> None:
    inputs = vector_inputs(PLANE, 4, losses=np.array([1, 2, 1, 1, 1.5]))
    alone = picks("dpp", vector_inputs(PLANE, 4), gamma=1.0)
    assert picks("dpp", inputs, gamma=1.0, quality="loss", theta=0.0) == alone
    assert picks("dpp", inputs, gamma=1.0, quality="loss", theta=1.0) == [1, 4, 2, 3]


@pytest.mark.parametrize(
    ("kernel", "gamma", "of_cosine"),
    [
        ("rbf", 0.7, lambda c: np.exp(-0.7 * (2 - 2 * c))),
        ("vmf", 3.0, lambda c: np.exp(3.0 * (c - 1) / 2)),
        ("linear", "auto", lambda c: (c + 1) / 2),
        ("cosine", "auto", lambda c: c),
    ],
)
def test_scores_add_up_to_the_log_determinant(kernel: str, gamma: Any, of_cosine: Any) -> None:
    vectors = random_vectors(30, 8, seed=1)
    found = choose("dpp", vector_inputs(vectors, 8), kernel=kernel, gamma=gamma)
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    matrix = of_cosine(unit @ unit.T)[np.ix_(found.indices, found.indices)]
    assert found.scores.sum() == pytest.approx(np.linalg.slogdet(matrix)[1], abs=1e-8)
    assert found.indices[0] == 0, "every row is alike before the first, and the lowest number wins"


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_submodlib(seed: int) -> None:
    # DPPy 0.3.3 samples from DPPs and has no greedy MAP; submodlib's log-determinant function is an independent
    # implementation of the same algorithm. It takes any row where all are alike, as all are before the first pick, so
    # that its first is made ours by putting it in front; no other picks tie in random rows.
    with warnings.catch_warnings():
        # It names scipy's matrix class by its former place.
        warnings.simplefilter("ignore", DeprecationWarning)
        library = pytest.importorskip("submodlib", reason="submodlib-py is not installed")
        vectors = random_vectors(40, 6, seed)
        theirs = library.LogDeterminantFunction(n=40, mode="dense", lambdaVal=0, sijs=_rbf(vectors, 1.0)).maximize(
            budget=12,
            optimizer="NaiveGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
    order = np.array([theirs[0][0], *(row for row in range(40) if row != theirs[0][0])])
    ours = choose("dpp", vector_inputs(vectors[order], 12), gamma=1.0)
    assert order[ours.indices].tolist() == [row for row, _ in theirs]
    assert ours.scores.tolist() == pytest.approx([gain for _, gain in theirs], abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_every_pick_has_the_largest_determinant_by_dppy(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("dppy.utils", reason="dppy is not installed")
    vectors = random_vectors(15, 4, seed)
    kernel = _rbf(vectors, 1.0)
    found = picks("dpp", vector_inputs(vectors, 6), gamma=1.0)
    for size in range(1, 6):
        earlier = found[:size]
        values = {row: utils.det_ST(kernel, [*earlier, row]) for row in range(15) if row not in earlier}
        assert values[found[size]] == pytest.approx(max(values.values()), rel=1e-9)


def test_rank_deficiency_stops_early_and_says_why() -> None:
    vectors = random_vectors(20, 3, seed=0)
    for kernel, rank in (("cosine", 3), ("linear", 4)):
        found = choose("dpp", vector_inputs(vectors, 10), kernel=kernel)
        assert (len(found), found.stop_reason) == (rank, "exhausted")
        assert f"the {kernel} kernel of their gradients" in found.warnings[0]
        assert found.warnings[0].endswith("set method.kernel to rbf, or method.fill to random.")
    flat = choose("dpp", vector_inputs(vectors, 20), gamma=1e-3)
    assert len(flat) < 20
    assert flat.warnings[0].endswith("raise method.gamma, or set method.fill to random.")


def test_the_fill_is_drawn_and_counted() -> None:
    vectors = random_vectors(20, 3, seed=0)
    vectors[4] = 0.0
    found = choose("dpp", vector_inputs(vectors, 20, seed=5), kernel="cosine", fill="random")
    assert sorted(found.indices) == list(range(20))
    assert found.indices[-1] == 4, "a row without a direction comes after all others"
    assert np.isnan(found.scores).tolist() == [False] * 3 + [True] * 17
    assert not found.warnings
    assert any(note.startswith("17 rows were drawn at random after the first 3, as the cosine") for note in found.notes)
    again = picks("dpp", vector_inputs(vectors, 20, seed=5), kernel="cosine", fill="random")
    other = picks("dpp", vector_inputs(vectors, 20, seed=6), kernel="cosine", fill="random")
    assert found.indices.tolist() == again
    assert other[:3] == again[:3] and other != again


def test_gamma_auto_tells_enough_rows_apart() -> None:
    # Directions in a plane: with gamma 1 the kernel has a numerical rank of about fifteen.
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fixed = choose("dpp", vector_inputs(circle, 120), gamma=1.0)
    assert len(fixed) < 40
    for kernel in ("rbf", "vmf"):
        found = choose("dpp", vector_inputs(circle, 120), kernel=kernel)
        assert len(found) == 120 and not found.warnings
        assert any(note.startswith(f"Kernel {kernel} with gamma ") for note in found.notes)


def test_gamma_auto_is_one_over_the_median_squared_distance() -> None:
    vectors = random_vectors(40, 30, seed=3)
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    squared = ((unit[:, None] - unit[None]) ** 2).sum(axis=-1)[np.triu_indices(40, 1)]
    gamma = float(1 / np.median(squared))
    found = choose("dpp", vector_inputs(vectors, 10))
    assert found.indices.tolist() == picks("dpp", vector_inputs(vectors, 10), gamma=gamma)
    assert found.notes == (f"Kernel rbf with gamma {gamma:.6g}.",)
    # The vmf kernel with four times the gamma is the same kernel.
    assert found.indices.tolist() == picks("dpp", vector_inputs(vectors, 10), kernel="vmf")


def test_copies_end_the_search_for_gamma() -> None:
    found = choose("dpp", vector_inputs(np.repeat(PLANE[:4], 5, axis=0), 9))
    assert sorted(found.indices.tolist()) == [0, 5, 10, 15]
    assert "copies" in found.warnings[0] and found.warnings[0].endswith("or set method.fill to random.")
    assert len(choose("dpp", vector_inputs(np.ones((3, 2)), 2))) == 1


def test_rows_of_zeros_are_never_chosen() -> None:
    vectors = np.concatenate([PLANE[:4], np.zeros((3, 2))])
    found = choose("dpp", vector_inputs(vectors[::-1], 6))
    assert sorted(found.indices.tolist()) == [3, 4, 5, 6]
    assert "3 rows have gradients of nothing but zeros, and are never chosen." in found.notes
    nothing = choose("dpp", vector_inputs(np.zeros((4, 2)), 2))
    assert len(nothing) == 0 and nothing.warnings


def test_rows_in_hand_are_chosen_already() -> None:
    candidates = np.array([False, True, True, True, True])
    found = picks("dpp", vector_inputs(PLANE, 3, candidates=candidates, in_hand=[0]), gamma=1.0)
    assert found == [3, 1, 2]


def test_rows_without_a_quality_are_never_chosen() -> None:
    losses = np.array([1.0, np.nan, 2.0, np.nan, 1.0])
    found = choose("dpp", vector_inputs(PLANE, 4, losses=losses), gamma=1.0, quality="loss")
    assert found.indices.tolist() == [2, 0]
    assert "copies" in found.warnings[0]
    spread = choose("dpp", vector_inputs(np.eye(5), 4, losses=losses), quality="loss")
    assert sorted(spread.indices) == [0, 2, 4]
    assert "no other row has a loss to take for its quality" in spread.warnings[0]


def test_tokens_that_are_left_are_told() -> None:
    inputs = vector_inputs(PLANE, Budget(5, tokens=100), response_tokens=np.full(5, 10))
    found = choose("dpp", inputs, gamma=1.0)
    assert found.stop_reason == "exhausted"
    assert found.warnings[0].startswith("Tokens are left of the budget after 4 rows, as the gradients")
    used_up = choose("dpp", vector_inputs(PLANE, Budget(5, tokens=25), response_tokens=np.full(5, 10)), gamma=1.0)
    assert (used_up.indices.tolist(), used_up.stop_reason, used_up.warnings) == ([0, 3], "tokens", ())


def test_reading_anew_gives_the_same_as_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(60, 5, seed=2)
    held = choose("dpp", vector_inputs(vectors, 20))
    monkeypatch.setattr(shared, "HELD_BYTES", 0)
    monkeypatch.setattr(shared, "_BLOCK_BYTES", 8 * 5 * 7)
    monkeypatch.setattr(shared, "AHEAD", 1)
    anew = choose("dpp", vector_inputs(vectors, 20))
    assert held.indices.tolist() == anew.indices.tolist()
    np.testing.assert_allclose(held.scores, anew.scores, atol=1e-9)


def test_what_it_needs() -> None:
    assert make_method("dpp").required() == {Need.GRADIENTS}
    assert make_method("dpp", {"features": "embeddings"}).required() == {Need.EMBEDDINGS}
    assert make_method("dpp", {"quality": "loss"}).required() == {Need.GRADIENTS, Need.LOSSES}
    ifd = make_method("dpp", {"quality": "ifd", "features": "embeddings"}).required()
    assert ifd == {Need.EMBEDDINGS, Need.LOSSES, Need.DIRECT_LOSSES}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"theta": 0.5}, "theta weighs a quality"),
        ({"kernel": "cosine", "gamma": 1.0}, "kernel 'cosine' has no gamma"),
        ({"gamma": -1.0}, "'method.gamma'"),
        ({"kernel": "polynomial"}, "'method.kernel'"),
        ({"gama": 1.0}, "did you mean 'method.gamma'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_method("dpp", settings)
