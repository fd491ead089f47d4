"""SelectIT against the formulas written out, on any ratings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spice_select.methods import Inputs
from spice_select.methods.selectit import SelectIt
from spice_select.selection.budget import Budget


@st.composite
def rated(draw: st.DrawFn) -> np.ndarray:
    """Probabilities with ties and zeros; rows may repeat."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(2, 9)))
    return draw(arrays.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1e-6, 0.01, 0.05, 0.1])))


def _inputs(ratings: np.ndarray, k: int) -> Inputs:
    n = len(ratings)
    return Inputs(n, np.ones(n, dtype=bool), np.ones(n, dtype=np.int64), ["rows"] * n, Budget(k), ratings=ratings)


def _score(prompts: Sequence[Sequence[float]], alpha: float, double: bool) -> float:
    scores = []
    for probabilities in prompts:
        total = sum(probabilities)
        if not total:
            return math.nan
        shares = [p / total for p in probabilities]
        if double:
            powers = [math.exp(share) for share in shares]
            shares = [power / sum(powers) for power in powers]
        base = max(range(len(shares)), key=lambda s: (shares[s], s))
        scores.append((base + 1) * sum(shares[base] - share for share in shares) / (len(shares) - 1))
    mean = sum(scores) / len(scores)
    return mean / (1 + alpha * math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)))


@given(rated(), st.sampled_from([0.0, 0.2, 3.0]), st.booleans(), st.data())
def test_scores_and_order_are_the_definition(
    ratings: np.ndarray, alpha: float, double: bool, data: st.DataObject
) -> None:
    n, _, levels = ratings.shape
    k = data.draw(st.integers(1, n))
    method = SelectIt(alpha=alpha, double_softmax=double, levels=levels)
    choice = method.choose(_inputs(ratings, k))
    expected = np.array([_score(row.tolist(), alpha, double) for row in ratings])
    assert choice.pool_scores is not None
    np.testing.assert_allclose(choice.pool_scores, expected, rtol=1e-9, atol=1e-12)
    assert np.nanmin(expected, initial=0) >= -1e-12 and np.nanmax(expected, initial=0) <= levels + 1e-9
    known = [index for index in range(n) if not math.isnan(expected[index])]
    assert len(choice) == min(k, len(known)) and len(set(choice.indices.tolist())) == len(choice)
    assert set(choice.indices.tolist()) <= set(known)
    left = [choice.pool_scores[index] for index in known if index not in choice.indices.tolist()]
    assert (np.diff(choice.scores) <= 0).all() and (not left or max(left) <= choice.scores.min(initial=np.inf))
    assert bool(choice.warnings) == (len(known) < k)


@given(rated(), st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(ratings: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(ratings))
    method = SelectIt(levels=ratings.shape[2])
    plain = method.choose(_inputs(ratings, len(ratings)))
    mixed = method.choose(_inputs(ratings[order], len(ratings)))
    assert plain.pool_scores is not None and mixed.pool_scores is not None
    np.testing.assert_array_equal(mixed.pool_scores, plain.pool_scores[order])
    np.testing.assert_array_equal(mixed.scores, plain.scores)
