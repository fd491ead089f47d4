"""The ledger of a study: one line a finished training, added and never changed."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from spice_select.analysis.study_record import Outcome
from spice_select.errors import OutputError, StoreError
from spice_select.files import Lock, explained, make_folder, sync_folder

LEDGER = "ledger.jsonl"


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
                one = Outcome.model_validate_json(line)
            except ValidationError as error:
                if error.errors()[0]["type"] == "json_invalid":
                    # Half a line: whoever wrote it was killed, and its training is done again.
                    continue
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
        line = outcome.model_dump_json().encode() + b"\n"
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
