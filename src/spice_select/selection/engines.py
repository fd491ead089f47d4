"""Which engine runs a selection."""

from __future__ import annotations

import numpy as np

from spice_select.selection.blocked import BlockedLazy, window
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import FisherName, LogDet, make_information
from spice_select.selection.greedy import Brute, Dense, Engine
from spice_select.selection.kernel import GramPool, Kernel
from spice_select.selection.lazy import Lazy
from spice_select.selection.options import Options
from spice_select.selection.quotas import Limits
from spice_select.selection.rows import Pool

# Below this many numbers a pass over all of them is cheaper than keeping bounds.
LAZY_FROM = 1 << 20


def resolve_loop(options: Options, n: int, dim: int) -> str:
    """The loop that runs."""
    if options.loop != "auto":
        return options.loop
    if n * dim >= LAZY_FROM:
        return "lazy"
    return "kernel" if options.fisher == "exact" and n <= dim else "dense"


def make_engine(
    loop: str,
    fisher: FisherName,
    alpha: float,
    pool: Pool | GramPool,
    conflict: Conflict,
    score: Score,
    limits: Limits,
    rows: int,
) -> Engine:
    """The engine of a loop, for candidates within the limits."""
    eligible = np.zeros(len(pool), dtype=bool)
    eligible[: pool.n] = limits.eligible
    if loop == "kernel":
        capacity = min(rows, len(pool))
        known = pool.known(alpha) if isinstance(pool, GramPool) else None
        return Kernel(pool.column, pool.squared_norms, alpha, conflict, score, eligible, capacity, known)
    assert isinstance(pool, Pool)
    if loop == "lazy" and fisher == "exact":
        information = LogDet(alpha, pool.dim, window=window(pool.dim))
        return BlockedLazy(pool, information, conflict, score, eligible)
    engine = {"brute": Brute, "dense": Dense, "lazy": Lazy}[loop]
    return engine(pool, make_information(fisher, alpha, pool.dim), conflict, score, eligible)
