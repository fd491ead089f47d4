"""Upper bounds on the best set from prefixes of a run, measured over the pool.

Gains of an early prefix bound those of a later one, so only rows that can still be among the K largest are measured
again, and float32 screens them where there is much to measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.knapsack import fractional_sum, measure_leading
from spice_select.analysis.posterior import CHUNK_ROWS, Posterior, ScaledRows

Bounds = dict[int, tuple[float, ...]]
"""Upper bound on the best set for each capacity, by the number of picks it was measured at."""

SMALL_PREFIX = 32
"""Prefixes up to here share one pass over the pool."""
SMALL_MEMBERS = 1024
"""Most rows, those in hand with them, that the shared pass projects onto."""
CHEAP_WORK = 2_000_000_000
"""Multiply-adds over the pool that count for nothing: a prefix in the middle is tried too, and no float32."""
LOOSENESS = 0.002
"""Part of U that float32's error bounds may cost before the leading rows are measured again in float64."""


@dataclass(frozen=True, eq=False)
class Task:
    """A selection whose bound is sought.

    Attributes:
        rows: The gradients.
        alpha: Fisher scale a.
        order: Rows in hand, then the picks in order.
        held: Rows in hand.
        weights: What each row costs.
        capacities: Budgets, the one that was asked for first.
        eligible: Rows that a set may hold.
    """

    rows: ScaledRows
    alpha: float
    order: Int[np.ndarray, " m"]
    held: int
    weights: Float[np.ndarray, " n"]
    capacities: tuple[float, ...]
    eligible: Bool[np.ndarray, " n"]

    @property
    def size(self) -> int:
        """Picks."""
        return len(self.order) - self.held

    def outside(self, gains: Float[np.ndarray, " n"], t: int) -> Float[np.ndarray, " n"]:
        """The gains with 0 for the first t picks."""
        left = gains.copy()
        left[self.order[self.held : self.held + t]] = 0.0
        return left

    def bound(self, gains: Float[np.ndarray, " n"], t: int, gained: float) -> tuple[float, ...]:
        """F(S_t) and the most that the gains of other rows add within each capacity."""
        left = self.outside(gains, t)
        return tuple(gained + fractional_sum(left, self.weights, capacity) for capacity in self.capacities)

    @property
    def work(self) -> float:
        """Multiply-adds that :func:`measured_bounds` may take."""
        n, dim = self.rows.shape
        together = len(self.order)
        form = float(together) * dim * min(together, dim)
        return form + float(n) * dim * (SMALL_PREFIX + min(together, dim))


def measured_bounds(task: Task) -> tuple[Bounds, float]:
    """Bounds by prefix from passes over the pool, and F(S)."""
    rows, held, size, (n, dim) = task.rows, task.held, task.size, task.rows.shape
    bounds: Bounds = {}
    small = powers(1, min(size, SMALL_PREFIX), 2) if held + SMALL_PREFIX <= SMALL_MEMBERS else [0]
    leading = Posterior(rows, task.order[: held + small[-1]], task.alpha, project=True if len(small) > 1 else None)
    norms, gains = _first_pass(rows, leading, [held + t for t in small], task.eligible)
    if leading.projection is not None:
        logs = 2.0 * np.log(leading.diagonal)
        start = float(logs[:held].sum())
        gained = {t: float(logs[held : held + t].sum()) for t in small}
    else:
        start, gained = leading.logdet, {0: 0.0}
    for t, measured in zip(small, gains, strict=True):
        bounds[t] = task.bound(measured, t, gained[t])
    stale = gains[-1]
    for t in _later_prefixes(size, small[-1], held, n, dim):
        posterior = Posterior(rows, task.order[: held + t], task.alpha)
        gained[t] = posterior.logdet - start
        stale = _refresh(rows, task.outside(stale, t), norms, posterior, task.weights, task.capacities[0], gained[t])
        bounds[t] = task.bound(stale, t, gained[t])
    return bounds, gained[size]


def _first_pass(
    rows: ScaledRows, leading: Posterior, sizes: list[int], eligible: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], list[Float[np.ndarray, " n"]]]:
    """Squared norms of the stored rows, and gain bounds at every small prefix, 0 for what can't be chosen."""
    n = rows.shape[0]
    norms = np.zeros(n)
    gains = np.zeros((len(sizes), n))
    for begin in range(0, n, CHUNK_ROWS):
        chunk = np.arange(begin, min(begin + CHUNK_ROWS, n))
        chunk = chunk[eligible[chunk]]
        if not len(chunk):
            continue
        scaled = rows.scaled(chunk)
        # Rows of NaN or Inf are among them, and are sorted out below.
        with np.errstate(over="ignore", invalid="ignore"):
            if leading.projection is not None:
                norms[chunk], left = leading.upper_of_prefixes(scaled, sizes)
            else:
                norms[chunk], left = np.einsum("ij,ij->i", scaled, scaled), leading.upper(scaled)[None]
            gains[:, chunk] = np.log1p(leading.alpha * left)
    # A row that holds NaN or Inf is no candidate.
    norms[~np.isfinite(norms)] = 0.0
    gains[~np.isfinite(gains)] = 0.0
    return norms, list(gains)


def _refresh(
    rows: ScaledRows,
    stale: Float[np.ndarray, " n"],
    norms: Float[np.ndarray, " n"],
    posterior: Posterior,
    weights: Float[np.ndarray, " n"],
    capacity: float,
    gained: float,
) -> Float[np.ndarray, " n"]:
    """Gain bounds as tight as the sum over the best rows needs; float32 screens where there is much to measure."""
    middle = stale.copy()

    def exact(chunk: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        return np.log1p(posterior.alpha * posterior.upper(rows.scaled(chunk)))

    def screened(chunk: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        squared = np.square(rows.factors[chunk])
        with np.errstate(divide="ignore", invalid="ignore"):
            raw_norms = np.where(squared > 0, norms[chunk] / squared, 0.0)
            upper, value = posterior.screen(rows.raw(chunk), raw_norms)
            bound, centre = (np.log1p(posterior.alpha * q * squared) for q in (upper, value))
        # A factor of 0 times an overflow is no number: what was known before stands.
        middle[chunk] = np.fmin(middle[chunk], centre)
        return bound

    if posterior.screens and rows.shape[0] * rows.shape[1] ** 2 > CHEAP_WORK:
        stale = measure_leading(stale, screened, weights, capacity)
        upper = fractional_sum(stale, weights, capacity)
        if upper - fractional_sum(np.minimum(middle, stale), weights, capacity) <= LOOSENESS * (gained + upper):
            return stale
    return measure_leading(stale, exact, weights, capacity)


def powers(first: int, last: int, factor: int) -> list[int]:
    """0, and ``first`` times the powers of ``factor`` up to ``last``, and ``last`` itself."""
    steps = {0, last}
    while first < last:
        steps.add(first)
        first *= factor
    return sorted(steps)


def _later_prefixes(size: int, done: int, held: int, n: int, dim: int) -> list[int]:
    """Prefixes beyond the shared pass: the whole of the picks, and steps on the way where they cost little."""
    return [
        t
        for t in powers(4 * max(done, 1), size, 4)
        if t > done and (t == size or n * dim * min(held + t, dim) <= CHEAP_WORK)
    ]
