"""How the proxy rates every row: the probability of every rating after every rating prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spice_select.data.encoded import Encoded, EncodingStats, Example, collect_examples
from spice_select.data.messages import to_conversation
from spice_select.data.status import Status
from spice_select.data.templates import leading_token
from spice_select.errors import ConfigError
from spice_select.features.bench import Bench
from spice_select.features.rating_prompts import (
    LEAST_ROOM,
    MOST_PROMPTS,
    RatingTokens,
    plain_ids,
    question,
    rating_prompt,
    rating_tokens,
    split_turns,
)
from spice_select.features.readout import Readout
from spice_select.gradients.proxy import Proxy

_BATCH = 512


def collect_ratings(bench: Bench, *, prompts: int, levels: int) -> Float[np.ndarray, "n prompts levels"]:
    """Probability of every rating, of all of the vocabulary, at the end of every question about every row.

    Every prompt is one measurement by itself, so that a run that is cut off goes on with the one that it was at, and
    more prompts add to those that are there.

    Args:
        bench: Pool, proxy, and where measurements are kept.
        prompts: How many of the rating prompts.
        levels: The highest rating.

    Returns:
        The probabilities; zeros for rows that are not usable or whose probabilities are not finite.

    Raises:
        ConfigError: A tokenizer without a token for every rating, or ``data.max_length`` too short for the question.
    """
    assert 1 <= prompts <= MOST_PROMPTS and 2 <= levels <= 9
    tokens = rating_tokens(bench.pool.tokenizer, levels, bench.config.model.name or "the proxy")
    asker = _Asker(bench, tokens, levels)
    found = np.zeros((len(bench.pool.rows), prompts, levels))
    engine: RatingEngine | None = None
    for number in range(prompts):
        encoded, cut = asker.encode(number)
        if cut:
            bench.reporter.note(
                f"{cut:,} rows are cut to data.max_length {bench.config.data.max_length} for rating prompt "
                f"{number + 1}; their responses gave way first."
            )
        engine = engine or RatingEngine(bench.proxy, tokens)
        store = bench.collect(
            f"ratings-{number + 1}", encoded, engine, stage=f"Ratings, prompt {number + 1} of {prompts}"
        )
        for start, block in store.blocks(store.manifest.shard_rows):
            found[start : start + len(block), number] = block
    return found


@dataclass(frozen=True, eq=False)
class RatingBatch:
    """Ratings of a few examples, as an engine gives them.

    Attributes:
        rows: Probability of every rating.
        losses: Nothing, as there is no loss.
        squared_norms: Squared norms of the rows.
    """

    rows: Float[Tensor, "b levels"]
    losses: Float[Tensor, " b"]
    squared_norms: Float[Tensor, " b"]


class RatingEngine:
    """Measures the probability of rating tokens at the last labelled position of each example.

    Args:
        proxy: The model.
        tokens: The ratings' tokens.

    Raises:
        ModelError: On the first batch, for a model whose loss is not reproduced or that sees later tokens.
    """

    def __init__(self, proxy: Proxy, tokens: RatingTokens) -> None:
        self._proxy = proxy
        self._tokens = tokens
        # Not before there is something to measure: a measurement that is whole needs no pass at all.
        self._readout: Readout | None = None

    @property
    def dim(self) -> int:
        """Ratings."""
        return len(self._tokens.ids)

    def spec(self) -> Mapping[str, Any]:
        """The ratings' tokens."""
        return {"measures": "ratings", "tokens": list(self._tokens.ids)}

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> RatingBatch:
        """Measure a few examples, each with one label: the rating itself."""
        if self._readout is None:
            self._readout = Readout(self._proxy)
        batch = self._readout.build(ids, masks)
        assert len(batch.rows) == len(ids)
        rows = self._readout.probabilities(batch, torch.tensor(self._tokens.ids, device=self._proxy.device))
        return RatingBatch(rows, torch.zeros(len(ids)), rows.double().square().sum(1))


class _Asker:
    """Turns rows into questions that end in a rating, whose place is the one to read."""

    def __init__(self, bench: Bench, tokens: RatingTokens, levels: int) -> None:
        self._pool = bench.pool
        self._limit = bench.config.data.max_length
        self._levels = levels
        self._tokenizer: Any = bench.pool.tokenizer
        self._head = [self._tokenizer.bos_token_id] if leading_token(self._tokenizer) else []
        # With a gap, the answer's token holds the space before the digit; what is asked for does not change.
        self._answer = tokens.ids[0]

    def encode(self, number: int) -> tuple[Encoded, int]:
        """Every row's question with one rating prompt, and how many rows were cut; unusable rows are empty.

        Raises:
            ConfigError: ``data.max_length`` leaves no room for a row.
        """
        prompt = rating_prompt(number, self._levels)
        bare = self._length(plain_ids(self._tokenizer, [question(prompt, "", "")])[0])
        if bare + LEAST_ROOM > self._limit:
            raise ConfigError(
                f"data.max_length {self._limit} leaves no room for a row beside rating prompt {number + 1}; raise it "
                f"to {bare + LEAST_ROOM} or more."
            )
        examples: list[Example] = []
        cut = 0
        rows = self._turns()
        while block := list(islice(rows, _BATCH)):
            texts = [question(prompt, *turns) for turns in block if turns is not None]
            ids = iter(plain_ids(self._tokenizer, texts))
            for turns in block:
                status = Status(int(self._pool.encoded.status[len(examples)]))
                if turns is None:
                    examples.append(Example(np.empty(0, np.int32), np.empty(0, np.bool_), status))
                    continue
                whole = next(ids)
                status = Status.OK
                if self._length(whole) > self._limit:
                    whole, status = self._shortened(prompt, *turns, bare), Status.TRUNCATED
                    cut += 1
                examples.append(self._example(whole, status))
        return collect_examples(examples, EncodingStats(rows=len(examples)), {}), cut

    def _turns(self) -> Iterator[tuple[str, str] | None]:
        """Instruction and response of every row; None for one that is not usable."""
        pool = self._pool
        usable = pool.encoded.usable
        for row, source, known in zip(pool.rows.iter_rows(), pool.rows.source_ids, usable, strict=True):
            conversation = to_conversation(row, pool.schemas[int(source)]) if known else None
            yield None if conversation is None else split_turns(conversation)

    def _length(self, ids: Sequence[int]) -> int:
        return len(self._head) + len(ids) + 1

    def _example(self, ids: Sequence[int], status: Status) -> Example:
        whole = np.asarray([*self._head, *ids, self._answer], np.int32)
        assert len(whole) <= self._limit
        return Example(whole, np.arange(len(whole)) == len(whole) - 1, status)

    def _shortened(self, prompt: str, instruction: str, response: str, bare: int) -> list[int]:
        """A question that fits: the end of the response gives way down to half the room, then the instruction's middle.

        Texts are cut, and not tokens, so that the labels between them stay whole.
        """
        asked, said = (len(ids) for ids in plain_ids(self._tokenizer, [instruction, response]))
        room = self._limit - bare
        while True:
            kept = min(said, max(room - asked, room // 2))
            texts = _middle_out(instruction, (room - kept) / max(1, asked)), _cut(response, kept / max(1, said))
            ids = plain_ids(self._tokenizer, [question(prompt, *texts)])[0]
            excess = self._length(ids) - self._limit
            if excess <= 0:
                return ids
            # A character more or less may be many tokens; nothing at all fits for certain.
            room = max(0, room - excess)


def _cut(text: str, share: float) -> str:
    return text[: int(len(text) * min(1.0, share))]


def _middle_out(text: str, share: float) -> str:
    if share >= 1:
        return text
    kept = int(len(text) * share)
    return f"{text[: kept - kept // 2]}\n...\n{text[len(text) - kept // 2 :]}" if kept else ""
