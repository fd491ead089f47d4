"""What must hold of every diversity measure, whatever the rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spice_select.analysis.ldd import ldd_wang, logdet_similarity
from spice_select.analysis.novel_sum import novelsum
from spice_select.analysis.overlap import expected_jaccard, overlaps
from spice_select.analysis.vendi_score import g_vendi, vendi, vendi_of_kernel

MEASURES = {
    "novelsum paper": lambda rows: float(novelsum(rows, neighbours=3)),
    "novelsum official": lambda rows: float(novelsum(rows, mode="official", neighbours=3)),
    "vendi": lambda rows: float(vendi(rows)),
    "vendi 2": lambda rows: float(vendi(rows, q=2)),
    "g_vendi": lambda rows: float(g_vendi(rows)),
    "ldd": lambda rows: float(ldd_wang(rows, ridge=0.01)),
    "logdet": lambda rows: float(logdet_similarity(rows)),
}


@st.composite
def generic_rows(draw: st.DrawFn) -> np.ndarray:
    """Rows without ties: distances of random rows all differ."""
    n, d = draw(st.integers(2, 14)), draw(st.integers(2, 9))
    return np.random.default_rng(draw(st.integers(0, 2**31))).standard_normal((n, d))


@st.composite
def odd_rows(draw: st.DrawFn) -> np.ndarray:
    """Small whole numbers: copies, opposites and orthogonal rows abound."""
    n, d = draw(st.integers(1, 10)), draw(st.integers(1, 6))
    rows = draw(arrays(np.float64, (n, d), elements=st.integers(-2, 2).map(float)))
    rows[0, 0] = rows[0, 0] or 1.0
    return rows


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=40)
@given(rows=generic_rows(), seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(name: str, rows: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    assert MEASURES[name](rows[order]) == pytest.approx(MEASURES[name](rows), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=40)
@given(rows=generic_rows(), seed=st.integers(0, 1000))
def test_neither_the_scale_of_a_row_nor_a_rotation_matters(name: str, rows: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = np.exp(random.uniform(-5, 5, (len(rows), 1)))
    turn = np.linalg.qr(random.standard_normal((rows.shape[1], rows.shape[1])))[0]
    assert MEASURES[name]((rows * scales) @ turn) == pytest.approx(MEASURES[name](rows), rel=1e-7, abs=1e-8)


@settings(max_examples=200)
@given(rows=odd_rows(), q=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 10.0, math.inf]))
def test_vendi_lies_between_one_and_the_rank(rows: np.ndarray, q: float) -> None:
    score = vendi(rows, q=q)
    rank = int(np.linalg.matrix_rank(rows))
    assert 1.0 <= score.value <= rank * (1 + 1e-9)
    assert score.value == pytest.approx(g_vendi(rows, q=q).value, rel=1e-7)
    if q == 0:
        assert score.value == pytest.approx(rank)


@settings(max_examples=100)
@given(rows=odd_rows())
def test_higher_orders_of_vendi_are_never_larger(rows: np.ndarray) -> None:
    scores = [vendi(rows, q=q).value for q in (0.0, 0.5, 1.0, 2.0, 5.0, math.inf)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(scores))


@settings(max_examples=100)
@given(rows=generic_rows(), copies=st.integers(2, 4))
def test_copying_the_whole_set_leaves_vendi_as_it_is(rows: np.ndarray, copies: int) -> None:
    assert vendi(np.tile(rows, (copies, 1))).value == pytest.approx(vendi(rows).value, rel=1e-8)


@settings(max_examples=100)
@given(n=st.integers(2, 9), copies=st.integers(1, 9))
def test_a_duplicate_of_orthogonal_rows_lowers_vendi(n: int, copies: int) -> None:
    """Where all kinds are equally common, a copy of one can only unbalance them."""
    rows = np.eye(n)
    doubled = np.concatenate([rows, np.repeat(rows[:1], copies, axis=0)])
    assert vendi(doubled).value < vendi(rows).value == pytest.approx(n)


@settings(max_examples=100)
@given(rows=generic_rows())
def test_the_dual_form_is_the_kernel_form(rows: np.ndarray) -> None:
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    assert vendi(rows).value == pytest.approx(vendi_of_kernel(unit @ unit.T), rel=1e-8)


@settings(max_examples=100)
@given(rows=odd_rows())
def test_no_measure_rewards_copies_alone(rows: np.ndarray) -> None:
    copies = np.repeat(rows[:1], 4, axis=0)
    assert vendi(copies).value == pytest.approx(1.0)
    assert novelsum(copies).value == pytest.approx(0.0, abs=1e-9)
    assert logdet_similarity(copies).value == pytest.approx(math.log(5))


@settings(max_examples=100)
@given(data=st.data(), n=st.integers(1, 30))
def test_overlap_is_symmetric_and_counts(data: st.DataObject, n: int) -> None:
    subsets = st.sets(st.integers(0, n - 1))
    a, b = data.draw(subsets), data.draw(subsets)
    (forward,) = overlaps({"a": sorted(a), "b": sorted(b)}, n).pairs
    (backward,) = overlaps({"b": sorted(b), "a": sorted(a)}, n).pairs
    assert forward.jaccard == backward.jaccard == (len(a & b) / len(a | b) if a | b else 1.0)
    assert (forward.a_in_b, forward.b_in_a) == (backward.b_in_a, backward.a_in_b)
    assert 0 <= forward.expected_jaccard <= 1
    assert forward.expected_jaccard == pytest.approx(backward.expected_jaccard)


@settings(max_examples=30)
@given(n=st.integers(1, 7), data=st.data())
def test_expected_jaccard_is_the_mean_over_all_sets(n: int, data: st.DataObject) -> None:
    from itertools import combinations

    size_a, size_b = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    first = set(range(size_a))
    values = [
        len(first & set(other)) / len(first | set(other)) if first or other else 1.0
        for other in combinations(range(n), size_b)
    ]
    assert expected_jaccard(n, size_a, size_b) == pytest.approx(np.mean(values))
