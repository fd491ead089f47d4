"""The selection log: what was appended is read back, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spice_select.errors import StoreCorrupt, StoreMismatch
from spice_select.schedule.log import PoolEntry, SelectionLog


def _entry(pool: int) -> PoolEntry:
    return PoolEntry(pool=pool, rows=(3 * pool, 3 * pool + 1), due=1, picks=(3 * pool,), gains=(0.1 + pool,), alpha=1.0)


def _written(path: Path, pools: int) -> bytes:
    log = SelectionLog(path, "run")
    for pool in range(pools):
        log.append(_entry(pool))
    return path.read_bytes()


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    _written(tmp_path / "log.jsonl", 3)
    assert SelectionLog(tmp_path / "log.jsonl", "run").entries == [_entry(pool) for pool in range(3)]


def test_a_log_in_two_parts_has_the_bytes_of_one(tmp_path: Path) -> None:
    whole = _written(tmp_path / "whole.jsonl", 4)
    _written(tmp_path / "parts.jsonl", 2)
    later = SelectionLog(tmp_path / "parts.jsonl", "run")
    for pool in (2, 3):
        later.append(_entry(pool))
    assert (tmp_path / "parts.jsonl").read_bytes() == whole


@pytest.mark.parametrize("kept", range(0, 700, 37))
def test_a_torn_end_is_cut_off_and_written_anew(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "log.jsonl"
    whole = _written(path, 3)
    kept = min(kept, len(whole) - 1)
    path.write_bytes(whole[:kept])
    log = SelectionLog(path, "run")
    assert log.entries == [_entry(pool) for pool in range(len(log.entries))]
    for pool in range(len(log.entries), 3):
        log.append(_entry(pool))
    assert path.read_bytes() == whole


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = _written(path, 2)
    last_line = whole.rstrip(b"\n").rfind(b"\n")
    for at in range(0, last_line, 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreCorrupt, match=r"Line \d+ of .* is not what was written"):
            SelectionLog(path, "run")


def test_a_missing_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = _written(path, 3).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(StoreCorrupt, match="Line 3"):
        SelectionLog(path, "run")


def test_a_log_of_another_run_is_refused(tmp_path: Path) -> None:
    _written(tmp_path / "log.jsonl", 1)
    with pytest.raises(StoreMismatch, match="another model or other settings"):
        SelectionLog(tmp_path / "log.jsonl", "other")


def test_a_copy_in_memory_writes_nothing(tmp_path: Path) -> None:
    log = SelectionLog(None, "run")
    log.append(_entry(0))
    assert log.entries == [_entry(0)]
    assert not list(tmp_path.iterdir())
