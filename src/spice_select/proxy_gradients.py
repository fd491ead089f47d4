"""One model's gradients of a few rows, as inner products, in bounded memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import nn

from spice_select.config import GradientConfig, ModelConfig
from spice_select.data.encoded import Example
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.reporter import Reporter, heard
from spice_select.schedule.gram import pool_gram
from spice_select.schedule.ranks import Ranks

_SPREAD = 0.02


class MeasuredModel(BaseModel):
    """One of the two models and how its gradients were measured.

    Attributes:
        name: Folder or Hub id.
        layers: Layers in scope.
        gradient_values: Numbers in one gradient.
        exact: Inner products are exact; else of sketched gradients.
        method: How they were measured, in words.
        response_tokens: Trained tokens of the rows, by the model's own tokenizer.
        loss: Mean loss of the rows, in nats a token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: int
    gradient_values: int
    exact: bool
    method: str
    response_tokens: int
    loss: float


@dataclass(frozen=True, eq=False)
class Measured:
    """One model's gradients of some rows.

    Attributes:
        model: The model and how it was measured.
        gram: Inner products of the gradients; NaN with a row whose loss or gradient is no number.
        tokens: Trained tokens of each row.
    """

    model: MeasuredModel
    gram: Float[np.ndarray, "n n"]
    tokens: Int[np.ndarray, " n"]


def measure_model(
    model: ModelConfig,
    gradients: GradientConfig,
    examples: Sequence[Example],
    reporter: Reporter,
    *,
    memory: int,
    untrained_seed: int | None = None,
) -> tuple[Measured, Measured | None]:
    """Load a model, measure it, with a seed once more with untrained weights, and let it go.

    Args:
        model: The model; the scope of its gradients must be found on it.
        gradients: Scope and loss; a sketch is taken only where exact inner products would take too long.
        examples: The rows.
        reporter: Hears the progress.
        memory: Bytes for gradients; exact inner products where four passes over the rows are enough, else a fold.
        untrained_seed: Seed of the untrained weights; none: no second measurement.

    Raises:
        ModelError: The model cannot be read or used.
        ResourceError: The rows do not fit into memory.
    """
    settings = gradients.model_copy(update={"sketch": "fold"})
    with heard(reporter):
        proxy = load_proxy(model, settings)
        engine = GradientEngine(proxy, settings)
    reporter.note(proxy.summary())
    measured = _geometry(engine, examples, memory, reporter)
    reporter.note(f"{measured.model.method}; mean loss {measured.model.loss:.2f} nats a token")
    untrained = None
    if untrained_seed is not None:
        reporter.note("Once more with the weights of a network before training, for scale.")
        forget(proxy, untrained_seed)
        untrained = _geometry(engine, examples, memory, reporter)
    del proxy, engine
    # Hooks and modules refer to each other; two models need not be in memory together.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured, untrained


def _geometry(engine: GradientEngine, examples: Sequence[Example], memory: int, reporter: Reporter) -> Measured:
    begun = time.perf_counter()
    ids, masks = [e.input_ids for e in examples], [e.labels_mask for e in examples]
    found = pool_gram(engine, ids, masks, ranks=Ranks(), memory=memory)
    reporter.advance(len(ids), len(ids), found.tokens, time.perf_counter() - begun)
    sizes = [layer.size for layer in engine.proxy.layers]
    tokens = np.array([int(mask.sum()) for mask in masks])
    model = MeasuredModel(
        name=engine.proxy.name,
        layers=len(sizes),
        gradient_values=sum(sizes),
        exact=found.exact,
        method=found.how,
        response_tokens=int(tokens.sum()),
        loss=float(found.losses[np.isfinite(found.losses)].mean()) if np.isfinite(found.losses).any() else float("inf"),
    )
    return Measured(model, found.gram, tokens)


@torch.no_grad()
def forget(proxy: Proxy, seed: int) -> None:
    """Give a model weights as before training: matrices of small noise, biases of 0, norms as a new one has them."""
    spread = float(getattr(proxy.model.config.get_text_config(), "initializer_range", None) or _SPREAD)
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for module in proxy.model.modules():
        own = {name: value for name, value in module.named_parameters(recurse=False) if id(value) not in done}
        done.update(map(id, own.values()))
        for name, parameter in own.items():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            else:
                parameter.fill_(0.0 if "bias" in name else _initial(module, name, parameter))


def _initial(module: nn.Module, name: str, parameter: nn.Parameter) -> float:
    """What a norm's weights are before training: 1, or 0 where the norm adds 1 to them; else a vector's mean."""
    if all(value.dim() == 1 for value in module.parameters()):
        try:
            return float(getattr(type(module)(len(parameter)), name)[0])
        except (TypeError, AttributeError):
            # A norm of another make, whose arguments are unknown.
            pass
    return float(parameter.float().mean())
