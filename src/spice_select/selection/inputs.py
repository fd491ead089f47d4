"""Rows that come in: the pool, what of it is unusable, and what is in hand already."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from spice_select.errors import ConfigError
from spice_select.selection.kernel import GramPool
from spice_select.selection.options import Options, plain_array, row_numbers
from spice_select.selection.rows import Pool, as_rows

NAMED_ROWS = 5


def open_pool(source: Any) -> Pool:
    """The rows that the user gave, unusable ones known."""
    rows = as_rows(source)
    usable = getattr(source, "usable", None)
    return Pool(rows, None if usable is None else np.asarray(usable, dtype=bool))


def unusable_sentence(usable: Bool[np.ndarray, " n"], finite: Bool[np.ndarray, " n"]) -> str:
    """How many rows were left out and which come first."""
    rows = np.flatnonzero(~usable)
    named = ", ".join(map(str, rows[:NAMED_ROWS])) + (", ..." if len(rows) > NAMED_ROWS else "")
    broken = int((~finite).sum())
    what = f"{broken} of them hold NaN or Inf" if broken else "they are marked so"
    return f"{len(rows)} of {len(usable)} rows are unusable and were left out ({what}): {named}."


def rows_in_hand(
    options: Options, pool: Pool | GramPool, usable: Bool[np.ndarray, " n"], clip_at: float
) -> Int[np.ndarray, " m"]:
    """Numbers of the rows already in hand; gradient rows are appended to the pool and numbered behind it."""
    if options.initial is None:
        return np.zeros(0, dtype=np.int64)
    array = plain_array("initial", options.initial)
    if array.ndim != 2:
        numbers = row_numbers("initial", array, pool.n)
        broken = numbers[~usable[numbers]]
        if len(broken):
            raise ConfigError(f"initial names row {broken[0]}, which is unusable; leave it out.")
        return numbers
    if isinstance(pool, GramPool):
        raise ConfigError("initial must be row numbers where only inner products are known; give their numbers.")
    if array.shape[1] != pool.dim or array.dtype.kind not in "fiu":
        raise ConfigError(
            f"initial has shape {list(array.shape)} and gradients have {pool.dim} columns; give rows of {pool.dim}."
        )
    rows = array.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ConfigError(f"Row {int(np.argmin(np.isfinite(rows).all(axis=1)))} of initial holds NaN or Inf.")
    if options.normalize == "sqrt_tokens":
        raise ConfigError(
            "initial gradient rows have no response lengths for normalize 'sqrt_tokens'; give row numbers of the pool."
        )
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    safe = np.where(norms > 0, norms, 1.0)
    if options.normalize == "unit":
        rows /= safe[:, None]
    elif options.normalize == "clip":
        rows *= np.minimum(1.0, clip_at / safe)[:, None]
    return pool.append(rows)
