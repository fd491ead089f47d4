"""The rows of a pool: several sources in order, as Arrow tables with their original columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from spice_select.data.columns import canonical, column_values, concat_tables, table_rows
from spice_select.data.stamps import Stamp

BLOCK_ROWS = 1024
_FEATURES = b"huggingface"


@dataclass(frozen=True)
class Source:
    """Where a run of rows came from.

    Attributes:
        name: Short name, unique among the sources of a pool.
        origin: What the user gave: a path or a Hub id.
        revision: Commit of a Hub data set.
        format: ``json``, ``jsonl``, ``csv``, ``parquet``, ``arrow`` or ``hub``; joined by + where a folder mixes them.
        rows: Number of rows that are used.
        fingerprint: SHA-256 (hex) over the contents of those rows, independent of path, format and order of columns.
        columns: Names of the original columns.
    """

    name: str
    origin: str
    revision: str | None
    format: str
    rows: int
    fingerprint: str
    columns: tuple[str, ...]


def fingerprint_rows(table: pa.Table) -> str:
    """SHA-256 (hex) over the values of the rows in order."""
    digest = hashlib.sha256()
    for start in range(0, len(table), BLOCK_ROWS):
        for row in table_rows(table.slice(start, BLOCK_ROWS)):
            digest.update(canonical(row))
    return digest.hexdigest()


def _noted(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` noted about columns; nothing where the note is damaged, as it only helps."""
    try:
        found = json.loads((schema.metadata or {}).get(_FEATURES, b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows in order, each numbered by its place.

    Attributes:
        sources: The sources, in the order given.
        tables: One table of original columns a source.
        source_ids: Source of each row.
        places: Place of each row in the table of its source.
        notes: Sentences on what reading had to decide and the user may want to know.
        mapped: Files whose bytes the tables are; all else is in memory.
    """

    sources: tuple[Source, ...]
    tables: tuple[pa.Table, ...]
    source_ids: Int32[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]
    notes: tuple[str, ...] = field(default=())
    mapped: tuple[Stamp, ...] = field(default=())

    @classmethod
    def of(cls, sources: Sequence[Source], tables: Sequence[pa.Table], notes: Sequence[str] = ()) -> RowSet:
        """All rows of the tables in order."""
        lengths = [len(table) for table in tables]
        ids = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
        places = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths] or [np.zeros(0, np.int64)])
        return cls(tuple(sources), tuple(tables), ids, places, tuple(notes))

    def __len__(self) -> int:
        return len(self.source_ids)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> RowSet: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | RowSet:
        """The original columns of a row, or a smaller set for a slice."""
        if isinstance(index, slice):
            return self.subset(np.arange(len(self))[index])
        at = range(len(self))[index]
        return table_rows(self.tables[self.source_ids[at]].slice(int(self.places[at]), 1))[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iter_rows()

    def source_of(self, index: int) -> str:
        """Name of the source of a row."""
        return self.sources[self.source_ids[index]].name

    def subset(self, indices: Sequence[int] | np.ndarray) -> RowSet:
        """These rows in this order, under new numbers; the sources stay as they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        return RowSet(self.sources, self.tables, self.source_ids[chosen], self.places[chosen], self.notes, self.mapped)

    def require_unchanged(self) -> None:
        """Refuse rows whose files were written into since they were read: a mapped file shows what it holds now.

        Raises:
            DataError: One has been.
        """
        for stamp in self.mapped:
            stamp.require_unchanged("since it was read")

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """The original columns of every row in order, a block at a time."""
        for source, places in self._runs():
            table = self.tables[source]
            for start in range(0, len(places), BLOCK_ROWS):
                block = places[start : start + BLOCK_ROWS]
                adjacent = len(block) == block[-1] - block[0] + 1 and bool((np.diff(block) == 1).all())
                yield from table_rows(
                    table.slice(int(block[0]), len(block)) if adjacent else table.take(pa.array(block))
                )

    def _runs(self) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
        edges = np.flatnonzero(np.diff(self.source_ids)) + 1
        for ids, places in zip(np.split(self.source_ids, edges), np.split(self.places, edges), strict=True):
            if len(ids):
                yield int(ids[0]), places

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the original columns of all sources, in the order of the sources."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.column_names))

    def column(self, name: str) -> list[Any]:
        """Values of a column, None for rows whose source lacks it."""
        values: list[Any] = []
        for source, places in self._runs():
            table = self.tables[source]
            if name in table.column_names:
                values += column_values(table.column(name).take(pa.array(places)))
            else:
                values += [None] * len(places)
        return values

    def take(self, indices: Sequence[int] | np.ndarray) -> pa.Table:
        """Original columns of these rows, in this order.

        A column that a source lacks is null for its rows. A column whose types conflict between sources becomes JSON;
        :meth:`conflicting_columns` names those.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        ids = self.source_ids[chosen]
        used = [int(source) for source in np.unique(ids)]
        if not used:
            return concat_tables([table.slice(0, 0) for table in self.tables])[0]
        parts = [self.tables[source].take(pa.array(self.places[chosen[ids == source]])) for source in used]
        table = concat_tables(parts)[0] if len(parts) > 1 else parts[0]
        if len(parts) > 1:
            order = np.concatenate([np.flatnonzero(ids == source) for source in used])
            back = np.empty(len(chosen), dtype=np.int64)
            back[order] = np.arange(len(chosen))
            table = table.take(pa.array(back))
        return table.replace_schema_metadata(self._features(table, used))

    def _features(self, table: pa.Table, used: Sequence[int]) -> dict[bytes, bytes] | None:
        """What ``datasets`` noted about columns (labels, images), for those that kept their type."""
        found: dict[str, Any] = {}
        for source in used:
            schema = self.tables[source].schema
            for name, feature in _noted(schema).items():
                if name in schema.names and schema.field(name).type == table.schema.field(name).type:
                    found.setdefault(name, feature)
        return {_FEATURES: json.dumps({"info": {"features": found}}).encode()} if found else None

    def conflicting_columns(self) -> tuple[str, ...]:
        """Columns whose types differ so much between sources that :meth:`take` makes them JSON."""
        return concat_tables([table.slice(0, 0) for table in self.tables])[1] if len(self.tables) > 1 else ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the sources' row contents in order; a limit tells in the rows that it leaves."""
        digest = hashlib.sha256(b"rows-1\n")
        if sum(source.rows for source in self.sources) == len(self) and self._undisturbed():
            for source in self.sources:
                digest.update(f"{source.rows} {source.fingerprint}\n".encode())
        else:
            for source, row in zip(self.source_ids.tolist(), self.iter_rows(), strict=True):
                digest.update(f"{source} ".encode() + canonical(row))
        return digest.hexdigest()

    def _undisturbed(self) -> bool:
        whole = RowSet.of(self.sources, self.tables)
        return bool(np.array_equal(whole.source_ids, self.source_ids) and np.array_equal(whole.places, self.places))
