"""The target: examples of what the model should become good at, read and encoded as the pool is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spice_select.config import RunConfig
from spice_select.data.encode import encode_conversations
from spice_select.data.encoded import Encoded, collect_examples
from spice_select.data.rows import RowSet
from spice_select.data.schema import PROMPT_COLUMNS, RESPONSE_COLUMNS, Schema, detect_schema, to_conversation
from spice_select.data.sources import load_rows
from spice_select.errors import DataError
from spice_select.pool import Pool
from spice_select.reporter import Clock, Reporter

SUBTASK = "subtask"
"""Column that names the subtask of a target example."""
ONE_TASK = "target"
"""Name of the one subtask of a target that has no others."""


@dataclass(frozen=True)
class Words:
    """What examples that are no part of the pool are called.

    Attributes:
        file: A file of them.
        kind: Them, as an adjective.
        head: The same at the head of a line.
        purpose: What their responses are for.
        alone: Name of the one subtask of a single file without a column for it; None: the file's.
    """

    file: str
    kind: str
    head: str
    purpose: str
    alone: str | None


_TARGET = Words("target", "target", "Target", "aim for", ONE_TASK)


@dataclass(frozen=True, eq=False)
class TargetRows:
    """The target examples that can be used, in the order of their files.

    Attributes:
        rows: The examples with their original columns.
        schemas: How each source's columns were read.
        encoded: Token ids and response masks, one for every example; all are usable.
        subtasks: Name of each example's subtask.
    """

    rows: RowSet
    schemas: tuple[Schema, ...]
    encoded: Encoded
    subtasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.subtasks)


def read_target(config: RunConfig, pool: Pool, reporter: Reporter, clock: Clock) -> TargetRows:
    """Read and encode the files of ``data.target`` by the pool's tokenizer and chat template.

    An example without a response is left out and counted; one that the pool holds as well is kept, with a warning.

    Args:
        config: The settings of the run; it names at least one file.
        pool: The pool, for its tokenizer and to find examples that are in both.
        reporter: Hears what was found.
        clock: Seconds by stage.

    Raises:
        DataError: A file that is missing, cannot be read or has no prompt and response, or none of the examples can be
            used.
    """
    assert config.data.target
    reporter.stage("Target")
    with clock.stage("target"):
        kept = read_examples(config.data.target, config, pool.tokenizer, reporter, _TARGET)
    if shared := shared_examples(kept.encoded, pool.encoded):
        reporter.warn(
            f"{shared:,} of the {len(kept):,} target examples are rows of the pool as well, which a choice towards the "
            "target finds at once; leave them out of one of the two, or take nothing from results on these examples."
        )
    return kept


def read_examples(
    files: Sequence[str], config: RunConfig, tokenizer: Any, reporter: Reporter, words: Words
) -> TargetRows:
    """Read and encode files of examples that are no part of the pool, by the settings that the pool is read with.

    Args:
        files: At least one.
        config: Template, columns and lengths.
        tokenizer: Of the model that sees the examples.
        reporter: Hears what was found.
        words: What the examples are called.

    Raises:
        DataError: A file that is missing, cannot be read or has no prompt and response, or none of the examples can be
            used.
    """
    rows = _load(files, config.data.split, words)
    schemas = tuple(_schema(rows, source, config, words) for source in range(len(rows.sources)))
    encoded = encode_as(rows, schemas, tokenizer, config)
    usable = np.flatnonzero(encoded.usable)
    _require_usable(files, encoded, words)
    for line in rows.notes:
        reporter.note(f"{words.head}: {line}")
    for source, schema in zip(rows.sources, schemas, strict=True):
        reporter.note(f"{words.head} {source.name}: {source.rows:,} examples; {schema.describe()}")
    if left_out := len(encoded) - len(usable):
        reporter.note(f"{left_out:,} of the {len(encoded):,} {words.kind} examples have no response and are left out.")
    subtasks = _subtasks(rows, words.alone)
    examples = [encoded.example(int(index)) for index in usable]
    return TargetRows(
        rows.subset(usable),
        schemas,
        collect_examples(examples, encoded.stats, encoded.identity),
        tuple(subtasks[index] for index in usable),
    )


def encode_as(rows: RowSet, schemas: Sequence[Schema], tokenizer: Any, config: RunConfig) -> Encoded:
    """Encode rows whose schemas are known by some tokenizer and the run's template."""
    conversations = (
        to_conversation(row, schemas[int(source)])
        for row, source in zip(rows.iter_rows(), rows.source_ids, strict=True)
    )
    return encode_conversations(conversations, tokenizer, config.data, loss=config.gradients.loss)


def shared_examples(examples: Encoded, pool: Encoded) -> int:
    """Examples whose ids and mask are those of a row of the pool."""
    there = {digest.tobytes() for digest in pool.digests[pool.usable]}
    return sum(digest.tobytes() in there for digest in examples.digests)


def _load(files: Sequence[str], split: str, words: Words) -> RowSet:
    try:
        return load_rows(files, split=split)
    except DataError as error:
        text = str(error)
        if text.startswith("The source "):
            raise DataError(text.replace("source", words.file, 1)) from None
        raise DataError(f"The {words.file} cannot be read: {text}") from None


def _schema(rows: RowSet, source: int, config: RunConfig, words: Words) -> Schema:
    """The schema of one file: the mapping of the pool's columns is laid over it where it has those columns."""
    columns = rows.tables[source].column_names
    mapping = {role: column for role, column in config.data.columns.items() if not column or column in columns}
    try:
        return detect_schema(rows, source, mapping)
    except DataError:
        shown = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in columns[:12])
        more = f" and {len(columns) - 12} more" if len(columns) > 12 else ""
        raise DataError(
            f"The {words.file} {rows.sources[source].origin} has the columns {shown}{more}, which give no prompt and "
            f"response; name them messages, conversations, text, or one of {{{', '.join(PROMPT_COLUMNS)}}} with one of "
            f"{{{', '.join(RESPONSE_COLUMNS)}}}, or as data.columns has them for the pool."
        ) from None


def _require_usable(files: Sequence[str], encoded: Encoded, words: Words) -> None:
    if not encoded.usable.any():
        failures = encoded.stats.failures
        reason = f" ({failures[0].reason})" if failures else ""
        raise DataError(
            f"None of the {len(encoded):,} {words.kind} examples in {', '.join(files)} has a response to "
            f"{words.purpose}{reason}; "
            "give examples with responses."
        )


def _subtasks(rows: RowSet, alone: str | None) -> list[str]:
    """By the column, where an example has a value in it; else the name of its file, if that tells it from others."""
    several = len(rows.sources) > 1
    named = rows.column(SUBTASK) if SUBTASK in rows.columns else [None] * len(rows)
    return [
        str(value)
        if value is not None and value != ""
        else rows.source_of(index)
        if several
        else alone or rows.source_of(index)
        for index, value in enumerate(named)
    ]
