"""A run in pools: from the rows to the picks and all that a run leaves."""

from __future__ import annotations

import numpy as np

from spice_select.config import RunConfig
from spice_select.files import Lock, make_folder
from spice_select.gradients.locks import discard
from spice_select.pool import Pool, excluded_rows, group_labels
from spice_select.reporter import Clock, Reporter
from spice_select.results import Measured, RunResult, deliver
from spice_select.run_folder import RunFolder
from spice_select.schedule import outcome
from spice_select.schedule.pools import Offer
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.session import Walked, load_base, start_again, walk_pools
from spice_select.selection.budget import Budget


def run_pools(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    folder: RunFolder,
    ranks: Ranks,
    reporter: Reporter,
    clock: Clock,
    *,
    overwrite: bool,
) -> RunResult | None:
    """Walk the rows in pools and write what a run leaves, gradients aside.

    Args:
        config: The settings of the run.
        pool: Its rows.
        budget: Its budget, resolved.
        folder: Where to.
        ranks: The processes of the run; all call this, and the first writes.
        reporter: Hears the progress.
        clock: Seconds by stage.
        overwrite: Start again.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ConfigError, ModelError: A setting or proxy that cannot be used, or a proxy that diverged.
        OutputError, StoreError: A folder that cannot be written, or whose log cannot be read.
    """
    base = load_base(config, ranks, reporter, clock)
    with ranks.together():
        if ranks.main:
            if overwrite:
                start_again(folder.schedule)
                discard(folder.gradients)
            folder.claim(config, overwrite=overwrite)
    labels = group_labels(config, pool) if config.selection.quotas is not None else None
    offer = Offer(pool.encoded, pool.encoded.usable & ~excluded_rows(config, pool), budget, labels)
    walked = walk_pools(config, base, offer, folder.schedule, ranks, reporter, clock)
    result = None
    with ranks.together():
        if ranks.main:
            result = _deliver(config, pool, budget, folder, walked, reporter, clock)
    return result


def _deliver(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    folder: RunFolder,
    walked: Walked,
    reporter: Reporter,
    clock: Clock,
) -> RunResult:
    entries = walked.entries
    n = len(pool.rows)
    selection = outcome.union(entries, config, n, budget)
    for line in selection.warnings:
        reporter.warn(line)
    # Rows of a pool that had nothing to give were never measured: they could be chosen, and their norm is unknown.
    usable = np.zeros(n, dtype=bool)
    usable[[row for entry in entries for row in entry.rows]] = True
    usable &= ~outcome.unmeasurable(entries, n)
    record = outcome.schedule_record(entries, walked.trainings, walked.steps_at)
    reporter.stage("Results")
    measured = Measured(
        lengths=pool.encoded.response_tokens,
        squared_norms=np.where(usable, outcome.squared_norms(entries, n), 0.0),
        usable=usable,
        sketch=record.gram,
        examples=pool.encoded.digest,
        fingerprint=None,
        sources=walked.sources,
    )
    make_folder(folder.path)
    with Lock.exclusive(folder.path / ".lock", str(folder.path)):
        return deliver(
            config,
            pool,
            budget,
            measured,
            selection,
            None,
            folder,
            clock,
            changed=outcome.changed(entries),
            activity=outcome.activity(entries),
            schedule=record,
        )
