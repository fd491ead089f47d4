"""Which engine runs a selection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from spice_select.selection.blocked import BlockedLazy, window
from spice_select.selection.budget import Budget
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import FisherName, LogDet, make_information
from spice_select.selection.greedy import Brute, Dense, Engine
from spice_select.selection.kernel import GramPool, Kernel
from spice_select.selection.lazy import Lazy
from spice_select.selection.on_device import DeviceDense, DeviceLazy
from spice_select.selection.quotas import Limits
from spice_select.selection.rows import Pool
from spice_select.selection.stochastic import Stochastic, sample_size

# Below this many numbers a pass over all of them is cheaper than keeping bounds.
LAZY_FROM = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """How picks are found, whatever the rows.

    Attributes:
        loop: The loop that was asked for.
        fisher: Form of Fisher information.
        alpha: Fisher scale a.
        sampling_epsilon: Expected shortfall of the stochastic loop.
        seed: Of its samples.
        part: Which partition's samples they are, from 1; 0: those of the whole pool.
        device: Torch device of the dense and the lazy loop.
    """

    loop: str
    fisher: FisherName
    alpha: float
    sampling_epsilon: float = 0.01
    seed: int = 0
    part: int = 0
    device: str = "cpu"


_LOCK = threading.Lock()
_showing = 0
_limits: threadpool_limits | None = None


@contextmanager
def threads_of(loop: str) -> Iterator[None]:
    """Linear algebra in one thread while samples are drawn and shown.

    Products of a hundred rows gain less from a second thread than it costs to wait for it at each of them. The limit is
    the whole process's: of loops that run at the same time the first sets it, and the last takes it back.
    """
    if loop != "stochastic":
        yield
        return
    global _showing, _limits
    with _LOCK:
        _showing += 1
        if _showing == 1:
            _limits = threadpool_limits(1, user_api="blas")
    try:
        yield
    finally:
        with _LOCK:
            _showing -= 1
            if _showing == 0 and _limits is not None:
                _limits.restore_original_limits()
                _limits = None


def resolve_loop(loop: str, fisher: FisherName, n: int, dim: int, device: str = "cpu") -> str:
    """The loop that runs."""
    if loop != "auto":
        return loop
    if n * dim >= LAZY_FROM:
        return "lazy"
    return "kernel" if fisher == "exact" and n <= dim and device == "cpu" else "dense"


def make_engine(
    loop: str,
    recipe: Recipe,
    pool: Pool | GramPool,
    conflict: Conflict,
    score: Score,
    limits: Limits,
    budget: Budget,
) -> Engine:
    """The engine of a loop, for candidates within the limits."""
    eligible = np.zeros(len(pool), dtype=bool)
    eligible[: pool.n] = limits.eligible
    alpha = recipe.alpha
    if loop == "kernel":
        capacity = min(budget.rows, len(pool))
        known = pool.known(alpha) if isinstance(pool, GramPool) else None
        return Kernel(pool.column, pool.squared_norms, alpha, conflict, score, eligible, capacity, known)
    assert isinstance(pool, Pool)
    if recipe.device != "cpu":
        engine = {"dense": DeviceDense, "lazy": DeviceLazy}[loop]
        return engine(pool, alpha, conflict, score, eligible, recipe.device)
    if loop in ("lazy", "stochastic") and recipe.fisher == "exact":
        information = LogDet(alpha, pool.dim, window=window(pool.dim))
        if loop == "lazy":
            return BlockedLazy(pool, information, conflict, score, eligible)
        sample = sample_size(int(eligible.sum()), _expected_picks(limits, budget), recipe.sampling_epsilon)
        return Stochastic(pool, information, conflict, score, eligible, sample, recipe.seed, recipe.part)
    engine = {"brute": Brute, "dense": Dense, "lazy": Lazy}[loop]
    return engine(pool, make_information(recipe.fisher, alpha, pool.dim), conflict, score, eligible)


def _expected_picks(limits: Limits, budget: Budget) -> int:
    """Picks that a budget allows; one in tokens about as many as rows of mean length fill."""
    if budget.tokens is None or limits.mean_length is None:
        return budget.rows
    return max(1, min(budget.rows, int(budget.tokens / max(1.0, limits.mean_length))))
