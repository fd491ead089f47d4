"""Curvature of the information, by leaving out every row once, from one factorisation.

    c = 1 - min_x D_x(D minus x) / D_x(empty) in [0, 1],      greedy without penalty >= (1 - e^-c) / c of the best set

With p_x = a g_x^T (I + a F_D)^-1 g_x the leave-one-out gain is D_x(D minus x) = -log(1 - p_x), of which p_x comes from
the n x n or the d x d form, whichever is smaller. Rows of zero norm have no curvature and are left aside.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, Table 5. Conforti and Cornuejols, Submodular set functions, matroids and the
    greedy algorithm, 1984, for the guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.bounds import TABLE_4, ScaleName
from spice_select.analysis.chosen import gather, shifted
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows, cholesky, solve_lower

if TYPE_CHECKING:
    import pandas

WORK = 50_000_000_000
"""Multiply-adds that leaving out every row may cost; a pool that needs more is sampled."""
TERCILES = ("low", "medium", "high")


class TercileCurvature(Numbers):
    """Curvature of a third of the pool, by conflict with the pool's mean gradient.

    Attributes:
        name: ``"low"``, ``"medium"`` or ``"high"`` conflict.
        rows: Rows in it.
        conflict: Median of -cos with the pool's mean.
        curvature: Largest |eps_x(D minus x)| / base_x of its rows, D the whole pool.
        mean: Mean of that ratio over its rows.
        alone: Curvature of the third by itself, as if it were the pool.
        alone_mean: Mean ratio of the third by itself.
    """

    name: str
    rows: int
    conflict: float
    curvature: float
    mean: float
    alone: float
    alone_mean: float


class Curvature(Numbers):
    """Curvature of a pool and of its thirds by conflict.

    Attributes:
        scale: ``"run"``: the selection's own a; ``"paper-table-4"``: a = 0.5 / |F_D|_2.
        alpha: Fisher scale a.
        value: c.
        mean: Mean of |eps_x(D minus x)| / base_x over the rows.
        guarantee: (1 - e^-c) / c, what greedy without penalty is guaranteed of the best set; 1 - 1/e, which always
            holds, where the pool was sampled.
        rows: Rows that were left out once each.
        of: Rows of the pool; more than ``rows`` where it was sampled, and then c is that of the sample, at most the
            pool's.
        form: ``"n x n"`` or ``"d x d"``.
        terciles: The thirds by conflict, low first.
    """

    scale: ScaleName
    alpha: float
    value: float
    mean: float
    guarantee: float
    rows: int
    of: int
    form: str
    terciles: tuple[TercileCurvature, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether only a sample of the pool was looked at."""
        return self.rows < self.of

    def to_pandas(self) -> pandas.DataFrame:
        """One line a third."""
        import pandas

        columns = list(TercileCurvature.model_fields)
        table = pandas.DataFrame([third.model_dump() for third in self.terciles], columns=columns)
        table.insert(0, "scale", self.scale)
        return table


def guarantee_of(curvature: float) -> float:
    """(1 - e^-c) / c, which is 1 at c = 0."""
    return -math.expm1(-curvature) / curvature if curvature > 0 else 1.0


def most_rows(dim: int, work: float = WORK) -> int:
    """Rows that can be left out once each within the work."""
    return int(work / dim**2) if float(dim) ** 3 <= work else int(work ** (1 / 3))


class LeaveOneOut:
    """Gains of every row given all others, from one factorisation of the smaller form.

    Args:
        rows: The gradients.
        members: Row numbers of D.
    """

    def __init__(self, rows: ScaledRows, members: Int[np.ndarray, " n"]) -> None:
        self._rows, self._members = rows, members
        dim = rows.shape[1]
        self.form = "n x n" if len(members) <= dim else "d x d"
        if self.form == "n x n":
            held = gather(rows, members)
            self._gram = held @ held.T
            self.squared = np.diagonal(self._gram).copy()
        else:
            self._gram = np.zeros((dim, dim))
            self.squared = np.empty(len(members))
            for part, chunk in self._chunks():
                self._gram += chunk.T @ chunk
                self.squared[part] = np.einsum("ij,ij->i", chunk, chunk)

    def largest(self) -> float:
        """|F_D|_2 by power iteration, from below."""
        vector = self._gram.sum(axis=0)
        value = 0.0
        for _ in range(1000):
            norm = float(np.linalg.norm(vector))
            if norm == 0.0:
                # The sum of all rows vanished: any direction that doesn't will do.
                vector, norm = np.random.default_rng(0).standard_normal(len(vector)), 1.0
            image = self._gram @ (vector / norm)
            last, value = value, float(np.linalg.norm(image))
            if value == 0.0 or abs(value - last) <= 1e-12 * value:
                break
            vector = image
        return value

    def gains(self, alpha: float) -> Float[np.ndarray, " n"]:
        """D_x(D minus x) in nats for every member."""
        factor = cholesky(shifted(self._gram, alpha))
        if self.form == "n x n":
            solved = solve_lower(factor, self._gram)
            share = alpha * (self.squared - alpha * np.einsum("ij,ij->j", solved, solved))
        else:
            share = np.empty(len(self._members))
            for part, chunk in self._chunks():
                solved = solve_lower(factor, np.ascontiguousarray(chunk.T))
                share[part] = alpha * np.einsum("ij,ij->j", solved, solved)
        return -np.log1p(-np.clip(share, 0.0, 1.0 - 1e-16))

    def ratios(self, alpha: float) -> Float[np.ndarray, " n"]:
        """|eps_x(D minus x)| / base_x for every member; nan for rows of zero norm."""
        base = np.log1p(alpha * self.squared)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(base > 0, np.clip(1.0 - self.gains(alpha) / base, 0.0, 1.0), np.nan)

    def _chunks(self) -> Iterator[tuple[slice, Float[np.ndarray, "b d"]]]:
        for start in range(0, len(self._members), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(self._members)))
            yield part, self._rows.scaled(self._members[part])


def measure_curvature(
    rows: ScaledRows,
    pool: Int[np.ndarray, " m"],
    opposition: Float[np.ndarray, " m"],
    *,
    alpha: float,
    scales: Sequence[ScaleName] = ("run", "paper-table-4"),
    seed: int = 0,
    work: float = WORK,
) -> tuple[Curvature, ...]:
    """Curvature of the pool, and of its thirds by conflict with the pool's mean, at each scale.

    The paper does not say whether its conflict groups are measured within the pool or each by itself, so both are
    given. Thirds are by -cos without a hinge, as most rows oppose nothing.

    Args:
        rows: The gradients.
        pool: Row numbers of D.
        opposition: -cos of each of them with the mean of the pool.
        alpha: Fisher scale a of the selection.
        scales: Which scales to measure at.
        seed: Of the sample, where the pool is too large.
        work: Multiply-adds allowed for one factorisation and its rows.
    """
    most = most_rows(rows.shape[1], work)
    taken = np.arange(len(pool))
    if len(pool) > most:
        taken = np.sort(np.random.default_rng(seed).permutation(len(pool))[:most])
    members, against = pool[taken], opposition[taken]
    whole = LeaveOneOut(rows, members)
    thirds = np.array_split(np.argsort(against, kind="stable"), 3) if len(members) >= 3 else []
    alone = [LeaveOneOut(rows, members[np.sort(third)]) for third in thirds]
    found = []
    for scale in scales:
        largest = whole.largest() if scale == "paper-table-4" else 0.0
        used = TABLE_4 / largest if largest > 0 else alpha
        ratios = whole.ratios(used)
        value, mean = _largest(ratios), _mean(ratios)
        terciles = []
        for name, third, itself in zip(TERCILES, thirds, alone, strict=False):
            within = itself.ratios(used)
            terciles.append(
                TercileCurvature(
                    name=name,
                    rows=len(third),
                    conflict=float(np.median(against[third])),
                    curvature=_largest(ratios[third]),
                    mean=_mean(ratios[third]),
                    alone=_largest(within),
                    alone_mean=_mean(within),
                )
            )
        found.append(
            Curvature(
                scale=scale,
                alpha=used,
                value=value,
                mean=mean,
                # A sample's curvature is too low to prove anything.
                guarantee=guarantee_of(value if len(members) == len(pool) else 1.0),
                rows=len(members),
                of=len(pool),
                form=whole.form,
                terciles=tuple(terciles),
            )
        )
    return tuple(found)


def _largest(ratios: Float[np.ndarray, " m"]) -> float:
    known = ratios[np.isfinite(ratios)]
    return float(known.max(initial=0.0))


def _mean(ratios: Float[np.ndarray, " m"]) -> float:
    known = ratios[np.isfinite(ratios)]
    return float(known.mean()) if len(known) else 0.0
