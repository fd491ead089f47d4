"""A run in pools, from the loaded proxy to the picks: puts the parts together, on one process or on several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from spice_select.analysis.record import TrainingRecord
from spice_select.config import RunConfig
from spice_select.data.encoded import Encoded
from spice_select.files import Lock, make_folder, remove_tree
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.precondition import layer_moments
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.reporter import Clock, Reporter, heard
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.gram import LEAST_DIM, exact_fits
from spice_select.schedule.log import PoolEntry, SelectionLog
from spice_select.schedule.pools import Offer, PoolSchedule
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.recall import Recall
from spice_select.schedule.resume import Checkpoints
from spice_select.schedule.tracking import Tracking
from spice_select.schedule.trainer import ProxyTrainer
from spice_select.schedule.walk import Walk
from spice_select.schedule.warmup import WarmUp, take_up, wanted, warm_up

# Settings that say how fast or how loudly the picks come about, and not which.
_NO_IDENTITY = {"gram_bytes", "tracker", "keep_gram"}


@dataclass(frozen=True)
class Walked:
    """A finished walk.

    Attributes:
        entries: One line a pool.
        trainings: The warm-up, and every training after it.
        steps_at: Optimiser steps that had been taken when a pool was offered.
        identity: SHA-256 of everything that decided the picks.
        sources: Hashes of weights and tokenizer, and the coverage.
    """

    entries: Sequence[PoolEntry]
    trainings: Sequence[TrainingRecord]
    steps_at: Callable[[int], int]
    identity: str
    sources: dict[str, Any]


def start_again(folder: Path) -> None:
    """Throw away what a schedule has left.

    Raises:
        OutputBusy: Another run is at it.
    """
    if folder.is_dir():
        with Lock.exclusive(folder / ".lock", str(folder)):
            remove_tree(folder)


def load_base(config: RunConfig, ranks: Ranks, reporter: Reporter, clock: Clock) -> Proxy:
    """The proxy as it comes, on this process's device: without adapters of its own, whatever will be measured.

    Raises:
        ConfigError, ModelError: A device that is not there, or a model that cannot be used.
    """
    reporter.stage("Proxy")
    with clock.stage("model"), ranks.together(), heard(reporter):
        model = config.model.model_copy(update={"device": ranks.device(config.model.device)})
        proxy = load_proxy(model, config.gradients.model_copy(update={"lora": None}))
    reporter.note(proxy.summary())
    return proxy


def learning_engine(config: RunConfig, ranks: Ranks, reporter: Reporter, clock: Clock) -> GradientEngine:
    """Gradients of the weights that pools train, on the proxy as it comes: to see what they cost."""
    base = load_base(config, ranks, reporter, clock)
    with heard(reporter):
        proxy = attach_adapters(base, config.schedule, config.seed, config.gradients.layers)
        return GradientEngine(proxy, trained_scope(config.gradients, config.schedule))


def warmed(
    config: RunConfig,
    base: Proxy,
    encoded: Encoded,
    usable: Bool[np.ndarray, " rows"],
    folder: Path,
    ranks: Ranks,
    reporter: Reporter,
) -> tuple[Proxy, WarmUp]:
    """The proxy after a warm-up, with the scope that ``gradients`` names; adapters are merged unless it names them.

    With ``gradients.precondition`` the scope is the trained weights, as no others have moments.

    Args:
        config: The settings of the run.
        base: The proxy as it comes; its model is trained in place.
        encoded: Token ids of all rows.
        usable: Rows that may be drawn for the warm-up.
        folder: Keeps the checkpoint.
        ranks: The processes of the run; all call this.
        reporter: Hears what is done.

    Raises:
        ConfigError, ModelError: A setting or proxy that cannot be used, or a proxy that diverged.
    """
    with ranks.together():
        proxy = attach_adapters(base, config.schedule, config.seed, config.gradients.layers)
    with _alone(folder, ranks, reporter):
        warm = warm_up(config, encoded, usable, proxy, folder / "warm-up", ranks, reporter)
    return _as_measured(config, proxy), warm


def warmed_elsewhere(config: RunConfig, base: Proxy, checkpoint: Path) -> tuple[Proxy, WarmUp]:
    """The proxy as :func:`warmed` has left it in another process.

    Args:
        config: The settings of the run.
        base: The proxy as it comes.
        checkpoint: What the warm-up left.

    Raises:
        StoreCorrupt, StoreMismatch: A checkpoint that is damaged or of another proxy.
    """
    proxy = attach_adapters(base, config.schedule, config.seed, config.gradients.layers)
    warm = take_up(config, proxy, checkpoint)
    return _as_measured(config, proxy), warm


def _as_measured(config: RunConfig, proxy: Proxy) -> Proxy:
    """A trained proxy with the scope of the gradients."""
    if config.gradients.precondition == "adam":
        return proxy
    model = proxy.model
    if config.schedule.scope == "lora" and config.gradients.lora is None:
        model = model.merge_and_unload()
    return proxy.rescoped(config.gradients, model)


def warm_engine(config: RunConfig, proxy: Proxy, warm: WarmUp) -> GradientEngine:
    """Gradients of a proxy from :func:`warmed`: as they are, or as Adam's steps by the warm-up's moments.

    Raises:
        ModelError: The proxy's loss is not reproduced, or a layer has had no gradient in the warm-up.
    """
    if config.gradients.precondition == "none":
        return GradientEngine(proxy, config.gradients)
    scope = trained_scope(config.gradients, config.schedule)
    return GradientEngine(proxy, scope, precondition=layer_moments(proxy.scope, warm.moments))


def walk_pools(
    config: RunConfig,
    base: Proxy,
    offer: Offer,
    folder: Path,
    ranks: Ranks,
    reporter: Reporter,
    clock: Clock,
) -> Walked:
    """Walk the rows in pools, taking up what an earlier run of the same settings has left.

    Args:
        config: The settings of the run.
        base: The proxy as it comes; its model is trained in place.
        offer: The rows.
        folder: Keeps log and checkpoints.
        ranks: The processes of the run; all call this.
        reporter: Hears the progress.
        clock: Seconds by stage.

    Raises:
        ConfigError, ModelError: A setting or proxy that cannot be used, or a proxy that diverged.
        StoreMismatch, StoreCorrupt: A log of another run, or one that was damaged.
        OutputBusy: Another run is at this folder.
    """
    with _alone(folder, ranks):
        return _walk(config, base, offer, folder, ranks, reporter, clock)


@contextmanager
def _alone(folder: Path, ranks: Ranks, waits: Reporter | None = None) -> Iterator[None]:
    """Keep other runs out of a schedule's folder; where one is there, wait for it if ``waits`` is to hear of that."""
    lock = None
    with ranks.together():
        if ranks.main:
            make_folder(folder)
            path = folder / ".lock"
            lock = Lock.try_acquire(path) if waits is not None else Lock.exclusive(path, str(folder))
            if lock is None and waits is not None:
                waits.note(f"Another run is warming the proxy up in {folder}; waiting for it.")
                lock = Lock.acquire(path)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _walk(
    config: RunConfig, base: Proxy, offer: Offer, folder: Path, ranks: Ranks, reporter: Reporter, clock: Clock
) -> Walked:
    schedule = config.schedule
    with ranks.together(), heard(reporter):
        identity = _identity(config, offer, base)
        proxy = attach_adapters(base, schedule, config.seed, config.gradients.layers)
    if schedule.scope == "lora":
        count = sum(layer.size for layer in proxy.layers)
        reporter.note(f"Adapters of rank {schedule.lora.r} on them are trained: {count:,} weights.")
    warm: WarmUp | None = None
    if wanted(schedule):
        with clock.stage("warm-up"):
            warm = warm_up(config, offer.encoded, offer.rows, proxy, folder / "warm-up", ranks, reporter)
    with ranks.together(), heard(reporter):
        scope = trained_scope(config.gradients, schedule)
        if schedule.memory == "sketch":
            scope = scope.model_copy(update={"sketch": "fold", "dim": max(LEAST_DIM, scope.dim)})
        engine = GradientEngine(proxy, scope)
    log = _shared_log(folder / "log.jsonl", identity, ranks)
    picked = sum(len(entry.picks) for entry in log.entries)
    recall = None
    if schedule.memory == "sketch":
        recall = Recall(folder / "memory.f32", schedule.memory_rows, engine.dim, picked, ranks)
    walk = Walk.plan(offer.rows, schedule.pool_size, config.seed)
    steps = walk.steps(lambda number: _expected(config, offer, walk, number), schedule.interval, schedule.batch_size)
    trainer = ProxyTrainer(proxy, schedule, config.seed, steps, config.gradients.batch_tokens)
    with ranks.together():
        tracking = Tracking.start(schedule.tracker if ranks.main else None, folder / "tracker", _flat(config))
    reporter.stage("Pools")
    reporter.note(_plan(config, offer, walk, steps))
    runner = PoolSchedule(
        config,
        offer,
        walk,
        engine,
        trainer,
        Checkpoints(folder / "proxy", identity, ranks),
        log,
        ranks,
        reporter,
        recall,
        tracking,
        folder / "gram" if schedule.keep_gram else None,
    )
    try:
        runner.run()
    finally:
        tracking.close()
        for stage, seconds in runner.progress.seconds.items():
            clock.seconds[stage] = clock.seconds.get(stage, 0.0) + seconds
    warmed = [] if warm is None else [warm.training]
    return Walked(
        entries=log.entries,
        trainings=[*warmed, *runner.trainings],
        steps_at=lambda pools: sum(training.steps for training in warmed) + runner.steps_at(pools),
        identity=identity,
        sources={
            "weights": base.weights_hash,
            "tokenizer": base.tokenizer_hash,
            "coverage": round(base.coverage, 6),
        },
    )


def _shared_log(path: Path, identity: str, ranks: Ranks) -> SelectionLog:
    """The log, which the first process keeps; the others hold a copy in memory."""
    with ranks.together():
        log = SelectionLog(path if ranks.main else None, identity)
    entries = ranks.broadcast([entry.model_dump(mode="json") for entry in log.entries] if ranks.main else None)
    if not ranks.main:
        log.entries.extend(PoolEntry.model_validate(entry) for entry in entries)
    return log


def _identity(config: RunConfig, offer: Offer, base: Proxy) -> str:
    content = {
        "examples": offer.encoded.digest,
        "offered": hashlib.sha256(np.packbits(offer.rows).tobytes()).hexdigest(),
        "labels": None if offer.labels is None else hashlib.sha256("\0".join(offer.labels).encode()).hexdigest(),
        "weights": base.weights_hash,
        "dtype": str(base.dtype),
        "seed": config.seed,
        "schedule": config.schedule.model_dump(mode="json", exclude=_NO_IDENTITY),
        # Pools use none of the loops that sample, nor partitions.
        "selection": config.selection.model_copy(update={"loop": "auto", "partitions": 1}).identity(),
        "gradients": config.gradients.model_dump(mode="json", include={"layers", "loss", "seed", "dim"}),
    }
    if config.schedule.scope == "full" and config.schedule.memory == "none":
        # The memory decides between exact products and a fold, whose picks are others.
        size, memory = sum(layer.size for layer in base.layers), config.schedule.gram_bytes
        rows = int(offer.rows.sum())
        counts = {min(rows, config.schedule.pool_size), rows % config.schedule.pool_size} - {0}
        content["exact"] = [exact_fits(count, size, memory) for count in sorted(counts)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _expected(config: RunConfig, offer: Offer, walk: Walk, number: int) -> int:
    """Picks that a pool will give at most, what other pools have left over aside."""
    if config.selection.budget is None:
        return len(walk.pool(number))
    if offer.budget.tokens is None:
        return walk.fair(offer.budget.rows, number)
    # Were there more steps than foreseen, the learning rate would be 0 for the rest: so the shortest rows count.
    shortest = np.cumsum(np.sort(offer.encoded.response_tokens[walk.pool(number)]))
    return int(np.searchsorted(shortest, walk.fair(offer.budget.tokens, number), side="right"))


def _plan(config: RunConfig, offer: Offer, walk: Walk, steps: int) -> str:
    schedule = config.schedule
    line = f"{len(walk.order):,} rows in {len(walk):,} pools of {walk.pool_size}"
    if config.selection.budget is not None:
        picks = walk.fair(offer.budget.rows, 0) if offer.budget.tokens is None else None
        line += f", {_about(picks)}" if picks is not None else f", {offer.budget.tokens:,} tokens in all"
    if steps:
        most = "at most " if config.selection.stop_ratio is not None or offer.budget.tokens is not None else ""
        count = f"{most}{steps} optimiser step{'' if steps == 1 else 's'}"
        line += f"; the proxy is trained every {schedule.interval} pools, {count} in all"
    else:
        line += f"; too few for the proxy to be trained, as schedule.interval is {schedule.interval}"
    return line + "."


def _about(picks: int) -> str:
    if picks == 0:
        return "less than one pick each"
    return f"about {picks} pick{'' if picks == 1 else 's'} each"


def _flat(config: RunConfig) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section in ("selection", "schedule")
        for key, value in getattr(config, section).model_dump(mode="json").items()
    }
