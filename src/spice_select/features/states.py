"""Hidden states of the proxy, averaged or taken at the end of a span: one vector per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from spice_select.config import EmbeddingConfig
from spice_select.errors import ConfigError
from spice_select.gradients.capture import choose_path
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a few examples.

    Attributes:
        rows: The embeddings.
        losses: Zeros, as none is computed.
        squared_norms: Squared norm of each embedding.
    """

    rows: Float32[np.ndarray, "b d"]
    losses: Float[np.ndarray, " b"]
    squared_norms: Float[np.ndarray, " b"]

    @staticmethod
    def of(rows: Float[np.ndarray, "b d"]) -> Embedded:
        """A batch of these embeddings."""
        wide = np.asarray(rows, dtype=np.float64)
        return Embedded(wide.astype(np.float32), np.zeros(len(wide)), np.einsum("ij,ij->i", wide, wide))


class StateEngine:
    """Measures embeddings by one forward pass of the decoder; no logits are computed where that can be helped.

    Args:
        proxy: The model.
        settings: Layer, pooling and span.

    Raises:
        ConfigError: The model has no such layer.
        ModelError: What the model predicts at a position depends on later tokens.
    """

    def __init__(self, proxy: Proxy, settings: EmbeddingConfig) -> None:
        self._proxy = proxy
        self._settings = settings
        self._loss = TokenLoss(proxy.model)
        # Whether the decoder can be run by itself, and without a mask over the padding.
        choose_path(self._loss, proxy)
        trial = TokenBatch.build([np.arange(2)], [np.zeros(2, dtype=bool)], proxy.device)
        states = self._run(trial, every=True).hidden_states
        count = 1 if states is None else len(states)
        layer = settings.layer
        if states is None and layer != -1:
            raise ConfigError(
                f"Setting 'embeddings.layer' cannot be {layer}, as {proxy.name} shows its last hidden layer alone; set "
                "it to -1."
            )
        if not -count <= layer < count:
            raise ConfigError(
                f"Setting 'embeddings.layer' cannot be {layer}, as {proxy.name} has the hidden layers 0 to "
                f"{count - 1}; give one of them, or -1 for the last."
            )
        self.layer = layer % count
        """The hidden layer, counted from the embedding, which is 0."""
        self._last = self.layer == count - 1
        self.dim = int(self._states(trial).shape[-1])
        """Length of an embedding."""

    def spec(self) -> dict[str, Any]:
        """What decides an embedding beside weights and examples."""
        return {
            "measures": "hidden states",
            "layer": self.layer,
            "pooling": self._settings.pooling,
            "span": self._settings.span,
            "dtype": str(self._proxy.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> Embedded:
        """Embed examples in one forward pass.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
        """
        batch = TokenBatch.build(ids, masks, self._proxy.device)
        states = self._states(batch)
        if self._settings.pooling == "last":
            places = torch.tensor([int(np.flatnonzero(self._span(mask))[-1]) for mask in masks], device=states.device)
            rows = states[torch.arange(len(masks), device=states.device), places].double().cpu()
        else:
            rows = self._mean(states, masks)
        return Embedded.of(rows.numpy())

    def _mean(self, states: Float[Tensor, "b t h"], masks: list[np.ndarray]) -> Float[Tensor, "b h"]:
        # Apple's devices have no float64.
        wide = (states.float().cpu() if states.device.type == "mps" else states).double()
        counted = torch.zeros(wide.shape[:2], dtype=torch.bool)
        for row, mask in enumerate(masks):
            counted[row, : len(mask)] = torch.from_numpy(self._span(mask))
        weights = counted.to(wide.device)[:, :, None]
        # Not by a product with zeros: padding may hold anything.
        total = torch.where(weights, wide, torch.zeros((), dtype=wide.dtype, device=wide.device)).sum(dim=1)
        return (total / weights.sum(dim=1)).cpu()

    def _span(self, mask: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
        """Tokens that count; the first token is never a label, and every usable example has one."""
        mask = np.asarray(mask, dtype=bool)
        if self._settings.span == "all" or not mask.any():
            return np.ones(len(mask), dtype=bool)
        return mask if self._settings.span == "response" else ~mask

    @torch.no_grad()
    def _run(self, batch: TokenBatch, *, every: bool) -> Any:
        """The decoder's output, or the whole model's where its decoder cannot be run by itself."""
        mask = None if self._loss.path == "gathered" else batch.attention_mask()
        alone = self._loss.path != "full"
        model: Any = self._loss.decoder if alone else self._proxy.model
        return model(
            input_ids=batch.ids,
            attention_mask=mask,
            use_cache=False,
            return_dict=True,
            output_hidden_states=every or not alone,
        )

    def _states(self, batch: TokenBatch) -> Float[Tensor, "b t h"]:
        output = self._run(batch, every=not self._last)
        if self._last and self._loss.path != "full":
            return output.last_hidden_state
        return output.hidden_states[self.layer]
