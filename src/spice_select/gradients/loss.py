"""Mean negative log-likelihood of the trained labels, with logits only where there is a label.

The hidden states of the whole batch are computed once. Logits are computed for the labelled positions alone, some
hundred at a time, by the model's own ``forward`` run with its decoder held still; so whatever a family does after its
head (a logit scale, a soft cap) is done here too, and the full table of logits never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spice_select.gradients.layers import causal_model

LossPath = Literal["gathered", "masked", "full"]
# Logits in one piece, in numbers: enough rows for an efficient product, few enough to stay near the cache.
_PIECE = 1 << 24


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Right-padded examples and the positions whose next token is a trained label.

    Attributes:
        ids: Token ids; padding is id 0.
        lengths: Tokens of each example.
        rows: Example of each labelled position.
        positions: Position whose hidden state predicts the label.
        labels: The label's token id.
        weights: 1 / (labels of the example).
    """

    ids: Int[Tensor, "b t"]
    lengths: tuple[int, ...]
    rows: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]

    @staticmethod
    def build(ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], device: torch.device) -> TokenBatch:
        """Pad examples to the longest; the first token has nothing before it and is never a label."""
        assert len(ids) == len(masks) > 0
        lengths = tuple(len(row) for row in ids)
        padded = np.zeros((len(ids), max(1, *lengths)), dtype=np.int64)
        rows, positions, weights = [], [], []
        for row, (tokens, mask) in enumerate(zip(ids, masks, strict=True)):
            assert len(tokens) == len(mask)
            padded[row, : len(tokens)] = tokens
            labelled = np.flatnonzero(np.asarray(mask[1:], dtype=bool))
            rows.append(np.full(len(labelled), row))
            positions.append(labelled)
            weights.append(np.full(len(labelled), 1.0 / max(1, len(labelled))))
        row_index, position = np.concatenate(rows), np.concatenate(positions)
        return TokenBatch(
            torch.from_numpy(padded).to(device),
            lengths,
            torch.from_numpy(row_index).to(device),
            torch.from_numpy(position).to(device),
            torch.from_numpy(padded[row_index, position + 1]).to(device),
            torch.from_numpy(np.concatenate(weights)).to(device, torch.float32),
        )

    @staticmethod
    def of_labels(ids: Int[Tensor, "b t"], labels: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> TokenBatch:
        """A batch as trainers hold it, where it is padded on the right; a label below 0 is none."""
        rows, positions = (labels[:, 1:] >= 0).nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(ids)).clamp(min=1)
        lengths = tuple(mask.sum(1).tolist())
        return TokenBatch(ids, lengths, rows, positions, labels[rows, positions + 1], 1.0 / counts[rows].float())

    def attention_mask(self) -> Int[Tensor, "b t"]:
        """1 for a token, 0 for padding."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return (torch.arange(self.ids.shape[1], device=self.ids.device)[None] < lengths[:, None]).long()


class TokenLoss:
    """Per-example losses, and one backward pass of their sum.

    Three ways lead to the same numbers. ``gathered``: hidden states without an attention mask, since under causal
    attention padding on the right is seen by no token, and logits at the labels; ``masked``: the same with the mask;
    ``full``: the model's plain forward pass, for a model whose decoder cannot be held still.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper of one.
        scale: Factor on the gradients alone, a power of two; float16 needs it against underflow.
    """

    def __init__(self, model: torch.nn.Module, scale: float = 1.0) -> None:
        self._causal = causal_model(model)
        self._scale = scale
        self._output_class: Any = None
        self.decoder: Any = next(iter(self.decoders()), self._causal)
        self.path: LossPath = "full" if self.decoder is self._causal else "gathered"

    def decoders(self) -> list[Any]:
        """Modules that may be the one whose hidden states the head reads; which it is, a trial must show."""
        found: list[Any] = []
        for candidate in (getattr(self._causal, "base_model", None), self._causal.get_decoder()):
            if candidate is not None and candidate is not self._causal and candidate not in found:
                found.append(candidate)
        return found

    def backward(self, batch: TokenBatch) -> Float[Tensor, " b"]:
        """Losses in nats (float64, on the host); the backward pass fires the hooks of whatever needs gradients."""
        with torch.enable_grad():
            states = self._states(batch)
        losses = torch.zeros(len(batch.lengths), dtype=torch.float64)
        if not len(batch.labels):
            return losses
        taken = states[batch.rows, batch.positions].detach()
        gradient = torch.zeros_like(states) if states.requires_grad else None
        for piece in self._pieces(len(taken)):
            token_losses, slope = _piece(self._head, taken[piece], batch.labels[piece])
            losses.index_add_(0, batch.rows[piece].cpu(), _weighted(token_losses, batch.weights[piece]))
            if gradient is not None:
                slope *= (batch.weights[piece] * self._scale)[:, None].to(slope.dtype)
                gradient[batch.rows[piece], batch.positions[piece]] = slope
        if gradient is not None:
            states.backward(gradient)
        return losses

    @torch.no_grad()
    def losses(self, batch: TokenBatch) -> Float[Tensor, " b"]:
        """Losses alone, in nats (float64, on the host)."""
        states = self._states(batch)
        taken = states[batch.rows, batch.positions]
        losses = torch.zeros(len(batch.lengths), dtype=torch.float64)
        for piece in self._pieces(len(taken)):
            logits = self._head(taken[piece]).float()
            token_losses = torch.nn.functional.cross_entropy(logits, batch.labels[piece], reduction="none")
            losses.index_add_(0, batch.rows[piece].cpu(), _weighted(token_losses, batch.weights[piece]))
        return losses

    def total(self, batch: TokenBatch) -> Float[Tensor, ""]:
        """Sum of the losses of all labels, each weighing 1, as autograd carries it; float32, on the model's device."""
        states = self._states(batch)
        logits = self._head(states[batch.rows, batch.positions]).float()
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")

    def _pieces(self, count: int) -> Iterator[slice]:
        step = max(32, _PIECE // int(self._causal.config.get_text_config().vocab_size))
        for first in range(0, count, step):
            yield slice(first, min(count, first + step))

    def _states(self, batch: TokenBatch) -> Tensor:
        """Hidden states after the decoder; on the full path, the logits."""
        mask = None if self.path == "gathered" else batch.attention_mask()
        model = self._causal if self.path == "full" else self.decoder
        output = model(input_ids=batch.ids, attention_mask=mask, use_cache=False, return_dict=True)
        if self.path == "full":
            return output.logits
        self._output_class = type(output)
        return output.last_hidden_state

    def _head(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "n v"]:
        """What the model does to hidden states on their way to logits; on the full path nothing is left to do."""
        if self.path == "full":
            return hidden
        output = self._output_class(last_hidden_state=hidden[None])
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _held_still(self.decoder, output):
            return self._causal(input_ids=ids, use_cache=False, return_dict=True).logits[0]


def _weighted(token_losses: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return token_losses.cpu().double() * weights.cpu().double()


def _piece(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of some positions, and their gradients with respect to the hidden states."""
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = head(leaf)
    table = torch.log_softmax(logits.detach().float(), dim=-1)
    token_losses = -table.gather(1, labels[:, None])[:, 0]
    # softmax minus one-hot is the gradient with respect to the logits; autograd carries it through cap, scale, head.
    slope = table.exp_()
    slope[torch.arange(len(labels), device=labels.device), labels] -= 1
    if logits is leaf:
        return token_losses, slope.to(logits.dtype)
    return token_losses, torch.autograd.grad(logits, leaf, slope.to(logits.dtype))[0]


@contextmanager
def _held_still(base: Any, output: Any) -> Iterator[None]:
    base.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del base.forward
