"""What a command leaves: the chosen rows, the record of the run, its card and its page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict

from spice_select.analysis.activity import ConflictActivity
from spice_select.analysis.certificate import Certificate
from spice_select.analysis.record import (
    BudgetRecord,
    Fingerprints,
    ModelRecord,
    ObjectiveRecord,
    ScheduleRecord,
    SelectionRecord,
    SourceRecord,
)
from spice_select.analysis.summary import Summary, summarise
from spice_select.config import RunConfig
from spice_select.export.card import CardFacts
from spice_select.export.dataset import write_dataset
from spice_select.gradients.store import GradientStore
from spice_select.pages import write_page
from spice_select.pool import Pool, excluded_rows, group_labels, rows_in_hand
from spice_select.report.content import STOPS
from spice_select.reporter import Clock
from spice_select.run_folder import RunFolder
from spice_select.selection import Selection
from spice_select.selection.budget import Budget

_LIBRARIES = ("spice-select", "torch", "transformers", "tokenizers", "peft", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class RunResult:
    """A finished selection.

    Attributes:
        folder: Where everything lies.
        record: What ``selection.json`` holds.
    """

    folder: RunFolder
    record: SelectionRecord

    def describe(self) -> list[str]:
        """The result in a few lines, warnings last."""
        record = self.record
        share = record.k / record.usable if record.usable else 0.0
        lines = [
            f"Chose {record.k:,} of {record.n:,} rows ({record.usable:,} usable, {share:.1%} of them kept);"
            f" {STOPS[record.stop_reason]}.",
            f"Information of the picks: {record.information:,.3f} nats{_within(record)}.",
        ]
        if record.schedule is not None:
            lines += record.schedule.describe()
        if record.certificate_sentence:
            lines.append(record.certificate_sentence)
        lines += record.summary.describe()[1:]
        known = set(record.summary.warnings)
        lines += [f"Warning: {warning}" for warning in record.warnings if warning not in known]
        lines.append(f'The subset is in {self.folder.path}: datasets.load_dataset("{self.folder.path}")')
        return lines


def _within(record: SelectionRecord) -> str:
    pools = record.schedule is not None and record.schedule.kind == "pools"
    return ", each pool's within it, added up" if pools else ""


class StoreResult(BaseModel):
    """Gradients that a collect has left.

    Attributes:
        folder: The output folder; the store is its ``gradients``.
        rows: Rows, usable or not.
        usable: Rows with a gradient.
        dim: Length of a gradient row.
        timings: Seconds by stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    rows: int
    usable: int
    dim: int
    timings: dict[str, float]

    @classmethod
    def of(cls, folder: RunFolder, store: GradientStore, timings: dict[str, float]) -> StoreResult:
        """Describe a store."""
        return cls(
            folder=str(folder.path),
            rows=len(store),
            usable=int(np.count_nonzero(store.usable)),
            dim=store.dim,
            timings=timings,
        )

    def describe(self) -> list[str]:
        """The result in a few lines."""
        return [
            f"Measured {self.usable:,} of {self.rows:,} rows; each gradient is {self.dim:,} numbers.",
            f"The gradients are in {self.folder}/gradients: spice-select select {self.folder} --budget 10%",
        ]


@dataclass(frozen=True)
class Measured:
    """What was measured of every row, whether or not its gradient was kept.

    Attributes:
        lengths: Response tokens.
        squared_norms: Squared gradient norm, before any normalisation.
        usable: Rows with a gradient.
        sketch: How the gradients were taken, in words.
        examples: Digest of the rows as the model sees them.
        fingerprint: Digest of what decides a gradient's numbers beside weights and rows.
        sources: Hashes of weights and tokenizer, and the coverage, by name.
        store: The gradients, where they were kept.
    """

    lengths: Int[np.ndarray, " n"]
    squared_norms: Float[np.ndarray, " n"]
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


def deliver(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    measured: Measured,
    selection: Selection,
    certificate: Certificate | None,
    folder: RunFolder,
    clock: Clock,
    *,
    changed: int | None,
    activity: ConflictActivity | None = None,
    schedule: ScheduleRecord | None = None,
) -> RunResult:
    """Write the subset with its card and trace, the page, and last the record: its presence means that all is whole.

    Args:
        config: The settings of the run.
        pool: Its rows.
        budget: Its budget, resolved.
        measured: What was measured of them.
        selection: The picks.
        certificate: What they are proven to hold, for the exact form.
        folder: Where to.
        clock: Seconds by stage so far.
        changed: Picks that the penalty changed; None where there was no penalty.
        activity: Conflict in pool and picks.
        schedule: How the proxy was trained, where it was.

    Raises:
        OutputError, ResourceError: Something cannot be written.
    """
    record = build_record(
        config,
        pool,
        budget,
        measured,
        selection,
        certificate,
        folder,
        clock.seconds,
        changed=changed,
        activity=activity,
        schedule=schedule,
    )
    folder.remove_results()
    with clock.stage("write"):
        facts = CardFacts(
            title=folder.path.absolute().name,
            proxy=_model_title(config),
            settings={**record.objective.model_dump(), "budget": settings_text(record.budget.asked)},
            stop_reason=STOPS[selection.stop_reason],
            information=selection.information,
            warnings=record.warnings,
            version=record.versions.get("spice-select", ""),
        )
        written = write_dataset(
            folder.path, pool.rows, pool.schemas, selection, facts, special_tokens=pool.tokenizer.all_special_tokens
        )
    with clock.stage("report"):
        write_page(folder, record, selection, config, pool, measured)
    record = record.model_copy(update={"timings": dict(clock.seconds), "notes": (*record.notes, *written.notes)})
    record.write(folder.record)
    return RunResult(folder, record)


def _model_title(config: RunConfig) -> str:
    # A local folder is named without the path to it, which says more of the author's machine than of the model.
    name = config.model.name
    title = Path(name).name if Path(name).exists() else name
    return f"{title}@{config.model.revision}" if config.model.revision else title


def settings_text(value: object) -> str:
    """A setting as a person reads it."""
    return "none" if value is None else str(value)


def versions() -> dict[str, str]:
    """Versions of Python and of every library that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_record(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    measured: Measured,
    selection: Selection,
    certificate: Certificate | None,
    folder: RunFolder,
    timings: Mapping[str, float],
    *,
    changed: int | None,
    activity: ConflictActivity | None = None,
    schedule: ScheduleRecord | None = None,
) -> SelectionRecord:
    """All that is known of a finished selection, as ``selection.json`` holds it."""
    excluded, in_hand = excluded_rows(config, pool), rows_in_hand(config, pool)
    summary = _summary(
        config,
        pool,
        measured,
        selection,
        usable=measured.usable & ~excluded,
        changed=changed,
        activity=activity,
        schedule=schedule,
    )
    settings = config.selection
    identity = measured.sources
    return SelectionRecord(
        n=selection.n,
        usable=summary.pool,
        k=len(selection),
        objective=ObjectiveRecord(
            fisher=selection.fisher,
            alpha=selection.alpha,
            alpha_asked=settings.alpha,
            conflict_weight=selection.conflict_weight,
            penalty=selection.penalty,
            reference=selection.reference,
            hinge=selection.hinge,
            normalize=selection.normalize,
        ),
        budget=BudgetRecord(
            asked=settings.budget,
            rows=budget.rows if budget.tokens is None else None,
            tokens=budget.tokens,
            stop_ratio=settings.stop_ratio,
            groups=settings.groups if settings.quotas is not None else None,
            initial=len(in_hand or ()),
            excluded=int(excluded.sum()),
        ),
        information=selection.information,
        certificate=certificate,
        certificate_sentence=certificate.sentence() if certificate else None,
        stop_reason=selection.stop_reason,
        summary=summary,
        loop=selection.loop,
        timings=dict(timings),
        seed=config.seed,
        preset=config.preset,
        sketch=measured.sketch,
        versions=versions(),
        model=ModelRecord(
            name=config.model.name,
            revision=config.model.revision,
            dtype=config.model.dtype,
            device=config.model.device,
            coverage=identity.get("coverage"),
        ),
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
        gradients=_elsewhere(measured, folder),
        notes=pool.notes,
        warnings=tuple(dict.fromkeys([*summary.warnings, *selection.warnings])),
    )


def _elsewhere(measured: Measured, folder: RunFolder) -> str | None:
    if measured.store is None or measured.store.folder.absolute() == folder.gradients.absolute():
        return None
    return str(measured.store.folder.absolute())


def _summary(
    config: RunConfig,
    pool: Pool,
    measured: Measured,
    selection: Selection,
    *,
    usable: Bool[np.ndarray, " n"],
    changed: int | None,
    activity: ConflictActivity | None,
    schedule: ScheduleRecord | None,
) -> Summary:
    return summarise(
        selection,
        lengths=measured.lengths,
        squared_norms=measured.squared_norms,
        sources=pool.source_labels,
        groups=None if config.selection.groups in (None, "source") else group_labels(config, pool),
        usable=usable,
        changed_by_penalty=changed,
        normalize=selection.normalize,
        activity=activity,
        proxy="fixed" if schedule is None else "pools" if schedule.kind == "pools" else "warmed",
        outlying_pools=None if schedule is None else schedule.outlying,
        robust_stop=config.selection.robust_stop,
    )
