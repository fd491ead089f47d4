"""Processes beside each other on one machine: what there is room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from spice_select import room
from spice_select.errors import ConfigError


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processors and 16 GB, of which half are free."""
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n")
    monkeypatch.setattr(room, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    monkeypatch.setattr(room, "cores", lambda: 2)
    return tmp_path


def test_as_many_workers_as_processors_need_no_word() -> None:
    assert room.check_workers(None) is room.check_workers(1) is room.check_workers(2) is None
    assert room.check_workers(4, devices=4) is None


def test_more_workers_than_processors_are_warned_of_once() -> None:
    assert room.check_workers(8) == (
        "--workers 8 share 2 processors and 8.2 GB to spare, and each holds a model of its own: more than 2 make "
        "nothing faster."
    )


def test_more_workers_than_memory_holds_are_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        room.check_workers(500)
    assert str(caught.value) == (
        "--workers cannot be 500 on this machine, which has 2 processors and 8.2 GB to spare: each takes 0.3 GB before "
        "its model; give 2 or fewer, or use more machines."
    )
    # A container's bound is the smaller.
    (machine / "memory.max").write_text("2000000000\n")
    (machine / "memory.current").write_text("1500000000\n")
    assert room.free_memory() == 500_000_000
    with pytest.raises(ConfigError, match="1 or fewer"):
        room.check_workers(4)
    (machine / "memory.max").write_text("max\n")
    assert room.free_memory() == 8_192_000_000


def test_files_that_a_container_has_read_take_no_room(machine: Path) -> None:
    (machine / "memory.max").write_text("4000000000\n")
    (machine / "memory.current").write_text("3990000000\n")
    (machine / "memory.stat").write_text(
        "anon 490000000\nfile 3500000000\ninactive_file 3000000000\nactive_file 500000000\n"
    )
    assert room.free_memory() == 3_510_000_000
    assert room.check_workers(2) is None


def test_a_system_that_tells_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "_MEMORY", tmp_path / "nowhere")
    assert room.free_memory() is None
    said = room.check_workers(500)
    assert said is not None and said.startswith("--workers 500 share 2 processors, and each")
