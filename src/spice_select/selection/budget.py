"""Budgets: rows, a share of the rows, or response tokens."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from spice_select.errors import BudgetError

_FORMS = "give rows (12), a share (0.1 or '10%') or tokens ('50000 tokens')"


@dataclass(frozen=True)
class Budget:
    """A resolved budget.

    Attributes:
        rows: The most rows that may be chosen.
        tokens: The most response tokens they may hold; None: as many as they do.
    """

    rows: int
    tokens: int | None = None


def resolve_budget(budget: int | float | str | None, n: int, usable: int, *, stops: bool = False) -> Budget:
    """Turn what the user gave into rows or tokens.

    Args:
        budget: An int is rows; a float in (0, 1] a share of n; text one of both, ``"10%"`` or ``"50000 tokens"``;
            None the whole pool, as a cap for a stop ratio.
        n: Rows that were given, unusable ones included: a share is of these.
        usable: Rows that can be chosen.
        stops: Whether a stop ratio ends the selection.

    Raises:
        BudgetError: Nothing, more than the usable rows, or not a budget.
    """
    if usable == 0:
        raise BudgetError(f"No row of {n} can be chosen: all are unusable, excluded or in hand already; add rows.")
    if budget is None:
        if not stops:
            raise BudgetError(f"budget is missing; {_FORMS}, or set stop_ratio.")
        return Budget(usable)
    amount: object = _parse(budget) if isinstance(budget, str) else budget
    if isinstance(amount, Budget):
        if amount.tokens == 0:
            raise BudgetError(f"budget '{budget}' is nothing; {_FORMS}.")
        return Budget(usable, amount.tokens)
    if isinstance(amount, numbers.Integral) and not isinstance(amount, bool):
        rows = int(amount)
    elif isinstance(amount, numbers.Real) and not isinstance(amount, bool):
        share = float(amount)
        if not 0.0 < share <= 1.0:
            hint = f"; write {int(share)} without a point for rows" if share.is_integer() and share > 1 else ""
            raise BudgetError(f"budget {budget!r} is no share above 0 and at most 1{hint}; {_FORMS}.")
        rows = max(1, round(share * n))
    else:
        raise BudgetError(f"budget {budget!r} is no number of rows; {_FORMS}.")
    if rows < 1:
        raise BudgetError(f"budget {budget!r} is nothing; {_FORMS}.")
    if rows > usable:
        raise BudgetError(
            f"budget {budget!r} asks for {rows} rows, and {usable} of {n} can be chosen; ask for {usable} at most."
        )
    return Budget(rows)


def _parse(text: str) -> int | float | Budget:
    words = text.strip().split()
    try:
        if len(words) == 2 and words[1].lower() in {"token", "tokens"}:
            return Budget(0, _natural(words[0]))
        if len(words) == 2 and words[1].lower() in {"row", "rows"}:
            return _natural(words[0])
        joined = "".join(words) if len(words) == 2 and words[1] == "%" else text.strip()
        if joined.endswith("%"):
            return float(joined[:-1]) / 100
        try:
            return int(joined)
        except ValueError:
            number = float(joined)
            if not math.isfinite(number):
                raise
            return number
    except ValueError:
        raise BudgetError(f"budget '{text}' is not understood; {_FORMS}.") from None


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number
