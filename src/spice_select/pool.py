"""The pool of a run: rows read, understood, encoded, and checked against what the selection asks of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from spice_select.config import RunConfig
from spice_select.data.contamination import contaminated
from spice_select.data.encode import encode_rows
from spice_select.data.encoded import Encoded
from spice_select.data.row_numbers import read_row_numbers
from spice_select.data.schema import Schema, detect_schemas
from spice_select.data.sources import RowSet, load_rows
from spice_select.errors import BudgetError, ConfigError, DataError, RowsChanged
from spice_select.gradients.proxy import load_tokenizer
from spice_select.reporter import Clock, Reporter
from spice_select.selection.budget import Budget, resolve_budget
from spice_select.selection.on_device import usable_device
from spice_select.selection.options import Options
from spice_select.selection.quotas import resolve_groups


@dataclass(frozen=True)
class Pool:
    """The rows of a run, read and encoded.

    Attributes:
        rows: The rows with their original columns.
        schemas: How each source's columns were read.
        tokenizer: The proxy's.
        encoded: Token ids and response masks; rows left out have their status.
        notes: What was found, in plain sentences.
    """

    rows: RowSet
    schemas: tuple[Schema, ...]
    tokenizer: PreTrainedTokenizerBase
    encoded: Encoded
    notes: tuple[str, ...]

    @property
    def source_labels(self) -> list[str]:
        """The name of every row's source."""
        return [self.rows.sources[source].name for source in self.rows.source_ids]


def read_pool(config: RunConfig, reporter: Reporter, clock: Clock) -> Pool:
    """Read, understand and encode the rows; every sentence that says what was found goes to the reporter."""
    reporter.stage("Rows")
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        reporter.note(line)

    with clock.stage("rows"):
        rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
        schemas = detect_schemas(rows, config.data.columns)
    for line in rows.notes:
        note(line)
    for source, schema in zip(rows.sources, schemas, strict=True):
        note(f"{source.name}: {source.rows:,} rows; {schema.describe()}")
    with clock.stage("encode"):
        tokenizer = load_tokenizer(config.model)
        encoded = encode_rows(rows, tokenizer, config.data, loss=config.gradients.loss)
    rows.require_unchanged()
    for line in encoded.stats.describe():
        note(line)
    _require_responses(config, encoded)
    if config.data.contamination:
        with clock.stage("contamination"):
            found = contaminated(rows, schemas, config.data.contamination)
        for line in found.describe():
            note(line)
        encoded = encoded.with_excluded(found.mask)
        if not encoded.usable.any():
            raise DataError("Every usable row matches an evaluation file; name other rows or other evaluation files.")
    return Pool(rows, schemas, tokenizer, encoded, tuple(notes))


def require_same_rows(pool: Pool, fingerprint: str) -> None:
    """Refuse rows that are others than when the same command first read them.

    Args:
        pool: The rows as they are now.
        fingerprint: What the rows were.

    Raises:
        RowsChanged: They are others.
    """
    if pool.rows.fingerprint != fingerprint:
        names = ", ".join(source.origin for source in pool.rows.sources)
        raise RowsChanged(f"The rows of {names} changed while the command ran; run it again with the rows as they are.")


def _require_responses(config: RunConfig, encoded: Encoded) -> None:
    stats = encoded.stats
    if not encoded.usable.any():
        reason = f" ({stats.failures[0].reason})" if stats.failures else ""
        raise DataError(f"None of the {stats.rows:,} rows has a response to learn from{reason}; check data.columns.")
    if stats.responses_cut == stats.usable:
        raise DataError(
            f"Every response is cut off by data.max_length {config.data.max_length}, so that none would teach where to "
            "end; raise data.max_length."
        )


def check_selection(config: RunConfig, pool: Pool, *, everything: bool = False) -> Budget:
    """Resolve what the selection needs from the rows before hours go into gradients.

    Args:
        config: The settings of the run.
        pool: Its rows.
        everything: The method takes every row, whatever the budget is.

    Returns:
        The budget.
    """
    settings = config.selection
    Options(
        conflict_weight=settings.conflict_weight,
        alpha=settings.alpha,
        penalty=settings.penalty,
        hinge=settings.hinge,
        reference=settings.reference,
        stop_ratio=settings.stop_ratio,
        fisher=settings.fisher,
        loop=settings.loop,
        budget=settings.budget,
        quotas=settings.quotas,
        sampling_epsilon=settings.sampling_epsilon,
        partitions=settings.partitions,
        device=settings.device,
    ).check()
    if settings.device != "cpu" and config.schedule.kind != "pools":
        usable_device(settings.device)
    kept = ~excluded_rows(config, pool)
    labels = group_labels(config, pool)
    eligible = pool.encoded.usable & kept
    eligible[rows_in_hand(config, pool) or []] = False
    stops = settings.stop_ratio is not None
    asked = None if everything else settings.budget
    budget = resolve_budget(asked, len(eligible), int(eligible.sum()), stops=stops or everything)
    if budget.tokens is not None:
        _check_tokens(config, budget.tokens, pool.encoded.response_tokens[eligible])
    if settings.quotas is not None:
        assert labels is not None
        resolve_groups(labels, settings.quotas, eligible, kept, budget.rows)
    return budget


def _check_tokens(config: RunConfig, tokens: int, lengths: Int[np.ndarray, " m"]) -> None:
    asked, shortest = config.selection.budget, int(lengths.min())
    if config.selection.quotas is not None:
        raise ConfigError(
            f"selection.quotas count rows and cannot go with budget '{asked}'; give the budget in rows, or no quotas."
        )
    if tokens < shortest:
        raise BudgetError(f"budget '{asked}' is less than the shortest response, of {shortest} tokens; give more.")


def group_labels(config: RunConfig, pool: Pool) -> list[str] | None:
    """The label of every row by ``selection.groups``, or None where no column was named."""
    column = config.selection.groups
    if column is None:
        if config.selection.quotas is not None:
            raise ConfigError("selection.quotas needs selection.groups: a column of the rows, or 'source'.")
        return None
    if column == "source":
        return pool.source_labels
    known = sorted({name for source in pool.rows.sources for name in source.columns})
    if column not in known:
        raise ConfigError(f"selection.groups names no column of the rows: '{column}'; there are {', '.join(known)}.")
    return [str(value) for value in pool.rows.column(column)]


def rows_in_hand(config: RunConfig, pool: Pool) -> list[int] | None:
    """The row numbers in the file that ``selection.initial`` names."""
    name = config.selection.initial
    return None if name is None else read_row_numbers(name, len(pool.rows), field="selection.initial")


def excluded_rows(config: RunConfig, pool: Pool) -> Bool[np.ndarray, " rows"]:
    """The rows that the file named by ``selection.exclude`` leaves out."""
    mask = np.zeros(len(pool.rows), np.bool_)
    if config.selection.exclude is not None:
        mask[read_row_numbers(config.selection.exclude, len(pool.rows), field="selection.exclude")] = True
    return mask
