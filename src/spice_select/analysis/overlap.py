"""How much selections of the same rows have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.record import SelectionRecord
from spice_select.analysis.tables import aligned, number, percent
from spice_select.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 18
"""Columns of a run's name in a table."""


class Overlap(Numbers):
    """Two selections, a and b.

    Attributes:
        a: Name of the first.
        b: Name of the second.
        size_a: Rows of the first.
        size_b: Rows of the second.
        both: Rows in both.
        jaccard: Rows in both over rows in either; 1 where both are empty.
        a_in_b: Share of a that is in b; None where a is empty.
        b_in_a: Share of b that is in a; None where b is empty.
        expected_jaccard: Mean of the Jaccard index over random sets of these sizes.
    """

    a: str
    b: str
    size_a: int
    size_b: int
    both: int
    jaccard: float
    a_in_b: float | None
    b_in_a: float | None
    expected_jaccard: float


class Overlaps(Numbers):
    """Every pair of several selections.

    Attributes:
        names: The selections, in the order given.
        n: Rows that each could have chosen.
        pairs: One line for every pair, the first of them first.
    """

    names: tuple[str, ...]
    n: int
    pairs: tuple[Overlap, ...]

    def jaccard(self) -> np.ndarray:
        """The symmetric matrix ``[m, m]`` of Jaccard indices, 1 on the diagonal."""
        matrix = np.eye(len(self.names))
        at = {name: place for place, name in enumerate(self.names)}
        for pair in self.pairs:
            matrix[at[pair.a], at[pair.b]] = matrix[at[pair.b], at[pair.a]] = pair.jaccard
        return matrix

    def describe(self) -> list[str]:
        """A line a pair, and for more than two selections the matrix."""
        short = dict(zip(self.names, _short(self.names), strict=True))
        lines = aligned(
            ("A", "B", "both", "Jaccard", "random", "A in B", "B in A"),
            [
                (
                    short[pair.a],
                    short[pair.b],
                    f"{pair.both:,}",
                    number(pair.jaccard, digits=3),
                    number(pair.expected_jaccard, digits=3),
                    percent(pair.a_in_b),
                    percent(pair.b_in_a),
                )
                for pair in self.pairs
            ],
            words=(0, 1),
        )
        if len(self.names) > 2:
            matrix = self.jaccard()
            lines.append("Jaccard of every pair; columns in the order of the lines.")
            lines += aligned(
                ("", *(str(place + 1) for place in range(len(self.names)))),
                [
                    (f"{place + 1} {short[name]}", *(f"{value:.3f}" for value in matrix[place]))
                    for place, name in enumerate(self.names)
                ],
            )
        return lines

    def to_pandas(self) -> pd.DataFrame:
        """One line a pair."""
        import pandas as pd

        return pd.DataFrame([pair.model_dump() for pair in self.pairs])


def overlaps(selections: Mapping[str, Sequence[int] | Int[np.ndarray, " k"]], n: int) -> Overlaps:
    """Compare every pair of selections by row number.

    Args:
        selections: Row numbers by name.
        n: Rows that could be chosen, of which random sets are expected to share some.

    Raises:
        ConfigError: More distinct rows than n.
    """
    sets = {name: np.unique(np.asarray(rows, dtype=np.int64)) for name, rows in selections.items()}
    largest = max((len(rows) for rows in sets.values()), default=0)
    if largest > n:
        raise ConfigError(f"n is {n}, and a selection has {largest} rows; give the rows that could be chosen.")
    names = list(sets)
    pairs = [
        _pair(first, sets[first], second, sets[second], n)
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    ]
    return Overlaps(names=tuple(names), n=n, pairs=tuple(pairs))


def expected_jaccard(n: int, size_a: int, size_b: int) -> float:
    """Mean Jaccard index of two independent uniform random sets of given sizes among n rows, exactly.

    The number of rows in both is hypergeometric; the sum runs over all that it can be.

    Args:
        n: Rows to draw from.
        size_a: Rows of the one.
        size_b: Rows of the other.
    """
    if size_a == 0 and size_b == 0:
        return 1.0
    both = np.arange(max(0, size_a + size_b - n), min(size_a, size_b) + 1)
    logs = np.array([_choose(size_a, i) + _choose(n - size_a, size_b - i) - _choose(n, size_b) for i in both.tolist()])
    return float((np.exp(logs) * both / (size_a + size_b - both)).sum())


def require_same_rows(one: SelectionRecord, other: SelectionRecord, *, name: str) -> None:
    """Refuse to match two runs by row number unless both read the same rows in the same order.

    Args:
        one: Record of the run that is analysed.
        other: Record of the run beside it.
        name: Folder of the other, for the message.

    Raises:
        ConfigError: They did not, or it cannot be known.
    """
    ours, theirs = one.fingerprints.rows, other.fingerprints.rows
    if ours is None or theirs is None:
        raise ConfigError(f"--against {name} cannot be compared: a record has no fingerprint of its rows; select anew.")
    if ours != theirs:
        raise ConfigError(
            f"--against {name} chose from other rows ({other.n:,} rows, fingerprint {theirs[:12]}, against {one.n:,} "
            f"rows, {ours[:12]}), so row numbers don't match; name a run of the same data sources in the same order."
        )


def _short(names: Sequence[str]) -> list[str]:
    """The ends of paths, as many parts as it takes to tell them apart, in few columns."""
    parts = [name.rstrip("/\\").replace("\\", "/").split("/") for name in names]
    for depth in range(1, max((len(one) for one in parts), default=0) + 1):
        ends = ["/".join(one[-depth:]) for one in parts]
        if len(set(ends)) == len(ends):
            break
    else:
        ends = list(names)
    return [end if len(end) <= SHOWN else "\N{HORIZONTAL ELLIPSIS}" + end[1 - SHOWN :] for end in ends]


def _pair(a: str, rows_a: np.ndarray, b: str, rows_b: np.ndarray, n: int) -> Overlap:
    both = len(np.intersect1d(rows_a, rows_b, assume_unique=True))
    either = len(rows_a) + len(rows_b) - both
    return Overlap(
        a=a,
        b=b,
        size_a=len(rows_a),
        size_b=len(rows_b),
        both=both,
        jaccard=both / either if either else 1.0,
        a_in_b=both / len(rows_a) if len(rows_a) else None,
        b_in_a=both / len(rows_b) if len(rows_b) else None,
        expected_jaccard=expected_jaccard(n, len(rows_a), len(rows_b)),
    )


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
