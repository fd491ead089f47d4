"""Writing files so that each is whole or absent, and locks that die with the process that holds them.

A file is written beside its place, brought to the disk, and renamed into its place: a reader, or a run after a
crash, never meets half of one. The operating system's errors become sentences here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from spice_select.errors import OutputBusy, OutputError, ResourceError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "it grew too large"}
_TEMPORARY = ".tmp"


@contextmanager
def explained(path: Path, action: str = "written") -> Iterator[None]:
    """Turn the operating system's errors in the block into one sentence about ``path``.

    Args:
        path: The file or folder that is being changed.
        action: What is done to it, as a participle.

    Raises:
        ResourceError: No space is left.
        OutputError: Any other reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"{path} cannot be {action} because {_FULL[error.errno]}; make room and run the same command again."
            ) from error
        reason = (error.strerror or type(error).__name__).lower()
        raise OutputError(f"{path} cannot be {action} ({reason}); name a folder that can be written.") from error


def make_folder(path: str | Path) -> Path:
    """Make a folder with its parents, if it isn't there.

    Raises:
        OutputError: It cannot be made.
        ResourceError: The disk is full.
    """
    folder = Path(path)
    with explained(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename outlives a loss of power."""
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems know no fsync of a folder; the files themselves are on the disk.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and leaves no trace if it fails.

    Args:
        path: Where the file goes; its folder must exist.
        sync: Bring the folder to the disk as well. A caller that writes several files may do that once at the end.

    Yields:
        The file, open for writing bytes.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}{_TEMPORARY}")
    with explained(target):
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            # Failing to remove it must not hide the error at hand.
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
    if sync:
        sync_folder(target.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 file whole or not at all.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    write_bytes(path, content.encode("utf-8"))


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    with explained(path, "removed"):
        path.unlink(missing_ok=True)


def remove_tree(path: str | Path) -> None:
    """Remove a folder with all that is in it, if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    folder = Path(path)
    with explained(folder, "removed"):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            # Absent, or another process removes it too.
            if folder.exists():
                raise


def remove_temporaries(folder: Path, name: str) -> int:
    """Remove what dead runs left of files whose names start with ``name``.

    Only the holder of the lock under which those files are written may call this: nothing else tells a dead run's
    file from a living one's, as the folder may be shared by several machines.

    Returns:
        How many were removed.
    """
    found = list(folder.glob(f".{name}*{_TEMPORARY}"))
    for path in found:
        remove_file(path)
    return len(found)


def read_regular(path: str | Path) -> bytes:
    """All bytes of a file that is one: reading a pipe waits for a writer, and a device may have no end.

    What a shell hands over as ``<(...)`` or standard input is read: its writer is there.

    Raises:
        OSError: It cannot be read, or is a pipe, a device or a folder.
    """
    path = Path(path)
    try:
        if (
            not path.is_file()
            and path.exists()
            and not str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))
        ):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
        return path.read_bytes()
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), repr(str(path))) from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where ``path`` is, or will be."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


class Lock:
    """A lock on a file, held until closed or until the process ends, however it ends.

    Built by :meth:`try_acquire`, :meth:`acquire` and :meth:`exclusive`. The lock is flock's: it belongs to the open
    file, so that two threads of one process exclude each other as two processes do. The file stays behind, empty:
    removing it would let two holders in.

    Attributes:
        path: The file that is locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        self._guard = threading.Lock()

    @classmethod
    def try_acquire(cls, path: Path, *, shared: bool = False) -> Lock | None:
        """Take the lock at once, or return None if another holds it.

        Raises:
            OutputError: The lock's file cannot be made.
        """
        return cls._take(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False) -> Lock:
        """Wait for the lock.

        Raises:
            OutputError: The lock's file cannot be made.
        """
        lock = cls._take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        assert lock is not None
        return lock

    @classmethod
    def exclusive(cls, path: Path, what: str) -> Lock:
        """Take the lock at once.

        Args:
            path: The lock's file.
            what: What the lock guards, for the message.

        Raises:
            OutputBusy: Another run holds it.
            OutputError: The lock's file cannot be made.
        """
        lock = cls.try_acquire(path)
        if lock is None:
            raise OutputBusy(f"Another run is writing {what}; wait until it ends, or name another folder.")
        return lock

    @classmethod
    def _take(cls, path: Path, operation: int) -> Lock | None:
        with explained(path, "locked"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
        return cls(path, descriptor)

    def close(self) -> None:
        """Let go of the lock; a second call does nothing."""
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
