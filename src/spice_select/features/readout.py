"""What the proxy's head reads at some positions, and what it makes of it there; nothing is done for other positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spice_select.gradients.capture import choose_path
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy


class Readout(TokenLoss):
    """Hidden states and logits at the labelled positions of a batch.

    Args:
        proxy: The model; the cheapest exact way through it is tried out first.

    Raises:
        ModelError: A model whose loss is not that of its logits, or that sees later tokens.
    """

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy.model)
        choose_path(self, proxy)
        self._device = proxy.device

    def build(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> TokenBatch:
        """Examples padded together, on the proxy's device."""
        return TokenBatch.build(ids, masks, self._device)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> Float[Tensor, "n h"]:
        """What the head reads at each labelled position: hidden states after the last norm, in the proxy's dtype."""
        if self.path != "full":
            return self._states(batch)[batch.rows, batch.positions]
        # The decoder cannot be held still, and so is not known to end where the head begins.
        seen: list[Tensor] = []

        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0][batch.rows, batch.positions])

        hook = self._causal.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            self._states(batch)
        finally:
            hook.remove()
        assert len(seen) == 1
        return seen[0]

    @torch.no_grad()
    def probabilities(self, batch: TokenBatch, tokens: Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
        """Probability of some tokens, of all of the vocabulary, at each labelled position; float32."""
        taken = self._states(batch)[batch.rows, batch.positions]
        found = [self._head(taken[piece]).float().softmax(-1)[:, tokens] for piece in self._pieces(len(taken))]
        return torch.cat(found) if found else taken.new_zeros((0, len(tokens)), dtype=torch.float32)


def head_width(proxy: Proxy) -> int:
    """Length of what the head reads."""
    head = proxy.model.get_output_embeddings()
    return int(getattr(head, "in_features", None) or head.weight.shape[-1])
