"""Hidden states of tokens on disk: chunks of whole rows, each chunk whole or absent.

A chunk is an array of the states of its rows' tokens end to end, and a marker that is written after it and holds its
SHA-256. Where each row begins follows from the token counts, so that nothing else is kept.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from pydantic import BaseModel, ConfigDict

from spice_select.errors import StoreCorrupt
from spice_select.files import atomic_file, remove_temporaries, sha256_file, write_text
from spice_select.gradients.shards import map_array
from spice_select.seals import CHECKSUM, sealed

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 26
"""A chunk ends before a row that would make it larger, unless the row is its first."""

# Each map holds a file open, and some systems allow 256 of them.
_MOST_MAPS = 128


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows that are computed and written as one.

    Attributes:
        number: Place among the chunks.
        start: First row.
        stop: Row after the last.
    """

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Stem of its files' names."""
        return f"{self.number:06d}"


class _Marker(BaseModel):
    """The file whose presence means that a chunk is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str
    start: int
    stop: int
    bytes: int
    sha256: str
    non_finite: tuple[int, ...]

    def text(self) -> str:
        """The file: JSON that ends with a checksum, as nothing else tells which rows are finite."""
        return sealed(self.model_dump(mode="json"))

    @classmethod
    def of(cls, written: bytes) -> _Marker:
        """The marker that a file holds.

        Raises:
            ValueError: It holds none.
        """
        content = json.loads(written)
        if not isinstance(content, dict) or not content.pop(CHECKSUM, None):
            raise ValueError(written)
        marker = cls.model_validate(content)
        if marker.text().encode() != written:
            raise ValueError(written)
        return marker


def plan_chunks(counts: Int[np.ndarray, " n"], dim: int) -> tuple[Chunk, ...]:
    """Cut rows into chunks; a pure function of counts and dimension, so that a later run finds the same."""
    chunks: list[Chunk] = []
    start, size = 0, 0
    for row, count in enumerate(counts.tolist()):
        added = 4 * dim * count
        if row > start and (row - start == CHUNK_ROWS or size + added > CHUNK_BYTES):
            chunks.append(Chunk(len(chunks), start, row))
            start, size = row, 0
        size += added
    if len(counts):
        chunks.append(Chunk(len(chunks), start, len(counts)))
    return tuple(chunks)


class TokenFiles:
    """Writes, checks and maps the chunks of one measurement.

    Args:
        folder: Where they are.
        identity: What decides the numbers; every marker carries it.
        counts: Tokens of every row.
        dim: Length of a state.
    """

    def __init__(self, folder: Path, identity: str, counts: Int[np.ndarray, " n"], dim: int) -> None:
        self.folder = folder
        self.counts = counts
        self.dim = dim
        self.plan = plan_chunks(counts, dim)
        self._identity = identity

    def states_path(self, chunk: Chunk) -> Path:
        """The states of a chunk."""
        return self.folder / f"{chunk.name}.npy"

    def marker_path(self, chunk: Chunk) -> Path:
        """Its marker."""
        return self.folder / f"{chunk.name}.json"

    def tokens(self, chunk: Chunk) -> int:
        """Tokens of a chunk's rows."""
        return int(self.counts[chunk.start : chunk.stop].sum())

    def needed_bytes(self, chunks: Sequence[Chunk]) -> int:
        """What chunks take on disk, closely."""
        return sum(4 * self.dim * self.tokens(chunk) + 4096 for chunk in chunks)

    def write(self, chunk: Chunk, states: Float32[np.ndarray, "t d"], non_finite: Sequence[int]) -> None:
        """Write a chunk, the marker last; what a dead run left of it goes.

        Args:
            chunk: Which.
            states: States of its rows' tokens, end to end.
            non_finite: Rows some state of which is NaN or infinite.

        Raises:
            OutputError: It cannot be written.
            ResourceError: The disk is full.
        """
        assert states.shape == (self.tokens(chunk), self.dim) and states.dtype == np.float32
        remove_temporaries(self.folder, f"{chunk.name}.")
        path = self.states_path(chunk)
        with atomic_file(path) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(states), allow_pickle=False)
        marker = _Marker(
            store=self._identity,
            start=chunk.start,
            stop=chunk.stop,
            bytes=path.stat().st_size,
            sha256=sha256_file(path),
            non_finite=tuple(non_finite),
        )
        write_text(self.marker_path(chunk), marker.text())

    def marked(self, chunk: Chunk) -> bool:
        """Whether a chunk has its marker, and so was whole once."""
        return self.marker_path(chunk).is_file()

    def check(self, chunk: Chunk) -> tuple[int, ...]:
        """Read a marked chunk's bytes and see whether they are those that were written.

        Returns:
            Its rows that are not finite.

        Raises:
            StoreCorrupt: They are not.
        """
        path = self.states_path(chunk)
        try:
            written = self.marker_path(chunk).read_bytes()
            marker = _Marker.of(written)
            whole = (
                (marker.store, marker.start, marker.stop) == (self._identity, chunk.start, chunk.stop)
                and path.stat().st_size == marker.bytes
                and sha256_file(path) == marker.sha256
            )
        except (OSError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise self._corrupt(chunk)
        return marker.non_finite

    def map(self, chunk: Chunk) -> Float32[np.ndarray, "t d"]:
        """The states of a chunk, mapped and not read.

        Raises:
            StoreCorrupt: The file is not one of this chunk.
        """
        if not self.tokens(chunk):
            # Nothing cannot be mapped.
            return np.empty((0, self.dim), np.float32)
        try:
            return map_array(self.states_path(chunk), np.dtype(np.float32), (self.tokens(chunk), self.dim))
        except (OSError, ValueError):
            raise self._corrupt(chunk) from None

    def _corrupt(self, chunk: Chunk) -> StoreCorrupt:
        return StoreCorrupt(f"{self.states_path(chunk)} is not what was written; run the same command again.")


class TokenFeatures:
    """Hidden states of every row's tokens, mapped from disk a row at a time.

    Attributes:
        dim: Length of a state.
        counts: Tokens of every row; 0 for a row that has none, or whose states are not finite.
    """

    dim: int
    counts: Int[np.ndarray, " n"]

    def __init__(self, files: TokenFiles, non_finite: Sequence[int] = ()) -> None:
        self.dim = files.dim
        self.counts = files.counts.copy()
        self.counts[list(non_finite)] = 0
        self.counts.flags.writeable = False
        self._files = files
        self._starts = np.array([chunk.start for chunk in files.plan], dtype=np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(files.counts)])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def of(self, index: int) -> Float32[np.ndarray, "t d"]:
        """The hidden states of one row, in the order of its tokens; a view that cannot be written.

        Raises:
            IndexError: There is no such row.
            StoreCorrupt: The file is not what was written.
        """
        if not 0 <= index < len(self.counts):
            raise IndexError(f"Row {index} is none of the {len(self.counts)} rows with token features.")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        first = int(self._offsets[index] - self._offsets[self._starts[number]])
        return self._map(number)[first : first + int(self.counts[index])]

    def _map(self, number: int) -> Float32[np.ndarray, "t d"]:
        if number in self._maps:
            self._maps.move_to_end(number)
        else:
            self._maps[number] = self._files.map(self._files.plan[number])
            if len(self._maps) > _MOST_MAPS:
                self._maps.popitem(last=False)
        return self._maps[number]
