"""The short form of ``python -m tests.memory_leak``: objects and tensors stay level; bytes need the long form."""

from __future__ import annotations

from pathlib import Path

from tests.memory_leak import MOST_OBJECTS_A_STEP, collecting, selecting, training


def test_batches_selections_and_pools_leave_nothing_behind(tmp_path: Path) -> None:
    for found in (collecting(60), selecting(24, tmp_path / "store"), training(16)):
        assert found.objects_a_step <= MOST_OBJECTS_A_STEP, found
        assert found.tensors_a_step <= 0.01, found
