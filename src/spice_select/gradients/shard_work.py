"""Computing a shard: what a worker does that has taken it, in this process or in another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from spice_select.data.encoded import Encoded
from spice_select.data.status import Status
from spice_select.errors import StoreCorrupt
from spice_select.gradients.batches import Engine, Measurer, plan_batches
from spice_select.gradients.locks import lease
from spice_select.gradients.manifest import Manifest
from spice_select.gradients.shards import META_DTYPE, Shard, ShardFiles, stored

# Rows named one by one as they are met; the result of the collection names all.
_NAMED = 10


@dataclass(frozen=True)
class Step:
    """One batch of a shard.

    Attributes:
        examples: Examples measured.
        tokens: Their tokens, padding aside.
        seconds: Since the shard was begun.
    """

    examples: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """What became of a shard that is whole now.

    Attributes:
        written: It was computed here; otherwise another run had finished it meanwhile.
        examples: Its usable examples.
        seconds: Wall-clock time of its gradients and their writing.
        halvings: Times that memory ran out and a batch was halved.
    """

    written: bool
    examples: int
    seconds: float = 0.0
    halvings: int = 0


class ShardWorker:
    """Computes shards of one store.

    Args:
        engine: What measures.
        folder: The store.
        manifest: Its manifest.
        batch_tokens: Most padded tokens of a batch.
        say: Hears sentences that a user should read.
    """

    def __init__(
        self, engine: Engine, folder: Path, manifest: Manifest, batch_tokens: int, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._batch_tokens = batch_tokens
        self._say = say
        self._files = ShardFiles(folder, manifest)
        self._measurer = Measurer(engine, say)
        self._non_finite = 0

    def work(self, shard: Shard, part: Encoded, *, wait: bool = False) -> Iterator[Step | Done]:
        """Take a shard and make it whole: a step a batch, and how it ended; nothing where another has it.

        Args:
            shard: Which.
            part: The examples of its rows.
            wait: Wait until it is free.
        """
        lock = lease(self._folder, shard, wait=wait)
        if lock is None:
            return
        with lock:
            if self._whole(shard):
                yield Done(written=False, examples=int(part.usable.sum()))
                return
            begun, halvings = time.perf_counter(), self._measurer.halvings
            rows = np.zeros((len(shard), self._manifest.dim), self._manifest.store_dtype)
            meta = _records(shard, part)
            members = np.flatnonzero(part.usable)
            lengths = part.lengths[members]
            for batch in plan_batches(lengths, self._batch_tokens):
                self._fill(shard, part, members[batch], rows, meta)
                yield Step(len(batch), int(lengths[batch].sum()), time.perf_counter() - begun)
            self._files.write(shard, rows, meta)
        yield Done(True, len(members), time.perf_counter() - begun, self._measurer.halvings - halvings)

    def _whole(self, shard: Shard) -> bool:
        if not self._files.marker_path(shard).is_file():
            return False
        try:
            self._files.check(shard, verify=True)
            return True
        except StoreCorrupt:
            return False

    def _fill(
        self,
        shard: Shard,
        part: Encoded,
        places: Int[np.ndarray, " b"],
        rows: Float[np.ndarray, "m d"],
        meta: np.ndarray,
    ) -> None:
        """Measure the examples at ``places`` of a shard into its rows and records."""
        numbers = [shard.start + int(place) for place in places]
        found = self._measurer.measure(numbers, [part.example(int(place)) for place in places])
        good, finite = places[found.finite], found.finite
        rows[good] = stored(found.rows[finite], found.norms[finite], self._manifest.store_dtype)
        meta["loss"][good] = found.losses[finite]
        meta["squared_norm"][good] = found.squared_norms[finite]
        meta["norm"][good] = found.norms[finite]
        for place in places[~finite]:
            meta["status"][place] = Status.NON_FINITE
            self._non_finite += 1
            if self._non_finite <= _NAMED:
                self._say(f"Row {shard.start + place} has a NaN or infinite loss or gradient and is left out.")


def _records(shard: Shard, part: Encoded) -> np.ndarray:
    """The records of a shard before anything is measured."""
    meta = np.zeros(len(shard), META_DTYPE)
    meta["row"] = np.arange(shard.start, shard.stop)
    meta["digest"] = part.digests
    meta["tokens"] = part.response_tokens
    meta["status"] = part.status
    meta["loss"] = np.nan
    return meta
