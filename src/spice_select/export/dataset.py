"""The chosen rows as a data set folder: parquet in order of choice, the trace, a card that loads just those rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from spice_select.data.messages import to_conversation
from spice_select.data.rows import RowSet
from spice_select.data.schema import Schema
from spice_select.errors import DataError
from spice_select.export.card import CardFacts, render_card
from spice_select.export.columns import PREFIX, prepare_columns
from spice_select.files import atomic_file, explained, make_folder, remove_tree, sync_folder, write_text

SHARD_BYTES = 400 << 20


Values = Float[np.ndarray, " t"]


class Picks(Protocol):
    """What is needed of a selection: one entry a step, in order of choice; None for what is not known of any."""

    @property
    def indices(self) -> Int[np.ndarray, " t"]:
        """Row numbers."""
        ...

    @property
    def gains(self) -> Values | None:
        """Marginal information gains, in nats."""
        ...

    @property
    def bases(self) -> Values | None:
        """What each pick is worth alone, in nats."""
        ...

    @property
    def epsilons(self) -> Values | None:
        """Gain less base."""
        ...

    @property
    def conflicts(self) -> Values | None:
        """Conflicts when picked."""
        ...

    @property
    def scores(self) -> Values:
        """What was compared."""
        ...


@dataclass(frozen=True)
class DatasetFiles:
    """What :func:`write_dataset` has written.

    Attributes:
        data: The parquet files in order.
        trace: One line a step.
        card: The data set card.
        columns: Columns of the parquet files.
        hidden: Those that the card's default configuration leaves out.
        notes: Sentences on columns that were replaced, renamed or hidden.
    """

    data: tuple[Path, ...]
    trace: Path
    card: Path
    columns: tuple[str, ...]
    hidden: tuple[str, ...]
    notes: tuple[str, ...]


def write_dataset(
    folder: str | Path,
    rows: RowSet,
    schemas: Sequence[Schema],
    selection: Picks,
    facts: CardFacts,
    *,
    special_tokens: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
) -> DatasetFiles:
    """Write ``data/train-*.parquet``, ``trace.parquet`` and ``README.md`` into a folder.

    Each file is whole or absent; the card goes last. An earlier ``data`` folder is replaced.

    Args:
        folder: Where to; made if it is not there.
        rows: The pool.
        schemas: Schema of each source.
        selection: The picks, whose indices are row numbers of the pool.
        facts: What the card says about the run.
        special_tokens: Strings that the encoder strips from the end of a response (the tokenizer's special tokens).
        shard_bytes: Size in memory at which a further parquet file is begun.

    Raises:
        DataError: A pick has no usable response.
        OutputError: A file cannot be written.
        ResourceError: The disk is full.
    """
    target = make_folder(folder)
    for stale in target.glob(".data-*.tmp"):
        remove_tree(stale)
    indices = np.asarray(selection.indices, dtype=np.int64)
    conversations = []
    for index, row in zip(indices.tolist(), rows.subset(indices).iter_rows(), strict=True):
        conversation = to_conversation(row, schemas[int(rows.source_ids[index])])
        if conversation is None:
            raise DataError(f"Row {index} was chosen but has no usable response; leave it out with selection.exclude.")
        conversations.append(conversation)
    prepared = prepare_columns(rows.take(indices), conversations, special_tokens)
    rows.require_unchanged()
    steps = _steps(rows, indices, selection)
    table = prepared.table
    for name, values in steps.items():
        table = table.append_column(PREFIX + name, values)
    data = _replace_data(target, table, shard_bytes)
    trace = target / "trace.parquet"
    ordered = ("rank", "index", "gain", "base", "epsilon", "conflict", "score", "source")
    _write_table(pa.table({name: steps[name] for name in ordered}), trace)
    card = target / "README.md"
    chosen = Counter(rows.source_of(index) for index in indices.tolist())
    write_text(card, render_card(facts, rows, chosen, tuple(table.column_names), prepared.hidden, prepared.notes))
    return DatasetFiles(data, trace, card, tuple(table.column_names), prepared.hidden, prepared.notes)


def write_pool(
    path: Path,
    sources: Sequence[str],
    tokens: Int[np.ndarray, " n"],
    usable: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"] | None,
) -> None:
    """Write one line for every row of the pool: its number, source, response tokens, and what the method made of it.

    Args:
        path: The parquet file.
        sources: Name of every row's source.
        tokens: Response tokens.
        usable: Rows that could be chosen.
        scores: Score of every row, where the method scores rows by themselves; NaN becomes null.

    Raises:
        OutputError: It cannot be written.
    """
    columns = {
        "index": pa.array(np.arange(len(tokens), dtype=np.int64)),
        "source": pa.array(sources, pa.string()),
        "tokens": pa.array(np.asarray(tokens, dtype=np.int64)),
        "usable": pa.array(np.asarray(usable, dtype=bool)),
    }
    if scores is not None:
        columns["score"] = pa.array(np.asarray(scores, dtype=np.float64), from_pandas=True)
    _write_table(pa.table(columns), path)


def _steps(rows: RowSet, indices: Int[np.ndarray, " t"], selection: Picks) -> dict[str, pa.Array]:
    numbers = {
        "gain": selection.gains,
        "base": selection.bases,
        "epsilon": selection.epsilons,
        "conflict": selection.conflicts,
        "score": selection.scores,
    }
    return {
        "source": pa.array([rows.source_of(index) for index in indices.tolist()], pa.string()),
        "rank": pa.array(np.arange(len(indices), dtype=np.int64)),
        "index": pa.array(indices),
        **{
            name: pa.nulls(len(indices), pa.float64())
            if values is None
            else pa.array(np.asarray(values, dtype=np.float64))
            for name, values in numbers.items()
        },
    }


def _replace_data(folder: Path, table: pa.Table, shard_bytes: int) -> tuple[Path, ...]:
    """Write all shards beside the data folder, then let them take its place."""
    count = max(1, min(len(table), -(-table.nbytes // shard_bytes)))
    edges = np.linspace(0, len(table), count + 1).astype(int).tolist()
    data, beside = folder / "data", folder / f".data-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    names = [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    make_folder(beside)
    try:
        for name, (start, end) in zip(names, pairwise(edges), strict=True):
            _write_table(table.slice(start, end - start), beside / name)
        if data.exists():
            remove_tree(data)
        with explained(data):
            os.rename(beside, data)
    except BaseException:
        remove_tree(beside)
        raise
    sync_folder(folder)
    return tuple(data / name for name in names)


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file:
        pq.write_table(table, file)
