"""Whether a file is still the one that was read: rows must not be of two states of a file that nobody ever wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spice_select.errors import DataError


@dataclass(frozen=True)
class Stamp:
    """A file as it was at one moment.

    Attributes:
        path: Its path.
        inode: Which file it was; another one under its name leaves what is being read as it is.
        size: Bytes.
        changed_ns: When it was last written into.
    """

    path: Path
    inode: tuple[int, int]
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The file as it is now.

        Raises:
            OSError: It cannot be looked at.
        """
        found = os.stat(path)
        return cls(path, (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)

    def require_unchanged(self, since: str) -> None:
        """Refuse a file that has been written into.

        Args:
            since: Since when, as in ``while it was read``.

        Raises:
            DataError: It has been.
        """
        try:
            now = Stamp.of(self.path)
        except OSError:
            # Taken away; whoever holds it open goes on reading what it held.
            return
        if now.inode == self.inode and now != self:
            raise DataError(
                f"{self.path} was written into {since}; wait until whoever writes it has ended, and run again with the "
                "rows as they are to be."
            )
