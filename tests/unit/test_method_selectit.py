"""SelectIT against worked answers, and rows without ratings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import Inputs, make_method
from spice_select.methods.selectit import SelectIt, model_scores, sentence_scores, token_scores
from spice_select.selection.budget import Budget

FIVE = [
    (0.05, 0.05, 0.1, 0.2, 0.4),
    (0, 0.1, 0.1, 0.5, 0.1),
    (0.1, 0.1, 0.2, 0.4, 0.2),
    (0.05, 0.05, 0.2, 0.2, 0.5),
    (0.3, 0.1, 0.1, 0.1, 0.1),
]


def _inputs(ratings: Any, k: int, **more: Any) -> Inputs:
    values = np.asarray(ratings, dtype=np.float64)
    n = len(values)
    settings = {"candidates": np.ones(n, dtype=bool), "response_tokens": np.ones(n, dtype=np.int64), **more}
    return Inputs(n=n, sources=["rows"] * n, budget=Budget(k), ratings=values, **settings)


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [*zip(FIVE, (0.413390, 0.490378, 0.213858, 0.413609, 0.062039), strict=True), ((0, 0, 0, 1, 0), 1.023048)],
)
def test_the_worked_token_scores(probabilities: tuple[float, ...], score: float) -> None:
    assert token_scores(np.array([[probabilities]]))[0, 0] == pytest.approx(score, abs=1e-6)


def test_the_worked_sentence_score() -> None:
    scores = token_scores(np.array([FIVE]))
    assert scores.mean() == pytest.approx(0.318655, abs=1e-6) and scores.std() == pytest.approx(0.157679, abs=1e-6)
    assert sentence_scores(scores, 0.2) == pytest.approx([0.308913], abs=1e-6)
    choice = SelectIt().choose(_inputs([FIVE], 1))
    assert choice.indices.tolist() == [0] and choice.scores == pytest.approx([0.308913], abs=1e-6)
    assert choice.pool_scores is not None and not choice.warnings
    # Without the penalty it is the mean.
    assert SelectIt(alpha=0).choose(_inputs([FIVE], 1)).scores == pytest.approx([0.318655], abs=1e-6)


@pytest.mark.parametrize("double", [True, False])
def test_equal_probabilities_score_nothing(double: bool) -> None:
    np.testing.assert_allclose(token_scores(np.full((1, 2, 5), 0.01), double_softmax=double), 0, atol=1e-12)


def test_shares_as_the_paper_has_them() -> None:
    # Shares .0625 .0625 .125 .25 .5: five times the mean lead of .5.
    assert token_scores(np.array([[FIVE[0]]]), double_softmax=False)[0, 0] == pytest.approx(5 * (5 * 0.5 - 1) / 4)
    # A sure rating gets its whole number.
    assert token_scores(np.array([[[0, 0, 0, 0.2, 0]]]), double_softmax=False)[0, 0] == pytest.approx(4)


def test_of_equally_likely_ratings_the_higher_counts() -> None:
    tied = np.array([[[0.4, 0, 0, 0.4, 0]]])
    assert token_scores(tied, double_softmax=False)[0, 0] == pytest.approx(4 * 1.5 / 4)
    assert token_scores(np.array([[[0.4, 0, 0, 0.39, 0]]]), double_softmax=False)[0, 0] < 0.6


def test_other_scales() -> None:
    assert token_scores(np.array([[[0.0, 1.0]]]), double_softmax=False)[0, 0] == 2
    assert token_scores(np.array([[[0.0] * 8 + [1.0]]]), double_softmax=False)[0, 0] == 9


def test_better_rated_rows_come_first_and_ties_by_number() -> None:
    high, low = [(0.0, 0, 0, 0, 0.9)], [(0.9, 0.0, 0, 0, 0)]
    assert SelectIt(prompts=1).choose(_inputs([low, high, low, high], 4)).indices.tolist() == [1, 3, 0, 2]


def test_rows_without_ratings_are_never_chosen_and_missed() -> None:
    ratings = np.array([[FIVE[0]] * 5, [(0,) * 5] * 5, [FIVE[0]] * 4 + [(0,) * 5], [FIVE[4]] * 5])
    choice = SelectIt().choose(_inputs(ratings, 3))
    assert choice.indices.tolist() == [0, 3]
    assert choice.warnings[0].startswith("2 of the 3 rows asked for were chosen, as the proxy gives no other row")


def test_rows_that_may_not_be_chosen() -> None:
    ratings = np.array([[FIVE[0]], [FIVE[1]], [FIVE[4]]])
    choice = SelectIt().choose(_inputs(ratings, 2, candidates=np.array([True, False, True])))
    assert choice.indices.tolist() == [0, 2]


@pytest.mark.parametrize(
    "settings", [{"prompts": 0}, {"prompts": 10}, {"levels": 1}, {"alpha": -0.1}, {"double_softmx": False}]
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))[:8]):
        make_method("selectit", settings)


def test_the_worked_scores_of_several_models() -> None:
    scores = np.array([[0.30, 0.40, 0.50]])
    assert model_scores(scores, (7, 13, 70)) == pytest.approx([0.47], abs=1e-6)
    assert model_scores(scores, (7, 13, 70), official=True) == pytest.approx([0.753889], abs=1e-6)
    assert model_scores(scores[:, :1], (7,)) == pytest.approx([0.30])
