"""Quotas over a walk: shares of the whole budget, of which every pool gives its part as far as it has the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from spice_select.schedule.walk import Walk
from spice_select.selection.quotas import Quotas, proportional, resolve_groups


class WalkQuotas:
    """What each group is due from pool to pool, so that quotas come out over the whole walk.

    The budget goes first: where a pool lacks rows of a group others take their place, and later pools make up for it.

    Args:
        labels: Label of every row.
        quotas: Shares of the budget by label, or ``proportional``.
        offered: Rows that may be picked.
        walk: Their order.
        rows: Rows to be picked in all.

    Raises:
        ConfigError: Quotas that the rows of the whole walk cannot meet.
    """

    def __init__(
        self, labels: Sequence[str], quotas: Quotas | str, offered: Bool[np.ndarray, " rows"], walk: Walk, rows: int
    ) -> None:
        self._names, self._codes = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
        whole = resolve_groups(labels, quotas, offered, offered, rows)
        self._least, self._most = whole.least, whole.most
        self._walk = walk

    def of_pool(
        self, number: int, usable: Int[np.ndarray, " m"], rows: int, picked: Sequence[int] | None
    ) -> dict[str, dict[str, int]]:
        """Rows that each group gives at least and at most; they can be met whatever the pool holds.

        Args:
            number: The pool.
            usable: Its rows with a gradient.
            rows: Picks of the pool; not more than these.
            picked: Picks of all pools before it; None where pools do not make up for each other.
        """
        groups = len(self._names)
        there = np.bincount(self._codes[usable], minlength=groups)
        taken = None if picked is None else np.bincount(self._codes[list(picked)], minlength=groups)
        least, most = (self._due(total, number, taken, there) for total in (self._least, self._most))
        most = np.maximum(most, least)
        if least.sum() > rows:
            least = proportional(least, least, rows)
        if most.sum() < rows:
            most = most + proportional(there - most, there - most, rows - int(most.sum()))
        return {
            str(name): {"min": int(least[at]), "max": int(most[at])} for at, name in enumerate(self._names) if there[at]
        }

    def _due(
        self,
        totals: Int[np.ndarray, " g"],
        number: int,
        taken: Int[np.ndarray, " g"] | None,
        there: Int[np.ndarray, " g"],
    ) -> Int[np.ndarray, " g"]:
        shares = np.array([self._walk.share(int(total), number + 1) for total in totals])
        if taken is None:
            taken = np.array([self._walk.share(int(total), number) for total in totals])
        return np.clip(shares - taken, 0, there)
