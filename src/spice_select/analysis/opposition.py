"""Signed conflict: how far gradients point away from a mean, without the hinge that hides most of it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.chosen import gather
from spice_select.analysis.posterior import CHUNK_ROWS, ScaledRows
from spice_select.selection.conflict import cosines


def against_mean(
    rows: ScaledRows, members: Int[np.ndarray, " m"], others: Int[np.ndarray, " b"] | None = None
) -> Float[np.ndarray, " b"]:
    """-cos of rows with the mean of the members; 0 where a norm is 0.

    Args:
        rows: The gradients.
        members: Rows whose mean it is.
        others: Rows that are compared with it; the members themselves where absent.
    """
    compared = members if others is None else others
    total = np.zeros(rows.shape[1])
    for start in range(0, len(members), CHUNK_ROWS):
        total += rows.scaled(members[start : start + CHUNK_ROWS]).sum(axis=0)
    norm = float(np.linalg.norm(total))
    found = np.zeros(len(compared))
    for start in range(0, len(compared), CHUNK_ROWS):
        chunk = rows.scaled(compared[start : start + CHUNK_ROWS])
        found[start : start + len(chunk)] = -cosines(chunk @ total, np.linalg.norm(chunk, axis=1), norm)
    return np.nan_to_num(found)


def against_running_mean(
    rows: ScaledRows, picks: Int[np.ndarray, " k"], initial: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " k"]:
    """-cos of every pick with the mean of the picks before it; 0 where there is none."""
    total = gather(rows, initial).sum(axis=0)
    found = np.zeros(len(picks))
    for start in range(0, len(picks), CHUNK_ROWS):
        chunk = rows.scaled(picks[start : start + CHUNK_ROWS])
        sums = np.cumsum(chunk, axis=0) - chunk + total
        norms = np.linalg.norm(chunk, axis=1) * np.linalg.norm(sums, axis=1)
        dots = np.einsum("ij,ij->i", chunk, sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[start : start + len(chunk)] = np.where(norms > 0, np.clip(-dots / norms, -1.0, 1.0), 0.0)
        total = total + chunk.sum(axis=0)
    return found
