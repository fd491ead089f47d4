"""A selection's files, made beside the earlier selection's and brought into their place when all are whole.

Until they are, an earlier selection stays as it is: a full disk, a damaged source or a kill takes nothing of it. The
new files are complete once the folder ``.results`` is there; whoever opens the run's folder after a kill brings the
rest of it into place before anything else.

::

    .results-PID-XXXXXXXX.tmp/NAME/...   being written; the folder has the run's own name, as pages and cards tell it
    .results/...                         whole, with a list of its files
    data/, trace.parquet, ...            in place, the record last
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spice_select.errors import OutputError, ResourceError
from spice_select.files import Lock, explained, make_folder, remove_file, remove_tree, sync_folder, write_text

READY = ".results"
LOCK = ".lock"
RECORD = "selection.json"
PARTS = ("data", "trace.parquet", "pool.parquet", "report.html", "README.md", "config.yaml")
"""What a selection consists of beside its record."""
_LIST = "files.json"


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Make a selection's files in a folder of their own; when the block ends, they take their place in ``folder``.

    The caller holds the run's lock.

    Args:
        folder: The run's folder.

    Yields:
        The folder to write into, of the same name.

    Raises:
        OutputError: Something cannot be written; the earlier selection is as it was.
        ResourceError: The disk is full; the earlier selection is as it was.
    """
    finish(folder)
    for stale in (*folder.glob(f"{READY}-*.tmp"), *folder.glob(".data-*.tmp")):
        # Of a run that was killed: none writes here but the holder of the lock.
        remove_tree(stale)
    outer = folder / f"{READY}-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        try:
            stage = make_folder(outer / (folder.absolute().name or "run"))
            yield stage
            names = sorted(path.name for path in stage.iterdir())
            assert RECORD in names and set(names) <= {RECORD, *PARTS}, names
            write_text(stage / _LIST, json.dumps(names) + "\n")
            with explained(folder):
                os.rename(stage, folder / READY)
            sync_folder(folder)
        except (OutputError, ResourceError) as error:
            told = str(error).replace(f"{outer / folder.absolute().name}", str(folder))
            raise type(error)(told.replace(str(outer), str(folder))) from error
    finally:
        remove_tree(outer)
    finish(folder)


def finish(folder: Path) -> None:
    """Bring files that are whole into their place; may be cut off and called again. The run's lock must be held."""
    ready = folder / READY
    if not ready.is_dir():
        return
    with explained(folder):
        if (ready / RECORD).is_file():
            names = json.loads((ready / _LIST).read_bytes())
            # Without its record, nothing of the earlier selection counts as finished.
            remove_file(folder / RECORD)
            for name in PARTS:
                new, old = ready / name, folder / name
                if new.exists() or name not in names:
                    remove_tree(old) if old.is_dir() else remove_file(old)
                if new.exists():
                    os.rename(new, old)
            sync_folder(folder)
            os.replace(ready / RECORD, folder / RECORD)
            sync_folder(folder)
        remove_tree(ready)


def recover(folder: Path) -> None:
    """Finish what a run that was killed had whole and not yet in its place; else nothing.

    Raises:
        OutputError: The folder cannot be written.
    """
    if (folder / READY).is_dir():
        with Lock.acquire(folder / LOCK):
            finish(folder)


def forget(folder: Path) -> None:
    """Take away files that are whole and not in their place, as their selection is to be replaced."""
    if (folder / READY).is_dir():
        remove_tree(folder / READY)
