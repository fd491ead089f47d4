"""FisherSFT against the definition, on any rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.methods.fisher_sft import FisherSft
from spice_select.selection.greedy import slack
from tests.token_features import information, token_inputs


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    """Rows with few distinct states, so that there are ties and duplicates; some are long, some are of zeros."""
    dim = draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = generator.normal(size=(draw(st.integers(1, 5)), dim)) * generator.choice([0.0, 1.0, 30.0], size=(1, dim))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=9))
    rows = [kinds[generator.integers(0, len(kinds), size=length)] for length in lengths]
    return rows, draw(st.integers(1, len(rows)))


def _brute(rows: list[np.ndarray], k: int) -> list[int]:
    picks: list[int] = []
    for _ in range(k):
        now = information(rows, picks)
        rest = [index for index in range(len(rows)) if index not in picks]
        gains = [information(rows, [*picks, index]) - now for index in rest]
        best = max(gains)
        picks.append(next(i for i, gain in zip(rest, gains, strict=True) if gain >= best - slack(best)))
    return picks


@settings(max_examples=150)
@given(pools())
def test_both_loops_are_the_definition(pool: tuple[list[np.ndarray], int]) -> None:
    rows, k = pool
    lazy = FisherSft().choose(token_inputs(rows, k))
    exact = FisherSft(loop="exact").choose(token_inputs(rows, k))
    assert lazy.indices.tolist() == exact.indices.tolist() == _brute(rows, k)
    assert len(set(lazy.indices.tolist())) == k
    np.testing.assert_allclose(lazy.scores, exact.scores, rtol=1e-9, atol=1e-12)
    # A marginal gain never grows: the scores of the picks fall, the tie rule aside.
    assert all(later <= earlier + slack(earlier) for earlier, later in zip(lazy.scores, lazy.scores[1:], strict=False))
    again = FisherSft().choose(token_inputs(rows, k))
    assert again.indices.tolist() == lazy.indices.tolist() and again.scores.tolist() == lazy.scores.tolist()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6))
def test_the_order_of_rows_does_not_matter(seed: int, count: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [generator.normal(size=(generator.integers(1, 9), dim)) for _ in range(count)]
    order = generator.permutation(count)
    k = int(generator.integers(1, count + 1))
    plain = FisherSft().choose(token_inputs(rows, k))
    mixed = FisherSft().choose(token_inputs([rows[index] for index in order], k))
    assert order[mixed.indices].tolist() == plain.indices.tolist()


@settings(max_examples=60)
@given(pools(), st.integers(1, 30))
def test_budgets_in_tokens_and_rows_in_hand(pool: tuple[list[np.ndarray], int], tokens: int) -> None:
    rows, k = pool
    candidates = np.arange(len(rows)) != k - 1
    inputs = token_inputs(rows, len(rows), tokens=tokens, candidates=candidates, in_hand=[k - 1])
    lazy, exact = FisherSft().choose(inputs), FisherSft(loop="exact").choose(inputs)
    assert lazy.indices.tolist() == exact.indices.tolist()
    assert sum(len(rows[index]) for index in lazy.indices) <= tokens
    assert k - 1 not in lazy.indices.tolist()
    gained = information(rows, [k - 1, *lazy.indices.tolist()]) - information(rows, [k - 1])
    np.testing.assert_allclose(lazy.scores.sum(), gained, rtol=1e-7, atol=1e-9)
