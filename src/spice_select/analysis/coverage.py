"""What of the pool the picks cover: by source, domain column, response length or cluster of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.tables import aligned, percent
from spice_select.errors import ConfigError
from spice_select.selection.rows import Rows, as_rows

if TYPE_CHECKING:
    import pandas as pd

MOST_SHOWN = 20
"""Groups that a printed table names."""
FIT_ROWS = 4096
"""Rows that cluster centres are fitted to; all rows are then assigned to them."""
ITERATIONS = 25
_BLOCK = 2048


class Group(Numbers):
    """One group of rows.

    Attributes:
        name: Its label.
        pool: Its rows that could be chosen.
        pool_share: Those, over all.
        picks: Its rows among the picks.
        picks_share: Those, over all picks; None without picks.
        ratio: Share of the picks over share of the pool; None without picks or pool.
    """

    name: str
    pool: int
    pool_share: float
    picks: int | None = None
    picks_share: float | None = None
    ratio: float | None = None


class Coverage(Numbers):
    """The picks by group.

    Attributes:
        by: What the groups are of.
        groups: Every group, the largest of the pool first unless the groups have an order.
        pool_entropy: Entropy of the pool's shares over the log of the number of groups with rows: 1 is even, 0 is one
            group alone.
        picks_entropy: The same of the picks' shares, over the same number of groups; None without picks.
    """

    by: str
    groups: tuple[Group, ...]
    pool_entropy: float
    picks_entropy: float | None = None

    @property
    def reached(self) -> int:
        """Groups that hold at least one pick."""
        return sum(1 for group in self.groups if group.picks)

    def describe(self) -> list[str]:
        """A table, the largest groups where there are many."""
        shown, rest = self.groups[:MOST_SHOWN], self.groups[MOST_SHOWN:]
        if self.picks_entropy is None:
            lines = aligned(
                (self.by, "rows", "share"),
                [(group.name, f"{group.pool:,}", percent(group.pool_share)) for group in shown],
            )
            return [*lines, *self._more(rest), f"  evenness of the pool {self.pool_entropy:.3f} (1: all groups alike)"]
        lines = aligned(
            (self.by, "pool", "share", "picks", "share", "ratio"),
            [
                (
                    group.name,
                    f"{group.pool:,}",
                    percent(group.pool_share),
                    f"{group.picks:,}",
                    percent(group.picks_share),
                    "-" if group.ratio is None else f"{group.ratio:.2f}",
                )
                for group in shown
            ],
        )
        reached = (
            f"{self.reached:,} of {len(self.groups):,} groups reached; " if self.reached < len(self.groups) else ""
        )
        lines += self._more(rest)
        lines.append(
            f"  {reached}evenness {self.picks_entropy:.3f} of the picks, {self.pool_entropy:.3f} of the pool"
            " (1: all groups alike)"
        )
        return lines

    def _more(self, rest: Sequence[Group]) -> list[str]:
        if not rest:
            return []
        picks = "" if self.picks_entropy is None else f" and {sum(group.picks or 0 for group in rest):,} picks"
        return [f"  ... and {len(rest):,} more groups with {sum(group.pool for group in rest):,} rows{picks}"]

    def to_pandas(self) -> pd.DataFrame:
        """One line a group."""
        import pandas as pd

        return pd.DataFrame([{"by": self.by, **group.model_dump()} for group in self.groups])


def measure_coverage(
    labels: Sequence[Any],
    picks: Sequence[int] | Int[np.ndarray, " k"] | None = None,
    *,
    pool: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    by: str = "group",
    order: Sequence[str] | None = None,
) -> Coverage:
    """Count pool and picks by label.

    Args:
        labels: Label of every row, ``[n]``; None is a label too.
        picks: Row numbers of the picks, if any.
        pool: Rows that could be chosen; all where absent.
        by: What the labels are of.
        order: Labels in the order to list them; by size of the pool where absent.
    """
    names = np.array(["(none)" if label is None else str(label) for label in labels], dtype=object)
    members = np.arange(len(names)) if pool is None else np.asarray(pool, dtype=np.int64)
    before = _counts(names[members])
    after = None if picks is None else _counts(names[np.asarray(picks, dtype=np.int64)])
    known: dict[str, None] = dict.fromkeys([*before, *(after or {})])
    listed = (
        [name for name in order if name in known]
        if order is not None
        else sorted(known, key=lambda name: -before.get(name, 0))
    )
    chosen = sum(after.values()) if after is not None else 0
    groups = []
    for name in listed:
        share = before.get(name, 0) / max(len(members), 1)
        picked = None if after is None else after.get(name, 0)
        picks_share = None if picked is None or not chosen else picked / chosen
        groups.append(
            Group(
                name=name,
                pool=before.get(name, 0),
                pool_share=share,
                picks=picked,
                picks_share=picks_share,
                ratio=picks_share / share if picks_share is not None and share else None,
            )
        )
    return Coverage(
        by=by,
        groups=tuple(groups),
        pool_entropy=_entropy(np.array([group.pool for group in groups], dtype=np.float64), len(before)),
        picks_entropy=None
        if after is None
        else _entropy(np.array([group.picks for group in groups], dtype=np.float64), len(before)),
    )


def length_labels(
    lengths: Sequence[int] | Int[np.ndarray, " n"],
    *,
    pool: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    bins: int = 5,
) -> tuple[list[str], list[str]]:
    """Label every row by its length, in bins that hold about as many rows of the pool each.

    Args:
        lengths: Response tokens of every row.
        pool: Rows that could be chosen; all where absent.
        bins: Bins at most; rows of one length are never parted.

    Returns:
        The label of every row, such as ``"7-18"``, and the labels in order.

    Raises:
        ConfigError: No bin.
    """
    if bins < 1:
        raise ConfigError(f"bins cannot be {bins}; give at least 1.")
    tokens = np.asarray(lengths, dtype=np.int64)
    members = tokens if pool is None else tokens[np.asarray(pool, dtype=np.int64)]
    if not len(members):
        return [""] * len(tokens), []
    # The upper end of a bin is a length that occurs.
    ends = np.unique(np.quantile(members, np.linspace(0, 1, bins + 1)[1:], method="inverted_cdf").astype(np.int64))
    starts = np.concatenate([[members.min()], ends[:-1] + 1])
    names = [
        f"{low}" if low == high else f"{low}-{high}" for low, high in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    place = np.clip(np.searchsorted(ends, tokens), 0, len(ends) - 1)
    return [names[at] for at in place.tolist()], names


def cluster_labels(
    features: Any,
    *,
    pool: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    clusters: int = 8,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Spherical k-means: label every row by the direction of its gradient.

    Centres are fitted to a random sample of at most 4,096 rows of the pool and all rows are assigned to the nearest, so
    that memory stays bounded. The same seed gives the same labels.

    Args:
        features: ``[n, d]`` array, tensor or gradient store.
        pool: Rows to fit to; all where absent.
        clusters: Clusters at most; fewer where the rows have fewer directions.
        iterations: Rounds at most.
        seed: Seed of sample and starting centres.

    Returns:
        The label of every row, and the labels by size, the largest first. Rows of zero norm are a group of their own.

    Raises:
        ConfigError: No cluster.
    """
    if clusters < 1:
        raise ConfigError(f"clusters cannot be {clusters}; give at least 1.")
    rows = as_rows(features)
    members = np.arange(rows.shape[0]) if pool is None else np.asarray(pool, dtype=np.int64)
    random = np.random.default_rng(seed)
    sample = members if len(members) <= FIT_ROWS else np.sort(random.choice(members, FIT_ROWS, replace=False))
    unit = np.concatenate(
        [_unit(rows, sample[at : at + _BLOCK]) for at in range(0, len(sample), _BLOCK)]
        or [np.zeros((0, rows.shape[1]), np.float32)]
    )
    unit = unit[unit.any(axis=1)]
    centres = _fit(unit, clusters, iterations, random) if len(unit) else unit
    codes = np.full(rows.shape[0], -1, dtype=np.int64)
    for start in range(0, rows.shape[0] if len(centres) else 0, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, rows.shape[0]))
        block = _unit(rows, numbers)
        codes[numbers] = np.where(block.any(axis=1), np.argmax(block @ centres.T, axis=1), -1)
    sizes = np.bincount(codes[members][codes[members] >= 0], minlength=len(centres))
    ranked = np.argsort(-sizes, kind="stable").tolist()
    name_of = {cluster: f"cluster {place}" for place, cluster in enumerate(ranked, 1)} | {-1: "no direction"}
    return [name_of[code] for code in codes.tolist()], [*(name_of[cluster] for cluster in ranked), "no direction"]


def _fit(unit: Float[np.ndarray, "m d"], clusters: int, iterations: int, random: np.random.Generator) -> np.ndarray:
    """Centres of unit norm: k-means++ by cosine, then rounds of assignment until none moves."""
    centres = [unit[random.integers(len(unit))]]
    nearest = unit @ centres[0]
    while len(centres) < clusters:
        far = np.maximum(1.0 - nearest.astype(np.float64), 0.0)
        far[far < 1e-6] = 0.0
        if not far.any():
            break
        centres.append(unit[random.choice(len(unit), p=far / far.sum())])
        nearest = np.maximum(nearest, unit @ centres[-1])
    held = np.stack(centres).astype(np.float32)
    codes = np.full(len(unit), -1)
    for _ in range(iterations):
        cosines = unit @ held.T
        moved = np.argmax(cosines, axis=1)
        if np.array_equal(moved, codes):
            break
        codes = moved
        for place in range(len(held)):
            total = unit[codes == place].sum(axis=0, dtype=np.float64)
            norm = float(np.linalg.norm(total))
            # A cluster that lost its rows, or whose rows cancel, stays where it was.
            if norm > 1e-12:
                held[place] = total / norm
    return held


def _unit(rows: Rows, numbers: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
    """Rows of unit norm in float32, zero where a row is zero or not finite."""
    wide = np.array(rows.rows(numbers), dtype=np.float64)
    wide[~np.isfinite(wide).all(axis=1)] = 0.0
    norms = np.linalg.norm(wide, axis=1)
    return (wide / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)


def _counts(names: np.ndarray) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names.tolist():
        found[name] = found.get(name, 0) + 1
    return found


def _entropy(counts: Float[np.ndarray, " m"], groups: int) -> float:
    """Entropy of shares over the log of the number of groups; 0 for one group, or for nothing."""
    total = counts.sum()
    if groups < 2 or total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum() / np.log(groups)) + 0.0
