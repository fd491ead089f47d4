"""The loss of held-out rows under a model, and its mean in every domain."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from spice_select.errors import ResourceError
from spice_select.features.losses import LossEngine
from spice_select.features.target import TargetRows
from spice_select.gradients.batches import out_of_memory, plan_batches


@dataclass(frozen=True)
class DomainMeans:
    """Means of losses.

    Attributes:
        macro: Mean over the domains of the mean in each, in nats.
        micro: Mean over all rows; each counts the mean over its response tokens.
        by_domain: Mean over the rows of each domain.
    """

    macro: float
    micro: float
    by_domain: dict[str, float]


def domain_means(domains: Sequence[str], losses: Float64[np.ndarray, " n"]) -> DomainMeans:
    """Means of losses by domain; at least one row."""
    found: dict[str, list[float]] = {}
    for name, loss in zip(domains, losses.tolist(), strict=True):
        found.setdefault(name, []).append(loss)
    means = {name: _mean(values) for name, values in found.items()}
    return DomainMeans(_mean(list(means.values())), _mean(losses.tolist()), means)


def row_losses(
    engine: LossEngine,
    rows: TargetRows,
    batch_tokens: int,
    told: Callable[[int, int], None] | None = None,
) -> Float64[np.ndarray, " n"]:
    """Mean negative log-likelihood of every row's response with the weights as they are, in nats.

    Args:
        engine: Measures; the model is in eval mode and so without dropout.
        rows: What is measured.
        batch_tokens: Padded tokens of one forward pass.
        told: Hears the rows and tokens of every pass that is done.

    Raises:
        ResourceError: A batch does not fit into memory.
    """
    examples = [rows.encoded.example(index) for index in range(len(rows))]
    losses = np.zeros(len(examples))
    for members in plan_batches(np.array([len(one.input_ids) for one in examples]), batch_tokens):
        batch = [examples[index] for index in members]
        try:
            found = engine.batch([one.input_ids for one in batch], [one.labels_mask for one in batch])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ResourceError(
                "A batch of held-out rows doesn't fit into memory; set gradients.batch_tokens below "
                f"{batch_tokens}, or a smaller data.max_length."
            ) from None
        losses[members] = found.losses
        if told is not None:
            told(len(batch), sum(len(one.input_ids) for one in batch))
    return losses


def rows_digest(rows: TargetRows) -> str:
    """SHA-256 over token ids, masks and domains."""
    return hashlib.sha256(json.dumps([rows.encoded.digest, list(rows.subtasks)]).encode()).hexdigest()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
