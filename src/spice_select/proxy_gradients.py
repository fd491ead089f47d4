"""One model's gradients of a few rows, as inner products, in bounded memory."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict

from spice_select.config import GradientConfig, ModelConfig
from spice_select.data.encoded import Example
from spice_select.gradients.batches import Measurer, plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.reporter import Reporter, heard

LEAST_DIM = 8192
"""Sketch dimension where exact inner products would take too long."""
GRAM_BYTES = 2 << 30
"""Memory for the gradients of some layers of every row."""
_SPREAD = 0.02
MOST_PASSES = 6
"""Passes over the rows that exact inner products may take."""


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
        gram: Inner products of the gradients.
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
    untrained_seed: int | None = None,
) -> tuple[Measured, Measured | None]:
    """Load a model, measure it, with a seed once more with untrained weights, and let it go.

    Args:
        model: The model; the scope of its gradients must be found on it.
        gradients: Scope and loss; a sketch is taken only where exact inner products would take too long.
        examples: The rows.
        reporter: Hears the progress.
        untrained_seed: Seed of the untrained weights; none: no second measurement.

    Raises:
        ModelError: The model cannot be read or used.
        ResourceError: A row does not fit into memory.
    """
    settings = gradients.model_copy(update={"sketch": "fold", "dim": max(gradients.dim, LEAST_DIM)})
    with heard(reporter):
        proxy = load_proxy(model, settings)
        engine = GradientEngine(proxy, settings)
    reporter.note(proxy.summary())
    measured = _geometry(proxy, engine, examples, reporter)
    reporter.note(f"{measured.model.method}; mean loss {measured.model.loss:.2f} nats a token")
    untrained = None
    if untrained_seed is not None:
        reporter.note("Once more with the weights of a network before training, for scale.")
        forget(proxy, untrained_seed)
        untrained = _geometry(proxy, engine, examples, reporter)
    del proxy, engine
    # Hooks and modules refer to each other; two models need not be in memory together.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured, untrained


def _geometry(proxy: Proxy, engine: GradientEngine, examples: Sequence[Example], reporter: Reporter) -> Measured:
    ids, masks = [e.input_ids for e in examples], [e.labels_mask for e in examples]
    sizes = [layer.size for layer in proxy.layers]
    passes = math.ceil(4 * len(examples) * sum(sizes) / GRAM_BYTES)
    exact = passes <= MOST_PASSES and 4 * len(examples) * max(sizes) <= GRAM_BYTES
    batches = plan_batches(np.array([len(row) for row in ids]), engine.config.batch_tokens)
    losses = np.zeros(len(examples))
    done, tokens, begun = 0, 0, time.perf_counter()
    measurer = Measurer(engine, reporter.warn)
    sketched = np.zeros((len(examples), 0 if exact else engine.dim))
    for batch in batches:
        if exact:
            losses[batch] = engine.losses([ids[i] for i in batch], [masks[i] for i in batch])
        else:
            part = measurer.measure(batch.tolist(), [examples[i] for i in batch])
            sketched[batch], losses[batch] = part.rows, part.losses
            done, tokens = done + len(batch), tokens + sum(len(ids[i]) for i in batch)
            reporter.advance(done, len(examples), tokens, time.perf_counter() - begun)
    if exact:
        gram = engine.gram(ids, masks, memory=GRAM_BYTES)
        reporter.advance(len(ids), len(ids), sum(map(len, ids)), time.perf_counter() - begun)
        method = f"exact inner products, in {passes} {'pass' if passes == 1 else 'passes'}"
    else:
        gram = sketched @ sketched.T
        method = f"inner products of gradients folded to {engine.dim:,} numbers"
    return Measured(
        MeasuredModel(
            name=proxy.name,
            layers=len(sizes),
            gradient_values=sum(sizes),
            exact=exact,
            method=method,
            response_tokens=int(sum(mask.sum() for mask in masks)),
            loss=float(losses.mean()),
        ),
        gram,
        np.array([int(mask.sum()) for mask in masks]),
    )


@torch.no_grad()
def forget(proxy: Proxy, seed: int) -> None:
    """Give a model weights as before training: matrices of small noise, and vectors all alike at their mean."""
    spread = float(getattr(proxy.model.config.get_text_config(), "initializer_range", None) or _SPREAD)
    generator = torch.Generator().manual_seed(seed)
    for parameter in proxy.model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        else:
            parameter.fill_(float(parameter.float().mean()))
