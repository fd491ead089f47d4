"""What gradients cost: a few batches of several lengths are measured, and all batches are counted."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from spice_select.cost.machine import Clock
from spice_select.data.encoded import Encoded
from spice_select.errors import ConfigError
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.shards import META_DTYPE, plan_shards
from spice_select.metering import metered, own_memory
from spice_select.room import cores

MOST_ON_A_MACHINE = 4
"""Workers that Ray starts on a machine without GPUs at most, unless told."""
MOST_WORKERS = 10**6
MEASURED_BATCHES = 8
MEASURED_TOKENS = 1024
"""Tokens of a measured batch at most: enough for the speed of a full one, at a fraction of its time."""
MEASURING_SECONDS = 60.0
_ENOUGH_SECONDS = 4.0
_ROUNDS = 3
_DRAWN_SHARDS = 8
ALLOCATOR_BYTES = 32 << 20
"""Memory between batches of other shapes that was freed and is not given back."""
_SHARD_BYTES = 128 + 256 + 350
_MANIFEST_BYTES = 1500
_WRITTEN_BYTES = 16 << 20
"""Bytes that numpy writes of an array at a time."""


@dataclass(frozen=True)
class Fleet:
    """Who shares a collect.

    Attributes:
        workers: Processes, each at the speed measured here.
        machines: Machines that they run on; this one alone where 1.
        ray: Whether Ray is to start them.
    """

    workers: int = 1
    machines: int = 1
    ray: bool = False

    @classmethod
    def of(cls, workers: int | None = None, machines: int | None = None, *, ray: bool = False) -> Fleet:
        """What was asked for: one worker a machine where nothing is said, or as many as Ray would start here.

        Raises:
            ConfigError: Numbers that cannot be.
        """
        for name, value in (("--workers", workers), ("--at-machines", machines)):
            if value is not None and not 1 <= value <= MOST_WORKERS:
                raise ConfigError(f"{name} cannot be {value}; give at least 1, and {MOST_WORKERS:,} at most.")
        machines = machines or 1
        if workers is None:
            gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
            workers = machines * ((gpus or min(cores(), MOST_ON_A_MACHINE)) if ray else 1)
        if workers < machines:
            raise ConfigError(f"--workers {workers} cannot be on {machines} machines; give one for each at least.")
        return cls(workers, machines, ray)

    @property
    def speedup(self) -> float:
        """How many times as fast as this process they are: workers of one machine share its processors."""
        each = self.workers / self.machines
        room = max(1.0, cores() / max(1, torch.get_num_threads()))
        return self.machines * (each if torch.cuda.is_available() else min(each, room))

    def share(self, shards: int) -> float:
        """Part of the whole time, as shards go to workers whole."""
        if shards == 0:
            return 1.0
        at_once = max(1.0, self.speedup)
        return -(-shards // at_once) / shards


@dataclass(frozen=True)
class Speed:
    """Measured batches.

    Attributes:
        lengths: Longest row of each measured batch, ascending.
        seconds: Seconds of a padded token at those lengths.
        batches: Batches that were measured.
        growth_bytes: Memory that a largest batch took beyond what was held, on this host.
        held_bytes: Memory of this process before, files aside.
        device_bytes: Largest memory on a GPU.
    """

    lengths: tuple[float, ...]
    seconds: tuple[float, ...]
    batches: int
    growth_bytes: int
    held_bytes: int
    device_bytes: int = 0

    def of(self, longest: Float[np.ndarray, " b"], padded: Float[np.ndarray, " b"]) -> float:
        """Seconds of batches with so long rows and so many padded tokens."""
        return float((np.interp(longest, self.lengths, self.seconds) * padded).sum())


@dataclass(frozen=True)
class Batches:
    """All batches of a collect, or of some of its shards.

    Attributes:
        longest: Longest row of each.
        padded: Padded tokens of each.
        weight: How many times each stands for itself.
    """

    longest: Float[np.ndarray, " b"]
    padded: Float[np.ndarray, " b"]
    weight: float = 1.0


def planned(lengths: Int[np.ndarray, " n"], rows: int, shard_rows: int, batch_tokens: int, seed: int = 0) -> Batches:
    """The batches of a collect of so many usable rows, of lengths as those given.

    Args:
        lengths: Lengths of the usable rows that are known.
        rows: Usable rows in all; beyond those known, shards are drawn from the lengths.
        shard_rows: Usable rows of a shard.
        batch_tokens: Most padded tokens of a batch.
        seed: Of the draw.
    """
    weight = 1.0
    if rows > len(lengths):
        count = min(_DRAWN_SHARDS * shard_rows, rows)
        weight = rows / count
        lengths = np.random.default_rng(seed).choice(lengths, count)
    else:
        lengths = lengths[:rows]
    longest, padded = [], []
    for shard in plan_shards(len(lengths), shard_rows):
        part = lengths[shard.start : shard.stop]
        for batch in plan_batches(part, batch_tokens):
            longest.append(float(part[batch].max()))
            padded.append(longest[-1] * len(batch))
    return Batches(np.array(longest), np.array(padded), weight)


def measure_speed(
    engine: GradientEngine, encoded: Encoded, shard_rows: int, batch_tokens: int, clock: Clock = time.perf_counter
) -> Speed:
    """Measure batches of several lengths.

    Args:
        engine: The gradients of this very model.
        encoded: The rows.
        shard_rows: Rows of a shard.
        batch_tokens: Most padded tokens of a batch.
        clock: Tells seconds.
    """
    usable = np.flatnonzero(encoded.usable)
    lengths = encoded.lengths
    batches = [
        usable[shard.start : shard.stop][batch]
        for shard in plan_shards(len(usable), shard_rows)
        for batch in plan_batches(lengths[usable[shard.start : shard.stop]], batch_tokens)
    ]
    longest = np.array([int(lengths[batch].max()) for batch in batches])
    growth, held, device = _memory(engine, encoded, batches[int(np.argmax(longest))], batch_tokens)
    order = np.argsort(longest, kind="stable")
    # The middle of each of a few equal shares of the batches, so that short and long ones are both seen.
    spots = sorted({int(order[int((i + 0.5) * len(order) / MEASURED_BATCHES)]) for i in range(MEASURED_BATCHES)})
    spots.sort(key=lambda spot: longest[spot])
    measured: dict[float, list[float]] = {}
    count, started = 0, clock()
    for _ in range(_ROUNDS):
        # From both ends inwards: if time runs short, the longest and the shortest have been seen.
        for spot in sorted(spots, key=lambda spot: -abs(spots.index(spot) - (len(spots) - 1) / 2)):
            part = batches[spot][: max(1, MEASURED_TOKENS // int(longest[spot]))]
            tokens = len(part) * int(lengths[part].max())
            begun = clock()
            _run(engine, encoded, part)
            measured.setdefault(float(longest[spot]), []).append((clock() - begun) / tokens)
            count += 1
            if clock() - started > MEASURING_SECONDS:
                break
        if clock() - started > _ENOUGH_SECONDS:
            break
    known = sorted(measured)
    return Speed(tuple(known), tuple(float(np.mean(measured[x])) for x in known), count, growth, held, device)


def collect_bytes(speed: Speed, dim: int, itemsize: int, shard_rows: int, rows: int, more_rows: int, row: int) -> int:
    """Memory of a collect at its height, files aside.

    Args:
        speed: What was measured.
        dim: Length of a gradient row.
        itemsize: Bytes of a stored number.
        shard_rows: Rows of a shard.
        rows: Rows in all.
        more_rows: Rows among them that were not in memory when it was measured.
        row: Bytes that a row takes in memory.
    """
    shard = min(shard_rows, rows)
    buffer = shard * (dim * itemsize + META_DTYPE.itemsize) + min(shard * dim * itemsize, _WRITTEN_BYTES)
    kept = speed.held_bytes + speed.growth_bytes + ALLOCATOR_BYTES
    return kept + buffer + more_rows * row + 2 * META_DTYPE.itemsize * rows


def store_bytes(rows: int, dim: int, dtype: str, shard_rows: int) -> int:
    """Bytes of a gradient store's files: numbers and records with their headers, a marker a shard, and the manifest."""
    shards = -(-rows // shard_rows)
    return rows * (dim * np.dtype(dtype).itemsize + META_DTYPE.itemsize) + shards * _SHARD_BYTES + _MANIFEST_BYTES


def row_bytes(encoded: Encoded) -> int:
    """Bytes that a row takes in memory once it is encoded, its text aside."""
    columns = (encoded.ids, encoded.mask, encoded.offsets, encoded.status, encoded.response_tokens, encoded.digests)
    return int(sum(column.nbytes for column in columns) / max(1, len(encoded)))


def flops(proxy: Proxy, tokens: float, labels: float) -> float:
    """Operations of a forward pass, of a backward pass to the layers' outputs, and of the layers' own gradients.

    A multiply-add counts as two. The head works at labelled positions alone; attention's own products are left out.
    """
    head = proxy.model.get_output_embeddings().weight.numel()
    return 2.0 * tokens * (2 * proxy.scope.total + sum(layer.size for layer in proxy.layers)) + 4.0 * labels * head


def model_bytes(proxy: Proxy) -> int:
    """Size of the proxy's weights."""
    return sum(weight.numel() * weight.element_size() for weight in proxy.model.parameters())


def _run(engine: GradientEngine, encoded: Encoded, rows: Int[np.ndarray, " b"]) -> None:
    examples = [encoded.example(int(row)) for row in rows]
    engine.batch([example.input_ids for example in examples], [example.labels_mask for example in examples])


def _memory(
    engine: GradientEngine, encoded: Encoded, rows: Int[np.ndarray, " b"], batch_tokens: int
) -> tuple[int, int, int]:
    """Growth by a largest batch, in proportion where it is larger than what is run, memory before it, and a GPU's."""
    longest = int(encoded.lengths[rows].max())
    part = rows[: max(1, MEASURED_TOKENS // longest)]
    held = own_memory() or 0
    with metered() as meter:
        _run(engine, encoded, part)
    growth = meter.memory_bytes or 0
    whole = max(1, batch_tokens // longest)
    scale = min(len(rows), whole) / len(part)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return int(growth * max(1.0, scale)), held, int(device)
