"""Files are whole or absent, and the operating system's errors are sentences."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from spice_select.errors import OutputBusy, OutputError, ResourceError
from spice_select.files import (
    Lock,
    atomic_file,
    free_bytes,
    make_folder,
    remove_temporaries,
    remove_tree,
    write_bytes,
    write_text,
)


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "née")
    assert (tmp_path / "a").read_bytes() == "née".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "atomic").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_sentence_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"a cannot be written because .*; make room") as caught:
        write_bytes(tmp_path / "a", b"x" * 100)
    assert caught.value.exit_code == 4
    assert os.listdir(tmp_path) == []


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/sub cannot be made \(not a directory\)"):
        make_folder(tmp_path / "file" / "sub")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "absent" / "a", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "fixed")
    folder.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"fixed/a cannot be written \(permission denied\)"):
            write_text(folder / "a", "")
    finally:
        folder.chmod(0o700)


def test_remove_tree_takes_what_is_there_and_bears_what_is_not(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    write_text(tmp_path / "a" / "b" / "c", "")
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_only_temporaries_of_the_name_are_removed(tmp_path: Path) -> None:
    for name in (".000001.npy.12-ab.tmp", ".000011.npy.12-ab.tmp", "000001.npy", ".000001.npy"):
        (tmp_path / name).write_text("")
    assert remove_temporaries(tmp_path, "000001.") == 1
    assert sorted(os.listdir(tmp_path)) == [".000001.npy", ".000011.npy.12-ab.tmp", "000001.npy"]


def test_free_bytes_of_a_folder_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_lock_excludes_and_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock.exclusive(path, "the store") as held:
        assert Lock.try_acquire(path) is None
        assert Lock.try_acquire(path, shared=True) is None
        with pytest.raises(OutputBusy, match="Another run is writing the store") as caught:
            Lock.exclusive(path, "the store")
        assert caught.value.exit_code == 4
        held.close()
        held.close()
        with Lock.acquire(path):
            assert Lock.try_acquire(path) is None
    with Lock.acquire(path, shared=True), Lock.acquire(path, shared=True):
        assert Lock.try_acquire(path) is None


def test_acquire_waits_for_the_holder(tmp_path: Path) -> None:
    order: list[str] = []
    held = Lock.acquire(tmp_path / "lock")

    def wait() -> None:
        with Lock.acquire(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    order.append("first")
    held.close()
    thread.join(10)
    assert order == ["first", "second"]


def test_a_lock_in_no_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be locked"):
        Lock.acquire(tmp_path / "absent" / "lock")
