"""Information along an order of rows, computed exactly at checkpoints, and half-lives of gains.

F(S_t) comes from one Cholesky factor of I + a G G^T, whose first t rows belong to the first t picks, where picks are
fewer than dimensions, and from d x d determinants otherwise.

References:
    SPICE, ICLR 2026, arXiv 2601.23155, section 3.3 and Figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.chosen import gather, log_det, shifted
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows, cholesky

if TYPE_CHECKING:
    import pandas

CurveName = Literal["picks", "fisher", "top norm", "random"]
WORK = 50_000_000_000
"""Multiply-adds that one curve may cost; picks beyond are left out of it."""


class HalfLife(Numbers):
    """After how many picks half of something is gone.

    Attributes:
        gain: First pick, from 1, whose gain is at most half of the first pick's; None where none is.
        information: First pick with which half of the picks' information is reached; None without picks.
        picks: Picks looked at.
    """

    gain: int | None
    information: int | None
    picks: int


def half_life(gains: Sequence[float] | Float[np.ndarray, " k"]) -> HalfLife:
    """Half-lives of gains, in nats, in order of choice."""
    values = np.asarray(gains, dtype=np.float64)
    fallen = np.flatnonzero(values <= values[0] / 2) if len(values) else np.zeros(0, dtype=np.int64)
    total = np.cumsum(values)
    return HalfLife(
        gain=int(fallen[0]) + 1 if len(fallen) and values[0] > 0 else None,
        information=int(np.searchsorted(total, total[-1] / 2)) + 1 if len(values) else None,
        picks=len(values),
    )


class Curve(Numbers):
    """Information F(S_t) along one way of choosing.

    Attributes:
        name: ``"picks"``, ``"fisher"`` (greedy without penalty), ``"top norm"`` or ``"random"``.
        picks: Numbers of picks t at which it was computed.
        information: F(S_t) in nats, rows in hand not counted; the mean over runs for random.
        low: Least over runs.
        high: Most over runs.
        runs: Random choices; 1 otherwise.
        half_life: Of the gains, where they are known pick by pick.
    """

    name: CurveName
    picks: tuple[int, ...]
    information: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int = 1
    half_life: HalfLife | None = None

    @property
    def gains(self) -> tuple[float, ...]:
        """Mean gain of a pick between one checkpoint and the next, in nats; the first from 0 picks."""
        steps = np.diff(np.array([0, *self.picks], dtype=np.float64))
        return tuple((np.diff(np.array([0.0, *self.information])) / steps).tolist())

    def to_pandas(self) -> pandas.DataFrame:
        """One line a checkpoint."""
        import pandas

        columns = {name: np.array(getattr(self, name)) for name in ("picks", "information", "low", "high", "gains")}
        table = pandas.DataFrame(columns)
        table.insert(0, "name", self.name)
        return table


def checkpoints(size: int) -> list[int]:
    """1, 2, 3, 5, 7, 10, 14, ... up to the size and the size itself: about two for each doubling."""
    steps = {round(2 ** (half / 2)) for half in range(2 * max(size, 1).bit_length())}
    return sorted({step for step in steps if step < size} | ({size} if size else set()))


def information_at(
    rows: ScaledRows,
    picks: Int[np.ndarray, " k"],
    steps: Sequence[int],
    *,
    alpha: float,
    initial: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " s"]:
    """F(S_t) in nats beyond what rows in hand hold, for each t in ``steps``."""
    order = np.concatenate([initial, picks[: max(steps, default=0)]]).astype(np.int64)
    held, dim = len(initial), rows.shape[1]
    if len(order) <= dim:
        matrix = gather(rows, order)
        logs = 2.0 * np.log(np.diagonal(cholesky(shifted(matrix @ matrix.T, alpha))))
        return np.array([logs[held : held + step].sum() for step in steps])
    fisher = np.zeros((dim, dim))
    found, done = [], 0
    for stop in [held, *(held + step for step in steps)]:
        for at in range(done, stop, CHUNK_ROWS):
            chunk = rows.scaled(order[at : min(at + CHUNK_ROWS, stop)])
            fisher += chunk.T @ chunk
        done = stop
        found.append(log_det(shifted(fisher, alpha)) if stop else 0.0)
    return np.array(found[1:]) - found[0]


def most_picks(dim: int, work: float = WORK) -> int:
    """Picks that a curve can reach within the work."""
    small = int((work / dim) ** 0.5)
    return small if small <= dim else int(work / dim**2)
