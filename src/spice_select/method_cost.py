"""What a method's measurements would cost, from the speed of a few of its model's passes."""

from __future__ import annotations

import time

import numpy as np

from spice_select.config import RunConfig
from spice_select.cost import Cost
from spice_select.data.encoded import Encoded
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.store import estimated_bytes
from spice_select.methods import Method, Need

QUESTION_TOKENS = 110
"""Tokens that a rating prompt puts around a row, roughly, whatever the tokenizer."""
MEASURED_BATCHES = 3
_OF_SELECTING = (
    "selection_seconds",
    "penalty_seconds",
    "certificate_seconds",
    "activity_seconds",
    "verifying_seconds",
)
"""What a choice from gradients takes."""


def of_method(cost: Cost, method: Method, engine: GradientEngine, encoded: Encoded, config: RunConfig) -> Cost:
    """The cost with what a method needs, in the place of gradients where it needs none.

    Training on the picks is counted as a forward and two backward passes of as many tokens as they are likely to have;
    target examples, of which there are few, are left out.

    Args:
        cost: Of a run that collects gradients.
        method: The method with its settings.
        engine: Gradients of this very model.
        encoded: The rows.
        config: The settings of the run.
    """
    needs = method.required()
    others = needs - {Need.GRADIENTS, Need.TARGET}
    update: dict[str, object] = {}
    kept = cost.disk_bytes if Need.GRADIENTS in needs else 0
    if Need.GRADIENTS not in needs:
        update |= {
            "gradient_seconds": 0.0,
            "disk_bytes": kept,
            "flops": 0.0,
            "gradient_dim": 0,
            **dict.fromkeys(_OF_SELECTING, 0.0),
            "select_memory_bytes": 0,
            "collect_network_bytes": 0,
            "select_network_bytes": 0,
        }
        if not others:
            update |= {"measured_batches": 0, "collect_memory_bytes": 0}
    if others:
        usable = encoded.usable
        tokens, responses = cost.tokens, cost.response_tokens + int(usable.sum())
        forward = _forward_rate(engine, encoded, config)
        gradient = 1.0 / cost.measured_tokens_per_second
        seconds, training, disk = 0.0, 0.0, 0
        if others & {Need.LOSSES, Need.DIRECT_LOSSES} and Need.GRADIENTS not in needs:
            seconds += forward * tokens
        if Need.DIRECT_LOSSES in others:
            seconds += forward * responses
        hidden = int(engine.proxy.model.config.get_text_config().hidden_size)
        if Need.EMBEDDINGS in others:
            # Another model's speed is not known; the proxy's stands for it.
            seconds += forward * tokens
            disk += estimated_bytes(len(encoded), hidden, "float32", config.gradients.shard_rows)
        if Need.TOKEN_FEATURES in others:
            counted = tokens if getattr(method, "positions", "response") == "all" else cost.response_tokens
            seconds += forward * tokens
            disk += 4 * counted * (getattr(method, "dim", None) or hidden)
        if Need.RATINGS in others:
            seconds += forward * getattr(method, "prompts", 5) * (tokens + QUESTION_TOKENS * int(usable.sum()))
        if Need.CHECKPOINTS in others:
            epochs = int(getattr(method, "epochs", 4))
            training += gradient * tokens * float(getattr(method, "warmup_share", 0.05)) * epochs
            seconds += gradient * tokens * epochs
            dim = int(getattr(method, "dim", 8192))
            disk += epochs * estimated_bytes(len(encoded), dim, "float32", config.gradients.shard_rows)
        elif Need.TRAINING in others:
            training += 3 * gradient * tokens * cost.picks / max(1, cost.usable)
        update |= {
            "measuring_seconds": seconds,
            "training_seconds": cost.training_seconds + training,
            "disk_bytes": kept + disk,
        }
    return cost.model_copy(update={**update, "method": method.name})


def _forward_rate(engine: GradientEngine, encoded: Encoded, config: RunConfig) -> float:
    """Seconds of a forward pass a token, over a few batches of several lengths."""
    rows = np.flatnonzero(encoded.usable)
    batches = plan_batches(encoded.lengths[rows], min(1024, config.gradients.batch_tokens))
    spots = np.unique(np.linspace(0, len(batches) - 1, min(MEASURED_BATCHES + 2, len(batches))).astype(int))
    chosen = spots[1:-1] if len(spots) > 2 else spots
    tokens, seconds = 0, 0.0
    for spot in chosen.tolist():
        examples = [encoded.example(int(row)) for row in rows[batches[spot]]]
        begun = time.perf_counter()
        engine.losses([one.input_ids for one in examples], [one.labels_mask for one in examples])
        seconds += time.perf_counter() - begun
        tokens += sum(len(one.input_ids) for one in examples)
    return seconds / max(1, tokens)
