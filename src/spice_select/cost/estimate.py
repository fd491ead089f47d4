"""The parts put together: rows and batches of the run at hand, or of a larger one like it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spice_select.config import RunConfig
from spice_select.cost.collecting import (
    Fleet,
    collect_bytes,
    flops,
    measure_speed,
    model_bytes,
    planned,
    row_bytes,
    store_bytes,
)
from spice_select.cost.machine import Clock, Speeds, measure_speeds
from spice_select.cost.memory import select_bytes
from spice_select.cost.record import Cost
from spice_select.cost.selecting import (
    PLAIN,
    Work,
    activity_seconds,
    certificate_seconds,
    loop_seconds,
    page_seconds,
    resolved_loop,
    select_reads,
)
from spice_select.data.encoded import Encoded
from spice_select.gradients.capture import GradientEngine

_READING = ("rows", "encode", "contamination")
PAGE_BYTES = 400_000
PAGE_PICK_BYTES = 200
PAGE_SECONDS = 2.5
"""Time of the page whatever it shows: drawings, mostly."""


@dataclass(frozen=True)
class Scale:
    """The size that is priced, where it is not that of the rows at hand.

    Attributes:
        rows: Rows in all, of lengths as those at hand; None: those at hand.
        fleet: Who shares the collect.
        seconds: Seconds by stage that reading the rows at hand and loading the proxy took.
        again: Seconds by stage of reading them once more, which is what as many further rows take.
        source_bytes: Size of the rows at hand as files.
    """

    rows: int | None = None
    fleet: Fleet = field(default_factory=Fleet)
    seconds: Mapping[str, float] = field(default_factory=dict)
    again: Mapping[str, float] = field(default_factory=dict)
    source_bytes: int = 0


def estimate(
    engine: GradientEngine,
    encoded: Encoded,
    config: RunConfig,
    *,
    picks: int,
    scale: Scale | None = None,
    clock: Clock = time.perf_counter,
) -> Cost:
    """Predict the cost of a run by measuring batches of several lengths, and what a selection does.

    Args:
        engine: The gradients of this very model.
        encoded: The rows.
        config: The settings of the run.
        picks: Rows that would be chosen; 0 for a collect alone.
        scale: The size that is priced; that of the rows where absent.
        clock: Tells seconds.
    """
    scale = scale or Scale()
    settings = config.gradients
    rows = scale.rows or len(encoded)
    ratio = rows / len(encoded)
    share = float(encoded.usable.mean())
    usable = int(encoded.usable.sum()) if rows == len(encoded) else round(share * rows)
    lengths = encoded.lengths[encoded.usable]
    speed = measure_speed(engine, encoded, settings.shard_rows, settings.batch_tokens, clock)
    # Rows without a gradient are spread over the shards, each of which batches its own.
    in_shard = max(1, round(settings.shard_rows * share))
    batches = planned(lengths, usable, in_shard, settings.batch_tokens)
    alone = speed.of(batches.longest, batches.padded) * batches.weight
    padded = float(batches.padded.sum()) * batches.weight
    dim, itemsize = engine.dim, np.dtype(settings.store_dtype).itemsize
    disk = store_bytes(rows, dim, settings.store_dtype, settings.shard_rows)
    speeds = measure_speeds(dim, settings.store_dtype, clock)
    shards = -(-rows // settings.shard_rows)
    writing = disk * 2 * speeds.byte
    tokens, labels = float(lengths.sum()) * ratio, float(encoded.response_tokens[encoded.usable].sum()) * ratio
    weights = model_bytes(engine.proxy)
    others = scale.fleet.machines - 1
    first, again = (sum(seconds.get(x, 0.0) for x in _READING) for seconds in (scale.seconds, scale.again))
    per_row = row_bytes(encoded) + scale.source_bytes // max(1, len(encoded))
    cost = Cost(
        examples=rows,
        rows_read=len(encoded),
        usable=usable,
        tokens=round(tokens),
        response_tokens=round(labels),
        picks=picks,
        gradient_dim=dim,
        workers=scale.fleet.workers,
        machines=scale.fleet.machines,
        flops=flops(engine.proxy, tokens, labels),
        disk_bytes=disk,
        disk_free_bytes=_free(config),
        model_bytes=weights,
        collect_memory_bytes=collect_bytes(
            speed, dim, itemsize, settings.shard_rows, rows, max(0, rows - len(encoded)), per_row
        ),
        device_memory_bytes=speed.device_bytes,
        # Each other machine reads the weights; it is sent the tokens of its shards, and writes them to shared storage.
        collect_network_bytes=round(
            others * weights + (row_bytes(encoded) * rows + disk) * others / scale.fleet.machines
        ),
        reading_seconds=max(0.0, first + (again or first) * (ratio - 1)),
        loading_seconds=scale.seconds.get("model", 0.0),
        gradient_seconds=(alone + writing) * scale.fleet.share(shards),
        measured_batches=speed.batches,
        measured_tokens_per_second=padded / alone,
    )
    return with_selection(cost, config, speeds, speed.held_bytes, scale) if picks else cost


def with_selection(cost: Cost, config: RunConfig, speeds: Speeds, held: int, scale: Scale) -> Cost:
    """The cost with that of choosing ``cost.picks`` rows.

    Args:
        cost: Of the collect.
        config: The settings of the run.
        speeds: Of this machine.
        held: Memory of the process beside the selection.
        scale: The size that is priced.
    """
    settings = config.selection
    work = Work(
        rows=cost.examples,
        dim=cost.gradient_dim,
        picks=cost.picks,
        loop=resolved_loop(settings.loop, settings.fisher, cost.examples, cost.gradient_dim),
        penalised=settings.conflict_weight > 0,
        fisher=settings.fisher,
        itemsize=np.dtype(config.gradients.store_dtype).itemsize,
        epsilon=settings.sampling_epsilon,
        partitions=min(settings.partitions, cost.usable),
        at_once=scale.fleet.speedup,
        alike=settings.normalize == "unit",
    )
    loop = loop_seconds(work, speeds)
    more = max(0, cost.examples - cost.rows_read) * (scale.source_bytes // max(1, cost.rows_read))
    text = scale.source_bytes * cost.picks / max(1, cost.rows_read)
    return cost.model_copy(
        update={
            "verifying_seconds": cost.disk_bytes * speeds.byte,
            "selection_seconds": loop,
            "penalty_seconds": PLAIN * loop if work.penalised else 0.0,
            "partitions": work.partitions,
            "certificate_seconds": certificate_seconds(work, speeds),
            "activity_seconds": activity_seconds(work, speeds),
            "result_seconds": PAGE_SECONDS + page_seconds(work, speeds),
            "select_memory_bytes": held + more + select_bytes(work),
            "result_bytes": round(PAGE_BYTES + PAGE_PICK_BYTES * cost.picks + text),
            "select_network_bytes": 0 if cost.machines == 1 else round(select_reads(work)),
            "notes": (*cost.notes, *_notes(config)),
        }
    )


def _notes(config: RunConfig) -> list[str]:
    """What is not measured."""
    device = config.selection.device
    if device == "cpu":
        return []
    return [
        f"The selection is priced as the processor's work; on selection.device {device} it takes another time, and "
        "that device's memory."
    ]


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
            "collect_memory_bytes": cost.collect_memory_bytes + schedule.gram_bytes,
            "select_memory_bytes": 0,
            "select_network_bytes": 0,
            # A pool's greedy is a few products of its Gram matrix: milliseconds.
            "selection_seconds": 0.01 * pools,
            "penalty_seconds": 0.0,
            "certificate_seconds": 0.0,
            "activity_seconds": 0.0,
            "verifying_seconds": 0.0,
            "kept": False,
            # Pools are selected from by the processor, whatever the device.
            "notes": (),
            "gradient_dim": 0,
            "training_seconds": (trained_tokens + picked) / cost.measured_tokens_per_second,
        }
    )


def _free(config: RunConfig) -> int:
    folder = Path(config.output.folder or ".").absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free
