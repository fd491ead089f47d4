"""The selection log: one line a pool, only ever appended to, from which a run that was cut off goes on.

Each line carries a hash over itself and all lines before it. A torn last line, as a crash may leave, is cut off; any
other damage is refused. Nothing that differs from run to run, such as a time, is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.analysis.activity import ConflictActivity
from spice_select.errors import StoreCorrupt, StoreError, StoreMismatch
from spice_select.files import explained, make_folder, sync_folder

_CHAIN = 16
VERSION = 1
"""Version of the lines."""


class PoolEntry(BaseModel):
    """What came of one pool.

    Attributes:
        pool: Its number, from 0.
        rows: Rows offered, by number.
        due: Rows that could be picked at most; response tokens for a token budget; None with a stop ratio alone.
        picks: Row numbers in order of choice.
        gains: Information gains, in nats.
        bases: What each pick is worth alone, in nats.
        epsilons: Gain less base.
        conflicts: Conflicts when picked.
        scores: What was compared.
        losses: Mean loss of each offered row, in nats; None where it is not finite.
        squared_norms: Squared gradient norm of each offered row; None where it is not finite.
        alpha: Fisher scale a of this pool; None where nothing could be picked.
        stop_reason: Why the pool ended.
        changed: Picks that the penalty changed, on the same gradients; None where there is no penalty.
        first_gain_outlier: Whether the first gain stands far above those that follow.
        certificate: Proven share of the best possible information of as many rows; None without picks.
        activity: Conflict in this pool.
        tokens: Tokens of the offered rows.
        gram: How the inner products were formed.
        warnings: What the selection warned of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: int
    rows: tuple[int, ...]
    due: int | None
    picks: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()
    bases: tuple[float, ...] = ()
    epsilons: tuple[float, ...] = ()
    conflicts: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    losses: tuple[float | None, ...] = ()
    squared_norms: tuple[float | None, ...] = ()
    alpha: float | None = None
    stop_reason: str = "budget"
    changed: int | None = None
    first_gain_outlier: bool = False
    certificate: float | None = None
    activity: ConflictActivity | None = None
    tokens: int = 0
    gram: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def information(self) -> float:
        """Information of the picks within this pool, in nats."""
        return float(sum(self.gains))

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the offered rows, in nats."""
        known = [loss for loss in self.losses if loss is not None]
        return sum(known) / len(known) if known else None


class SelectionLog:
    """The file ``log.jsonl``: a first line that says what run it belongs to, then one line a pool.

    Args:
        path: The file; None: nothing is written, as another process keeps the log.
        identity: SHA-256 of everything that decides the picks.

    Raises:
        StoreMismatch: The file belongs to another run.
        StoreError: It is of another version.
        StoreCorrupt: A line that is not what was written.
        OutputError: The file cannot be read or written.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path = path
        self._chain = b""
        self.entries: list[PoolEntry] = []
        if path is None:
            return
        make_folder(path.parent)
        content = b""
        if path.exists():
            with explained(path, "read"):
                content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with explained(path), path.open("r+b") as file:
                file.truncate(len(whole))
        if not whole:
            self._write({"identity": identity, "version": VERSION})
            sync_folder(path.parent)
            return
        self._load(whole.splitlines(), identity)

    def append(self, entry: PoolEntry) -> None:
        """Add a pool; it is on the disk when this returns."""
        assert entry.pool == len(self.entries)
        self._write(entry.model_dump(mode="json"))
        self.entries.append(entry)

    def _write(self, content: dict[str, Any]) -> None:
        if self._path is None:
            return
        body = json.dumps(content, separators=(",", ":"), allow_nan=False)
        self._chain = hashlib.sha256(self._chain + body.encode()).digest()
        line = f'{{"chain":"{self._chain.hex()[:_CHAIN]}","entry":{body}}}\n'
        with explained(self._path), self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def _load(self, lines: list[bytes], identity: str) -> None:
        for number, line in enumerate(lines):
            content = self._checked(line, number)
            if number == 0:
                version = content.get("version")
                if version != VERSION:
                    raise StoreError(
                        f"{self._path} has version {version}, and this program reads version {VERSION}; use the "
                        "version of spice-select that wrote it, or start again with --overwrite."
                    )
                if content.get("identity") != identity:
                    raise StoreMismatch(
                        f"{self._path} belongs to a run with other rows, another model or other settings; name another "
                        "output, or start again with --overwrite."
                    )
                continue
            try:
                entry = PoolEntry.model_validate(content)
            except ValidationError:
                raise self._damaged(number) from None
            if entry.pool != number - 1:
                raise self._damaged(number)
            self.entries.append(entry)

    def _checked(self, line: bytes, number: int) -> dict[str, Any]:
        prefix, middle = b'{"chain":"', b'","entry":'
        start = len(prefix) + _CHAIN
        body = line[start + len(middle) : -1]
        chain = hashlib.sha256(self._chain + body).digest()
        if line != prefix + chain.hex()[:_CHAIN].encode() + middle + body + b"}":
            raise self._damaged(number)
        self._chain = chain
        content = json.loads(body)
        assert isinstance(content, dict)
        return content

    def _damaged(self, number: int) -> StoreCorrupt:
        return StoreCorrupt(
            f"Line {number + 1} of {self._path} is not what was written; restore the file, or start again with "
            "--overwrite."
        )
