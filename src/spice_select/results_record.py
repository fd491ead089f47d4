"""What is recorded of a run: what was measured of its rows, what the method found, and both as one record."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.activity import ConflictActivity, measure_activity
from spice_select.analysis.certificate import Certificate
from spice_select.analysis.given import certify_given, given_trace
from spice_select.analysis.picked import Picked
from spice_select.analysis.record import (
    BudgetRecord,
    Fingerprints,
    MethodRecord,
    ModelRecord,
    ObjectiveRecord,
    ScheduleRecord,
    SelectionRecord,
    SourceRecord,
)
from spice_select.analysis.summary import Summary, summarise
from spice_select.config import RunConfig
from spice_select.gradients.store import GradientStore
from spice_select.methods.base import Choice
from spice_select.pool import Pool, excluded_rows, group_labels, rows_in_hand
from spice_select.run_folder import RunFolder
from spice_select.selection import Selection
from spice_select.selection.budget import Budget

_LIBRARIES = ("spice-select", "torch", "transformers", "tokenizers", "peft", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Measured:
    """What was measured of every row, whether or not its gradient was kept.

    Attributes:
        lengths: Response tokens.
        squared_norms: Squared gradient norm, before any normalisation; None without gradients.
        usable: Rows that could be chosen, but for those excluded by number.
        sketch: How the gradients were taken, in words.
        examples: Digest of the rows as the model sees them.
        fingerprint: Digest of what decides a gradient's numbers beside weights and rows.
        sources: Hashes of weights and tokenizer, and the coverage, by name.
        store: The gradients, where they were kept.
    """

    lengths: Int[np.ndarray, " n"]
    squared_norms: Float[np.ndarray, " n"] | None
    usable: Bool[np.ndarray, " n"]
    sketch: str
    examples: str
    fingerprint: str | None
    sources: Mapping[str, Any]
    store: GradientStore | None = None

    @classmethod
    def of(cls, store: GradientStore, kind: str) -> Measured:
        """What a store holds.

        Args:
            store: The gradients.
            kind: Name of the sketch.
        """
        return cls(
            lengths=store.lengths,
            squared_norms=store.squared_norms,
            usable=store.usable,
            sketch=f"{kind}, D = {store.dim}",
            examples=store.manifest.examples,
            fingerprint=store.manifest.fingerprint,
            sources=dict(store.manifest.sources),
            store=store,
        )

    @classmethod
    def without_gradients(cls, pool: Pool, sources: Mapping[str, Any] | None = None) -> Measured:
        """What is known of rows of which no gradient was measured.

        Args:
            pool: The rows.
            sources: Hashes of weights and tokenizer by name, where a model was run.
        """
        return cls(
            lengths=pool.encoded.response_tokens,
            squared_norms=None,
            usable=pool.encoded.usable,
            sketch="",
            examples=pool.encoded.digest,
            fingerprint=None,
            sources=dict(sources or {}),
        )


def versions() -> dict[str, str]:
    """Versions of Python and of every library that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Found:
    """What a method has found, and what was measured of it.

    Attributes:
        picked: The picks.
        stop_reason: Why the choice ended.
        objective: What was maximised, or how information was measured; None without gradients.
        information: F of the picks, in nats; None without gradients.
        certificate: What they are proven to hold.
        loop: Loop that maximised the information; empty where the method maximises something else.
        sampling_epsilon: Expected shortfall of its samples, where it drew any.
        partitions: Partitions of its first round; 1: there was none.
        changed: Picks that the penalty changed; None where there was no penalty.
        activity: Conflict in pool and picks.
        notes: What a user should read.
        warnings: What a user should act on.
    """

    picked: Picked
    stop_reason: str
    objective: ObjectiveRecord | None = None
    information: float | None = None
    certificate: Certificate | None = None
    loop: str = ""
    sampling_epsilon: float | None = None
    partitions: int = 1
    changed: int | None = None
    activity: ConflictActivity | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def found_by_selection(
    selection: Selection,
    certificate: Certificate | None,
    alpha_asked: float | str,
    *,
    changed: int | None,
    activity: ConflictActivity | None,
) -> Found:
    """What a selection that maximises information has found."""
    return Found(
        picked=Picked(
            selection.indices,
            selection.scores,
            selection.gains,
            selection.bases,
            selection.epsilons,
            selection.conflicts,
        ),
        stop_reason=selection.stop_reason,
        objective=ObjectiveRecord(
            fisher=selection.fisher,
            alpha=selection.alpha,
            alpha_asked=alpha_asked,
            conflict_weight=selection.conflict_weight,
            penalty=selection.penalty,
            reference=selection.reference,
            hinge=selection.hinge,
            normalize=selection.normalize,
        ),
        information=selection.information,
        certificate=certificate,
        loop=selection.loop,
        sampling_epsilon=selection.sampling_epsilon,
        partitions=selection.partitions,
        changed=changed,
        activity=activity,
        warnings=selection.warnings,
    )


def found_by_choice(config: RunConfig, pool: Pool, budget: Budget, measured: Measured, choice: Choice) -> Found:
    """What any method has found; where there are gradients, the information of its picks is measured.

    Raises:
        ConfigError: A setting of the selection section that the gradients don't allow.
    """
    picked = Picked(np.asarray(choice.indices, np.int64), np.asarray(choice.scores, np.float64))
    bare = Found(picked, choice.stop_reason, notes=choice.notes, warnings=choice.warnings)
    store = measured.store
    if store is None:
        return bare
    settings, in_hand = config.selection, rows_in_hand(config, pool) or ()
    candidates = measured.usable & ~excluded_rows(config, pool)
    trace = given_trace(
        store,
        picked.indices,
        normalize=settings.normalize,
        alpha=settings.alpha,
        reference=settings.reference,
        hinge=settings.hinge,
        members=candidates,
        lengths=measured.lengths,
        initial=in_hand,
    )
    objective = ObjectiveRecord(
        fisher="exact",
        alpha=trace.alpha,
        alpha_asked=settings.alpha,
        conflict_weight=0.0,
        penalty=settings.penalty,
        reference=trace.reference,
        hinge=trace.hinge,
        normalize=settings.normalize,
    )
    certificate = certify_given(
        store,
        picked.indices,
        alpha=trace.alpha,
        budget=budget.rows if budget.tokens is None else budget.tokens,
        factors=trace.factors,
        candidates=candidates,
        initial=in_hand,
        tokens=None if budget.tokens is None else measured.lengths,
    )
    activity = measure_activity(
        store,
        trace,
        factors=trace.factors,
        candidates=candidates,
        initial=in_hand,
        squared_norms=measured.squared_norms,
        seed=config.seed,
    )
    return replace(
        bare,
        picked=Picked(picked.indices, picked.scores, trace.gains, trace.bases, trace.epsilons, trace.conflicts),
        objective=objective,
        information=trace.information,
        certificate=certificate,
        activity=activity,
    )


def build_record(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    measured: Measured,
    found: Found,
    folder: RunFolder,
    timings: Mapping[str, float],
    *,
    method: MethodRecord | None = None,
    schedule: ScheduleRecord | None = None,
) -> SelectionRecord:
    """All that is known of a finished selection, as ``selection.json`` holds it."""
    excluded, in_hand = excluded_rows(config, pool), rows_in_hand(config, pool)
    summary = _summary(config, pool, measured, found, usable=measured.usable & ~excluded, schedule=schedule)
    settings = config.selection
    identity = measured.sources
    return SelectionRecord(
        n=len(pool.rows),
        usable=summary.pool,
        k=len(found.picked.indices),
        objective=found.objective,
        budget=BudgetRecord(
            asked=settings.budget,
            rows=budget.rows if budget.tokens is None else None,
            tokens=budget.tokens,
            stop_ratio=settings.stop_ratio,
            groups=settings.groups if settings.quotas is not None else None,
            initial=len(in_hand or ()),
            excluded=int(excluded.sum()),
        ),
        information=found.information,
        certificate=found.certificate,
        certificate_sentence=found.certificate.sentence() if found.certificate else None,
        stop_reason=found.stop_reason,
        summary=summary,
        loop=found.loop,
        sampling_epsilon=found.sampling_epsilon,
        partitions=found.partitions,
        timings=dict(timings),
        seed=config.seed,
        preset=config.preset,
        sketch=measured.sketch,
        versions=versions(),
        model=_model(config, measured, method),
        fingerprints=Fingerprints(
            rows=pool.rows.fingerprint,
            encoded=measured.examples,
            weights=identity.get("weights"),
            tokenizer=identity.get("tokenizer"),
            template=pool.encoded.identity.get("template"),
            sketch=measured.fingerprint,
        ),
        sources=tuple(
            SourceRecord(
                name=source.name,
                origin=source.origin,
                revision=source.revision,
                format=source.format,
                rows=source.rows,
                fingerprint=source.fingerprint,
                columns=schema.describe(),
            )
            for source, schema in zip(pool.rows.sources, pool.schemas, strict=True)
        ),
        schedule=schedule,
        method=method,
        gradients=_elsewhere(measured, folder),
        notes=(*pool.notes, *found.notes),
        warnings=tuple(dict.fromkeys([*summary.warnings, *found.warnings])),
    )


def _model(config: RunConfig, measured: Measured, method: MethodRecord | None) -> ModelRecord | None:
    """The proxy; None where nothing went through a model."""
    if method is not None and measured.squared_norms is None and not method.passes:
        return None
    return ModelRecord(
        name=config.model.name,
        revision=config.model.revision,
        dtype=config.model.dtype,
        device=config.model.device,
        coverage=measured.sources.get("coverage"),
    )


def _elsewhere(measured: Measured, folder: RunFolder) -> str | None:
    if measured.store is None or measured.store.folder.absolute() == folder.gradients.absolute():
        return None
    return str(measured.store.folder.absolute())


def _summary(
    config: RunConfig,
    pool: Pool,
    measured: Measured,
    found: Found,
    *,
    usable: Bool[np.ndarray, " n"],
    schedule: ScheduleRecord | None,
) -> Summary:
    return summarise(
        found.picked,
        lengths=measured.lengths,
        squared_norms=measured.squared_norms,
        sources=pool.source_labels,
        groups=None if config.selection.groups in (None, "source") else group_labels(config, pool),
        usable=usable,
        changed_by_penalty=found.changed,
        normalize="none" if found.objective is None else found.objective.normalize,
        activity=found.activity,
        proxy="fixed" if schedule is None else "pools" if schedule.kind == "pools" else "warmed",
        outlying_pools=None if schedule is None else schedule.outlying,
        robust_stop=config.selection.robust_stop,
        maximised=bool(found.loop),
    )
