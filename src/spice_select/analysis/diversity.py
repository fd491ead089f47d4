"""Diversity of the picks beside that of as many random rows of the pool, by every measure at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.directions import Directions, directions
from spice_select.analysis.ldd import ldd_wang
from spice_select.analysis.novel_sum import Mode, novelsum
from spice_select.analysis.tables import aligned, number
from spice_select.analysis.vendi_score import effective_number, g_vendi, smaller_gram
from spice_select.selection.rows import as_rows

if TYPE_CHECKING:
    import pandas as pd

MOST_COMPARED = 1000
"""Rows of each set that are compared; beyond, a sample: eigenvalues cost n^3, and there are several sets."""
DRAWS = 3


class Measure(Numbers):
    """One measure of the picks and of random rows.

    Attributes:
        name: What is measured.
        picks: Its value for the picks, or for the pool where there are none.
        random: Mean over the random sets; None where there are no picks.
        spread: Standard deviation over the random sets.
        higher_is_more: Whether a higher value means more diverse.
    """

    name: str
    picks: float
    random: float | None = None
    spread: float | None = None
    higher_is_more: bool = True

    @property
    def more_diverse(self) -> bool | None:
        """Whether the picks are more diverse than every random set's mean by more than its spread; None: no telling."""
        if self.random is None or not np.isfinite([self.picks, self.random]).all():
            return None
        ahead = (self.picks - self.random) * (1 if self.higher_is_more else -1)
        return None if abs(ahead) <= (self.spread or 0.0) else ahead > 0


class Diversity(Numbers):
    """How diverse the picks are beside as many random rows.

    Attributes:
        measures: One line each.
        rows: Rows of each set that were measured.
        picks: Picks that there are; None where the pool alone was measured.
        pool: Rows that the random sets were drawn from.
        draws: Random sets.
        seed: Seed of every draw.
        sampled: Whether ``rows`` are a random sample of the picks.
    """

    measures: tuple[Measure, ...]
    rows: int
    picks: int | None
    pool: int
    draws: int
    seed: int
    sampled: bool

    def describe(self) -> list[str]:
        """A table, and what it was taken of."""
        if self.picks is None:
            lines = [f"Of the pool's {self.pool:,} rows{self._sample(self.pool)}; no picks to compare with."]
            return lines + aligned(
                ("measure", "pool", "more diverse is"),
                [(m.name, number(m.picks), _way(m)) for m in self.measures],
                words=(0, 2),
            )
        lines = [
            f"{self.picks:,} picks{self._sample(self.picks)} beside {self.draws} random sets of as many of the pool's "
            f"{self.pool:,} rows."
        ]
        words = {None: "alike", True: "more diverse", False: "less diverse"}
        return lines + aligned(
            ("measure", "picks", "random", "+-", "more is", "picks are"),
            [
                (
                    m.name,
                    number(m.picks),
                    number(m.random),
                    number(m.spread, digits=2),
                    _way(m),
                    words[m.more_diverse],
                )
                for m in self.measures
            ],
            words=(0, 4, 5),
        )

    def to_pandas(self) -> pd.DataFrame:
        """One line a measure."""
        import pandas as pd

        return pd.DataFrame([{**m.model_dump(), "more_diverse": m.more_diverse} for m in self.measures])

    def _sample(self, given: int) -> str:
        return f" (a random {self.rows:,} of them)" if self.sampled and self.rows < given else ""


def _way(measure: Measure) -> str:
    return "higher" if measure.higher_is_more else "lower"


def measure_diversity(
    features: Any,
    picks: Sequence[int] | Int[np.ndarray, " k"] | None = None,
    *,
    pool: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    neighbours: int = 10,
    draws: int = DRAWS,
    most: int = MOST_COMPARED,
    seed: int = 0,
) -> Diversity:
    """Every measure of the picks' directions, and the mean of each over random sets of the same size.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        picks: Their row numbers; the pool alone is measured where absent.
        pool: Rows that could be chosen; all where absent.
        neighbours: K of NovelSum.
        draws: Random sets.
        most: Rows of each set to measure; larger sets are sampled.
        seed: Seed of samples and random sets.

    Returns:
        A line each for NovelSum in both forms (with a sample of the pool as reference), Vendi of orders 1 and 2,
        G-Vendi, LDD, the log-determinant of similarities and the mean cosine of two rows.

    Raises:
        ConfigError: A row number that no row has.
        DataError: NaN or Inf, or no row with a direction.
    """
    rows = as_rows(features)
    members = np.arange(rows.shape[0]) if pool is None else np.asarray(pool, dtype=np.int64)
    chosen = None if picks is None else np.asarray(picks, dtype=np.int64)
    reference = directions(rows, indices=members, most=most, seed=seed)
    subject = reference if chosen is None else directions(rows, indices=chosen, most=most, seed=seed + 1)
    random = np.random.default_rng(seed + 2)
    # As many rows as were measured of the picks: most measures depend on how many there are.
    size = min(len(subject.unit), len(members))
    sets = [] if chosen is None else [np.sort(random.choice(members, size, replace=False)) for _ in range(draws)]
    values = _values(subject, reference, neighbours, seed)
    drawn = [_values(directions(rows, indices=one, most=None), reference, neighbours, seed) for one in sets]
    return Diversity(
        measures=tuple(
            Measure(
                name=name,
                picks=value,
                random=float(np.mean([one[name] for one in drawn])) if drawn else None,
                spread=float(np.std([one[name] for one in drawn])) if drawn else None,
                higher_is_more=name not in _LOWER,
            )
            for name, value in values.items()
        ),
        rows=len(subject.unit),
        picks=None if chosen is None else len(chosen),
        pool=len(members),
        draws=len(sets),
        seed=seed,
        sampled=len(subject.unit) + subject.without_direction < subject.given,
    )


MEAN_COSINE = "mean cosine of two rows"
LDD_RIDGE = 1e-3
"""Keeps the distance finite where a set holds copies."""
LDD = f"LDD (Wang), ridge {LDD_RIDGE:g}"
_LOWER = {MEAN_COSINE, LDD}
MODES: tuple[Mode, Mode] = ("paper", "official")


def _values(rows: Directions, reference: Directions, neighbours: int, seed: int) -> dict[str, float]:
    n = len(rows.unit)
    # One decomposition serves both orders of Vendi and the log-determinant: zeros add nothing to any of them.
    values = np.linalg.eigvalsh(smaller_gram(rows.unit))
    novel = [novelsum(rows, mode=mode, reference=reference, neighbours=neighbours).value for mode in MODES]
    return {
        "NovelSum, paper": novel[0],
        "NovelSum, official": novel[1],
        "Vendi": effective_number(values, 1.0, n=n),
        "Vendi, order 2": effective_number(values, 2.0, n=n),
        "G-Vendi": g_vendi(rows.unit, seed=seed).value,
        LDD: ldd_wang(rows, ridge=LDD_RIDGE, seed=seed).value,
        "log det (K + I)": float(np.log1p(np.maximum(values, 0.0)).sum()),
        MEAN_COSINE: _mean_cosine(rows),
    }


def _mean_cosine(rows: Directions) -> float:
    """Mean inner product of two different unit rows, by the norm of their sum."""
    n = len(rows.unit)
    total = rows.unit.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else 0.0
