"""All rows of a pool with what is known of each, and which were chosen: the original rows, read again and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from spice_select.analysis.record import SelectionRecord
from spice_select.config import RunConfig
from spice_select.data.columns import column_values, to_array
from spice_select.data.messages import to_conversation
from spice_select.data.rows import RowSet
from spice_select.data.schema import detect_schemas
from spice_select.data.sources import load_rows
from spice_select.errors import StoreError, StoreMismatch
from spice_select.export.columns import PREFIX, prepare_columns
from spice_select.gradients.proxy import load_tokenizer

SELECTED = "selected"
_STEP = ("rank", "gain", "base", "epsilon", "conflict")


@dataclass(frozen=True)
class WholePool:
    """All rows of a run's pool.

    Attributes:
        table: Original columns, what is trained on, ``spice_*`` columns and ``selected``, in the order of the pool.
        scored: Rows with a score.
        notes: Sentences on columns that were replaced or renamed.
    """

    table: pa.Table
    scored: int
    notes: tuple[str, ...]


def whole_pool(config: RunConfig, record: SelectionRecord, trace: Path, pool: Path) -> WholePool:
    """Read all rows of a run again, with their scores where they are known.

    Args:
        config: The run's settings, which name the sources.
        record: What it selected.
        trace: Its ``trace.parquet``.
        pool: Its ``pool.parquet``, which methods that score every row leave.

    Raises:
        StoreMismatch: The sources no longer hold the rows of the run.
        StoreError: The run's own files cannot be read.
        DataError: The sources cannot be read.
        ModelError: The tokenizer, whose special tokens end responses, cannot be read.
    """
    rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
    if len(rows) != record.n or rows.fingerprint != record.fingerprints.rows:
        raise StoreMismatch(
            f"The sources ({', '.join(config.data.sources)}) have changed since the run: its {record.n:,} rows had the"
            f" fingerprint {(record.fingerprints.rows or 'none')[:12]}, and the {len(rows):,} there now have"
            f" {rows.fingerprint[:12]}; bring the rows back, or run anew."
        )
    table, notes = _columns(rows, config)
    steps = _read(trace, record.k)
    picks = steps.column("index").to_numpy().astype(np.int64)
    values: dict[str, pa.Array] = {
        "source": pa.array([rows.source_of(index) for index in range(len(rows))], pa.string()),
        "index": pa.array(np.arange(len(rows), dtype=np.int64)),
    }
    for name in _STEP:
        values[name] = _scattered(steps.column(name), picks, len(rows))
    values["score"] = _scores(steps, picks, len(rows), pool)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[picks] = True
    for name, column in values.items():
        table = table.append_column(PREFIX + name, column)
    name = SELECTED
    if name in table.column_names:
        name = _fresh(f"{SELECTED}_original", table.column_names)
        table = table.rename_columns([name if found == SELECTED else found for found in table.column_names])
        notes = (*notes, f"The original column {SELECTED!r} is now {name!r}.")
    table = table.append_column(SELECTED, pa.array(chosen))
    return WholePool(table, len(rows) - values["score"].null_count, notes)


def _columns(rows: RowSet, config: RunConfig) -> tuple[pa.Table, tuple[str, ...]]:
    """Original columns of every row, and beside them what is trained on in those that can be trained."""
    schemas = detect_schemas(rows, config.data.columns)
    read = [
        to_conversation(row, schemas[int(source)]) for row, source in zip(rows, rows.source_ids.tolist(), strict=True)
    ]
    known = [(index, conversation) for index, conversation in enumerate(read) if conversation is not None]
    usable = np.array([index for index, _ in known], dtype=np.int64)
    special = load_tokenizer(config.model).all_special_tokens
    prepared = prepare_columns(rows.take(usable), [conversation for _, conversation in known], special)
    originals = rows.take(np.arange(len(rows)))
    rows.require_unchanged()
    kept = [name for name in originals.column_names if not name.startswith(PREFIX)]
    columns: list[pa.ChunkedArray | pa.Array] = []
    for place, name in enumerate(prepared.table.column_names):
        # Originals come first, in their order, whatever they are called now; rows that cannot be trained have them too.
        if place < len(kept) and name == "messages":
            values = column_values(originals.column(kept[place]))
            for index, turns in zip(usable.tolist(), column_values(prepared.table.column(name)), strict=True):
                values[index] = turns
            columns.append(to_array(values))
        elif place < len(kept):
            columns.append(originals.column(kept[place]))
        else:
            columns.append(_scattered(prepared.table.column(name), usable, len(rows)))
    hidden = "The default configuration"
    notes = tuple(note for note in prepared.notes if not note.startswith(hidden))
    return pa.Table.from_arrays(columns, names=prepared.table.column_names), notes


def _scattered(column: pa.ChunkedArray, places: Int[np.ndarray, " m"], count: int) -> pa.ChunkedArray:
    """Values at their places, null at all others."""
    back = np.full(count, -1, dtype=np.int64)
    back[places] = np.arange(len(places))
    return column.take(pa.array(back, mask=back < 0))


def _scores(steps: pa.Table, picks: Int[np.ndarray, " t"], count: int, pool: Path) -> pa.Array:
    """Score of every row where the method gave one to each, and else of the picks alone."""
    scores: Float[np.ndarray, " n"] = np.full(count, np.nan)
    if pool.is_file():
        saved = _read(pool, count)
        if "score" in saved.column_names:
            scores = saved.column("score").to_numpy(zero_copy_only=False).astype(np.float64)
    known = steps.column("score").to_numpy(zero_copy_only=False).astype(np.float64)
    scores = scores.copy()
    scores[picks] = known
    return pa.array(scores, from_pandas=True)


def _read(path: Path, count: int) -> pa.Table:
    try:
        table = pq.read_table(path)
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(f"{path} cannot be read ({reason}); run the selection again.") from None
    if len(table) != count:
        raise StoreError(f"{path} has {len(table):,} lines where the run has {count:,}; run the selection again.")
    return table


def _fresh(name: str, taken: Any) -> str:
    while name in taken:
        name += "_"
    return name
