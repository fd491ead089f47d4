"""Gradients in the plane: the leading principal components of their directions.

Randomised subspace iteration over rows that are read in blocks (Halko, Martinsson and Tropp, arXiv 0909.4061), ended
by a Rayleigh-Ritz step, so that the shares of variance are those of the axes that are drawn. Gradient norms are
heavy-tailed: without unit norms a few outliers would be the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.selection.rows import Rows, as_rows

if TYPE_CHECKING:
    import pandas as pd

BLOCK_BYTES = 32 << 20
OVERSAMPLING = 10
ITERATIONS = 6
"""Passes that turn the subspace towards the leading axes; each reads the sampled rows once."""
MOST_ROWS = 10_000
"""Rows that the axes are found from; a plane through evenly spaced ones looks the same."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Rows as points along their principal components.

    Attributes:
        indices: Row numbers, ``[m]``.
        coordinates: Their coordinates, ``[m, c]``; without unit, as unit-norm rows have none. Zero rows are nan.
        shares: Share of the variance along each axis, in (0, 1], largest first.
        axes: The axes, ``[c, d]``, orthonormal; the entry of largest size is positive.
        centre: What the axes pass through, ``[d]``.
        fitted: Rows that centre, axes and shares were computed from.
    """

    indices: Int[np.ndarray, " m"]
    coordinates: Float[np.ndarray, "m c"]
    shares: tuple[float, ...]
    axes: Float[np.ndarray, "c d"]
    centre: Float[np.ndarray, " d"]
    fitted: int

    def to_pandas(self) -> pd.DataFrame:
        """One line a row: its number and its coordinates."""
        import pandas as pd

        columns = {f"axis_{place + 1}": self.coordinates[:, place] for place in range(self.coordinates.shape[1])}
        return pd.DataFrame({"index": self.indices, **columns})


def project(
    gradients: Any,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    *,
    members: Sequence[int] | Int[np.ndarray, " p"] | None = None,
    components: int = 2,
    unit: bool = True,
    most_rows: int = MOST_ROWS,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> Projection:
    """Principal components of gradient rows; the same rows give the same points.

    Args:
        gradients: An array, a tensor or a store, ``[n, d]``.
        indices: Rows to place; all where absent.
        members: Rows that the axes are found from; those placed where absent. Rows of zeros are passed over.
        components: Axes, at most d.
        unit: Divide every row by its norm first.
        most_rows: Beyond this many members, this many evenly spaced ones stand for them.
        iterations: Passes of the subspace iteration.
        seed: Seed of the first subspace.
    """
    rows = as_rows(gradients)
    n, dim = rows.shape
    placed = np.arange(n) if indices is None else np.asarray(indices, dtype=np.int64)
    given = placed if members is None else np.asarray(members, dtype=np.int64)
    if len(given) > most_rows:
        given = given[np.linspace(0, len(given) - 1, most_rows).astype(np.int64)]
    centre, total, fitted = _moments(rows, given, unit)
    width = min(components + OVERSAMPLING, dim)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, width)))[0]
    values, ritz = np.zeros(width), basis
    for _ in range(iterations + 1):
        image = np.zeros((dim, width))
        for block in _blocks(rows, given, unit):
            shifted = block - centre
            image += shifted.T @ (shifted @ basis)
        values, vectors = np.linalg.eigh(basis.T @ image)
        ritz = basis @ vectors[:, ::-1]
        basis = np.linalg.qr(image)[0]
    axes = _signed(ritz[:, :components].T)
    largest = np.maximum(values[::-1][: len(axes)], 0.0)
    shares = tuple(float(value / total) if total > 0 else 0.0 for value in largest)
    points = np.full((len(placed), len(axes)), np.nan)
    start = 0
    for block in _blocks(rows, placed, unit, keep_zeros=True):
        points[start : start + len(block)] = (block - centre) @ axes.T
        start += len(block)
    return Projection(placed, points, shares, axes, centre, fitted)


def _moments(rows: Rows, members: np.ndarray, unit: bool) -> tuple[Float[np.ndarray, " d"], float, int]:
    """Mean, sum of squared distances from it, and number of rows that count."""
    total, squares, count = np.zeros(rows.shape[1]), 0.0, 0
    for block in _blocks(rows, members, unit):
        total += block.sum(axis=0)
        squares += float(np.einsum("ij,ij->", block, block))
        count += len(block)
    centre = total / max(count, 1)
    return centre, max(squares - count * float(centre @ centre), 0.0), count


def _blocks(rows: Rows, members: np.ndarray, unit: bool, *, keep_zeros: bool = False) -> Iterator[np.ndarray]:
    """Rows in float64, a block at a time; those without direction are left out, or nan."""
    size = max(1, BLOCK_BYTES // (8 * rows.shape[1]))
    for start in range(0, len(members), size):
        block = np.array(rows.rows(members[start : start + size]), dtype=np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))
        sound = np.isfinite(norms) & (norms > 0)
        if keep_zeros:
            block[~sound] = np.nan
        elif not sound.all():
            block, norms = block[sound], norms[sound]
        with np.errstate(invalid="ignore", divide="ignore"):
            yield block / norms[:, None] if unit else block


def _signed(axes: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "c d"]:
    """Each axis turned so that its largest entry is positive: without this the picture could come out mirrored."""
    largest = np.argmax(np.abs(axes), axis=1)
    return axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1.0, 1.0)[:, None]
