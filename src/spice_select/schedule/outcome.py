"""What a schedule of pools comes to: one selection, and one line a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from spice_select.analysis.activity import ConflictActivity, merge_activities
from spice_select.analysis.record import PoolRecord, ScheduleRecord, TrainingRecord
from spice_select.config import RunConfig
from spice_select.schedule.log import PoolEntry
from spice_select.selection import Selection
from spice_select.selection.budget import Budget
from spice_select.selection.inputs import unusable_sentence


def union(entries: Sequence[PoolEntry], config: RunConfig, n: int, budget: Budget) -> Selection:
    """The picks of all pools as one selection, in order of choice; its gains are each within its own pool."""
    settings = config.selection

    def joined(name: str) -> np.ndarray:
        return np.array([value for entry in entries for value in getattr(entry, name)], dtype=np.float64)

    alphas = [entry.alpha for entry in entries if entry.alpha is not None]
    reasons = {entry.stop_reason for entry in entries if entry.picks}
    failed = unmeasurable(entries, n)
    said = [] if not failed.any() else [unusable_sentence(~failed, ~failed)]
    picked = sum(len(entry.picks) for entry in entries)
    short = settings.stop_ratio is None and budget.tokens is None and picked < budget.rows
    if short:
        said.append(
            f"Only {picked:,} of the {budget.rows:,} rows of the budget could be picked, as too few rows of the last "
            "pools were usable."
        )
    warnings = dict.fromkeys([*said, *(line for entry in entries for line in entry.warnings)])
    hinges = [entry.activity.hinge for entry in entries if entry.activity is not None]
    return Selection(
        indices=np.array([row for entry in entries for row in entry.picks], dtype=np.int64),
        gains=joined("gains"),
        bases=joined("bases"),
        epsilons=joined("epsilons"),
        conflicts=joined("conflicts"),
        scores=joined("scores"),
        stop_reason="stop_ratio"
        if "stop_ratio" in reasons
        else "tokens"
        if "tokens" in reasons
        else "exhausted"
        if short
        else "budget",
        n=n,
        k=budget.rows,
        alpha=float(np.median(alphas)) if alphas else float(settings.alpha != "auto" and settings.alpha),
        conflict_weight=settings.conflict_weight,
        penalty=settings.penalty,
        reference=settings.reference,
        hinge=float(np.mean(hinges)) if hinges else 0.0,
        normalize=settings.normalize,
        fisher="exact",
        loop="kernel",
        unusable=n - sum(len(entry.rows) for entry in entries) + int(failed.sum()),
        first_gain_outlier=any(entry.first_gain_outlier for entry in entries),
        warnings=tuple(warnings),
    )


def unmeasurable(entries: Sequence[PoolEntry], n: int) -> Bool[np.ndarray, " n"]:
    """Rows whose gradient was measured and is no number; those of pools that were passed over are not among them."""
    failed = np.zeros(n, dtype=bool)
    for entry in entries:
        failed[[row for row, value in zip(entry.rows, entry.squared_norms, strict=False) if value is None]] = True
    return failed


def squared_norms(entries: Sequence[PoolEntry], n: int) -> Float[np.ndarray, " n"]:
    """Squared gradient norm of each row when it was offered; NaN where none was measured."""
    norms = np.full(n, np.nan)
    for entry in entries:
        for row, value in zip(entry.rows, entry.squared_norms, strict=False):
            if value is not None:
                norms[row] = value
    return norms


def changed(entries: Sequence[PoolEntry]) -> int | None:
    """Picks that the penalty changed, each pool on its own gradients; None where there was no penalty."""
    known = [entry.changed for entry in entries if entry.changed is not None]
    return sum(known) if known else None


def activity(entries: Sequence[PoolEntry]) -> ConflictActivity | None:
    """Conflict in all pools together."""
    return merge_activities([entry.activity for entry in entries if entry.activity is not None])


def schedule_record(
    entries: Sequence[PoolEntry], trainings: Sequence[TrainingRecord], steps_at: Callable[[int], int]
) -> ScheduleRecord:
    """The schedule as ``selection.json`` has it.

    Args:
        entries: All pools.
        trainings: All trainings, the warm-up first.
        steps_at: Optimiser steps that had been taken when a pool was offered.
    """
    offered = sum(len(entry.rows) for entry in entries)
    picked = sum(len(entry.picks) for entry in entries)
    return ScheduleRecord(
        kind="pools",
        gram="; ".join(dict.fromkeys(entry.gram for entry in entries if entry.gram)),
        offered=offered,
        kept=picked / offered if offered else 0.0,
        steps=sum(training.steps for training in trainings),
        trainings=tuple(trainings),
        pools=tuple(
            PoolRecord(
                pool=entry.pool,
                step=steps_at(entry.pool),
                offered=len(entry.rows),
                picks=len(entry.picks),
                loss=entry.mean_loss,
                information=entry.information,
                opposing_picks=float(np.mean(np.array(entry.conflicts) > 0)) if entry.conflicts else 0.0,
                opposing_pairs=entry.activity.opposing_pairs_share if entry.activity else None,
                changed_by_penalty=entry.changed,
                certificate=entry.certificate,
                alpha=entry.alpha,
                stop_reason=entry.stop_reason,
                first_gain_outlier=entry.first_gain_outlier,
            )
            for entry in entries
        ),
    )
