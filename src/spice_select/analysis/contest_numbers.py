"""One yardstick for the picks of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.certificate import certify
from spice_select.analysis.contest import PickNumbers, PoolNumbers, Yardstick
from spice_select.analysis.coverage import Coverage, measure_coverage
from spice_select.analysis.diversity import LDD, MEAN_COSINE, MOST_COMPARED, measure_diversity
from spice_select.analysis.given import information_of, scaling_of
from spice_select.errors import DataError
from spice_select.selection import select
from spice_select.selection.budget import Budget
from spice_select.selection.conflict import VANISHED
from spice_select.selection.options import NormalizeName
from spice_select.selection.rows import as_rows

_DIVERSITY = {
    "NovelSum, paper": "novelsum_paper",
    "NovelSum, official": "novelsum_official",
    "Vendi": "vendi",
    "Vendi, order 2": "vendi_2",
    "G-Vendi": "g_vendi",
    LDD: "ldd",
    "log det (K + I)": "logdet",
    MEAN_COSINE: "mean_cosine",
}
_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Ground:
    """The pool as the yardstick sees it.

    Attributes:
        candidates: Rows that may be chosen.
        response_tokens: Response tokens of every row.
        labels: Label of every row by what they are grouped by; the first grouping is by source.
        in_hand: Rows in hand: part of every set, counted in none.
        gradients: Gradient row of every row, an array or a store; None where there are none.
        squared_norms: Squared norm of every gradient before any sketch or normalisation.
        known: Rows that have a gradient.
        seed: Seed of samples.
    """

    candidates: Bool[np.ndarray, " n"]
    response_tokens: Int[np.ndarray, " n"]
    labels: Mapping[str, Sequence[str]]
    in_hand: Sequence[int] = ()
    gradients: Any = None
    squared_norms: Float[np.ndarray, " n"] | None = None
    known: Bool[np.ndarray, " n"] | None = None
    seed: int = 0

    @property
    def measured(self) -> Bool[np.ndarray, " n"]:
        """Candidates that have a gradient."""
        return self.candidates if self.known is None else self.candidates & self.known

    def numbers(self) -> PoolNumbers:
        """What is told of the pool."""
        by_source = next(iter(self.labels.values()))
        norms = None
        if self.squared_norms is not None:
            norms = _median(np.sqrt(self.squared_norms[self.measured]))
        return PoolNumbers(
            n=len(self.candidates),
            candidates=int(self.candidates.sum()),
            tokens_median=_median(self.response_tokens[self.candidates]),
            norm_median=norms,
            sources=tuple(dict.fromkeys(by_source)),
        )


@dataclass(frozen=True, eq=False)
class Scale:
    """How information is measured.

    Attributes:
        yardstick: The scale and its bound.
        factors: What normalisation multiplies each row by.
        budget: Rows, or response tokens for a budget of tokens, that the bound holds for.
        by_tokens: Whether the budget counts tokens.
    """

    yardstick: Yardstick
    factors: Float[np.ndarray, " n"] | None
    budget: int
    by_tokens: bool


def measure_scale(ground: Ground, budget: Budget, *, alpha: float | str, normalize: NormalizeName) -> Scale:
    """The scale of all methods, and the most that any rows within the budget hold.

    The bound is the certificate's, at the picks of exact greedy without penalty; it holds for every set of that size,
    whoever chose it.

    Args:
        ground: The pool with its gradients.
        budget: The budget, resolved.
        alpha: Fisher scale a, or ``auto``.
        normalize: Normalisation of the rows.

    Raises:
        ConfigError: A scale that cannot be used.
        DataError: No row has a gradient.
    """
    gradients, tokens = ground.gradients, ground.response_tokens
    members = ground.measured.copy()
    members[np.asarray(ground.in_hand, dtype=np.int64)] = True
    factors, scale = scaling_of(gradients, normalize, alpha, members=members, lengths=tokens)
    rows = as_rows(gradients)
    amount = min(budget.rows, int(ground.measured.sum())) if budget.tokens is None else f"{budget.tokens} tokens"
    greedy = select(
        gradients,
        budget=amount,
        alpha=scale,
        conflict_weight=0.0,
        normalize=normalize,
        lengths=tokens,
        initial=list(ground.in_hand) or None,
        exclude=_others(members, ground.known),
    )
    # The selection has normalised by the same rows; its factors and the scale's agree.
    certificate = certify(
        rows,
        greedy.indices,
        alpha=scale,
        budget=budget.rows if budget.tokens is None else budget.tokens,
        factors=factors,
        candidates=members,
        initial=ground.in_hand,
        tokens=None if budget.tokens is None else tokens,
        outlook=greedy.outlook,
    )
    yardstick = Yardstick(
        alpha=scale,
        normalize=normalize,
        upper_bound=certificate.upper_bound,
        greedy=certificate.information,
        dim=rows.shape[1],
    )
    return Scale(yardstick, factors, budget.rows if budget.tokens is None else budget.tokens, budget.tokens is not None)


def measure_picks(
    ground: Ground, picks: Sequence[int] | Int[np.ndarray, " k"], scale: Scale | None = None
) -> PickNumbers:
    """Some picks by the common yardstick.

    Args:
        ground: The pool.
        picks: Row numbers, each once.
        scale: How information is measured; None without gradients.
    """
    chosen = np.asarray(picks, dtype=np.int64)
    tokens = ground.response_tokens[chosen]
    balance = tuple(
        measure_coverage(labels, chosen, pool=np.flatnonzero(ground.candidates), by=by)
        for by, labels in ground.labels.items()
    )
    found: dict[str, Any] = {
        "k": len(chosen),
        "tokens": int(tokens.sum()),
        "tokens_median": _median(tokens),
        "imbalance": imbalance(balance[-1]),
        "balance": balance,
    }
    if scale is not None:
        assert ground.known is not None and ground.squared_norms is not None
        known = chosen[ground.known[chosen]]
        information = information_of(
            ground.gradients, chosen, alpha=scale.yardstick.alpha, factors=scale.factors, initial=ground.in_hand
        )
        found |= {
            "without_gradient": len(chosen) - len(known),
            "information": information,
            "share_of_best": _share(information, scale, len(chosen), int(tokens.sum())),
            "norm_median": _median(np.sqrt(ground.squared_norms[known])),
            "opposing_share": opposing_share(ground.gradients, known, scale.factors),
            **_diversity(ground, known),
        }
    return PickNumbers(**found)


def imbalance(balance: Coverage) -> float | None:
    """Total variation distance between the shares of picks and pool; None where there is one group or no pick."""
    shares = [(group.pool_share, group.picks_share) for group in balance.groups]
    if len(shares) < 2 or any(picks is None for _, picks in shares):
        return None
    return 0.5 * sum(abs(pool - (picks or 0.0)) for pool, picks in shares)


def opposing_share(
    gradients: Any, picks: Int[np.ndarray, " k"], factors: Float[np.ndarray, " n"] | None = None
) -> float | None:
    """Share of some rows whose inner product with the sum of the others is negative; None for fewer than two.

    Args:
        gradients: ``[n, d]`` array, tensor or store.
        picks: Row numbers.
        factors: What normalisation multiplies each row by.
    """
    if len(picks) < 2:
        return None
    rows = as_rows(gradients)

    def blocks() -> Any:
        for start in range(0, len(picks), _BLOCK):
            numbers = picks[start : start + _BLOCK]
            block = np.array(rows.rows(numbers), dtype=np.float64)
            yield block if factors is None else block * factors[numbers, None]

    total, mass = np.zeros(rows.shape[1]), 0.0
    for block in blocks():
        total += block.sum(axis=0)
        mass += float(np.sqrt(np.einsum("ij,ij->i", block, block)).sum())
    opposing = 0
    for block in blocks():
        squares = np.einsum("ij,ij->i", block, block)
        # What rounding leaves of a sum that vanishes points nowhere.
        opposing += int((block @ total - squares < -VANISHED * mass * np.sqrt(squares)).sum())
    return opposing / len(picks)


def _share(information: float, scale: Scale, rows: int, tokens: int) -> float | None:
    bound = scale.yardstick.upper_bound
    if bound is None or (tokens if scale.by_tokens else rows) > scale.budget:
        return None
    return min(1.0, information / bound) if bound > 0 else 1.0


def _diversity(ground: Ground, picks: Int[np.ndarray, " k"]) -> dict[str, Any]:
    if len(picks) < 2:
        return {}
    try:
        found = measure_diversity(
            ground.gradients,
            picks,
            pool=np.flatnonzero(ground.measured),
            draws=0,
            most=MOST_COMPARED,
            seed=ground.seed,
        )
    except DataError:
        # All of them are zero: there is no direction to compare.
        return {}
    values = {_DIVERSITY[m.name]: m.picks if np.isfinite(m.picks) else None for m in found.measures}
    return {**values, "diversity_rows": found.rows}


def _others(members: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " n"] | None) -> Bool[np.ndarray, " n"]:
    """Rows with a gradient that are no part of the pool."""
    return ~members if known is None else known & ~members


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
