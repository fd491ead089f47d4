"""NovelSum: distances to all other rows, near ones weighted more, where rows are dense weighted less.

The paper's form and that of its released code differ, and both are here by name.

References:
    NovelSum, arXiv 2502.17184.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.directions import MOST_ROWS, Directions, Score, directions
from spice_select.errors import ConfigError

Mode = Literal["paper", "official"]

SAME = 1e-12
"""Squared distance up to which a reference row is taken for the row itself."""
DIGITS = 7
"""Decimals to which two unit rows agree that count as duplicates in the reference."""
_BLOCK = 256


class NovelSum(Score):
    """The diversity of a set of rows; higher is more diverse.

    Attributes:
        mode: ``paper`` or ``official``.
        total: Sum over the rows; ``value`` is the mean.
        neighbours: K of the density.
        reference_rows: Rows that the density was measured against, duplicates left out.
        reference_given: Rows of the reference that were given.
    """

    mode: Mode
    total: float
    neighbours: int
    reference_rows: int
    reference_given: int


def novelsum(
    features: Any,
    *,
    mode: Mode = "paper",
    neighbours: int = 10,
    distance_power: float = 1.0,
    density_power: float = 0.5,
    self_counted: bool | None = None,
    reference: Any = None,
    deduplicate: bool = True,
    epsilon: float = 1e-9,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = MOST_ROWS,
    seed: int = 0,
) -> NovelSum:
    """NovelSum of rows, by cosine distance.

    With w = 1 / rank of j among the rows by distance from i, sigma = 1 / mean squared distance to the K nearest rows of
    the reference::

        paper     v_i = sum over j != i of w_ij^a sigma_j^b d_ij
        official  v_i = sigma_i^b  (sum over j of w_ij^a d_ij) / (sum over j of w_ij^a)

    The official form counts the row itself as its own first neighbour, so that the nearest other row weighs 1/2. It
    multiplies by the density at the row instead of the neighbour's, takes an average instead of a sum, and passes over
    the nearest row of the reference even where that is not the row itself.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        mode: ``"paper"`` or ``"official"``.
        neighbours: K.
        distance_power: a, power of the weight by rank.
        density_power: b, power of the density.
        self_counted: Whether a row has rank 1 among its own neighbours; by the mode where absent.
        reference: Rows to measure density against, such as the pool; the rows themselves where absent.
        deduplicate: Leave duplicate directions out of the reference.
        epsilon: Added to the mean distance, so that a row among its copies has a finite density.
        indices: Rows of ``features`` to measure; all where absent.
        most: Rows to sample where there are more, of the reference too: the cost is n^2 d.
        seed: Seed of the sample.

    Returns:
        The mean, with the sum beside.

    Raises:
        ConfigError: An option that cannot be used.
        DataError: NaN or Inf, or no row with a direction.
    """
    if mode not in ("paper", "official"):
        raise ConfigError(f"mode cannot be {mode!r}; give paper or official.")
    if neighbours < 1:
        raise ConfigError(f"neighbours cannot be {neighbours}; give at least 1.")
    if min(distance_power, density_power) < 0 or not epsilon >= 0:
        raise ConfigError("distance_power, density_power and epsilon cannot be negative; give 0 or more.")
    rows = directions(features, indices=indices, most=most, seed=seed)
    against = rows if reference is None else directions(reference, most=most, seed=seed)
    known = _distinct(against.unit) if deduplicate else against.unit
    official = mode == "official"
    sparsity = _mean_distance(rows.unit, known, neighbours, drop_first=official) + epsilon
    with np.errstate(divide="ignore"):
        density = np.power(sparsity, -density_power)
    counted = official if self_counted is None else self_counted
    values = _values(rows, density, distance_power, official=official, counted=counted)
    base = rows.score(f"NovelSum, {mode}", float(values.mean()))
    return NovelSum(
        **base.model_dump(),
        mode=mode,
        total=float(values.sum()),
        neighbours=neighbours,
        reference_rows=len(known),
        reference_given=against.given,
    )


def _distinct(unit: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m2 d"]:
    """The first of each set of rows that agree to a few decimals; adding zero turns -0 into 0."""
    first = dict.fromkeys((np.round(row, DIGITS) + 0.0).tobytes() for row in unit)
    if len(first) == len(unit):
        return unit
    places: dict[bytes, int] = {}
    for place, row in enumerate(unit):
        places.setdefault((np.round(row, DIGITS) + 0.0).tobytes(), place)
    return unit[list(places.values())]


def _mean_distance(
    unit: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], neighbours: int, *, drop_first: bool
) -> Float[np.ndarray, " n"]:
    """Mean squared distance to the nearest rows of the reference; 1 where it has no other row."""
    means = np.ones(len(unit))
    for start in range(0, len(unit), _BLOCK):
        squared = np.maximum(2.0 - 2.0 * (unit[start : start + _BLOCK] @ reference.T), 0.0)
        wanted = min(neighbours + 1, squared.shape[1])
        nearest = np.sort(np.partition(squared, wanted - 1, axis=1)[:, :wanted], axis=1)
        for place, line in enumerate(nearest, start):
            itself = drop_first or line[0] <= SAME
            used = line[1:] if itself else line[:neighbours]
            if len(used):
                means[place] = used.mean()
    return means


def _values(
    rows: Directions, density: Float[np.ndarray, " n"], power: float, *, official: bool, counted: bool
) -> Float[np.ndarray, " n"]:
    unit = rows.unit
    n = len(unit)
    others = n if counted else n - 1
    if others == 0:
        return np.zeros(n)
    weights = np.arange(1, others + 1, dtype=np.float64) ** -power
    values = np.empty(n)
    for start in range(0, n, _BLOCK):
        distance = np.maximum(1.0 - unit[start : start + _BLOCK] @ unit.T, 0.0)
        place = np.arange(len(distance))
        # The row itself comes first whatever rounding says, and is then counted or cut.
        distance[place, start + place] = -1.0
        order = np.argsort(distance, axis=1, kind="stable")
        distance[place, start + place] = 0.0
        order = order if counted else order[:, 1:]
        ranked = np.take_along_axis(distance, order, axis=1)
        stop = start + len(distance)
        if official:
            values[start:stop] = density[start:stop] * (ranked @ weights) / weights.sum()
        else:
            values[start:stop] = (ranked * density[order]) @ weights
    return values
