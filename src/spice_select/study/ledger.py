"""The ledger of a study: one line a finished training, added and never changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spice_select.analysis.study_record import Outcome
from spice_select.errors import OutputError, StoreCorrupt, StoreError
from spice_select.files import Lock, explained, make_folder, sync_folder

LEDGER = "ledger.jsonl"
CHECKSUM = "checksum"


class Ledger:
    """Outcomes in a file of JSON lines that several processes may add to.

    A process that is killed while it adds leaves half a line at the end, which no reader takes for an outcome, and
    which the next writer ends, so that it stays a line of its own.

    Args:
        path: The file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Outcome]:
        """All outcomes, in the order in which they were added.

        Raises:
            StoreError: The file cannot be read, or a line that is whole JSON is no outcome of this version.
            StoreCorrupt: A line is not what was written.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise StoreError(f"The ledger {self.path} cannot be read ({reason}); name another with --ledger.") from None
        found: dict[tuple[str, str, str, int, str], Outcome] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                # Half a line: whoever wrote it was killed, and its training is done again.
                continue
            # Lines that are older than checksums have none.
            told = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
            if told is not None and told != _checksum(content):
                raise StoreCorrupt(
                    f"Line {number} of the ledger {self.path} is not what was written; take it out, and its training "
                    "is done again."
                )
            try:
                one = Outcome.model_validate_json(json.dumps(content))
            except ValidationError:
                raise StoreError(
                    f"Line {number} of the ledger {self.path} is no outcome of this version; take it out, or name "
                    "another ledger with --ledger."
                ) from None
            found.setdefault((one.arm, one.budget, one.equal, one.seed, one.key), one)
        return list(found.values())

    def add(self, outcome: Outcome) -> None:
        """Add an outcome and see it onto the disk.

        Raises:
            OutputError: The file cannot be written.
            ResourceError: The disk is full.
        """
        make_folder(self.path.parent)
        content = json.loads(outcome.model_dump_json())
        line = json.dumps({**content, CHECKSUM: _checksum(content)}, separators=(",", ":")).encode() + b"\n"
        with Lock.acquire(self.path.with_name(f".{self.path.name}.lock")), explained(self.path):
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
                written = os.write(descriptor, line)
                if written != len(line):
                    os.ftruncate(descriptor, size)
                    raise OutputError(f"The ledger {self.path} took half a line; make room on its disk.")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if fresh:
                sync_folder(self.path.parent)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
