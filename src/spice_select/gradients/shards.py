"""The files of one shard: which rows it holds, how they are written, and how they are checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.errors import StoreCorrupt
from spice_select.files import atomic_file, read_regular, remove_file, sha256_file, sync_folder, write_bytes
from spice_select.gradients.manifest import Manifest

META_DTYPE = np.dtype(
    [
        ("row", "<i8"),
        ("digest", "u1", (32,)),
        ("loss", "<f8"),
        ("tokens", "<i8"),
        ("squared_norm", "<f8"),
        ("norm", "<f4"),
        ("status", "u1"),
    ]
)
"""One record a row: its number, the SHA-256 of its example, its loss (NaN where none was computed), its response
tokens, the exact squared norm of its gradient (0 for a row left out), the norm of its stored row, and its status."""

SHARD_FOLDER = "shards"
REMEDY = "; run collect again on the same folder to compute that shard anew."
"""End of each sentence about a damaged shard, for those who read it; collect itself needs no such advice."""


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows that is written, verified and computed again as one.

    Attributes:
        number: Place among the shards.
        start: First row.
        stop: Row after the last.
    """

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Stem of its files' names."""
        return f"{self.number:06d}"


class _FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    sha256: str


class _Marker(BaseModel):
    """The file whose presence means that a shard is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str
    start: int
    stop: int
    rows: _FileRecord
    meta: _FileRecord

    def encoded(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


class _Hashing:
    """A file to write to that hashes and counts what goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, content: Any) -> int:
        self._hash.update(content)
        self._bytes += len(content)
        return self._file.write(content)

    def record(self) -> _FileRecord:
        return _FileRecord(bytes=self._bytes, sha256=self._hash.hexdigest())


def plan_shards(rows: int, shard_rows: int) -> tuple[Shard, ...]:
    """Cut rows into shards; shard s holds rows s * shard_rows onwards."""
    return tuple(
        Shard(number, start, min(start + shard_rows, rows)) for number, start in enumerate(range(0, rows, shard_rows))
    )


def stored(rows: Float[np.ndarray, "m d"], norms: Float[np.ndarray, " m"], dtype: str) -> Float[np.ndarray, "m d"]:
    """Rows as they are written: as they are, or in float16 over their norm, by which a reader multiplies them again."""
    if dtype == "float32":
        return rows.astype(np.float32, copy=False)
    divisor = np.where(norms > 0, norms, 1).astype(np.float32)
    return (rows / divisor[:, None]).astype(np.float16)


class ShardFiles:
    """Reads, writes and checks the shards of one store.

    Args:
        folder: The store.
        manifest: Its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder / SHARD_FOLDER
        self.plan = plan_shards(manifest.rows, manifest.shard_rows)
        self._dim = manifest.dim
        self._dtype = np.dtype(manifest.store_dtype).newbyteorder("<")
        self._store = manifest.fingerprint

    def rows_path(self, shard: Shard) -> Path:
        """The file of the gradients."""
        return self.folder / f"{shard.name}.npy"

    def meta_path(self, shard: Shard) -> Path:
        """The file of the records beside them."""
        return self.folder / f"{shard.name}.meta.npy"

    def marker_path(self, shard: Shard) -> Path:
        """The file whose presence means that the shard is whole."""
        return self.folder / f"{shard.name}.json"

    def missing(self) -> tuple[Shard, ...]:
        """Shards without a marker."""
        try:
            # One look at the folder, and not one for each of a million shards.
            there = set(os.listdir(self.folder))
        except FileNotFoundError:
            there = set()
        return tuple(shard for shard in self.plan if f"{shard.name}.json" not in there)

    def write(self, shard: Shard, rows: Float[np.ndarray, "m d"], meta: np.ndarray) -> None:
        """Write a shard, its marker last; each file is whole or absent.

        Args:
            shard: Which.
            rows: Rows in the dtype of the store.
            meta: Their records, of ``META_DTYPE``.

        Raises:
            OutputError: It cannot be written.
            ResourceError: The disk is full.
        """
        assert rows.shape == (len(shard), self._dim) and rows.dtype == self._dtype
        assert meta.shape == (len(shard),) and meta.dtype == META_DTYPE
        # A marker that vouches for bytes about to be replaced has to go first.
        remove_file(self.marker_path(shard))
        records = []
        for path, array in ((self.rows_path(shard), rows), (self.meta_path(shard), meta)):
            with atomic_file(path, sync=False) as file:
                hashing = _Hashing(file)
                np.lib.format.write_array(hashing, array, version=(1, 0), allow_pickle=False)
                records.append(hashing.record())
        sync_folder(self.folder)
        marker = _Marker(store=self._store, start=shard.start, stop=shard.stop, rows=records[0], meta=records[1])
        write_bytes(self.marker_path(shard), marker.encoded())

    def check(self, shard: Shard, *, verify: bool) -> None:
        """See whether a marked shard is whole.

        Args:
            shard: Which.
            verify: Hash its files; without it only their sizes are compared.

        Raises:
            StoreCorrupt: A file is missing, of another size or of other bytes than its marker says.
        """
        marker = self._marker(shard)
        for path, record in ((self.rows_path(shard), marker.rows), (self.meta_path(shard), marker.meta)):
            try:
                if path.stat().st_size != record.bytes:
                    raise _corrupt(path, f"it has {path.stat().st_size} bytes and had {record.bytes}")
                if verify and sha256_file(path) != record.sha256:
                    raise _corrupt(path, "its SHA-256 differs")
            except OSError as error:
                raise _corrupt(path, (error.strerror or "it cannot be read").lower()) from None

    def read_meta(self, shard: Shard) -> np.ndarray:
        """The records of a shard.

        Raises:
            StoreCorrupt: The file is not one of this shard.
        """
        meta = self._load(self.meta_path(shard), META_DTYPE, (len(shard),), mapped=False)
        if not np.array_equal(meta["row"], np.arange(shard.start, shard.stop)):
            raise _corrupt(self.meta_path(shard), "its rows are not those of this shard")
        return meta

    def map_rows(self, shard: Shard) -> Float[np.ndarray, "m d"]:
        """The rows of a shard as stored, mapped and not read.

        Raises:
            StoreCorrupt: The file is not one of this shard.
        """
        return self._load(self.rows_path(shard), self._dtype, (len(shard), self._dim), mapped=True)

    def _marker(self, shard: Shard) -> _Marker:
        path = self.marker_path(shard)
        try:
            written = read_regular(path)
            marker = _Marker.model_validate_json(written)
        except OSError as error:
            raise _corrupt(path, (error.strerror or "it cannot be read").lower()) from None
        except ValidationError:
            raise _corrupt(path, "it is no marker") from None
        if marker.encoded() != written:
            raise _corrupt(path, "its form differs")
        if (marker.store, marker.start, marker.stop) != (self._store, shard.start, shard.stop):
            raise _corrupt(path, "it belongs to another store")
        return marker

    def _load(self, path: Path, dtype: np.dtype, shape: Sequence[int], *, mapped: bool) -> np.ndarray:
        try:
            array = map_array(path, dtype, tuple(shape))
        except (OSError, ValueError) as error:
            raise _corrupt(path, f"it is no array of this shard: {error}") from None
        return array if mapped else np.array(array)


def map_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, mapped: whatever the file declares, nothing is allocated, and nothing is unpickled.

    Args:
        path: The file, in the first version of NumPy's form.
        dtype: Dtype that it must have.
        shape: Shape that it must have.

    Raises:
        OSError: There is no such file, or it cannot be mapped.
        ValueError: It holds something else.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
        except OSError:
            raise
        except Exception as error:  # the header is text of Python, and its parsers raise what they raise
            said = next(iter(str(error).splitlines()), "")
            raise ValueError(f"{type(error).__name__}, {said}") from None
        begin = file.tell()
    if header != (shape, False, dtype):
        held = "another version of the form" if header is None else f"{header[2]} of shape {header[0]}"
        raise ValueError(f"it holds {held}")
    return np.asarray(np.memmap(path, dtype, "r", begin, shape))


def _corrupt(path: Path, reason: str) -> StoreCorrupt:
    return StoreCorrupt(f"{path} is not what was written ({reason}){REMEDY}")
