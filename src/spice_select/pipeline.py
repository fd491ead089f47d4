"""The order of the stages: rows, token ids, gradients, selection, results. The only file that knows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spice_select.analysis.activity import measure_activity
from spice_select.analysis.certificate import Certificate, certify
from spice_select.config import RunConfig, load_config
from spice_select.cost import Cost, estimate, in_pools, with_warmup
from spice_select.errors import ConfigError, StoreMismatch
from spice_select.files import Lock, make_folder
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.collect import collect as collect_gradients
from spice_select.gradients.collect import start_again
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.gradients.store import GradientStore
from spice_select.online import run_pools
from spice_select.paths import with_whole_paths
from spice_select.pool import Pool, check_selection, excluded_rows, group_labels, read_pool, rows_in_hand
from spice_select.preconditions import require_budget, require_named, require_same_gradients, warn_of_patterns
from spice_select.reporter import Clock, Reporter, Silent, heard
from spice_select.results import Measured, RunResult, StoreResult, deliver
from spice_select.run_folder import RunFolder
from spice_select.schedule.checks import check_pools, check_warmup
from spice_select.schedule.ranks import Ranks, joined
from spice_select.schedule.session import learning_engine, load_base, warmed
from spice_select.schedule.session import start_again as discard_schedule
from spice_select.schedule.warmup import WarmUp, wanted, warm_record, warmup_rows
from spice_select.selection import Selection, select
from spice_select.selection.budget import Budget


def run(config: RunConfig, reporter: Reporter, *, overwrite: bool = False) -> RunResult | None:
    """Rows in, a subset out: everything in order, into ``config.output.folder``.

    Started by torchrun or accelerate, its processes share the work and pick what one process would; the first writes.

    Args:
        config: All settings.
        reporter: Hears the progress.
        overwrite: Start again in a folder that holds something of other settings.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ConfigError: A setting that is missing or does not fit these rows.
        DataError, ModelError: Something that cannot be read.
        OutputError, ResourceError: Something that cannot be written.
    """
    require_named(config, output=True)
    require_budget(config)
    with joined() as ranks:
        reporter = reporter if ranks.main else Silent()
        folder = RunFolder(config.output.folder)
        with ranks.together():
            if ranks.main:
                folder.check(config, overwrite=overwrite, selection=True)
        warn_of_patterns(folder, reporter)
        clock = Clock()
        with ranks.together():
            if config.schedule.kind == "pools":
                check_pools(config, reporter)
            else:
                check_warmup(config)
            pool = read_pool(config, reporter, clock)
            budget = check_selection(config, pool)
        if config.schedule.kind == "pools":
            return run_pools(config, pool, budget, folder, ranks, reporter, clock, overwrite=overwrite)
        store, warm = _measure(config, pool, folder, ranks, reporter, clock, overwrite=overwrite)
        result = None
        with ranks.together():
            if ranks.main:
                result = _choose(config, pool, budget, store, folder, reporter, clock, warm)
        return result


def collect(config: RunConfig, reporter: Reporter, *, overwrite: bool = False) -> StoreResult | None:
    """Measure the gradient of every row and leave the store; arguments, result and errors as for :func:`run`."""
    require_named(config, output=True)
    if config.schedule.kind == "pools":
        raise ConfigError("schedule.kind pools measures and selects in turn; use 'spice-select run', or kind fixed.")
    with joined() as ranks:
        reporter = reporter if ranks.main else Silent()
        folder = RunFolder(config.output.folder)
        with ranks.together():
            if ranks.main:
                folder.check(config, overwrite=overwrite, selection=False)
        clock = Clock()
        with ranks.together():
            check_warmup(config)
            pool = read_pool(config, reporter, clock)
        store, _ = _measure(config, pool, folder, ranks, reporter, clock, overwrite=overwrite)
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
    require_budget(config)
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
    resolved = check_selection(config, pool)
    return _choose(config, pool, resolved, store, folder, reporter, clock)


def dry_run(config: RunConfig, reporter: Reporter, *, selection: bool = True) -> Cost:
    """Measure a few batches of this very model and data and say what the whole would cost; nothing is written."""
    require_named(config, output=False)
    if selection:
        require_budget(config)
    if config.output.folder:
        RunFolder(config.output.folder).check(config, overwrite=True, selection=selection)
    pools = config.schedule.kind == "pools"
    if pools:
        check_pools(config, reporter)
    else:
        check_warmup(config)
    pool = read_pool(config, reporter, Clock())
    picks = check_selection(config, pool).rows if selection else 0
    if pools:
        engine = learning_engine(config, Ranks(), reporter, Clock())
    else:
        _, engine = _load_engine(config, pool, reporter)
    reporter.stage("Measuring a few batches")
    cost = estimate(engine, pool.encoded, config, picks=picks)
    drawn = warmup_rows(pool.encoded.usable, config.schedule, config.seed) if wanted(config.schedule) else []
    trained = int(pool.encoded.lengths[drawn].sum()) if len(drawn) else 0
    return in_pools(cost, config, trained) if pools else with_warmup(cost, trained)


def _load_engine(
    config: RunConfig, pool: Pool, reporter: Reporter, ranks: Ranks | None = None
) -> tuple[Proxy, GradientEngine]:
    reporter.stage("Proxy")
    device = config.model.device if ranks is None else ranks.device(config.model.device)
    with heard(reporter):
        proxy = load_proxy(config.model.model_copy(update={"device": device}), config.gradients)
        engine = GradientEngine(proxy, config.gradients)
    reporter.note(proxy.summary())
    return proxy, engine


def _measure(
    config: RunConfig,
    pool: Pool,
    folder: RunFolder,
    ranks: Ranks,
    reporter: Reporter,
    clock: Clock,
    *,
    overwrite: bool,
) -> tuple[GradientStore, WarmUp | None]:
    warms = wanted(config.schedule)
    if warms:
        proxy = load_base(config, ranks, reporter, clock)
    else:
        with clock.stage("model"), ranks.together():
            proxy, engine = _load_engine(config, pool, reporter, ranks)
    with ranks.together():
        if ranks.main:
            if overwrite:
                discard_schedule(folder.schedule)
            folder.claim(config, overwrite=overwrite)
    warm = None
    if warms:
        usable = pool.encoded.usable & ~excluded_rows(config, pool)
        with clock.stage("warm-up"):
            proxy, warm = warmed(config, proxy, pool.encoded, usable, folder.schedule, ranks, reporter)
        with ranks.together(), heard(reporter):
            engine = GradientEngine(proxy, config.gradients)
    reporter.stage("Gradients")
    identity: dict[str, Any] = {
        "weights": proxy.weights_hash,
        "tokenizer": proxy.tokenizer_hash,
        "coverage": round(proxy.coverage, 6),
        "encoding": dict(pool.encoded.identity),
    }
    if warm is not None:
        identity["warm_up"] = warm.digest
    if overwrite:
        with ranks.together():
            if ranks.main:
                start_again(pool.encoded, engine, folder.gradients, config.gradients, identity=identity)
    with clock.stage("gradients"), ranks.together(), heard(reporter):
        result = collect_gradients(
            pool.encoded,
            engine,
            folder.gradients,
            config.gradients,
            identity=identity,
            progress=reporter.advance,
            note=reporter.warn,
        )
    for line in result.describe():
        reporter.note(line)
    return result.store, warm


def _choose(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    store: GradientStore,
    folder: RunFolder,
    reporter: Reporter,
    clock: Clock,
    warm: WarmUp | None = None,
) -> RunResult:
    reporter.stage("Selection")
    settings = config.selection
    labels = group_labels(config, pool)
    with clock.stage("selection"):
        selection = select(
            store,
            budget=settings.budget,
            alpha=settings.alpha,
            conflict_weight=settings.conflict_weight,
            penalty=settings.penalty,
            reference=settings.reference,
            hinge=settings.hinge,
            normalize=settings.normalize,
            stop_ratio=settings.stop_ratio,
            robust_stop=settings.robust_stop,
            fisher=settings.fisher,
            loop=settings.loop,
            per_token=settings.per_token,
            groups=labels if settings.quotas is not None else None,
            quotas=settings.quotas,
            initial=rows_in_hand(config, pool),
            exclude=excluded_rows(config, pool),
        )
    for line in selection.warnings:
        reporter.warn(line)
    with clock.stage("penalty"):
        changed = selection.changed_by_penalty if settings.conflict_weight else None
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
        # Not before there are picks: a selection that fails leaves the earlier one and its configuration alone.
        folder.claim(config, overwrite=True)
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
        constrained=config.selection.quotas is not None or config.selection.per_token,
        outlook=selection.outlook,
    )
