"""Exact inner products of a pool's gradients, the work shared by all processes of the run.

A pool's examples fall into micro-batches by their lengths alone, and its layers into groups by model, pool size and
memory limit alone. Each micro-batch is passed through the model by one process, each group's products are formed by one
process from all gradients in the order of the pool, and the groups are added up in their order. So the number of
processes changes no bit of the result, as long as each has as many threads. Examples of the same tokens have the
numbers of the first of them, whatever micro-batch each was in, so that they tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from spice_select.errors import ResourceError
from spice_select.gradients.batches import out_of_memory, plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.equals import firsts_of_equal
from spice_select.gradients.factors import Sketch
from spice_select.gradients.fold import FoldSketch
from spice_select.schedule.held import HeldGradients, inner_products
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.shares import layer_groups, share_batches

LEAST_DIM = 8192
"""Row length of the fold that stands in where exact products would take too many passes."""
MOST_PASSES = 4


@dataclass(frozen=True, eq=False)
class PoolGram:
    """Inner products of a pool's gradients.

    Attributes:
        gram: Inner products; rows and columns of an example with a NaN or infinite loss or gradient are NaN.
        losses: Mean negative log-likelihood of the trained labels, in nats.
        tokens: Tokens of the pool, padding aside.
        exact: Whether the products are those of the gradients themselves.
        how: The same in a phrase.
    """

    gram: Float64[np.ndarray, "n n"]
    losses: Float64[np.ndarray, " n"]
    tokens: int
    exact: bool
    how: str


@dataclass(frozen=True, eq=False)
class SketchedPool:
    """A pool's gradients in a sketch.

    Attributes:
        rows: Sketched gradients; NaN or infinite where a gradient is.
        losses: Mean negative log-likelihood of the trained labels, in nats.
        squared_norms: Exact squared norms of the unsketched gradients.
        tokens: Tokens of the pool, padding aside.
    """

    rows: Float32[np.ndarray, "n d"]
    losses: Float64[np.ndarray, " n"]
    squared_norms: Float64[np.ndarray, " n"]
    tokens: int


def pool_gram(
    engine: GradientEngine,
    ids: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    ranks: Ranks,
    memory: int,
    progress: Callable[[float], None] | None = None,
) -> PoolGram:
    """Inner products of the examples' loss gradients; the same on every process, all of which must call it.

    Exact wherever four passes over the pool are enough within ``memory``, and with adapters always; else by a fold of
    at least 8,192 numbers a row.

    Args:
        engine: Measures gradients; each process has its own, of the same weights.
        ids: Token ids of each example, ``[t]``.
        masks: True where the token is a trained label, ``[t]``.
        ranks: The processes that share the work.
        memory: Bytes of gradients that a process may hold.
        progress: Called after every micro-batch with the share of this process's examples that is done.

    Raises:
        ResourceError: A micro-batch doesn't fit into memory.
    """
    assert len(ids) == len(masks) > 0
    work = _Work(engine, ids, masks, ranks, progress)
    layers = engine.proxy.layers
    size = sum(layer.size for layer in layers)
    adapters = engine.config.lora is not None
    if adapters or exact_fits(len(ids), size, memory):
        what = "adapter factors" if adapters else "layers"
        return work.exact(memory, f"exact over {len(layers)} {what}")
    dim = max(LEAST_DIM, engine.config.dim)
    device = engine.proxy.device
    pool = work.sketched(FoldSketch(layers, dim, engine.config.seed, device))
    parts = {0: inner_products(torch.from_numpy(pool.rows).to(device))} if ranks.main else {}
    gram = ranks.all_gather_grams(parts, [0], len(ids)).numpy()
    return work.pool_gram(gram, pool.losses, exact=False, how=f"fold, D = {dim:,}")


def exact_fits(rows: int, values: int, memory: int) -> bool:
    """Whether whole gradients of so many numbers are measured in few enough passes."""
    return 4 * rows * values <= MOST_PASSES * memory


def pool_rows(
    engine: GradientEngine,
    ids: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    ranks: Ranks,
    progress: Callable[[float], None] | None = None,
) -> SketchedPool:
    """The examples' loss gradients in the engine's own sketch; the same on every process, all of which must call it.

    Args:
        engine: Measures gradients; each process has its own, of the same weights.
        ids: Token ids of each example, ``[t]``.
        masks: True where the token is a trained label, ``[t]``.
        ranks: The processes that share the work.
        progress: Called after every micro-batch with the share of this process's examples that is done.

    Raises:
        ResourceError: A micro-batch doesn't fit into memory.
    """
    return _Work(engine, ids, masks, ranks, progress).sketched(engine.new_sketch())


class _Work:
    """One pool on one process."""

    def __init__(
        self,
        engine: GradientEngine,
        ids: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        ranks: Ranks,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.progress, self.finished, self.rounds = progress, 0, 1
        self.engine, self.ids, self.masks, self.ranks = engine, ids, masks, ranks
        self.count = len(ids)
        self.firsts = firsts_of_equal(ids, masks)
        device = engine.proxy.device
        self.place = device if device.type != "mps" else torch.device("cpu")
        lengths = np.array([len(row) for row in ids])
        self.tokens = int(lengths.sum())
        batches = plan_batches(lengths, engine.config.batch_tokens)
        shares = share_batches([len(batch) * int(lengths[batch].max()) for batch in batches], ranks.world)
        none = np.zeros(0, dtype=np.int64)
        # Places in the pool of the examples of each rank, batch after batch.
        self.members: list[Int[np.ndarray, " m"]] = [
            np.concatenate([none, *(batches[number] for number in share)]) for share in shares
        ]
        self.batches = [batches[number] for number in shares[ranks.rank]]

    def exact(self, memory: int, how: str) -> PoolGram:
        """Products of whole gradients, in as many passes as the memory asks for."""
        layers = self.engine.proxy.layers
        groups = layer_groups(layers, self.count, memory)
        owners = [number % self.ranks.world for number in range(len(groups))]
        parts: dict[int, Tensor] = {}
        losses: Float64[np.ndarray, " m"] = np.zeros(0)
        passes = list(self._passes(groups, memory))
        self.rounds = len(passes)
        for chosen in passes:
            with self.ranks.together():
                rows = HeldGradients(layers, [groups[number] for number in chosen], len(self._own), self.place)
                losses = self._measure(rows, rows.wanted)
            tables = dict(zip(chosen, rows.tables, strict=True))
            del rows
            for turn in range(0, len(chosen), self.ranks.world):
                round_ = chosen[turn : turn + self.ranks.world]
                mine = self._assemble({owners[number]: tables.pop(number) for number in round_})
                for number in round_:
                    if owners[number] == self.ranks.rank:
                        assert mine is not None
                        parts[number] = inner_products(mine)
        total = self.ranks.all_gather_grams(parts, owners, self.count) / self.engine.scale**2
        gram = total.numpy()
        if len(passes) > 1:
            how += f", in {len(passes)} passes"
        return self.pool_gram(gram, self._pooled(losses), exact=True, how=how)

    def pool_gram(
        self, gram: Float64[np.ndarray, "n n"], losses: Float64[np.ndarray, " n"], *, exact: bool, how: str
    ) -> PoolGram:
        """The result, with examples of the same tokens alike and those that are not finite marked."""
        gram, losses = gram[np.ix_(self.firsts, self.firsts)], losses[self.firsts]
        bad = ~(np.isfinite(losses) & np.isfinite(np.diag(gram)))
        gram[bad, :] = np.nan
        gram[:, bad] = np.nan
        return PoolGram(gram, losses, self.tokens, exact, how)

    def sketched(self, sketch: Sketch) -> SketchedPool:
        """Sketched gradients, in one pass."""
        rows = torch.zeros(len(self._own), sketch.dim)
        norms = torch.zeros(len(self._own), dtype=torch.float64)
        losses: Float64[np.ndarray, " m"] = np.zeros(0)
        with self.ranks.together():
            losses = self._measure(sketch, None, rows, norms)
        pool = self._assemble({0: rows})
        if pool is None:
            pool = torch.empty(self.count, sketch.dim)
        self.ranks.broadcast_tensor(pool)
        scale = self.engine.scale
        squares = self._pooled(norms.numpy() / scale**2)
        table = (pool / scale).numpy()
        firsts = self.firsts
        return SketchedPool(table[firsts], self._pooled(losses)[firsts], squares[firsts], self.tokens)

    @property
    def _own(self) -> Int[np.ndarray, " m"]:
        return self.members[self.ranks.rank]

    def _passes(self, groups: list[range], memory: int) -> Iterator[list[int]]:
        """Groups that go through the model together; the same on every rank."""
        layers = self.engine.proxy.layers
        most = max(1, *(len(members) for members in self.members))
        chosen: list[int] = []
        held = 0
        for number, group in enumerate(groups):
            needed = 4 * most * sum(layers[index].size for index in group)
            if chosen and held + needed > memory:
                yield chosen
                chosen, held = [], 0
            chosen.append(number)
            held += needed
        yield chosen

    def _measure(
        self,
        sketch: Sketch,
        wanted: frozenset[int] | None,
        rows: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> Float64[np.ndarray, " m"]:
        """Pass this rank's micro-batches through the model; sketched rows and norms go where they are asked for."""
        losses = np.zeros(len(self._own))
        done = 0
        for batch in self.batches:
            span = slice(done, done + len(batch))
            if isinstance(sketch, HeldGradients):
                sketch.offset = done
            losses[span] = self._fill(sketch, batch, wanted)
            if rows is not None and norms is not None:
                rows[span] = sketch.finish()
                norms[span] = sketch.squared_norms()
            done += len(batch)
            self.finished += len(batch)
            if self.progress is not None:
                self.progress(self.finished / (self.rounds * len(self._own)))
        return losses

    def _fill(
        self, sketch: Sketch, batch: Int[np.ndarray, " b"], wanted: frozenset[int] | None
    ) -> Float64[np.ndarray, " b"]:
        ids = [self.ids[i] for i in batch]
        try:
            return self.engine.fill(sketch, ids, [self.masks[i] for i in batch], wanted)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        raise ResourceError(
            f"Gradients of {len(ids) * max(map(len, ids))} padded tokens at once don't fit into memory; set "
            f"gradients.batch_tokens below {self.engine.config.batch_tokens}, or a smaller schedule.gram_bytes."
        )

    def _assemble(self, tables: dict[int, Float[Tensor, "m columns"]]) -> Float[Tensor, "n columns"] | None:
        """Send each rank its table of the others' rows; what this rank gets, in the order of the pool."""
        mine = tables.pop(self.ranks.rank, None)
        others = [rank for rank in range(self.ranks.world) if rank != self.ranks.rank]
        like = mine if mine is not None else next(iter(tables.values()))
        shapes = {} if mine is None else {rank: (len(self.members[rank]), mine.shape[1]) for rank in others}
        found = self.ranks.exchange(tables, shapes, like)
        if mine is None:
            return None
        pool = torch.empty(self.count, mine.shape[1], device=mine.device)
        for rank, rows in {**found, self.ranks.rank: mine}.items():
            pool[torch.from_numpy(self.members[rank]).to(mine.device)] = rows
        return pool

    def _pooled(self, own: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " n"]:
        """Numbers of all ranks' examples, in the order of the pool."""
        pool = np.zeros(self.count)
        # NaN is a number to Python's JSON.
        for members, values in zip(self.members, self.ranks.all_gather(own.tolist()), strict=True):
            pool[members] = values
        return pool
