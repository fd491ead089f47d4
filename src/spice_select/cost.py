"""What a run would cost on this machine, from a few batches of its own model and data."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict

from spice_select.config import RunConfig
from spice_select.data.encoded import Encoded
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.shards import plan_shards
from spice_select.gradients.store import estimated_bytes

MEASURED_BATCHES = 6
MEASURED_TOKENS = 1024
"""Tokens of a measured batch at most: enough for the speed of a full one, at a fraction of its time."""
MEASURING_SECONDS = 60.0
LAZY_SHARE = 0.1
"""Time of the lazy loop as a share of the plain one's matrix-vector products; 0.05 to 0.15 was measured."""


class Cost(BaseModel):
    """The cost of collecting gradients and selecting, predicted.

    Attributes:
        examples: Rows read.
        usable: Rows with a gradient to take.
        tokens: Tokens of the usable rows.
        response_tokens: Trained tokens among them.
        picks: Rows that would be chosen at most.
        gradient_dim: Length of a gradient row.
        flops: Floating-point operations of the forward and backward passes.
        disk_bytes: Size of the gradient store.
        disk_free_bytes: Room where it would go.
        peak_memory_bytes: Largest memory seen while measuring, and the buffer of one shard.
        gradient_seconds: Time to collect the gradients.
        selection_seconds: Time to select.
        training_seconds: Time to train the proxy on the way, at the speed of its gradients.
        measuring_seconds: Time of what a method needs beside gradients.
        method: The method.
        kept: Whether gradients are kept; pools keep inner products at most.
        measured_batches: Batches that the prediction rests on.
        measured_tokens_per_second: Their speed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int
    usable: int
    tokens: int
    response_tokens: int
    picks: int
    gradient_dim: int
    flops: float
    disk_bytes: int
    disk_free_bytes: int
    peak_memory_bytes: int
    gradient_seconds: float
    selection_seconds: float
    training_seconds: float = 0.0
    measuring_seconds: float = 0.0
    method: str = "spice"
    kept: bool = True
    measured_batches: int
    measured_tokens_per_second: float


def estimate(engine: GradientEngine, encoded: Encoded, config: RunConfig, *, picks: int) -> Cost:
    """Predict the cost of a run by measuring batches of several lengths.

    Args:
        engine: The gradients of this very model.
        encoded: The rows.
        config: The settings of the run.
        picks: Rows that would be chosen; 0 for a collect alone.
    """
    batches = _planned(encoded, config)
    lengths = encoded.lengths
    longest = np.array([lengths[batch].max() for batch in batches])
    padded = longest * np.array([len(batch) for batch in batches])
    order = np.argsort(longest, kind="stable")
    # The middle of each of a few equal shares of the batches, so that short and long ones are both seen.
    spots = sorted({int(order[int((i + 0.5) * len(order) / MEASURED_BATCHES)]) for i in range(MEASURED_BATCHES)})
    spots.sort(key=lambda spot: longest[spot])
    _run(engine, encoded, batches[spots[0]][:1])
    measured: dict[float, list[float]] = {}
    count, started = 0, time.perf_counter()
    # From both ends inwards: if time runs short, the longest and the shortest have been seen.
    for spot in sorted(spots, key=lambda spot: -abs(spots.index(spot) - (len(spots) - 1) / 2)):
        part = batches[spot][: max(1, MEASURED_TOKENS // int(longest[spot]))]
        tokens = len(part) * int(lengths[part].max())
        begun = time.perf_counter()
        _run(engine, encoded, part)
        measured.setdefault(float(longest[spot]), []).append((time.perf_counter() - begun) / tokens)
        count += 1
        if time.perf_counter() - started > MEASURING_SECONDS:
            break
    seen_lengths = sorted(measured)
    seen_rates = [float(np.mean(measured[length])) for length in seen_lengths]
    seconds = float((np.interp(longest, seen_lengths, seen_rates) * padded).sum())
    usable = encoded.usable
    tokens = int(lengths[usable].sum())
    dim = engine.dim
    folder = Path(config.output.folder or ".").absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return Cost(
        examples=len(encoded),
        usable=int(usable.sum()),
        tokens=tokens,
        response_tokens=int(encoded.response_tokens[usable].sum()),
        picks=picks,
        gradient_dim=dim,
        flops=_flops(engine.proxy, encoded),
        disk_bytes=estimated_bytes(len(encoded), dim, config.gradients.store_dtype, config.gradients.shard_rows),
        disk_free_bytes=shutil.disk_usage(existing).free,
        peak_memory_bytes=_peak_memory() + config.gradients.shard_rows * dim * 4,
        gradient_seconds=seconds,
        selection_seconds=_selection_seconds(int(usable.sum()), dim, picks),
        measured_batches=count,
        measured_tokens_per_second=float(padded.sum() / seconds),
    )


def with_warmup(cost: Cost, trained_tokens: int) -> Cost:
    """The cost with a warm-up on that many tokens."""
    return cost.model_copy(update={"training_seconds": trained_tokens / cost.measured_tokens_per_second})


def in_pools(cost: Cost, config: RunConfig, trained_tokens: int) -> Cost:
    """The cost of a schedule of pools, from that of its gradients: no store, a Gram matrix a pool, and training.

    Args:
        cost: Estimated with the engine of the weights that are trained.
        config: The settings of the run.
        trained_tokens: Tokens of the warm-up; those of the picks are added here.
    """
    schedule = config.schedule
    size = min(schedule.pool_size, cost.usable)
    pools = -(-cost.usable // size)
    picked = cost.tokens * cost.picks / max(1, cost.usable)
    return cost.model_copy(
        update={
            "disk_bytes": 8 * pools * size * size if schedule.keep_gram else 0,
            "peak_memory_bytes": cost.peak_memory_bytes + schedule.gram_bytes,
            # A pool's greedy is a few products of its Gram matrix: milliseconds.
            "selection_seconds": 0.01 * pools,
            "kept": False,
            "gradient_dim": 0,
            "training_seconds": (trained_tokens + picked) / cost.measured_tokens_per_second,
        }
    )


def _flops(proxy: Proxy, encoded: Encoded) -> float:
    """Operations of a forward pass, of a backward pass to the layers' outputs, and of the layers' own gradients.

    A multiply-add counts as two. The head works at labelled positions alone; attention's own products are left out.
    """
    tokens = float(encoded.lengths[encoded.usable].sum())
    labels = float(encoded.response_tokens[encoded.usable].sum())
    head = proxy.model.get_output_embeddings().weight.numel()
    return 2.0 * tokens * (2 * proxy.scope.total + sum(layer.size for layer in proxy.layers)) + 4.0 * labels * head


def _planned(encoded: Encoded, config: RunConfig) -> list[Int[np.ndarray, " b"]]:
    """The batches that a collect would run, as row numbers."""
    lengths, usable = encoded.lengths, encoded.usable
    planned: list[np.ndarray] = []
    for shard in plan_shards(len(encoded), config.gradients.shard_rows):
        rows = np.arange(shard.start, shard.stop)[usable[shard.start : shard.stop]]
        if len(rows):
            planned += [rows[batch] for batch in plan_batches(lengths[rows], config.gradients.batch_tokens)]
    return planned


def _run(engine: GradientEngine, encoded: Encoded, rows: Int[np.ndarray, " b"]) -> None:
    examples = [encoded.example(int(row)) for row in rows]
    engine.batch([example.input_ids for example in examples], [example.labels_mask for example in examples])


def _selection_seconds(rows: int, dim: int, picks: int) -> float:
    """Time of the plain loop's matrix-vector products here, and the lazy loop's share of it."""
    if picks == 0:
        return 0.0
    part = torch.ones(min(rows, 8192), dim)
    vector = torch.ones(dim)
    torch.mv(part, vector)
    begun = time.perf_counter()
    for _ in range(4):
        torch.mv(part, vector)
    product = (time.perf_counter() - begun) / 4 * rows / len(part)
    return product * picks * LAZY_SHARE


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
