"""A selection's files take their place together, whatever cuts them off and however often."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from spice_select.errors import ResourceError
from spice_select.files import Lock, write_text
from spice_select.run_folder import RunFolder
from spice_select.staging import LOCK, READY, finish, recover, staged

OLD = {
    "config.yaml": "old",
    "selection.json": '{"is": "old"}',
    "trace.parquet": "old",
    "pool.parquet": "old",
    "data/a": "old",
}
NEW = {
    "config.yaml": "new",
    "selection.json": '{"is": "new"}',
    "trace.parquet": "new",
    "README.md": "new",
    "data/b": "new",
}


class Died(BaseException):
    """Stands for a kill: nothing but the operating system cleans up after it."""


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LOCK, "gradients")
    }


def ready(folder: Path) -> None:
    """A folder in which a new selection is whole, and the earlier one still in its place."""
    lay(folder, OLD)
    lay(folder / READY, NEW)
    (folder / READY / "files.json").write_text(
        '["README.md", "config.yaml", "data", "selection.json", "trace.parquet"]'
    )


def test_new_files_take_the_place_of_all_old_ones(tmp_path: Path) -> None:
    lay(tmp_path, OLD)
    (tmp_path / "gradients").write_text("stay")
    with staged(tmp_path) as place:
        assert place.name == tmp_path.name
        lay(place, NEW)
        assert read(tmp_path).items() >= OLD.items(), "the earlier selection stays until all is whole"
    assert read(tmp_path) == NEW and (tmp_path / "gradients").read_text() == "stay"


def test_a_full_disk_leaves_the_earlier_selection_and_names_the_folder(tmp_path: Path) -> None:
    lay(tmp_path, OLD)
    with pytest.raises(ResourceError) as caught, staged(tmp_path) as place:
        write_text(place / "trace.parquet", "new")
        raise ResourceError(f"{place / 'report.html'} cannot be written because the disk is full; make room.")
    assert str(caught.value) == f"{tmp_path / 'report.html'} cannot be written because the disk is full; make room."
    assert read(tmp_path) == OLD


def test_dying_at_any_change_ends_in_one_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = 0
    for first in range(60):
        folder = tmp_path / str(first)
        ready(folder)
        died = 0
        # Dies at the first-th change, then at the next ones one after the other, until none is left.
        for at in range(first, first + 4):
            left = [at]
            with monkeypatch.context() as patch:
                for module, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "fsync"), (os, "rmdir")):
                    real = getattr(module, name)

                    def deadly(*args: object, real=real, left=left, **options: object) -> object:
                        left[0] -= 1
                        if left[0] < 0:
                            raise Died
                        return real(*args, **options)

                    patch.setattr(module, name, deadly)
                try:
                    recover(folder)
                except Died:
                    died += 1
        if (folder / "selection.json").exists() and (folder / READY).exists():
            assert (folder / "selection.json").read_text() in (OLD["selection.json"], NEW["selection.json"])
        recover(folder)
        assert read(folder) == NEW, first
        assert not (folder / READY).exists()
        points += died
        if not died:
            break
    assert points > 20


def test_what_a_killed_run_left_half_goes(tmp_path: Path) -> None:
    lay(tmp_path, OLD)
    lay(tmp_path / ".results-1-abcdef01.tmp" / "out", {"selection.json": "half"})
    recover(tmp_path)
    assert read(tmp_path).items() >= OLD.items()
    with staged(tmp_path) as place:
        lay(place, NEW)
    assert read(tmp_path) == NEW


def test_every_reader_finishes_what_was_whole(tmp_path: Path) -> None:
    for number, look in enumerate((RunFolder.require_finished, lambda run: run.remove_results())):
        folder = tmp_path / str(number)
        ready(folder)
        look(RunFolder(folder))
        assert not (folder / READY).exists()
    assert read(tmp_path / "0") == NEW
    assert read(tmp_path / "1") == {"config.yaml": "old"}


def test_finishing_needs_the_lock_of_the_folder(tmp_path: Path) -> None:
    ready(tmp_path)
    with Lock.exclusive(tmp_path / LOCK, "this folder"):
        finish(tmp_path)
    assert read(tmp_path) == NEW
    shutil.rmtree(tmp_path / "data")
    recover(tmp_path)
    assert not (tmp_path / "data").exists()
