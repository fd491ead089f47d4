"""Rows that are equal to the model tie, though rounding sets what is measured of them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from spice_select.methods import ranked
from tests.method_inputs import make_inputs


def order(scores: list[float], **more: Any) -> list[int]:
    return ranked(make_inputs(len(scores), len(scores), **more), scores, "score").indices.tolist()


def test_a_copy_does_not_win_by_rounding() -> None:
    scores = [0.5, 0.7, 0.5 + 1e-8, 0.7]
    assert order(scores) == [1, 3, 2, 0]
    assert order(scores, equal=np.array([0, 1, 0, 1])) == [1, 3, 0, 2]


def test_more_than_rounding_is_left_alone() -> None:
    assert order([0.5, 0.6], equal=np.array([0, 0])) == [1, 0]


def test_rows_of_several_numbers_settle_as_a_whole() -> None:
    inputs = make_inputs(3, 1, equal=np.array([0, 0, 0]))
    values = np.array([[1.0, 2.0], [1.0 + 1e-8, 2.0], [1.0, 3.0]])
    assert inputs.settled(values).tolist() == [[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]
    unknown = np.array([np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(inputs.settled(unknown), unknown)
