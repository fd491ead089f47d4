"""Who may write a gradient store, and which worker computes which shard.

All locks are flock's, so that a killed run never blocks the next. A worker holds the store's lock with others while it
works, and a shard's lock alone while it computes that shard. To make a store, or to start one again, the store's lock
is needed alone.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spice_select.errors import OutputError
from spice_select.files import Lock, make_folder, remove_file, remove_temporaries, remove_tree, sync_folder
from spice_select.gradients.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from spice_select.gradients.shards import SHARD_FOLDER, Shard

LOCK_FOLDER = "locks"
_OURS = re.compile(r"\d{6,}(\.npy|\.meta\.npy|\.json)|\.\d{6,}\..*\.tmp")


@contextmanager
def joined(folder: Path, requested: Manifest, *, overwrite: bool = False) -> Iterator[Manifest]:
    """Work on a store together with others: the first to come makes it, the rest find what they ask for.

    Args:
        folder: The store.
        requested: What it should hold.
        overwrite: Throw away what is there, whatever it holds.

    Yields:
        The manifest that is there, equal to ``requested`` in all that decides the numbers.

    Raises:
        StoreMismatch: The store holds something else, and ``overwrite`` is off.
        OutputBusy: Another run is writing the store that is to be thrown away.
        OutputError: The store cannot be written.
        ResourceError: The disk is full.
    """
    for part in (folder, folder / SHARD_FOLDER, folder / LOCK_FOLDER):
        make_folder(part)
    path = folder / LOCK_FOLDER / "store.lock"
    while True:
        if overwrite:
            with Lock.exclusive(path, f"the gradient store {folder}"):
                _start_again(folder, requested)
            overwrite = False
        with Lock.acquire(path, shared=True):
            manifest = read_manifest(folder)
            if manifest is not None:
                manifest.require(requested, folder)
                yield manifest
                return
        with Lock.acquire(path):
            # Another worker may have been first.
            if read_manifest(folder) is None:
                _start_again(folder, requested)


@contextmanager
def at_work(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Work on a store that another process has made: until the end of the block, none can start it again.

    A worker outlives the process that sent it for a moment, and must not write into what a later run has made.

    Args:
        folder: The store.
        manifest: Its manifest, as that process knows it.

    Raises:
        OutputError: The store is not to be seen from here.
        StoreMismatch: It holds something else by now.
    """
    unseen = OutputError(
        f"The machine {socket.gethostname()} sees no gradient store in {folder}; name an output folder on a file "
        "system that all machines share."
    )
    if not (folder / LOCK_FOLDER).is_dir():
        raise unseen
    with Lock.acquire(folder / LOCK_FOLDER / "store.lock", shared=True):
        found = read_manifest(folder)
        if found is None:
            raise unseen
        found.require(manifest, folder)
        yield


def discard(folder: Path) -> None:
    """Take a store away; a folder that is none stays.

    Raises:
        OutputBusy: Another run is writing it.
    """
    if (folder / LOCK_FOLDER).is_dir():
        with Lock.exclusive(folder / LOCK_FOLDER / "store.lock", f"the gradient store {folder}"):
            remove_tree(folder)


def lease(folder: Path, shard: Shard, *, wait: bool = False) -> Lock | None:
    """Take a shard for this worker, and clear away what a dead one left of it.

    Args:
        folder: The store.
        shard: Which.
        wait: Wait until it is free; otherwise return None if another worker has it.
    """
    path = folder / LOCK_FOLDER / f"{shard.name}.lock"
    lock = Lock.acquire(path) if wait else Lock.try_acquire(path)
    if lock is not None:
        remove_temporaries(folder / SHARD_FOLDER, f"{shard.name}.")
    return lock


def _start_again(folder: Path, requested: Manifest) -> None:
    """Empty a store and give it a manifest; the store's lock must be held alone.

    The old manifest goes first: without it nothing here counts as a store, so that dying half-way leaves none. Only
    files of a store's own names are removed.
    """
    remove_file(folder / MANIFEST_NAME)
    sync_folder(folder)
    remove_temporaries(folder, MANIFEST_NAME)
    for path in (folder / SHARD_FOLDER).iterdir():
        if _OURS.fullmatch(path.name):
            remove_file(path)
    sync_folder(folder / SHARD_FOLDER)
    write_manifest(folder, requested)
