"""The numbers of a comparison, from what each method chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spice_select.analysis.contest import Contest, Contestant, PickNumbers, Taken
from spice_select.analysis.contest_lines import method_lines, overlap_matrix, sharing, verdict, yardstick_label
from spice_select.analysis.contest_numbers import Ground, Scale, measure_picks, measure_scale
from spice_select.analysis.contest_training import TrainingSetup, shared_sentence
from spice_select.config import RunConfig
from spice_select.gradients.store import GradientStore
from spice_select.pool import Pool, excluded_rows, group_labels, rows_in_hand
from spice_select.reporter import Clock
from spice_select.results import versions
from spice_select.selection.budget import Budget


def contest_of(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    store: GradientStore | None,
    gradient_taken: Sequence[Taken],
    entries: Sequence[Contestant],
    picks: Mapping[str, Sequence[tuple[int, ...]]],
    clock: Clock,
    *,
    seeds: int,
    training: TrainingSetup | None = None,
) -> Contest:
    """All numbers of a comparison.

    Args:
        config: The settings.
        pool: The rows.
        budget: The budget, resolved.
        store: The gradients; without, information and diversity are unknown.
        gradient_taken: What the gradients took of the model.
        entries: One for each method and seed, without numbers as yet.
        picks: By method, the rows chosen under each seed that led to a choice, in the order of the entries.
        clock: Seconds by stage so far.
        seeds: Seeds of every method that draws.
        training: What the trainings on the picks share, where there were any.
    """
    settings = config.selection
    ground = _ground(config, pool, store)
    scale: Scale | None = None
    if store is not None:
        with clock.stage("yardstick"):
            scale = measure_scale(ground, budget, alpha=settings.alpha, normalize=settings.normalize)
    measured: dict[tuple[int, ...], PickNumbers] = {}
    contestants = []
    places = dict.fromkeys(picks, 0)
    for entry in entries:
        if entry.error is not None:
            contestants.append(entry)
            continue
        rows = picks[entry.label][places[entry.label]]
        places[entry.label] += 1
        if rows not in measured:
            with clock.stage("numbers"):
                measured[rows] = measure_picks(ground, rows, scale)
        contestants.append(entry.model_copy(update={"numbers": measured[rows]}))
    random = yardstick_label(contestants)
    lines = method_lines(contestants, random)
    numbers = ground.numbers()
    taken = {entry.label: entry.cost.taken for entry in contestants if entry.cost is not None}
    gradient_keys = {one.measurement for one in gradient_taken}
    by_gradients = {label: held for label, held in taken.items() if gradient_keys & {one.measurement for one in held}}
    yardstick = None if scale is None else scale.yardstick
    return Contest(
        pool=numbers,
        asked=settings.budget,
        selection=settings.model_dump(mode="json"),
        rows=budget.rows if budget.tokens is None else None,
        tokens=budget.tokens,
        seed=config.seed,
        seeds=seeds,
        yardstick=yardstick,
        random=random,
        methods=lines,
        contestants=tuple(contestants),
        overlap=overlap_matrix(picks, len(pool.rows), numbers.candidates),
        gradient_sharing=sharing(by_gradients),
        sharing=sharing(taken),
        verdict=verdict(lines, numbers, yardstick, random, training),
        warnings=_warnings(contestants, training),
        training=training,
        model=_model_name(config),
        fingerprints={
            "rows": pool.rows.fingerprint,
            "encoded": pool.encoded.digest,
            "weights": None if store is None else str(store.manifest.sources.get("weights")),
            "gradients": None if store is None else store.manifest.fingerprint,
        },
        versions=versions(),
        timings=dict(clock.seconds),
    )


def _ground(config: RunConfig, pool: Pool, store: GradientStore | None) -> Ground:
    in_hand = rows_in_hand(config, pool) or []
    candidates = pool.encoded.usable & ~excluded_rows(config, pool)
    candidates[in_hand] = False
    labels = {"source": pool.source_labels}
    grouped = group_labels(config, pool)
    if grouped is not None and config.selection.groups not in (None, "source"):
        labels[str(config.selection.groups)] = grouped
    return Ground(
        candidates=candidates,
        response_tokens=np.asarray(pool.encoded.response_tokens),
        labels=labels,
        in_hand=in_hand,
        gradients=store,
        squared_norms=None if store is None else np.asarray(store.squared_norms, dtype=np.float64),
        known=None if store is None else np.asarray(store.usable),
        seed=config.seed,
    )


def _model_name(config: RunConfig) -> str:
    """The proxy's name; of a folder the last part, as the path to it says more of a machine than of the model."""
    name = config.model.name
    title = Path(name).name if Path(name).exists() else name
    return f"{title}@{config.model.revision}" if config.model.revision else title


def _warnings(contestants: Sequence[Contestant], training: TrainingSetup | None) -> tuple[str, ...]:
    """Each once, with the method that it is of."""
    found: dict[str, None] = {}
    if training is not None and training.in_pool:
        found[shared_sentence(training.in_pool, training.rows)] = None
    for one in contestants:
        if one.error is not None:
            found[f"{one.label} made no choice: {one.error}"] = None
        if one.training_error is not None:
            found[f"{one.label} was not trained under every seed: {one.training_error}"] = None
        left_out = max((trial.left_out for trial in one.training or ()), default=0)
        if left_out:
            found[f"{one.label}: {left_out:,} of its picks have no response as the trained model reads them."] = None
        for line in one.warnings:
            found[f"{one.label}: {line}"] = None
        if one.numbers is not None and one.numbers.without_gradient:
            found[
                f"{one.label}: {one.numbers.without_gradient:,} of its picks have no gradient and count for nothing."
            ] = None
    return tuple(found)
