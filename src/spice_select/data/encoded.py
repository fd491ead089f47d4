"""Token ids and response masks of many rows, in columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from spice_select.data.status import Status


@dataclass(frozen=True)
class Example:
    """One row as the model sees it.

    Attributes:
        input_ids: Token ids.
        labels_mask: True where the token is a trained label; never at the first token, which nothing predicts.
        status: What became of the row.
    """

    input_ids: Int[np.ndarray, " t"]
    labels_mask: Bool[np.ndarray, " t"]
    status: Status

    @property
    def digest(self) -> bytes:
        """SHA-256 of ids and mask, 32 bytes."""
        return _digest(self.input_ids, self.labels_mask)


@dataclass(frozen=True)
class Failure:
    """Rows that could not be encoded, for one reason."""

    reason: str
    count: int
    first_row: int


@dataclass(frozen=True)
class EncodingStats:
    """What the encoder met on its way; nothing that changes the data happens unsaid.

    Attributes:
        rows: Rows in all.
        usable: Rows with at least one trained token.
        tokens: Tokens in all.
        response_tokens: Trained tokens in all.
        strategies: How the responses were found, and in how many rows.
        template: Where the chat template comes from: ``tokenizer``, ``setting`` or ``plain``.
        clock: The date told to a template that prints it, else None.
        truncated: Rows that were cut to the maximum length.
        responses_cut: Rows, among these, that lost the end of their response.
        stripped: Rows whose response ended in a special-token string, which was removed.
        special_text: Rows with special-token strings in the data, encoded as plain text.
        system_folded: Rows whose system turn went into the next user turn.
        merged: Rows in which turns of the same role in a row were joined.
        calls_written: Rows whose calls of tools are JSON text in the content.
        tools_left_out: Rows whose tools the template does not name.
        left_out: Rows with a response that the template leaves out.
        last_turn_only: Rows of which the last turn alone could be trained.
        without_end: Rows with a response that no end-of-turn token follows.
        altered: Rows with a response that the template does not render word for word, such as by dropping its
            reasoning.
        no_response: Rows without a response.
        failures: Rows that the template refuses, by reason.
        fallback_tokens: Rows encoded in pieces, as the tokenizer gives no character positions.
    """

    rows: int = 0
    usable: int = 0
    tokens: int = 0
    response_tokens: int = 0
    strategies: Mapping[str, int] = field(default_factory=dict)
    template: str = "tokenizer"
    clock: str | None = None
    truncated: int = 0
    responses_cut: int = 0
    stripped: int = 0
    special_text: int = 0
    system_folded: int = 0
    merged: int = 0
    calls_written: int = 0
    tools_left_out: int = 0
    left_out: int = 0
    last_turn_only: int = 0
    without_end: int = 0
    altered: int = 0
    no_response: int = 0
    failures: tuple[Failure, ...] = ()
    fallback_tokens: int = 0

    def describe(self) -> list[str]:
        """The same in plain sentences, without what did not occur."""
        source = {
            "tokenizer": "the tokenizer's own chat template",
            "setting": "the chat template of the settings",
            "plain": "the plain chat template of this package, as the tokenizer has none",
        }[self.template]
        lines = [
            f"{self.usable:,} of {self.rows:,} rows have a response: {self.response_tokens:,} response tokens "
            f"of {self.tokens:,}, by {source}."
        ]
        if self.strategies:
            ways = ", ".join(f"{_WAYS[name]} {count:,}" for name, count in sorted(self.strategies.items()))
            lines.append(f"Rows by the way their response was found: {ways}.")
        if self.clock:
            lines.append(f"The template prints a date; it was told {self.clock}.")
        counted = [
            (self.truncated, "were cut to the maximum length; prompts gave way first"),
            (self.responses_cut, "lost the end of their response to the maximum length"),
            (self.stripped, "had a special-token string at the end of a response, which was removed"),
            (self.special_text, "hold special-token strings, which were encoded as plain text"),
            (self.system_folded, "had their system turn put into the user turn, as the template refuses it"),
            (self.merged, "had neighbouring turns of one role joined, as the template wants them to alternate"),
            (self.calls_written, "had calls of tools written as JSON text, as the template writes none"),
            (self.tools_left_out, "have tools that the template does not name to the model"),
            (self.left_out, "have a response that the template leaves out, which is not trained"),
            (self.last_turn_only, "are trained on their last turn alone, as the template hides where the others lie"),
            (self.without_end, "have a response that the template ends without a special token"),
            (self.altered, "have a response that the template changes, such as by leaving out its reasoning"),
            (self.fallback_tokens, "were tokenised in pieces, as the tokenizer gives no character positions"),
            (self.no_response, "have no response and are unusable"),
        ]
        lines += [f"{count:,} rows {what}." for count, what in counted if count]
        lines += [
            f"{failure.count:,} rows are unusable, first row {failure.first_row}: {failure.reason}."
            for failure in self.failures
        ]
        return lines


_WAYS = {
    "generation": "generation blocks",
    "prefix": "rendered prefix",
    "sentinel": "sentinels",
    "last-turn": "last turn alone",
    "text": "whole text",
}


@dataclass(frozen=True)
class Encoded:
    """All rows in the order in which they came; a row that can't be used is empty and has its status.

    Attributes:
        ids: Token ids of all rows, end to end.
        mask: Trained labels, beside ``ids``.
        offsets: Row i is ``offsets[i]`` to ``offsets[i + 1]``.
        status: :class:`Status` of each row.
        response_tokens: Trained tokens of each row.
        digests: SHA-256 of each row's ids and mask.
        stats: What was met.
        identity: What, beside the rows, made these ids: template, clock, tokenizer settings.
    """

    ids: Int[np.ndarray, " total"]
    mask: Bool[np.ndarray, " total"]
    offsets: Int[np.ndarray, " rows_plus_1"]
    status: UInt8[np.ndarray, " rows"]
    response_tokens: Int[np.ndarray, " rows"]
    digests: UInt8[np.ndarray, "rows 32"]
    stats: EncodingStats
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.status)

    def example(self, index: int) -> Example:
        """Row ``index``; its arrays are views."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Example(self.ids[span], self.mask[span], Status(int(self.status[index])))

    def part(self, start: int, stop: int) -> Encoded:
        """Rows from ``start`` up to ``stop``, without what was met on the way; its arrays are views."""
        span, tokens = slice(start, stop), slice(int(self.offsets[start]), int(self.offsets[stop]))
        return Encoded(
            self.ids[tokens],
            self.mask[tokens],
            self.offsets[start : stop + 1] - self.offsets[start],
            self.status[span],
            self.response_tokens[span],
            self.digests[span],
            EncodingStats(),
            {},
        )

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def usable(self) -> Bool[np.ndarray, " rows"]:
        """Rows that have a gradient to take."""
        return (self.status == Status.OK) | (self.status == Status.TRUNCATED)

    @property
    def digest(self) -> str:
        """SHA-256 over the ordered digests and states."""
        state = hashlib.sha256(np.ascontiguousarray(self.digests).tobytes())
        state.update(np.ascontiguousarray(self.status).tobytes())
        return state.hexdigest()

    @property
    def first_of_equal(self) -> Int[np.ndarray, " rows"]:
        """The first usable row that the model sees just as this one; a row that can't be used stands for itself."""
        found = np.arange(len(self))
        rows = np.flatnonzero(self.usable)
        if len(rows):
            keys = np.ascontiguousarray(self.digests[rows]).view(np.dtype((np.void, self.digests.shape[1]))).ravel()
            _, first, which = np.unique(keys, return_index=True, return_inverse=True)
            found[rows] = rows[first[which.ravel()]]
        return found

    def with_excluded(self, excluded: Bool[np.ndarray, " rows"]) -> Encoded:
        """The same rows, of which some are left out."""
        status = np.where(excluded, np.uint8(Status.EXCLUDED), self.status).astype(np.uint8)
        return Encoded(
            self.ids, self.mask, self.offsets, status, self.response_tokens, self.digests, self.stats, self.identity
        )


def collect_examples(examples: Sequence[Example], stats: EncodingStats, identity: Mapping[str, Any]) -> Encoded:
    """Lay examples end to end."""
    lengths = np.fromiter((len(example.input_ids) for example in examples), np.int64, len(examples))
    offsets = np.zeros(len(examples) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(int(offsets[-1]), np.int32)
    mask = np.empty(int(offsets[-1]), np.bool_)
    digests = np.empty((len(examples), 32), np.uint8)
    for row, example in enumerate(examples):
        ids[offsets[row] : offsets[row + 1]] = example.input_ids
        mask[offsets[row] : offsets[row + 1]] = example.labels_mask
        digests[row] = np.frombuffer(example.digest, np.uint8)
    status = np.fromiter((example.status for example in examples), np.uint8, len(examples))
    trained = np.fromiter((int(example.labels_mask.sum()) for example in examples), np.int64, len(examples))
    return Encoded(ids, mask, offsets, status, trained, digests, stats, identity)


def _digest(ids: Int[np.ndarray, " t"], mask: Bool[np.ndarray, " t"]) -> bytes:
    # Byte order and width are fixed, so that a digest means the same on every machine.
    state = hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes())
    state.update(np.ascontiguousarray(mask, np.uint8).tobytes())
    return state.digest()
