"""Losses of every response, given its prompt and by itself, from forward passes alone.

The loss given the prompt is the one whose gradient SPICE takes: the mean negative log-likelihood of an example's
trained tokens. The loss of the response by itself is over the very same tokens behind a single anchor token: the
tokenizer's BOS, or its EOS where it has no BOS. Without an anchor the first token would be predicted by nothing and
could not be counted, and the two means would be over different tokens. Of a conversation, the trained tokens of all its
turns stand one after the other behind one anchor. A row of plain text has no prompt, and both its losses are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from spice_select.data.encode import encode_rows
from spice_select.data.encoded import Encoded, EncodingStats, Example, collect_examples
from spice_select.data.status import Status
from spice_select.errors import ModelError
from spice_select.features.bench import Bench
from spice_select.gradients.capture import choose_path
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.store import GradientStore


@dataclass(frozen=True, eq=False)
class LossBatch:
    """Losses of a few examples, in the form of gradients of length 1.

    Attributes:
        rows: The losses once more.
        losses: Mean negative log-likelihood of the trained labels, in nats.
        squared_norms: Their squares.
    """

    rows: Float32[np.ndarray, "b 1"]
    losses: Float64[np.ndarray, " b"]
    squared_norms: Float64[np.ndarray, " b"]


class LossEngine:
    """Measures losses of single examples, without a backward pass.

    Args:
        proxy: The model.
        anchor: Id of the token that stands before each response, for examples made by :func:`direct_examples`.

    Raises:
        ModelError: On the first batch, for a model whose loss is not reproduced or that sees later tokens.
    """

    dim = 1

    def __init__(self, proxy: Proxy, anchor: int | None = None) -> None:
        self._proxy = proxy
        self._anchor = anchor
        self._loss: TokenLoss | None = None

    def spec(self) -> Mapping[str, Any]:
        """What decides a loss beside weights and examples."""
        return {"measure": "loss", "anchor": self._anchor, "dtype": str(self._proxy.dtype).removeprefix("torch.")}

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> LossBatch:
        """Measure examples in one forward pass: token ids ``[t]`` and masks of trained labels ``[t]``."""
        if self._loss is None:
            # Not before there is something to measure: a measurement that is whole needs no pass at all.
            loss = TokenLoss(self._proxy.model)
            choose_path(loss, self._proxy)
            self._loss = loss
        losses = self._loss.losses(TokenBatch.build(ids, masks, self._proxy.device)).numpy()
        with np.errstate(over="ignore"):
            return LossBatch(losses[:, None].astype(np.float32), losses, np.square(losses))


def collect_losses(
    bench: Bench, *, direct: bool, store: GradientStore | None = None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"] | None]:
    """Mean loss of every row's response given its prompt and, where asked for, of the response alone.

    Args:
        bench: Measures, and keeps what was measured.
        direct: Whether the loss of the response alone is wanted.
        store: Gradients of the same proxy that are at hand; their losses are taken where they are those of the
            responses, which saves the first of the two forward passes.

    Returns:
        Both in nats; NaN for a row that has no response, is left out, or whose loss is NaN or infinite.

    Raises:
        ModelError: The tokenizer has no token that could stand before a response by itself.
    """
    encoded = _of_responses(bench)
    anchor = anchor_token(bench.proxy) if direct else None
    losses = None if store is None else losses_of_store(store, encoded)
    if losses is None:
        losses = bench.collect("losses", encoded, LossEngine(bench.proxy), stage="Losses").losses
    if anchor is None:
        return losses, None
    alone = direct_examples(encoded, anchor)
    found = bench.collect(
        "direct-losses", alone, LossEngine(bench.proxy, anchor), stage="Losses of responses by themselves"
    )
    # A row without a prompt is the same both times, and rounding shall not say otherwise.
    same = (alone.digests == encoded.digests).all(axis=1)
    return losses, np.where(same & ~np.isnan(found.losses), losses, found.losses)


def losses_of_store(store: GradientStore, encoded: Encoded) -> Float[np.ndarray, " n"] | None:
    """The losses that came with gradients, or None where they are those of other examples or tokens.

    Args:
        store: Gradients.
        encoded: The examples, trained on their responses.
    """
    return store.losses if store.complete and store.manifest.examples == encoded.digest else None


def anchor_token(proxy: Proxy) -> int:
    """Id of the token that stands before a response by itself: BOS, or EOS where there is no BOS.

    Raises:
        ModelError: The tokenizer has neither.
    """
    for anchor in (proxy.tokenizer.bos_token_id, proxy.tokenizer.eos_token_id):
        if anchor is not None:
            return int(anchor)
    raise ModelError(
        f"The tokenizer of {proxy.name} has neither a BOS nor an EOS token, and the loss of a response by itself needs "
        "one before it; name one as bos_token in its tokenizer_config.json."
    )


def direct_examples(encoded: Encoded, anchor: int) -> Encoded:
    """The trained tokens of every row alone, behind an anchor; all but the anchor are trained.

    A row that has no prompt, its tokens being trained but for the first, stays as it is.

    Args:
        encoded: The rows; none gets longer, as the first token of a row is never trained.
        anchor: Token id.
    """
    return collect_examples(
        [_direct(encoded.example(row), anchor) for row in range(len(encoded))],
        EncodingStats(rows=len(encoded)),
        {**encoded.identity, "anchor": anchor},
    )


def _direct(example: Example, anchor: int) -> Example:
    if example.labels_mask[1:].all():
        # Empty, or plain text: nothing stands before the response but the token that no loss can do without.
        return example
    response = example.input_ids[example.labels_mask]
    ids = np.concatenate([np.array([anchor], np.int32), response])
    return Example(ids, np.arange(len(ids)) > 0, example.status)


def _of_responses(bench: Bench) -> Encoded:
    """The pool, trained on its responses whatever tokens the gradients are taken of."""
    pool, config = bench.pool, bench.config
    if config.gradients.loss == "response":
        return pool.encoded
    encoded = encode_rows(pool.rows, pool.tokenizer, config.data, loss="response")
    return encoded.with_excluded(pool.encoded.status == Status.EXCLUDED)
