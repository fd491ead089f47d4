"""How fast this machine is at what a selection does, measured in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from spice_select.selection.blocked import BlockedLazy
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import LogDet
from spice_select.selection.rows import ArrayRows, Pool

Clock = Callable[[], float]

WIDEST = 2048
"""Side of the matrix that products are timed with at most: wider ones are as fast, and take longer to time."""
_ROWS = 256
_NUMBERS = 1 << 20
_FAR = (3 << 10, 1 << 10)
_PICKS = 120
_ACTIVE = (128, 1024)
_LEAST_SECONDS = 0.03
_MOST_TIMES = 64
_TURNS = 3


@dataclass(frozen=True)
class Speeds:
    """Seconds of one unit of each kind of work.

    Attributes:
        product: A multiply-add of float64 matrices.
        matvec: A multiply-add of a float64 matrix and a vector, both near the processor.
        stream: The same of a matrix that is not.
        read: A number of the rows read in order, widened, with its part of the squared norm.
        gather: A number of rows read by number and widened.
        sort: A number of a partial sort.
        elementwise: A number through a logarithm.
        pick: A pick of the lazy loop, whatever its sizes.
        active: A row of the active set, at every pick.
        byte: A byte that is hashed and written.
    """

    product: float
    matvec: float
    stream: float
    read: float
    gather: float
    sort: float
    elementwise: float
    pick: float
    active: float
    byte: float

    def times(self, factor: float) -> Speeds:
        """A machine that takes so many times as long."""
        return Speeds(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


def measure_speeds(dim: int, dtype: str = "float32", clock: Clock = time.perf_counter) -> Speeds:
    """Time each kind of work here, with the threads that this process has.

    Args:
        dim: Length D of a gradient row.
        dtype: Dtype of the stored rows; float16 rows are multiplied by their norms when read.
        clock: Tells seconds.
    """
    import hashlib

    rng = np.random.default_rng(0)
    side = min(dim, WIDEST)
    wide = rng.normal(size=(_ROWS, side))
    matrix = rng.normal(size=(side, side))
    rows = max(_ROWS, min(_NUMBERS // dim, 1 << 16))
    stored = rng.normal(size=(rows, dim)).astype(dtype)
    norms = np.ones(rows, np.float32)
    order = rng.permutation(rows)
    numbers = rng.random(_NUMBERS // 4)
    content = stored.tobytes()[: 1 << 22]

    def widened(part: np.ndarray) -> np.ndarray:
        found = part.astype(np.float32)
        if dtype == "float16":
            found *= norms[: len(found), None]
        return found.astype(np.float64)

    def read() -> None:
        block = widened(stored)
        np.einsum("ij,ij->i", block, block)

    far, vector = np.ones(_FAR), np.ones(_FAR[1])
    few, some = (min(_pick_seconds(active, clock) for _ in range(_TURNS)) for active in _ACTIVE)
    slope = max(0.0, (some - few) / (_ACTIVE[1] - _ACTIVE[0]))
    return Speeds(
        product=_seconds(lambda: wide @ matrix, clock) / (_ROWS * side * side),
        matvec=_seconds(lambda: matrix[0] @ matrix, clock) / (side * side),
        stream=_seconds(lambda: far @ vector, clock) / far.size,
        read=_seconds(read, clock) / (rows * dim),
        gather=_seconds(lambda: widened(stored[order]), clock) / (rows * dim),
        sort=_seconds(lambda: np.argpartition(numbers, len(numbers) - 1024), clock) / len(numbers),
        elementwise=_seconds(lambda: np.log1p(numbers), clock) / len(numbers),
        pick=max(few - slope * _ACTIVE[0], 0.1 * few),
        active=slope,
        byte=_seconds(lambda: hashlib.sha256(content).digest(), clock) / len(content),
    )


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    """Least time of a piece of work, the first time aside: what other programs add is not the work's."""
    work()
    least, spent, times = float("inf"), 0.0, 0
    while spent < _LEAST_SECONDS and times < _MOST_TIMES:
        begun = clock()
        work()
        taken = clock() - begun
        least, spent, times = min(least, taken), spent + taken, times + 1
    return least


def _pick_seconds(active: int, clock: Clock) -> float:
    """Time of a pick among so many active rows that are too short for their products to count."""
    rows = np.random.default_rng(0).normal(size=(active, 16))
    pool = Pool(ArrayRows(rows))
    engine = BlockedLazy(pool, LogDet(1.0, 16), Conflict(16), Score(0.1), np.ones(active, bool), active=active)
    engine.best()
    begun = clock()
    for _ in range(_PICKS):
        choice = engine.best()
        assert choice is not None
        engine.add(choice.index)
        engine.close(np.array([choice.index]))
    return (clock() - begun) / _PICKS
