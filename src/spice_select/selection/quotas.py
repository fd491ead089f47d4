"""Which rows may still be chosen: budget in rows or tokens, and quotas by group.

Eligibility only ever shrinks. A row leaves when it is chosen, when it no longer fits the tokens left, when its group
is full, or when every row left to choose is owed to groups below their minimum; so a bound on a row's score stays one.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from spice_select.errors import ConfigError
from spice_select.selection.budget import Budget

Quotas = Mapping[str, Mapping[str, int | float]]


class Groups:
    """Groups of rows with the least and the most rows that each may get.

    Attributes:
        codes: Group of each row.
        least: Rows that each group gets at least.
        most: Rows that each group gets at most.
    """

    def __init__(self, codes: Int[np.ndarray, " n"], least: Int[np.ndarray, " g"], most: Int[np.ndarray, " g"]) -> None:
        self.codes, self.least, self.most = codes, least, most
        self._members = [np.flatnonzero(codes == code) for code in range(len(least))]
        self._owed = least.copy()
        self._room = most.copy()
        self._open = np.ones(len(least), dtype=bool)

    def open_now(self, remaining: int) -> np.ndarray:
        """Numbers of rows whose group closes with this many rows left to choose."""
        closing = self._open & (self._room <= 0)
        if self._owed.sum() >= remaining:
            closing |= self._open & (self._owed <= 0)
        self._open &= ~closing
        shut = np.flatnonzero(closing)
        return np.concatenate([self._members[code] for code in shut]) if len(shut) else np.zeros(0, np.int64)

    def take(self, index: int) -> None:
        """Count a chosen row."""
        code = self.codes[index]
        self._owed[code] = max(0, self._owed[code] - 1)
        self._room[code] -= 1


class Limits:
    """Eligible rows and what is left of the budget.

    Args:
        eligible: Rows that may be chosen at the start.
        budget: Rows and tokens in all.
        lengths: Response tokens of each row; needed with a token budget.
        groups: Groups with quotas.
    """

    def __init__(
        self,
        eligible: Bool[np.ndarray, " n"],
        budget: Budget,
        lengths: Int[np.ndarray, " n"] | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.eligible = eligible.copy()
        self.remaining = budget.rows
        self._groups = groups
        self.tokens = budget.tokens
        self._lengths = lengths
        self.mean_length = None if lengths is None or not eligible.any() else float(lengths[eligible].mean())
        self._longest_first = np.zeros(0, np.int64)
        self._passed = 0
        if budget.tokens is not None:
            assert lengths is not None
            self._longest_first = np.argsort(-lengths, kind="stable")
        self._close(self._too_long())
        if groups is not None:
            self._close(groups.open_now(self.remaining))

    def take(self, index: int) -> Int[np.ndarray, " m"]:
        """Choose a row; returns the rows that are no longer eligible, itself among them."""
        assert self.eligible[index] and self.remaining > 0
        self.remaining -= 1
        closed = [np.array([index])]
        if self.tokens is not None and self._lengths is not None:
            self.tokens -= int(self._lengths[index])
            closed.append(self._too_long())
        if self._groups is not None:
            self._groups.take(index)
            closed.append(self._groups.open_now(self.remaining))
        return self._close(np.concatenate(closed))

    def _close(self, indices: np.ndarray) -> np.ndarray:
        closed = indices[self.eligible[indices]]
        if len(closed) > 1:
            closed = np.unique(closed)
        self.eligible[closed] = False
        return closed

    def _too_long(self) -> np.ndarray:
        if self.tokens is None or self._lengths is None:
            return np.zeros(0, np.int64)
        start = self._passed
        ordered = self._longest_first
        while self._passed < len(ordered) and self._lengths[ordered[self._passed]] > self.tokens:
            self._passed += 1
        return ordered[start : self._passed]


def resolve_groups(
    groups: Sequence[Any] | np.ndarray,
    quotas: Quotas | str,
    eligible: Bool[np.ndarray, " n"],
    pool: Bool[np.ndarray, " n"],
    rows: int,
) -> Groups:
    """Turn quotas into row counts and check that they can be met.

    Args:
        groups: Label of each of the n rows.
        quotas: Per label ``min`` and ``max``, each rows (int) or a share of the budget (float); or ``"proportional"``.
        eligible: Rows that may be chosen.
        pool: Rows whose shares ``"proportional"`` keeps.
        rows: Rows to choose.

    Raises:
        ConfigError: Labels that don't match the rows, an unknown group, or quotas that cannot be met.
    """
    labels = np.array([str(label) for label in groups], dtype=np.str_)
    if len(labels) != len(eligible):
        raise ConfigError(f"groups has {len(labels)} labels for {len(eligible)} rows; give one label per row.")
    names, codes = np.unique(labels, return_inverse=True)
    available = np.bincount(codes[eligible], minlength=len(names))
    if isinstance(quotas, str):
        if quotas != "proportional":
            raise ConfigError(f"quotas cannot be '{quotas}'; give 'proportional' or a minimum and maximum by group.")
        shares = proportional(np.bincount(codes[pool], minlength=len(names)), available, rows)
        return Groups(codes, shares, shares)
    least = np.zeros(len(names), dtype=np.int64)
    most = available.copy()
    known = {str(name): code for code, name in enumerate(names)}
    for key, quota in quotas.items():
        name = str(key)
        if name not in known:
            raise ConfigError(f"quotas names group '{name}', which no row has; known are {_some(list(known))}.")
        code = known[name]
        if not isinstance(quota, Mapping) or not set(quota) <= {"min", "max"}:
            raise ConfigError(f"The quota of group '{name}' is {quota!r}; give it as {{'min': ..., 'max': ...}}.")
        least[code] = _rows_of(quota.get("min", 0), rows, name, "min")
        if "max" in quota:
            ceiling = _rows_of(quota["max"], rows, name, "max")
            if ceiling < least[code]:
                raise ConfigError(
                    f"Group '{name}' has a minimum of {least[code]} rows and a maximum of {ceiling}; raise the maximum."
                )
            most[code] = min(most[code], ceiling)
        if least[code] > available[code]:
            raise ConfigError(
                f"Group '{name}' has a minimum of {least[code]} rows and {available[code]} that can be chosen; "
                "lower the minimum."
            )
    if least.sum() > rows:
        raise ConfigError(f"The minimums of quotas add up to {least.sum()} rows and the budget is {rows}; lower them.")
    if most.sum() < rows:
        raise ConfigError(
            f"quotas leave room for {most.sum()} rows and the budget is {rows}; raise a maximum or lower the budget."
        )
    return Groups(codes, least, most)


def proportional(counts: Int[np.ndarray, " g"], available: Int[np.ndarray, " g"], rows: int) -> Int[np.ndarray, " g"]:
    """Rows per group in proportion to their counts, summing to ``rows`` exactly.

    Largest remainders, the earlier group on a tie; what a group cannot supply goes to the others in proportion.
    """
    given = np.zeros(len(counts), dtype=np.int64)
    while (missing := rows - int(given.sum())) > 0:
        weights = np.where(given < available, counts, 0)
        if weights.sum() == 0:
            weights = (given < available).astype(np.int64)
        # Whole numbers throughout: a share of 1/3 of 9 rows is 3, whatever floating point says.
        whole, rest = np.divmod(weights * missing, weights.sum())
        first = np.lexsort((np.arange(len(rest)), -rest))[: missing - int(whole.sum())]
        whole[first] += 1
        given = np.minimum(given + whole, available)
    return given


def _rows_of(value: object, rows: int, name: str, key: str) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= int(value) <= 2**53:
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 <= float(value) <= 1.0:
        # Towards the looser side, so that shares that add up to 1 can be met whatever the budget.
        exact = float(value) * rows
        return math.floor(exact + 1e-9) if key == "min" else math.ceil(exact - 1e-9)
    raise ConfigError(
        f"The {key} of group '{name}' cannot be {value!r}; give rows (a whole number) or a share from 0.0 to 1.0."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
