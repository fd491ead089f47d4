"""What the theory says of a pool of which nothing was chosen yet: random sets, bounds and curvature.

References:
    SPICE, ICLR 2026, arXiv 2601.23155.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from spice_select.analysis.bounds import BoundCheck, bounds_table, check_bounds
from spice_select.analysis.chosen import open_rows, require_range, squared_norms, usable_rows
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.curvature import Curvature, measure_curvature
from spice_select.analysis.decomposition import Decomposition, decompose_random, random_pairs
from spice_select.analysis.opposition import against_mean
from spice_select.analysis.theory_text import sections

if TYPE_CHECKING:
    import pandas


class PoolTheory(Numbers):
    """The part of the theory that needs no picks.

    Attributes:
        usable: Rows that could be chosen.
        alpha: Fisher scale a.
        random: Decomposition of random pairs (x, S), one for each size |S|.
        bounds: Theorem 4 and the assumption-free bound on those pairs, at this scale and at that of Table 4.
        curvature: Curvature at both scales.
        notes: What was left out.
    """

    usable: int
    alpha: float
    random: tuple[Decomposition, ...]
    bounds: tuple[BoundCheck, ...]
    curvature: tuple[Curvature, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Tables, notes last."""
        shown = sections(random=self.random, bounds=self.bounds, curvature=self.curvature)
        return [line for title, lines in shown for line in (title, *lines)] + [f"Note: {note}" for note in self.notes]

    def to_pandas(self) -> dict[str, pandas.DataFrame]:
        """Tables by name: random, bounds, curvature."""
        import pandas

        random = [one.to_pandas().assign(size=one.size) for one in self.random]
        curvature = [one.to_pandas() for one in self.curvature]
        return {
            "random": pandas.concat(random, ignore_index=True) if random else pandas.DataFrame(),
            "bounds": bounds_table(self.bounds),
            "curvature": pandas.concat(curvature, ignore_index=True) if curvature else pandas.DataFrame(),
        }


def analyse_pool(
    rows: Any,
    *,
    alpha: float,
    factors: Float[np.ndarray, " n"] | None = None,
    candidates: Bool[np.ndarray, " n"] | None = None,
    seed: int = 0,
    sizes: Sequence[int] = (16, 64, 256),
    samples: int = 200,
) -> PoolTheory:
    """Measure on a pool what the theory says of it.

    Args:
        rows: ``[n, d]`` array, tensor or store.
        alpha: Fisher scale a.
        factors: Factor of every row, as normalisation makes them.
        candidates: Rows that could be chosen; a store's usable ones, or all, where absent.
        seed: Of every random choice.
        sizes: |S| of the random pairs; sizes that the pool is too small for are left out with a note.
        samples: Random pairs of each size.

    Raises:
        ConfigError: Numbers whose squares float64 does not hold.
    """
    opened = open_rows(rows, factors)
    norms = squared_norms(opened)
    require_range(norms, alpha)
    pool = np.flatnonzero(usable_rows(rows, candidates, norms))
    generator = np.random.default_rng(seed)
    random, bounds, notes = [], [], []
    for size in sizes:
        if size + 1 > len(pool):
            notes.append(f"Random sets of {size:,} rows were left out: only {len(pool):,} rows could be chosen.")
            continue
        pairs = random_pairs(opened, pool, size, samples, generator)
        random.append(decompose_random(pairs, alpha))
        bounds += [check_bounds(pairs, alpha=alpha, scale=scale) for scale in ("run", "paper-table-4")]
    refused = next((check.reason for check in reversed(bounds) if check.scale == "run" and not check.applies), None)
    if refused:
        notes.append(
            f"Theorem 4 says nothing about this pool at its own scale: {refused}. Its right side is therefore shown at"
            " a = 0.5 / |F_S|."
        )
    return PoolTheory(
        usable=len(pool),
        alpha=alpha,
        random=tuple(random),
        bounds=tuple(bounds),
        curvature=measure_curvature(opened, pool, against_mean(opened, pool), alpha=alpha, seed=seed),
        notes=tuple(notes),
    )
