"""Texts and numbers of a run's rows, as read for it or as it has left them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from spice_select.analysis.record import SelectionRecord
from spice_select.config import RunConfig
from spice_select.data.columns import column_values
from spice_select.data.conversation import Message
from spice_select.data.rows import RowSet
from spice_select.data.schema import Schema, detect_schemas, to_conversation
from spice_select.data.sources import load_rows
from spice_select.errors import SpiceError, StoreError
from spice_select.gradients.store import GradientStore
from spice_select.report.content import Messages, Texts, Trace
from spice_select.run_folder import RunFolder

POOL_FILE = "pool.parquet"
"""One line for every row of the pool, which runs of methods other than SPICE leave."""
NO_STORE = "the map, the rows left out that would add most, and near-duplicates need them"
NOT_HERE = f"histograms, {NO_STORE}; name the folder that holds them with --gradients"


def texts_of_rows(rows: RowSet, schemas: Sequence[Schema]) -> Texts:
    """Messages of rows from the sources as they were read."""

    def texts(wanted: Sequence[int]) -> Mapping[int, Messages]:
        numbers = sorted({index for index in wanted if 0 <= index < len(rows)})
        found: dict[int, Messages] = {}
        for index, row in zip(numbers, rows.subset(numbers).iter_rows(), strict=True):
            conversation = to_conversation(row, schemas[int(rows.source_ids[index])])
            if conversation is not None:
                found[index] = [_said(message) for message in conversation.messages]
        return found

    return texts


def _said(message: Message) -> tuple[str, str]:
    return message.role, _with_calls(message.content, [_function(call) for call in message.tool_calls or ()])


def _function(call: Any) -> Any:
    return (call.get("function") or call) if isinstance(call, Mapping) else call


def _with_calls(content: str, calls: Sequence[object]) -> str:
    called = [json.dumps(call, ensure_ascii=False, default=str) for call in calls]
    return "\n".join([content, *called] if content else called)


def texts_of_picks(folder: RunFolder, trace: Trace) -> Texts:
    """Messages of the picks, from the rows that the run has written."""

    def texts(wanted: Sequence[int]) -> Mapping[int, Messages]:
        values = _read_column(folder, ("messages", "text"))
        chosen = set(wanted)
        found: dict[int, Messages] = {}
        for index, value in zip(trace.indices.tolist(), values, strict=False):
            if index in chosen and value is not None:
                found[index] = _turns(value)
        return found

    return texts


def _turns(value: Any) -> Messages:
    if not isinstance(value, list):
        return [("text", str(value))]
    return [
        (
            str(turn.get("role", "")),
            _with_calls(
                str(turn.get("content") or ""), [call.get("function") or call for call in turn.get("tool_calls") or ()]
            ),
        )
        for turn in value
        if isinstance(turn, dict)
    ]


def first_known(own: Texts, rows: Texts) -> Texts:
    """Picks from the run's own rows, others from the sources."""

    def texts(wanted: Sequence[int]) -> Mapping[int, Messages]:
        found = own(wanted)
        return {**rows([index for index in wanted if index not in found]), **found}

    return texts


def _read_column(folder: RunFolder, names: Sequence[str]) -> list[Any]:
    """Values of the first of these columns that the chosen rows have, in order of choice."""
    values: list[Any] = []
    try:
        for file in sorted(folder.data.glob("train-*.parquet")):
            present = pq.read_schema(file).names
            name = next((name for name in names if name in present), None)
            if name is None:
                return []
            values += column_values(pq.read_table(file, columns=[name]).column(name))
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = _first_line(error)
        raise StoreError(f"The rows in {folder.data} cannot be read ({reason}); select again.") from None
    return values


def read_trace(folder: RunFolder) -> Trace:
    """The trace that a run has left; a column of nulls is one that is not known.

    Raises:
        StoreError: It is missing, or no trace.
    """
    try:
        table = pq.read_table(folder.trace)
        index = table.column("index").to_numpy()
        if index.dtype.kind not in "iu" or (len(index) and index.min() < 0):
            raise ValueError("its row numbers are none")
        gain, base, epsilon, conflict = (_numbers(table, name) for name in ("gain", "base", "epsilon", "conflict"))
        score = _numbers(table, "score") if "score" in table.column_names else None
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = _first_line(error)
        raise StoreError(f"{folder.trace} is no trace of a run ({reason}); select again.") from None
    return Trace(index.astype(np.int64), gain, base, epsilon, conflict, score)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _numbers(table: pa.Table, name: str) -> Float[np.ndarray, " k"] | None:
    column = table.column(name)
    return None if len(column) and column.null_count == len(column) else column.to_numpy().astype(np.float64)


@dataclass(frozen=True, eq=False)
class SavedPool:
    """What a run has left of every row of the pool.

    Attributes:
        lengths: Response tokens.
        usable: Rows that could be chosen.
        scores: Score of every row, where the method scores rows by themselves; NaN where one has none.
    """

    lengths: Int[np.ndarray, " n"]
    usable: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"] | None


def read_pool_file(folder: RunFolder, record: SelectionRecord, remarks: list[str]) -> SavedPool | None:
    """The rows of the pool as a run has left them; None where it has left none, as SPICE does.

    Args:
        folder: The run's.
        record: Its record.
        remarks: Gets a sentence where the file cannot be used.
    """
    path = folder.path / POOL_FILE
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        found = SavedPool(
            table.column("tokens").to_numpy().astype(np.int64),
            table.column("usable").to_numpy().astype(bool),
            _numbers(table, "score") if "score" in table.column_names else None,
        )
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = _first_line(error)
        remarks.append(f"Lengths and scores of the pool are not shown, as {path} cannot be read ({reason}).")
        return None
    if len(found.lengths) != record.n:
        remarks.append(f"Lengths and scores of the pool are not shown, as {path} is of other rows.")
        return None
    return found


def texts_of_sources(config: RunConfig, record: SelectionRecord, remarks: list[str]) -> Texts | None:
    """Messages of rows from the sources, if these are what the run has read; a remark says why not."""
    try:
        rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
        if record.fingerprints.rows != rows.fingerprint:
            remarks.append("The texts of rows left out are not shown, as the sources have changed since the run.")
            return None
        return texts_of_rows(rows, detect_schemas(rows, config.data.columns))
    except SpiceError as error:
        remarks.append(f"The texts of rows left out are not shown, as their sources cannot be read: {error}")
        return None


def no_gradients(record: SelectionRecord) -> str:
    """What a page lacks where gradients of all rows are not at hand."""
    if record.objective is None:
        return (
            "The method measured no gradients: information, conflict, the map, the rows left out that would add most,"
            " and near-duplicates need them."
        )
    return f"This run kept no gradients of all rows: {NO_STORE}."


def open_store(folder: Path, record: SelectionRecord, remarks: list[str]) -> GradientStore | None:
    """The gradients of a run, if they are there and its own; a remark says why not."""
    try:
        if record.schedule is not None and record.schedule.kind == "pools" and not folder.is_dir():
            remarks.append(f"This run kept no gradients of all rows: histograms, {NO_STORE}.")
            return None
        if record.objective is None and not folder.is_dir():
            remarks.append(no_gradients(record))
            return None
        if not folder.is_dir():
            remarks.append(f"The gradients of all rows are not in {folder}, and {NOT_HERE}.")
            return None
        store = GradientStore.open(folder)
    except SpiceError as error:
        remarks.append(f"The gradients of all rows cannot be read, and {NO_STORE}: {error}")
        return None
    if len(store) != record.n or store.manifest.examples != record.fingerprints.encoded:
        remarks.append(f"The gradients in {folder} are not those of this run, and {NOT_HERE}.")
        return None
    return store


def source_labels(record: SelectionRecord) -> list[str] | None:
    """The name of every row's source, as sources follow each other."""
    labels = [source.name for source in record.sources for _ in range(source.rows)]
    return labels if len(labels) == record.n else None
