"""Our Vendi score of picks against the package of its authors, where that is right."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from spice_select.analysis.vendi_score import vendi, vendi_of_kernel
from tests.vectors import METHODS, picks, random_vectors, vector_inputs


@pytest.fixture(scope="module")
def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("vendi_score.vendi", reason="vendi-score is not installed")


@pytest.mark.parametrize("name", METHODS)
def test_of_picks(library: Any, name: str) -> None:
    vectors = random_vectors(80, 6, seed=4)
    chosen = vectors[picks(name, vector_inputs(vectors, 12))]
    with warnings.catch_warnings():
        # It names scipy's matrix class by a place that scipy 2 will no longer have.
        warnings.simplefilter("ignore", DeprecationWarning)
        assert float(vendi(chosen)) == pytest.approx(library.score_X(chosen), rel=1e-9)
    assert float(vendi(chosen)) == pytest.approx(library.score_dual(chosen), rel=1e-9)


@pytest.mark.parametrize("q", [0.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_of_other_orders(library: Any, q: float, shape: tuple[int, int]) -> None:
    vectors = random_vectors(*shape, seed=5)
    ours = float(vendi(vectors, q=q))
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    kernel = unit @ unit.T
    theirs_q = "inf" if math.isinf(q) else q
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # Of a kernel it takes what rounding leaves of zero eigenvalues for shares, which small orders count: no
        # comparison where there are such.
        if q >= 1 or shape[0] < shape[1]:
            assert ours == pytest.approx(library.score_K(kernel, q=theirs_q), rel=1e-6)
            assert vendi_of_kernel(kernel, q=q) == pytest.approx(ours, rel=1e-6)
        # From the rows themselves it takes every order for 1: a fault of the package, shown here so that nobody
        # "mends" ours to agree.
        assert library.score_X(vectors, q=theirs_q) == pytest.approx(library.score_X(vectors), rel=1e-12)
        assert library.score_X(vectors, q=theirs_q) != pytest.approx(ours, rel=1e-3)
