"""The order of the stages: rows, token ids, gradients, selection, results. The only file that knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spice_select.analysis.activity import measure_activity
from spice_select.analysis.certificate import Certificate, certify
from spice_select.analysis.record import MethodRecord, PassRecord
from spice_select.config import RunConfig, load_config
from spice_select.errors import ConfigError, StoreMismatch
from spice_select.features.bench import Bench
from spice_select.features.gather import foresee, gather
from spice_select.files import Lock, make_folder
from spice_select.gradients.crew import Workers
from spice_select.gradients.precondition import check_precondition
from spice_select.gradients.store import GradientStore
from spice_select.measuring import Measuring
from spice_select.methods import Choice, Inputs, Method, Need
from spice_select.methods.information import InformationMethod
from spice_select.online import run_pools
from spice_select.paths import with_whole_paths
from spice_select.pool import Pool, check_selection, excluded_rows, read_pool, rows_in_hand
from spice_select.preconditions import (
    chosen_method,
    measures_alone,
    require_budget,
    require_named,
    require_same_gradients,
    warn_of_patterns,
)
from spice_select.reporter import Clock, Reporter, Silent
from spice_select.results import Measured, RunResult, StoreResult, deliver, deliver_choice
from spice_select.run_folder import RunFolder
from spice_select.schedule.checks import check_pools, check_warmup
from spice_select.schedule.ranks import Ranks, joined
from spice_select.schedule.warmup import WarmUp, warm_record
from spice_select.selection import Selection
from spice_select.selection.budget import Budget


def run(
    config: RunConfig, reporter: Reporter, *, overwrite: bool = False, workers: Workers | None = None
) -> RunResult | None:
    """Rows in, a subset out: everything in order, into ``config.output.folder``.

    Started by torchrun or accelerate, its processes share the work and pick what one process would; the first writes.

    Args:
        config: All settings.
        reporter: Hears the progress.
        overwrite: Start again in a folder that holds something of other settings.
        workers: Other processes that measure the gradients.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ConfigError: A setting that is missing or does not fit these rows.
        DataError, ModelError: Something that cannot be read.
        OutputError, ResourceError: Something that cannot be written.
    """
    require_named(config, output=True)
    config, method = chosen_method(config)
    require_budget(config, method)
    with joined() as ranks:
        reporter = reporter if ranks.main else Silent()
        folder = RunFolder(config.output.folder)
        with ranks.together():
            if ranks.main:
                folder.check(config, overwrite=overwrite, selection=True)
            _require_one_process(method, ranks)
            _require_fixed(config, workers)
        warn_of_patterns(folder, reporter)
        clock = Clock()
        _begin(workers, config, method, reporter)
        with ranks.together():
            if config.schedule.kind == "pools":
                check_pools(config, reporter)
            else:
                check_warmup(config)
            pool = read_pool(config, reporter, clock)
            budget = check_selection(config, pool, everything=not method.takes_budget)
            if config.selection.budget is not None and not method.takes_budget:
                reporter.warn(
                    f"Method '{method.name}' takes every row; the budget of {config.selection.budget} is not applied."
                )
        if config.schedule.kind == "pools":
            return run_pools(config, pool, budget, folder, ranks, reporter, clock, overwrite=overwrite)
        measuring = Measuring(config, pool, folder, ranks, reporter, clock, overwrite=overwrite, workers=workers)
        with ranks.together():
            foresee([method], measuring.bench)
        store, warm = None, None
        if Need.GRADIENTS in method.required():
            store, warm = measuring.gradients()
        else:
            measuring.leave_gradients()
        result = None
        with ranks.together():
            if ranks.main:
                inputs = gather(method, measuring.bench, budget, store, seed=config.seed)
                inputs = _shared_out(inputs, config, method, workers, reporter)
                result = _choose(config, pool, budget, method, inputs, store, measuring.bench, folder, warm)
        return result


def collect(
    config: RunConfig, reporter: Reporter, *, overwrite: bool = False, workers: Workers | None = None
) -> StoreResult | None:
    """Measure the gradient of every row and leave the store; arguments, result and errors as for :func:`run`."""
    require_named(config, output=True)
    if config.schedule.kind == "pools":
        raise ConfigError("schedule.kind pools measures and selects in turn; use 'spice-select run', or kind fixed.")
    check_precondition(config)
    with joined() as ranks:
        reporter = reporter if ranks.main else Silent()
        folder = RunFolder(config.output.folder)
        with ranks.together():
            if ranks.main:
                folder.check(config, overwrite=overwrite, selection=False)
        clock = Clock()
        if workers is not None:
            workers.begin(config)
        with ranks.together():
            check_warmup(config)
            pool = read_pool(config, reporter, clock)
        measuring = Measuring(config, pool, folder, ranks, reporter, clock, overwrite=overwrite, workers=workers)
        store, _ = measuring.gradients()
        return StoreResult.of(folder, store, clock.seconds) if ranks.main else None


def select_from(
    source: str | Path,
    reporter: Reporter,
    *,
    budget: str | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    overwrite: bool = False,
    workers: Workers | None = None,
) -> RunResult:
    """Select from the gradients that a run or a collect has left.

    Args:
        source: The folder that holds ``gradients``.
        reporter: Hears the progress.
        budget: Budget, instead of the one in the folder's configuration.
        output: Folder for the result; the source itself when absent.
        overrides: ``section.key=value`` settings of the selection.
        preset: Preset of the selection.
        overwrite: Replace an earlier selection; gradients are never touched.
        workers: Other processes, which take the partitions of ``selection.partitions``.

    Raises:
        ConfigError: A setting that does not fit, or belongs to the gradients and would need a new collect.
        StoreError: Gradients that are missing, unfinished or not what was written.
        StoreMismatch: The rows are no longer those that the gradients were measured on.
    """
    origin = RunFolder(source)
    earlier = origin.read_config()
    flags: dict[str, Any] = {"output": {"folder": str(output if output is not None else source)}}
    if budget is not None:
        flags["selection"] = {"budget": budget}
    if earlier.schedule.kind == "pools":
        raise ConfigError(
            f"{origin.path} was selected pool by pool, each by a proxy of its own, and keeps no gradients to select "
            "from; run again with other settings into another folder."
        )
    config = with_whole_paths(load_config(origin.config, overrides, flags, preset))
    require_same_gradients(earlier, config)
    config, chosen = chosen_method(config)
    if measures_alone(chosen):
        raise ConfigError(
            f"Method '{chosen.name}' needs {', '.join(sorted(chosen.required()))}, and {origin.path} holds gradients; "
            f"use 'spice-select run --method {chosen.name}'."
        )
    require_budget(config, chosen)
    folder = RunFolder(config.output.folder)
    folder.check(config, overwrite=overwrite, selection=True)
    warn_of_patterns(folder, reporter)
    clock = Clock()
    store = GradientStore.open(origin.gradients)
    pool = read_pool(config, reporter, clock)
    if store.manifest.examples != pool.encoded.digest:
        raise StoreMismatch(
            f"The rows of {', '.join(config.data.sources)} are not those that {origin.gradients} was measured on; "
            "restore the rows, or collect again."
        )
    with clock.stage("verify"):
        store.verify()
    resolved = check_selection(config, pool, everything=not chosen.takes_budget)
    bench = Measuring(config, pool, folder, Ranks(), reporter, clock).bench
    inputs = gather(chosen, bench, resolved, store, seed=config.seed)
    inputs = _shared_out(inputs, config, chosen, workers, reporter)
    return _choose(config, pool, resolved, chosen, inputs, store, bench, folder)


def _choose(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    method: Method,
    inputs: Inputs,
    store: GradientStore | None,
    bench: Bench,
    folder: RunFolder,
    warm: WarmUp | None = None,
) -> RunResult:
    reporter, clock = bench.reporter, bench.clock
    reporter.stage("Selection")
    with clock.stage("selection"):
        choice = method.choose(inputs)
    selection = choice.selection
    if selection is None or store is None:
        return _hand_over(config, pool, budget, method, choice, store, bench, folder, warm)
    for line in selection.warnings:
        reporter.warn(line)
    with clock.stage("penalty"):
        changed = selection.changed_by_penalty if config.selection.conflict_weight else None
    with clock.stage("certificate"):
        certificate = _certify(config, pool, budget, store, selection)
    with clock.stage("activity"):
        activity = measure_activity(
            store,
            selection,
            factors=selection.factors,
            candidates=store.usable & ~excluded_rows(config, pool),
            initial=rows_in_hand(config, pool) or (),
            squared_norms=store.squared_norms,
            seed=config.seed,
        )
    reporter.stage("Results")
    measured = Measured.of(store, config.gradients.sketch)
    make_folder(folder.path)
    with Lock.exclusive(folder.path / ".lock", str(folder.path)):
        return deliver(
            config,
            pool,
            budget,
            measured,
            selection,
            certificate,
            folder,
            clock,
            changed=changed,
            activity=activity,
            schedule=None if warm is None else warm_record(warm),
        )


def _hand_over(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    method: Method,
    choice: Choice,
    store: GradientStore | None,
    bench: Bench,
    folder: RunFolder,
    warm: WarmUp | None,
) -> RunResult:
    """Results of a method that maximises something other than Fisher information."""
    told = tuple(bench.warnings)
    for line in choice.notes:
        bench.reporter.note(line)
    for line in choice.warnings:
        bench.reporter.warn(line)
    choice = replace(choice, warnings=tuple(dict.fromkeys([*told, *choice.warnings])))
    bench.reporter.stage("Results")
    make_folder(folder.path)
    with Lock.exclusive(folder.path / ".lock", str(folder.path)):
        return deliver_choice(
            config,
            pool,
            budget,
            _measured(config, pool, store, bench),
            choice,
            _method_record(method, choice, bench),
            folder,
            bench.clock,
            schedule=None if warm is None else warm_record(warm),
        )


def _measured(config: RunConfig, pool: Pool, store: GradientStore | None, bench: Bench) -> Measured:
    if store is not None:
        return Measured.of(store, config.gradients.sketch)
    return Measured.without_gradients(pool, bench.identity() if bench.used_proxy else None)


def _method_record(method: Method, choice: Choice, bench: Bench) -> MethodRecord:
    return MethodRecord(
        name=method.name,
        settings=method.model_dump(mode="json"),
        summary=method.summary,
        source=method.source,
        score=choice.score_name,
        passes=tuple(PassRecord(**passes.model_dump()) for passes in bench.passes.values()),
    )


def _require_one_process(method: Method, ranks: Ranks) -> None:
    if ranks.world > 1 and measures_alone(method):
        raise ConfigError(
            f"Method '{method.name}' needs {', '.join(sorted(method.required()))}, which one process measures; start "
            "it without torchrun or accelerate."
        )


def _require_fixed(config: RunConfig, workers: Workers | None) -> None:
    if workers is not None and config.schedule.kind == "pools":
        raise ConfigError(
            "schedule.kind pools trains one proxy on picks as it goes, which --engine ray has no part in; leave "
            "--engine out, or start it with torchrun."
        )


def _begin(workers: Workers | None, config: RunConfig, method: Method, reporter: Reporter) -> None:
    """Start the workers, which get ready while the rows are read."""
    if workers is None:
        return
    if Need.GRADIENTS in method.required():
        workers.begin(config)
    else:
        reporter.warn(f"Method '{method.name}' needs no gradients, so that --engine ray has nothing to share out.")
        # A command starts them before it knows.
        workers.close()


def _shared_out(
    inputs: Inputs, config: RunConfig, method: Method, workers: Workers | None, reporter: Reporter
) -> Inputs:
    """The same, with the partitions of the selection at the workers; other methods know of none."""
    if workers is None or not isinstance(method, InformationMethod):
        return inputs
    if config.selection.partitions == 1:
        reporter.note("One greedy is made by this process alone; --partitions shares it out.")
        return inputs
    return replace(inputs, partition_map=workers.mapper(config))


def _certify(
    config: RunConfig, pool: Pool, budget: Budget, store: GradientStore, selection: Selection
) -> Certificate | None:
    """The certificate of the picks; the diagonal forms have none."""
    if selection.fisher != "exact":
        return None
    return certify(
        store,
        selection.indices,
        alpha=selection.alpha,
        budget=budget.rows if budget.tokens is None else budget.tokens,
        factors=selection.factors,
        candidates=store.usable & ~excluded_rows(config, pool),
        initial=rows_in_hand(config, pool) or (),
        tokens=None if budget.tokens is None else store.lengths,
        penalised=selection.conflict_weight > 0,
        constrained=config.selection.quotas is not None or config.selection.per_token or selection.constrained,
        outlook=selection.outlook,
    )
