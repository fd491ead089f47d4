"""What was picked against what there was: length, gradient norm, sources, conflict, and what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis import cautions
from spice_select.analysis.activity_record import ConflictActivity
from spice_select.analysis.comparison import Comparison, Numbers, Share
from spice_select.selection.stopping import OUTLIER_WINDOW, first_gain_is_outlier


class Picks(Protocol):
    """What is read of a selection."""

    @property
    def indices(self) -> Any:
        """Row numbers in order of choice."""
        ...

    @property
    def gains(self) -> Any:
        """Marginal information gain of every pick, in nats; None where it is not known."""
        ...

    @property
    def conflicts(self) -> Any:
        """Conflict of every pick with its reference, when it was picked; None where it is not known."""
        ...


class Summary(Numbers):
    """How the picks compare with the usable rows of the pool.

    Attributes:
        pool: Usable rows.
        picks: Rows chosen.
        length_mean: Response tokens, mean.
        length_median: Response tokens, median.
        norm_median: Gradient norm before any normalisation, median; None without gradients.
        sources: One line for every source, in the order in which the sources were given.
        groups: One line for every value of the grouping column, if there is one.
        opposing: Picks whose gradient opposes the reference direction: conflict above 0; None without gradients, as
            are the share and the largest conflict.
        opposing_share: The same over all picks.
        largest_conflict: Largest conflict of a pick.
        first_gain: Gain of the first pick, in nats.
        following_gain: Median gain of the next few picks.
        first_gain_outlier: Whether the first gain stands far above those, so that a stop ratio would trip on it.
        changed_by_penalty: Picks that are not in the answer without penalty; None where no penalty was on.
        activity: How much conflict there is among the gradients, if it was measured.
        warnings: What to be wary of, in plain sentences.
        advice: One sentence: why the penalty changed few picks or none, and what to try; None where it changed more
            than :data:`~spice_select.analysis.cautions.FEW_CHANGED` of them, or there was none.
    """

    pool: int
    picks: int
    length_mean: Comparison
    length_median: Comparison
    norm_median: Comparison | None
    sources: tuple[Share, ...]
    groups: tuple[Share, ...] = ()
    opposing: int | None
    opposing_share: float | None
    largest_conflict: float | None
    first_gain: float | None
    following_gain: float | None
    first_gain_outlier: bool
    changed_by_penalty: int | None = None
    activity: ConflictActivity | None = None
    warnings: tuple[str, ...] = ()
    advice: str | None = None

    def describe(self) -> list[str]:
        """Lines for the terminal, warnings and advice last."""
        lines = [
            f"{self.picks:,} picks of {self.pool:,} usable rows",
            _line("Response tokens, median", self.length_median, ",.0f"),
            _line("Response tokens, mean", self.length_mean, ",.0f"),
        ]
        if self.norm_median is not None:
            lines.append(_line("Gradient norm, median", self.norm_median, ".3g"))
        for kind, shares in (("Source", self.sources), ("Group", self.groups)):
            if len(shares) > 1:
                lines += [
                    f"{kind} {share.name}: {share.picks:,} picks ({share.picks_share:.1%}) of {share.pool:,} rows"
                    f" ({share.pool_share:.1%} of the pool)"
                    for share in shares
                ]
        if self.opposing is not None:
            lines.append(f"Picks that oppose the reference direction: {self.opposing:,} ({self.opposing_share:.1%})")
        if self.activity is not None:
            lines += self.activity.describe()
        if self.changed_by_penalty is not None:
            lines.append(f"Picks changed by the penalty: {self.changed_by_penalty:,}")
        lines += [f"Warning: {warning}" for warning in self.warnings]
        if self.advice:
            lines.append(f"Advice: {self.advice}")
        return lines


def summarise(
    selection: Picks,
    *,
    lengths: Int[np.ndarray, " n"] | Sequence[int],
    squared_norms: Float[np.ndarray, " n"] | Sequence[float] | None,
    sources: Sequence[str],
    groups: Sequence[str] | None = None,
    usable: Bool[np.ndarray, " n"] | None = None,
    changed_by_penalty: int | None = None,
    normalize: str = "none",
    activity: ConflictActivity | None = None,
    proxy: Literal["fixed", "warmed", "pools"] = "fixed",
    outlying_pools: tuple[int, int] | None = None,
    robust_stop: bool = False,
    maximised: bool = True,
) -> Summary:
    """Compare the picks with the pool, and warn beyond a factor of 2.

    Args:
        selection: The picks, with their gains and conflicts.
        lengths: Response tokens of every row.
        squared_norms: Squared gradient norm of every row, as measured; None without gradients.
        sources: Name of every row's source.
        groups: Another grouping of the rows, such as a domain column.
        usable: Rows that could be chosen; all where absent.
        changed_by_penalty: Picks not in the answer without penalty; None where no penalty was on.
        normalize: Normalisation that was in force; the remedy in a warning depends on it.
        activity: How much conflict there is among the gradients.
        proxy: Whether the proxy was as it came, warmed up, or trained from pool to pool; the advice depends on it.
        outlying_pools: Where the rows came in pools: those whose first gain stands far above their next, and all.
        robust_stop: Whether the stop ratio compares with more than the first gain already.
        maximised: Whether the picks maximise information; causes and remedies are others where they don't.
    """
    picks = np.asarray(selection.indices, dtype=np.int64)
    gains, conflicts = (
        None if values is None else np.asarray(values, dtype=np.float64)
        for values in (selection.gains, selection.conflicts)
    )
    tokens = np.asarray(lengths, dtype=np.float64)
    pool = np.arange(len(tokens)) if usable is None else np.flatnonzero(usable)
    length_mean = Comparison(picks=_mean(tokens[picks]), pool=_mean(tokens[pool]))
    length_median = Comparison(picks=_median(tokens[picks]), pool=_median(tokens[pool]))
    norm_median = _norms(squared_norms, picks, pool)
    source_shares = _shares(sources, pool, picks)
    group_shares = _shares(groups, pool, picks) if groups is not None else ()
    following = None if gains is None else _median(gains[1 : 1 + OUTLIER_WINDOW])
    outlier = False
    if gains is not None and maximised:
        outlier = first_gain_is_outlier(gains.tolist()) if outlying_pools is None else outlying_pools[0] > 0
    opposing = None if conflicts is None else int((conflicts > 0).sum())
    objective = normalize if maximised else None
    warnings = [
        *cautions.of_length(length_median, length_mean, objective),
        *(cautions.of_norm(norm_median, objective) if norm_median is not None else []),
        *cautions.of_shares(source_shares, "source", by_source=True),
        *cautions.of_shares(group_shares, "group", by_source=False),
        *_first_gain(gains, following, outlying_pools, outlier=outlier, robust=robust_stop),
    ]
    advice = None
    if gains is not None and conflicts is not None and len(picks) < len(pool):
        advice = cautions.of_idle_penalty(changed_by_penalty, conflicts, gains, proxy)
    return Summary(
        pool=len(pool),
        picks=len(picks),
        length_mean=length_mean,
        length_median=length_median,
        norm_median=norm_median,
        sources=source_shares,
        groups=group_shares,
        opposing=opposing,
        opposing_share=None if opposing is None else opposing / len(picks) if len(picks) else 0.0,
        largest_conflict=None if conflicts is None else float(conflicts.max(initial=0.0)),
        first_gain=float(gains[0]) if gains is not None and len(gains) else None,
        following_gain=following,
        first_gain_outlier=outlier,
        changed_by_penalty=changed_by_penalty,
        activity=activity,
        warnings=tuple(warnings),
        advice=advice,
    )


def _norms(
    squared: Float[np.ndarray, " n"] | Sequence[float] | None, picks: Int[np.ndarray, " k"], pool: Int[np.ndarray, " m"]
) -> Comparison | None:
    if squared is None:
        return None
    norms = np.sqrt(np.asarray(squared, dtype=np.float64))
    return Comparison(picks=_median(norms[picks]), pool=_median(norms[pool]))


def _first_gain(
    gains: Float[np.ndarray, " k"] | None,
    following: float | None,
    pools: tuple[int, int] | None,
    *,
    outlier: bool,
    robust: bool,
) -> list[str]:
    if gains is None or not outlier:
        return []
    if pools is not None:
        return cautions.of_first_gains(*pools, robust=robust)
    return cautions.of_first_gain(float(gains[0]), following, robust=robust) if following is not None else []


def _shares(names: Sequence[str], pool: Int[np.ndarray, " m"], picks: Int[np.ndarray, " k"]) -> tuple[Share, ...]:
    """Counts by name, in order of first appearance among all rows."""
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(str(name), len(places)) for name in names], dtype=np.int64)
    before = np.bincount(codes[pool], minlength=len(places))
    after = np.bincount(codes[picks], minlength=len(places))
    return tuple(
        Share(
            name=name,
            pool=int(before[place]),
            pool_share=float(before[place] / max(len(pool), 1)),
            picks=int(after[place]),
            picks_share=float(after[place] / max(len(picks), 1)),
            expected=float(before[place] / max(len(pool), 1) * len(picks)),
        )
        for name, place in places.items()
    )


def _line(name: str, compared: Comparison, form: str) -> str:
    def show(value: float | None) -> str:
        return "none" if value is None else format(value, form)

    return f"{name}: picks {show(compared.picks)}, pool {show(compared.pool)}"


def _mean(values: Float[np.ndarray, " m"]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _median(values: Float[np.ndarray, " m"]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
