"""Rows that match a row of an evaluation file.

Two criteria, each enough on its own, both over normalised text (Unicode NFKC, case folded, every run of white space and
punctuation one space):

1. The last user turn of the row equals the prompt of the evaluation row.
2. At least half of the distinct runs of 13 words of the evaluation prompt occur in the row's turns. Shorter prompts
   have no such run and match by the first criterion alone. (Runs of 13 words: the usual measure since GPT-3,
   arXiv 2005.14165, appendix C; a share instead of a single run keeps shared boilerplate from counting.)
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from spice_select.data.messages import to_conversation
from spice_select.data.rows import RowSet
from spice_select.data.schema import PROMPT_COLUMNS, Schema, detect_schema
from spice_select.data.shapes import chat_kind, is_scalar
from spice_select.data.sources import load_rows
from spice_select.errors import ConfigError, DataError

WORDS = 13
THRESHOLD = 0.5
_PROMPT_ALONE = (*PROMPT_COLUMNS, "text", "input", "context")
_BETWEEN_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class FileMatches:
    """What one evaluation file matched.

    Attributes:
        file: The file as it was given.
        prompts: Prompts in it.
        equal: Rows of the pool whose last user turn equals one of them.
        overlapping: Further rows that share runs of words with one.
    """

    file: str
    prompts: int
    equal: int
    overlapping: int


@dataclass(frozen=True, eq=False)
class Contamination:
    """Rows of the pool that match an evaluation file.

    Attributes:
        mask: True for a row that matches.
        files: Counts by file; a row that matches two files counts in both.
    """

    mask: Bool[np.ndarray, " n"]
    files: tuple[FileMatches, ...]

    def describe(self) -> list[str]:
        """One sentence a file, and one for all when there are several."""
        lines = [
            f"{found.file}: {found.equal + found.overlapping:,} rows match its {found.prompts:,} prompts "
            f"({found.equal:,} equal, {found.overlapping:,} by overlap) and are left out."
            for found in self.files
        ]
        if len(self.files) > 1:
            lines.append(f"{int(self.mask.sum()):,} rows match an evaluation file and are left out.")
        return lines


def normalise(text: str) -> str:
    """Text as it is compared: NFKC, case folded, runs of white space and punctuation one space."""
    return _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def contaminated(
    rows: RowSet,
    schemas: Sequence[Schema],
    files: Sequence[str | Path],
    *,
    words: int = WORDS,
    threshold: float = THRESHOLD,
) -> Contamination:
    """Find the rows that match a row of an evaluation file.

    Args:
        rows: The pool.
        schemas: Schema of each source.
        files: Evaluation files or folders (json, jsonl, csv, parquet, arrow), with the columns of any schema, or with a
            question, prompt, text or the like alone.
        words: Length of the runs of words.
        threshold: Share of an evaluation prompt's runs that a row must hold, above 0 and at most 1.

    Raises:
        ConfigError: ``words`` or ``threshold`` out of range.
        DataError: A file that cannot be read, or that has no prompts.
    """
    if words < 1 or not 0 < threshold <= 1:
        raise ConfigError(f"words {words} and threshold {threshold} must be at least 1, and above 0 and at most 1.")
    hasher = _Hasher(words)
    indexes = [_Index.of(file, hasher, threshold) for file in files]
    hasher.closed = True
    mask = np.zeros((len(indexes), len(rows)), dtype=bool)
    equal = np.zeros(len(indexes), dtype=np.int64)
    for number, row in enumerate(rows.iter_rows()):
        turns = _turns(row, schemas[rows.source_ids[number]])
        if turns is None:
            continue
        last_user, whole = turns
        runs: np.ndarray | None = None
        for place, index in enumerate(indexes):
            if last_user in index.prompts:
                mask[place, number] = True
                equal[place] += 1
            elif len(index.runs):
                runs = hasher.runs(whole) if runs is None else runs
                mask[place, number] = index.overlaps(runs)
    counts = mask.sum(axis=1)
    found = [
        FileMatches(str(index.file), len(index.prompts), int(same), int(count - same))
        for index, same, count in zip(indexes, equal, counts, strict=True)
    ]
    return Contamination(np.asarray(mask.any(axis=0)), tuple(found))


class _Hasher:
    """Hashes of runs of words, 64 bits each: the same in every process, and equal for unequal runs once in 2^64."""

    def __init__(self, words: int) -> None:
        self.closed = False
        self._words = words
        self._values: dict[str, int] = {}
        self._powers = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(words)], dtype=np.uint64)

    def runs(self, text: str) -> UInt64[np.ndarray, " r"]:
        """Distinct runs of a normalised text; once closed, only those of words that were met before."""
        parts = text.split(" ")
        count = len(parts) - self._words + 1
        if count < 1:
            return np.zeros(0, dtype=np.uint64)
        if not self.closed:
            for word in parts:
                if word not in self._values:
                    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                    self._values[word] = int.from_bytes(digest, "little") | 1  # never the 0 of an unknown word
        values = np.array([self._values.get(word, 0) for word in parts], dtype=np.uint64)
        known = np.convolve(values == 0, np.ones(self._words, dtype=np.int64), "valid") == 0
        windows = np.lib.stride_tricks.sliding_window_view(values, self._words)[known]
        return np.unique((windows * self._powers).sum(axis=1, dtype=np.uint64))


@dataclass(frozen=True, eq=False)
class _Index:
    """The prompts of one file, and the runs of words that they are made of.

    ``owners[starts[i]:starts[i + 1]]`` are the prompts that hold ``runs[i]``.
    """

    file: str | Path
    prompts: frozenset[str]
    runs: UInt64[np.ndarray, " r"]
    starts: Int64[np.ndarray, " r_plus_1"]
    owners: Int64[np.ndarray, " m"]
    needed: Float64[np.ndarray, " p"]

    @classmethod
    def of(cls, file: str | Path, hasher: _Hasher, threshold: float) -> _Index:
        prompts = sorted({text for prompt in _prompts(file) if (text := normalise(prompt))})
        if not prompts:
            raise DataError(f"The evaluation file {file} has no prompts; name a file with a question or prompt column.")
        own = [hasher.runs(prompt) for prompt in prompts]
        needed = np.array([threshold * len(runs) for runs in own])
        owners = np.repeat(np.arange(len(own)), [len(runs) for runs in own])
        runs = np.concatenate(own)
        order = np.argsort(runs, kind="stable")
        distinct, starts = np.unique(runs[order], return_index=True)
        return cls(file, frozenset(prompts), distinct, np.append(starts, len(runs)), owners[order], needed)

    def overlaps(self, runs: UInt64[np.ndarray, " r"]) -> bool:
        places = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
        hits = places[self.runs[places] == runs]
        if not len(hits):
            return False
        owners = np.concatenate([self.owners[self.starts[hit] : self.starts[hit + 1]] for hit in hits])
        numbers, counts = np.unique(owners, return_counts=True)
        return bool((counts >= self.needed[numbers]).any())


def _turns(row: Mapping[str, Any], schema: Schema) -> tuple[str, str] | None:
    """The last user turn (or the text) and all that is not system, normalised; None for a row without a response."""
    conversation = to_conversation(row, schema)
    if conversation is None:
        return None
    asked = [message.content for message in conversation.messages if message.role == "user"]
    said = [message.content for message in conversation.messages if message.role != "system"]
    return normalise(asked[-1] if asked else said[-1]), normalise("\n".join(said))


def _prompts(file: str | Path) -> Iterator[str]:
    """What the rows of an evaluation file ask."""
    rows = load_rows([file])
    for source, table in enumerate(rows.tables):
        column = next((name for name in _PROMPT_ALONE if name in table.column_names), None)
        schema = _schema(rows, source)
        if schema is None and column is None:
            raise DataError(
                f"The evaluation file {rows.sources[source].origin} has the columns "
                f"{', '.join(table.column_names)}, of which none is a prompt; "
                f"name one of them {', '.join(_PROMPT_ALONE)} or messages."
            )
        for row in rows.subset(np.flatnonzero(rows.source_ids == source)).iter_rows():
            yield from _asked(row, schema, column)


def _schema(rows: RowSet, source: int) -> Schema | None:
    try:
        return detect_schema(rows, source)
    except DataError:
        return None  # evaluation files often have no response: a prompt alone will do


def _asked(row: Mapping[str, Any], schema: Schema | None, column: str | None) -> Iterator[str]:
    """The last user turn, or the text of a row without turns."""
    conversation = to_conversation(row, schema) if schema is not None else None
    if conversation is not None:
        users = [message.content for message in conversation.messages if message.role == "user"]
        yield users[-1] if users else conversation.messages[-1].content
    elif column is not None and row.get(column) is not None:
        value = row[column]
        if is_scalar(value):
            yield str(value)
        elif chat_kind(value) is not None:
            yield from (str(turn.get("content", turn.get("value"))) for turn in value[-1:])
