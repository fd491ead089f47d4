"""A proven lower bound on how much of the best possible information a run's picks hold.

For every prefix S_t of the picks and every feasible set S*, because F = log det(I + a F_S) is monotone and submodular::

    F(S*) <= F(S_t) + sum of the K largest marginal gains D_x(S_t), x a candidate outside S_t

(Nemhauser, Wolsey and Fisher, 1978). U is the least right side over the prefixes tried, and the certificate is
F(S) / U. A token budget takes the fractional-knapsack sum. Any upper bound of a gain keeps the statement true, which
is what lets this be cheap: gains of an early prefix bound those of the whole selection, so only rows that can still be
among the K largest are measured again. The rounding of every gain is bounded and added; that of F(S) itself, about
1e-16 |I + a F|, is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field

from spice_select.analysis.handed import SHARE, handed_bounds
from spice_select.analysis.posterior import RowReader, ScaledRows
from spice_select.analysis.prefixes import CHEAP_WORK, Task, measured_bounds
from spice_select.selection.budget import resolve_budget
from spice_select.selection.greedy import TIE
from spice_select.selection.options import row_numbers, token_lengths
from spice_select.selection.outlook import Outlook
from spice_select.selection.result import Selection
from spice_select.selection.rows import as_rows


class Certificate(BaseModel):
    """What one run's picks are proven to hold.

    Attributes:
        value: Lower bound on F(S) / F(S*), S* the best set within the budget, in [0, 1].
        information: F(S) in nats, over the rows already in hand.
        upper_bound: U in nats: no set within the budget holds more.
        budget: K, in rows or response tokens.
        unit: What the budget counts.
        prefix: Number of picks t whose bound is the least.
        prefixes: Every t that was tried.
        value_at_size: The same with K = number of picks, where the run stopped before its budget.
        guarantee: Bound that greedy itself carries, 1 - 1/e less what ties may cost, where it holds: rows as the
            budget, which was filled, no penalty and no quotas.
        penalised: The picks maximise information less a penalty, and the certificate speaks of information alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=0, le=1)
    information: float
    upper_bound: float
    budget: float
    unit: Literal["rows", "tokens"] = "rows"
    prefix: int
    prefixes: tuple[int, ...]
    value_at_size: float | None = None
    guarantee: float | None = None
    penalised: bool = False

    @property
    def best(self) -> float:
        """The larger of the certificate and greedy's own guarantee."""
        return max(self.value, self.guarantee or 0.0)

    def sentence(self) -> str:
        """The certificate in words."""
        what = f"{self.budget:,.0f} {'rows' if self.unit == 'rows' else 'response tokens'}"
        text = (
            f"The picks hold at least {percent_down(self.best)} of the Fisher information that any choice of {what}"
            " could hold (proven for this run)"
        )
        if self.value_at_size is not None:
            text += f", and at least {percent_down(self.value_at_size)} of what any choice of as many rows could hold"
        if self.penalised:
            text += "; this speaks of information alone, while the run also paid for avoiding conflict"
        return text + "."


def certify_selection(
    gradients: Any,
    selection: Selection,
    *,
    budget: int | float | str | None = None,
    lengths: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    exclude: Sequence[int] | np.ndarray | None = None,
    constrained: bool = False,
) -> Certificate | None:
    """The certificate of a selection, given what it was selected from.

    Args:
        gradients: What was handed to ``select``: an array, a tensor or a store.
        selection: Its result.
        budget: The budget as it was asked for.
        lengths: Response tokens of each row; a store's own where absent.
        initial: Numbers of the rows that were in hand.
        exclude: Rows that were left out: numbers, or a mask.
        constrained: Quotas, or gains per token, steered the choice; the selection knows of its own.

    Returns:
        The certificate, or None for a diagonal form, of which no such bound is known.
    """
    if selection.fisher != "exact":
        return None
    rows = as_rows(gradients)
    n = rows.shape[0]
    given = lengths if lengths is not None else getattr(gradients, "lengths", None)
    tokens = token_lengths(given, n)
    marked = getattr(gradients, "usable", None)
    members = np.ones(n, dtype=bool) if marked is None else np.array(marked, dtype=bool)
    members[row_numbers("exclude", exclude, n)] = False
    in_hand = row_numbers("initial", initial, n)
    open_rows = members.copy()
    open_rows[in_hand] = False
    asked = resolve_budget(budget, n, int(open_rows.sum()), stops=True)
    return certify(
        rows,
        selection.indices,
        alpha=selection.alpha,
        budget=asked.rows if asked.tokens is None else asked.tokens,
        factors=selection.factors,
        candidates=members,
        initial=in_hand,
        tokens=None if asked.tokens is None else tokens,
        penalised=selection.conflict_weight > 0,
        constrained=constrained or selection.constrained,
        outlook=selection.outlook,
    )


def certify(
    gradients: RowReader,
    picks: Sequence[int] | Int[np.ndarray, " k"],
    *,
    alpha: float,
    budget: float,
    factors: Float[np.ndarray, " n"] | None = None,
    candidates: Bool[np.ndarray, " n"] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
    tokens: Int[np.ndarray, " n"] | None = None,
    penalised: bool = False,
    constrained: bool = False,
    outlook: Outlook | None = None,
) -> Certificate:
    """Bound what fraction of the best possible information the picks hold.

    Args:
        gradients: ``[n, d]`` rows, read in chunks and never held whole.
        picks: Row numbers in order of choice, the greedy one unless ``penalised`` or ``constrained``.
        alpha: Fisher scale a, a number.
        budget: K: rows, or response tokens where ``tokens`` is given.
        factors: Factor of every row, as normalisation makes them; 1 where absent.
        candidates: Rows that may be chosen; all where absent.
        initial: Rows already in hand: part of every set, counted in none.
        tokens: Response tokens of each row, for a token budget.
        penalised: A conflict penalty had a say in the picks.
        constrained: Quotas narrowed the choice, so that greedy's own guarantee is not stated.
        outlook: What the run of these very picks handed over; it replaces passes over a large pool.

    Returns:
        The certificate; 1 where nothing could be gained.
    """
    rows = ScaledRows(gradients, factors)
    n = rows.shape[0]
    held, size = len(initial), len(picks)
    order = np.concatenate([np.asarray(initial, dtype=np.int64), np.asarray(picks, dtype=np.int64)])
    weights = np.ones(n) if tokens is None else np.asarray(tokens, dtype=np.float64)
    spent = float(weights[order[held:]].sum())
    capacities = [float(budget), spent] if spent < budget else [spent]
    eligible = np.ones(n, dtype=bool) if candidates is None else np.array(candidates, dtype=bool)
    eligible[order[:held]] = False

    task = Task(rows, float(alpha), order, held, weights, tuple(capacities), eligible)
    allowed = max(CHEAP_WORK, SHARE * outlook.work) if outlook is not None else 0.0
    if outlook is not None and outlook.fits(len(eligible), task.alpha, size, held) and task.work > allowed:
        bounds, total = handed_bounds(task, outlook, allowed)
    else:
        bounds, total = measured_bounds(task)

    best = min(bounds, key=lambda t: bounds[t][0])
    total = max(0.0, total)
    early = len(capacities) > 1
    return Certificate(
        value=_ratio(total, bounds[best][0]),
        information=total,
        upper_bound=max(bounds[best][0], total),
        budget=float(budget),
        unit="rows" if tokens is None else "tokens",
        prefix=best,
        prefixes=tuple(sorted(bounds)),
        value_at_size=_ratio(total, min(upper[-1] for upper in bounds.values())) if early else None,
        guarantee=None if penalised or constrained or early or tokens is not None else _guarantee(size, total),
        penalised=penalised,
    )


def _ratio(part: float, whole: float) -> float:
    return 1.0 if part >= whole or whole <= 0 else part / whole


def _guarantee(size: int, information: float) -> float | None:
    """1 - 1/e for greedy whose picks may each lie a tie's slack below the best; None where that may be everything."""
    if information <= 0:
        return None
    # The slacks add up to no more than this, as the gains add up to the information.
    value = 1.0 - math.exp(-1.0) - TIE * (1.0 + size / information)
    return value if value > 0 else None


def percent_down(share: float) -> str:
    """A share as a percentage, rounded down: a lower bound must not grow in print."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
