"""The memory across pools never claims more than was there, and survives a crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spice_select.errors import StoreCorrupt
from spice_select.schedule.memory import FrequentDirections, RowFile


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), d=st.integers(1, 12), size=st.integers(1, 9))
def test_the_sketch_lies_below_the_information_and_within_its_bound(seed: int, n: int, d: int, size: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d)) * np.logspace(0, -2, d)
    directions = FrequentDirections(size, d)
    directions.add(rows)
    kept = directions.sketch
    assert len(kept) <= 2 * size
    missing = np.linalg.eigvalsh(rows.T @ rows - kept.T @ kept)
    total = float((rows**2).sum())
    assert missing[0] >= -1e-9 * total
    assert missing[-1] <= total / size + 1e-9 * total


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 16))
def test_few_rows_are_kept_as_they_are(seed: int, n: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, 5))
    directions = FrequentDirections(8, 5)
    directions.add(rows)
    np.testing.assert_array_equal(directions.sketch, rows)


def test_rows_that_no_log_line_names_are_cut_off(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    RowFile(tmp_path / "memory.f32", 3, 0).append(rows)
    file = RowFile(tmp_path / "memory.f32", 3, 2)
    np.testing.assert_array_equal(file.read(), rows[:2])
    file.append(rows[2:])
    np.testing.assert_array_equal(RowFile(tmp_path / "memory.f32", 3, 4).read(), rows)


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    RowFile(tmp_path / "memory.f32", 3, 0).append(np.ones((2, 3)))
    with pytest.raises(StoreCorrupt, match="lacks rows that the selection log names"):
        RowFile(tmp_path / "memory.f32", 3, 3)
    np.testing.assert_array_equal(RowFile(tmp_path / "memory.f32", 3, 2).read(), np.ones((2, 3), dtype=np.float32))
