"""A self-test: an engine's gradients on the user's own model against autograd's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.layers import Site


def autograd_error(
    engine: GradientEngine, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], layers: int = 6
) -> float:
    """Largest relative error of hooked gradients against an ordinary backward pass of ``model(labels=...)``.

    The examples go through the hooks in one batch, and through autograd one by one.

    Args:
        engine: What is tested.
        ids: Token ids of each example, ``[t]``.
        masks: True where the token is a trained label, ``[t]``.
        layers: How many layers to compare, spread over the depth of the model.

    Returns:
        The largest norm of a difference over the norm of autograd's gradient, over examples and layers.
    """
    chosen = _spread(engine, layers)
    hooked = engine.materialise(ids, masks, [site.layer for _, site in chosen])
    worst = 0.0
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        for (_, site), expected in zip(chosen, _autograd(engine.proxy.model, chosen, row, mask), strict=True):
            found = hooked[engine.proxy.layers[site.layer].name][number].to(expected.device)
            size = float(expected.norm())
            worst = max(worst, float((found - expected).norm()) / size if size else float(found.norm()))
    return worst


def _spread(engine: GradientEngine, count: int) -> list[tuple[nn.Module, Site]]:
    # A site met twice shares its weight with another; autograd adds their parts up, as the engine does.
    sites = list({site.layer: (module, site) for module, site in engine.proxy.scope.modules}.values())
    picks = np.unique(np.linspace(0, len(sites) - 1, min(count, len(sites))).astype(int)) if sites else []
    return [sites[pick] for pick in picks]


def _autograd(model: Any, chosen: list[tuple[nn.Module, Site]], ids: np.ndarray, mask: np.ndarray) -> list[Tensor]:
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(device)[None]
    labels = torch.where(torch.from_numpy(np.asarray(mask, dtype=bool)).to(device)[None], tokens, -100)
    weights: list[Any] = [module.weight for module, _ in chosen]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    found = []
    for (module, site), weight, gradient in zip(chosen, weights, gradients, strict=True):
        table = torch.zeros_like(weight) if gradient is None else gradient
        table = (table.t() if isinstance(module, Conv1D) else table).float()
        found.append(table if site.projection is None else site.scale * table @ site.projection.t())
    return found
