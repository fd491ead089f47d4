"""The gradient store: one sketched gradient row per example, on disk, mapped and never loaded whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer, UInt8

from spice_select.data.status import Status
from spice_select.errors import StoreError, StoreMismatch
from spice_select.gradients.equals import first_of_equal
from spice_select.gradients.manifest import Manifest, read_manifest
from spice_select.gradients.shards import META_DTYPE, Shard, ShardFiles

ABSENT = 255
"""Status of a row whose shard is not there, in a store that was opened with ``partial=True``."""


def _most_maps() -> int:
    """Shards mapped at a time: each map holds a file open, and some systems allow 256 of them."""
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        allowed = 256
    return 4096 if allowed < 0 else max(64, min(4096, allowed // 2))


_MOST_MAPS = _most_maps()

# Below this many rows, mostly of different shards, sorting them by shard costs more than it saves.
_ONE_BY_ONE = 256
# Numbers that torch copies without the help of other threads (at::internal::GRAIN_SIZE).
_PIECE = 32768


class GradientStore:
    """Gradient rows on disk, numbered as the examples were given.

    Built by :meth:`open`. The records beside the rows are read at once; the rows stay on disk until asked for. A row
    that was left out (no response, contamination, a gradient that isn't finite) is a row of zeros.

    Examples of the same tokens, which differ by the rounding of the batches that they were measured in, all have the
    numbers of the first of them, so that they tie in whatever is done with them.

    Attributes:
        folder: Where the store is.
        manifest: What it holds.
        missing: Numbers of the shards that are not there; empty unless opened with ``partial=True``.
        digests: SHA-256 of each example, ``[n, 32]``.
        losses: Loss of each example in nats, ``[n]``; NaN where none was computed.
        lengths: Response tokens of each example, ``[n]``.
        squared_norms: Exact squared norm of each unsketched gradient, ``[n]``; 0 for a row left out.
        norms: Norm of each stored row, ``[n]``.
        statuses: :class:`~spice_select.data.status.Status` of each example, ``[n]``.
        usable: Rows that have a gradient, ``[n]``.
        first_of_equal: For every usable row the first one of the same tokens; any other row stands for itself, ``[n]``.
    """

    digests: UInt8[np.ndarray, "n 32"]
    losses: Float[np.ndarray, " n"]
    lengths: Int64[np.ndarray, " n"]
    squared_norms: Float[np.ndarray, " n"]
    norms: Float32[np.ndarray, " n"]
    statuses: UInt8[np.ndarray, " n"]
    usable: Bool[np.ndarray, " n"]
    first_of_equal: Int64[np.ndarray, " n"]

    def __init__(self, folder: Path, manifest: Manifest, files: ShardFiles, missing: tuple[Shard, ...]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.missing = tuple(shard.number for shard in missing)
        self._files = files
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        meta = np.zeros(manifest.rows, META_DTYPE)
        meta["loss"], meta["status"] = np.nan, ABSENT
        for shard in files.plan:
            if shard.number not in self.missing:
                meta[shard.start : shard.stop] = files.read_meta(shard)
        self.usable = np.isin(meta["status"], (Status.OK, Status.TRUNCATED))
        self.first_of_equal = first_of_equal(meta["digest"], self.usable)
        self._copies = np.flatnonzero(self.first_of_equal != np.arange(manifest.rows))
        for field in ("loss", "squared_norm", "norm"):
            meta[field][self._copies] = meta[field][self.first_of_equal[self._copies]]
        self.usable.flags.writeable = self.first_of_equal.flags.writeable = False
        for name, field in _FIELDS.items():
            column = np.ascontiguousarray(meta[field])
            column.flags.writeable = False
            setattr(self, name, column)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False, *, partial: bool = False) -> GradientStore:
        """Open a store.

        Args:
            folder: The store.
            verify: Hash every file; without it only sizes and headers are compared.
            partial: Open a store whose collection has not ended.

        Raises:
            StoreError: There is no store, it is of an unknown version, or shards are missing.
            StoreCorrupt: A file is not what was written.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise StoreError(f"There is no gradient store in {folder}; collect one, or name the folder that holds one.")
        files = ShardFiles(folder, manifest)
        missing = files.missing()
        if missing and not partial:
            raise StoreError(
                f"The gradient store {folder} is not whole: {len(missing)} of its {len(files.plan)} shards are missing "
                f"({_listed(missing)}); run the same collect again to go on where it stopped."
            )
        for shard in files.plan:
            if shard not in missing:
                files.check(shard, verify=verify)
        return cls(folder, manifest, files, missing)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and their length."""
        return self.manifest.rows, self.manifest.dim

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.manifest.dim

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing

    def __len__(self) -> int:
        return self.manifest.rows

    def rows(self, indices: Sequence[int] | Integer[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Read rows by number, in the order asked for; a number may come more than once.

        Args:
            indices: Row numbers from 0 to n - 1.

        Raises:
            IndexError: A number outside that range.
            StoreError: A row of a shard that is missing.
            StoreCorrupt: A shard's file is damaged.
        """
        wanted = np.asarray(indices)
        if wanted.size == 0:
            return np.empty((0, self.dim), np.float32)
        if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
            raise IndexError("Rows are asked for by a list of whole numbers.")
        if wanted.min() < 0 or wanted.max() >= len(self):
            outside = wanted[(wanted < 0) | (wanted >= len(self))][0]
            raise IndexError(f"Row {outside} is not in the gradient store {self.folder}, which has {len(self)} rows.")
        return self._scaled(self._read(self.first_of_equal[wanted]), wanted)

    def _read(self, wanted: Integer[np.ndarray, " m"]) -> np.ndarray:
        """Rows as their own shards hold them."""
        shards, within = np.divmod(wanted, self.manifest.shard_rows)
        out = np.empty((len(wanted), self.dim), self.manifest.store_dtype)
        if len(wanted) <= _ONE_BY_ONE and len(self._files.plan) <= _MOST_MAPS:
            for place, (number, row) in enumerate(zip(shards.tolist(), within.tolist(), strict=True)):
                out[place] = self._map(number)[row]
        else:
            order = np.argsort(shards, kind="stable")
            begin = 0
            for end in (*(np.flatnonzero(np.diff(shards[order])) + 1).tolist(), len(order)):
                places = order[begin:end]
                out[places] = self._map(int(shards[places[0]]))[within[places]]
                begin = end
        return out

    def blocks(self, size: int) -> Iterator[tuple[int, Float32[np.ndarray, "b d"]]]:
        """Read all rows in order, a block at a time.

        Args:
            size: Rows of each block but the last.

        Yields:
            The first row's number, and the block.

        Raises:
            StoreError: A row of a shard that is missing.
            StoreCorrupt: A shard's file is damaged.
        """
        if size < 1:
            raise ValueError(f"A block of {size} rows cannot be read; ask for at least 1.")
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            out = np.empty((stop - start, self.dim), self.manifest.store_dtype)
            for shard in self._files.plan[start // self.manifest.shard_rows :]:
                low, high = max(start, shard.start), min(stop, shard.stop)
                if low >= high:
                    break
                out[low - start : high - start] = self._map(shard.number)[low - shard.start : high - shard.start]
            copies = self._copies[slice(*np.searchsorted(self._copies, (start, stop)))]
            if len(copies):
                out[copies - start] = self._read(self.first_of_equal[copies])
            yield start, self._scaled(out, slice(start, stop))

    def verify(self) -> None:
        """Hash every file of every shard that is there.

        Raises:
            StoreCorrupt: A file is not what was written; it is named.
        """
        for shard in self._files.plan:
            if shard.number not in self.missing:
                self._files.check(shard, verify=True)

    def _scaled(self, rows: np.ndarray, which: slice | Integer[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Rows in float32; float16 rows times their norms."""
        if self.manifest.store_dtype == "float32":
            return rows
        wide = np.empty(rows.shape, np.float32)
        _widen(rows.reshape(-1), wide.reshape(-1))
        wide *= self.norms[which][:, None]
        return wide

    def _map(self, number: int) -> np.ndarray:
        if number in self._maps:
            if len(self._files.plan) > _MOST_MAPS:
                self._maps.move_to_end(number)
            return self._maps[number]
        if number in self.missing:
            raise StoreError(
                f"Shard {number} of the gradient store {self.folder} is missing; run the same collect again."
            )
        mapped = self._files.map_rows(self._files.plan[number])
        self._maps[number] = mapped
        if len(self._maps) > _MOST_MAPS:
            self._maps.popitem(last=False)
        return mapped

    def __reduce__(self) -> tuple[Any, ...]:
        """A store travels as its folder's name, and is opened again where it arrives."""
        return _opened_again, (str(self.folder.absolute()), self.manifest.fingerprint, not self.complete)

    def __repr__(self) -> str:
        state = "" if self.complete else f", {len(self.missing)} shards missing"
        return f"GradientStore({str(self.folder)!r}, shape={self.shape}, dtype={self.manifest.store_dtype}{state})"


def _widen(narrow: np.ndarray, wide: Float32[np.ndarray, " n"]) -> None:
    """Copy float16 numbers, a piece at a time."""
    # Torch does it several times as fast as numpy; on larger pieces it would call other threads, which then spin beside
    # those of linear algebra and cost more than they do.
    for start in range(0, len(wide), _PIECE):
        part = slice(start, start + _PIECE)
        torch.from_numpy(wide[part]).copy_(torch.from_numpy(narrow[part]))


def _opened_again(folder: str, fingerprint: str, partial: bool) -> GradientStore:
    """A store that another process has opened before.

    Raises:
        StoreError, StoreCorrupt: As :meth:`GradientStore.open` raises them.
        StoreMismatch: The folder holds another store by now.
    """
    store = GradientStore.open(folder, partial=partial)
    if store.manifest.fingerprint != fingerprint:
        raise StoreMismatch(
            f"The gradient store {folder} was replaced while it was in use; run the same command again."
        )
    return store


_FIELDS = {
    "digests": "digest",
    "losses": "loss",
    "lengths": "tokens",
    "squared_norms": "squared_norm",
    "norms": "norm",
    "statuses": "status",
}


def estimated_bytes(rows: int, dim: int, dtype: str, shard_rows: int = 1024) -> int:
    """Bytes that a store takes on disk, to within a few kilobytes.

    Args:
        rows: Examples.
        dim: Length of a row.
        dtype: ``float32`` or ``float16``.
        shard_rows: Rows of a shard.
    """
    header, marker, manifest = 128, 600, 4096
    shards = -(-rows // shard_rows)
    return rows * (dim * np.dtype(dtype).itemsize + META_DTYPE.itemsize) + shards * (3 * header + marker) + manifest


def _listed(shards: Sequence[Shard], most: int = 5) -> str:
    names = ", ".join(shard.name for shard in shards[:most])
    return names if len(shards) <= most else f"{names}, ..."
