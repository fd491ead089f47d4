"""What every diversity measure starts from: rows of unit norm, at most so many, and a result that says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.comparison import Numbers
from spice_select.errors import ConfigError, DataError
from spice_select.selection.options import row_numbers
from spice_select.selection.rows import as_rows

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 5000
"""Rows beyond which a measure takes a sample: their costs grow with the square of the rows or faster."""
READ_ROWS = 1024


class Score(Numbers):
    """One measure of a set of rows.

    Attributes:
        measure: Its name, with the options that decide it.
        value: The number; minus infinity or infinity where a determinant vanishes.
        rows: Rows that it was taken of.
        given: Rows that were given.
        without_direction: Rows of zero norm, which have no direction and were left out.
    """

    measure: str
    value: float
    rows: int
    given: int
    without_direction: int = 0

    def __float__(self) -> float:
        return self.value

    @property
    def sampled(self) -> bool:
        """Whether it was taken of a random sample."""
        return self.rows + self.without_direction < self.given

    def describe(self) -> list[str]:
        """The score in one line, which says where it is one of a sample."""
        sample = f", a random {self.rows:,} of {self.given:,} rows" if self.sampled else f", {self.rows:,} rows"
        return [f"{self.measure}: {self.value:.6g}{sample}"]

    def to_pandas(self) -> pd.DataFrame:
        """One line."""
        import pandas as pd

        return pd.DataFrame([{**self.model_dump(), "sampled": self.sampled}])


@dataclass(frozen=True)
class Directions:
    """Rows divided by their norms.

    Attributes:
        unit: ``[n, d]`` in float64, each of norm 1.
        given: Rows that were given.
        without_direction: Rows of zero norm among those read.
    """

    unit: Float[np.ndarray, "n d"]
    given: int
    without_direction: int

    def score(self, measure: str, value: float) -> Score:
        """A result that says how many rows it is of."""
        return Score(
            measure=measure,
            value=value,
            rows=len(self.unit),
            given=self.given,
            without_direction=self.without_direction,
        )


def directions(
    features: Any,
    *,
    indices: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    most: int | None = MOST_ROWS,
    seed: int = 0,
) -> Directions:
    """Unit rows of an array, a tensor or a gradient store, or of a random sample of them.

    Args:
        features: ``[n, d]``: gradients or embeddings.
        indices: Rows to take; all where absent.
        most: Rows to sample where there are more; None takes all.
        seed: Seed of the sample.

    Raises:
        ConfigError: Nothing two-dimensional, or a row number that no row has.
        DataError: NaN or Inf, or no row with a direction.
    """
    if isinstance(features, Directions):
        return features
    rows = as_rows(features)
    chosen = np.arange(rows.shape[0]) if indices is None else row_numbers("indices", indices, rows.shape[0])
    given = len(chosen)
    if most is not None and most < 1:
        raise ConfigError(f"most cannot be {most}; give at least 1 row, or None for all.")
    if most is not None and given > most:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
    unit = np.empty((len(chosen), rows.shape[1]))
    for start in range(0, len(chosen), READ_ROWS):
        block = chosen[start : start + READ_ROWS]
        unit[start : start + len(block)] = rows.rows(block)
    if not np.isfinite(unit).all():
        row = int(chosen[np.flatnonzero(~np.isfinite(unit).all(axis=1))[0]])
        raise DataError(f"features of row {row} hold NaN or Inf; leave such rows out.")
    # Dividing by the largest entry first keeps the squares of tiny and huge rows within float64.
    peaks = np.abs(unit).max(axis=1, initial=0.0)
    kept = peaks > 0
    if not kept.any():
        raise DataError(f"None of the {given} rows of features has a direction; each is zero.")
    if not kept.all():
        unit = unit[kept]
    unit /= peaks[kept, None]
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    return Directions(unit, given, int((~kept).sum()))
