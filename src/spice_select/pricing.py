"""What a run would cost, before anything is written."""

from __future__ import annotations

import time
from pathlib import Path

from spice_select.config import RunConfig
from spice_select.cost import Cost, Scale, estimate, in_pools, with_warmup
from spice_select.cost.collecting import Fleet
from spice_select.cost.machine import Clock as Ticks
from spice_select.errors import ConfigError
from spice_select.measuring import gradient_engine
from spice_select.method_cost import of_method
from spice_select.methods import Method
from spice_select.pool import Pool, check_selection, read_pool
from spice_select.preconditions import chosen_method, require_budget, require_named
from spice_select.reporter import Clock, Reporter, Silent
from spice_select.run_folder import RunFolder
from spice_select.schedule.checks import check_pools, check_warmup
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.session import learning_engine
from spice_select.schedule.warmup import wanted, warmup_rows
from spice_select.selection.budget import resolve_budget
from spice_select.selection.on_device import usable_device

MOST_ROWS = 10**15
"""More rows than anyone has, and few enough for arithmetic with points."""


def dry_run(
    config: RunConfig,
    reporter: Reporter,
    *,
    selection: bool = True,
    rows: int | None = None,
    fleet: Fleet | None = None,
    ticks: Ticks = time.perf_counter,
) -> Cost:
    """Measure a few batches of this very model and data and say what the whole would cost; nothing is written.

    Args:
        config: The settings of the run.
        reporter: Hears the progress.
        selection: Price the selection too.
        rows: Rows that are priced, of lengths as those read; those read where absent.
        fleet: Who shares the collect; this process alone where absent.
        ticks: Tells seconds.

    Raises:
        ConfigError: A setting or a size that cannot be.
        DataError, ModelError: Something that cannot be read.
    """
    if rows is not None and not 1 <= rows <= MOST_ROWS:
        raise ConfigError(f"--at-rows cannot be {rows}; give 1 or more, and {MOST_ROWS:,} at most.")
    require_named(config, output=False)
    config, method = chosen_method(config)
    if selection:
        require_budget(config, method)
    if config.output.folder:
        RunFolder(config.output.folder).check(config, overwrite=True, selection=selection)
    pools = config.schedule.kind == "pools"
    if pools and fleet is not None and fleet.ray:
        raise ConfigError(
            "schedule.kind pools has no part for --engine ray, so that no such run can be priced; leave --engine out."
        )
    if selection and not pools and config.selection.device != "cpu":
        usable_device(config.selection.device)
    if pools:
        check_pools(config, reporter)
    else:
        check_warmup(config)
    clock = Clock()
    pool = read_pool(config, reporter, clock)
    picks = _picks(config, pool, method, rows) if selection else 0
    again = Clock()
    if rows is not None:
        # The first time has imports and tokenizer in it, which more rows do not take again.
        read_pool(config, Silent(), again)
    opened = learning_engine if pools else gradient_engine
    engine = opened(config, Ranks(), reporter, clock)
    reporter.stage("Measuring a few batches")
    scale = Scale(rows, fleet or Fleet(), dict(clock.seconds), dict(again.seconds), _source_bytes(pool, config))
    cost = estimate(engine, pool.encoded, config, picks=picks, scale=scale, clock=ticks)
    drawn = warmup_rows(pool.encoded.usable, config.schedule, config.seed) if wanted(config.schedule) else []
    trained = int(pool.encoded.lengths[drawn].sum()) if len(drawn) else 0
    if rows is not None and config.schedule.warmup_share is not None:
        trained = round(trained * rows / len(pool.rows))
    if pools:
        return in_pools(cost, config, trained)
    warm = with_warmup(cost, trained)
    return of_method(warm, method, engine, pool.encoded, config) if selection else warm


def _picks(config: RunConfig, pool: Pool, method: Method, rows: int | None) -> int:
    """Rows that would be chosen at most; those of a budget in tokens, by their mean length."""
    usable = pool.encoded.usable
    if rows is None:
        budget = check_selection(config, pool, everything=not method.takes_budget)
    else:
        # A budget may ask for more rows than were given to measure.
        settings = config.selection
        open_rows = max(1, round(float(usable.mean()) * rows))
        asked = settings.budget if method.takes_budget else None
        stops = settings.stop_ratio is not None or not method.takes_budget
        budget = resolve_budget(asked, rows, open_rows, stops=stops)
    if budget.tokens is None:
        return budget.rows
    return min(budget.rows, max(1, round(budget.tokens / max(1.0, float(pool.encoded.response_tokens[usable].mean())))))


def _source_bytes(pool: Pool, config: RunConfig) -> int:
    """Size of the rows as files; as tables in memory where they come from elsewhere or only some are used."""
    paths = [Path(source) for source in config.data.sources]
    if config.data.limit is None and all(path.is_file() for path in paths):
        return sum(path.stat().st_size for path in paths)
    return sum(table.nbytes for table in pool.rows.tables)
