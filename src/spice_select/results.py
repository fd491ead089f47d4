"""What a command leaves: the chosen rows, the record of the run, its card and its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from spice_select.analysis.activity import ConflictActivity
from spice_select.analysis.certificate import Certificate
from spice_select.analysis.record import MethodRecord, ScheduleRecord, SelectionRecord
from spice_select.config import RunConfig, to_yaml
from spice_select.export.card import CardFacts
from spice_select.export.dataset import write_dataset, write_pool
from spice_select.files import sha256_file, write_text
from spice_select.gradients.store import GradientStore
from spice_select.methods.base import Choice
from spice_select.pages import write_page
from spice_select.pool import Pool, excluded_rows
from spice_select.report.content import STOPS
from spice_select.report.saved import POOL_FILE
from spice_select.reporter import Clock
from spice_select.results_record import (
    Found,
    Measured,
    build_record,
    found_by_choice,
    found_by_selection,
    versions,
)
from spice_select.run_folder import RunFolder
from spice_select.selection import Selection
from spice_select.selection.budget import Budget
from spice_select.staging import staged

__all__ = ["Measured", "RunResult", "StoreResult", "deliver", "deliver_choice", "settings_text", "versions"]


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
        by = "" if record.label == "SPICE" else f" by {record.label}"
        lines = [
            f"Chose {record.k:,} of {record.n:,} rows{by} ({record.usable:,} usable, {share:.1%} of them kept);"
            f" {STOPS[record.stop_reason]}.",
        ]
        if record.information is not None:
            lines.append(f"Information of the picks: {record.information:,.3f} nats{_within(record)}.")
        lines += record.shortcuts
        if record.method is not None:
            lines += record.method.describe()
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
    method: MethodRecord | None = None,
) -> RunResult:
    """Write the subset with its card and trace, the page, and last the record: its presence means that all is whole.

    An earlier selection stays until all of it is written. The caller holds the run's lock.

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
        method: The method that chose; SPICE where absent.

    Raises:
        OutputError, ResourceError: Something cannot be written.
    """
    found = found_by_selection(selection, certificate, config.selection.alpha, changed=changed, activity=activity)
    return _write(config, pool, budget, measured, found, folder, clock, method=method, schedule=schedule)


def deliver_choice(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    measured: Measured,
    choice: Choice,
    method: MethodRecord,
    folder: RunFolder,
    clock: Clock,
    *,
    schedule: ScheduleRecord | None = None,
) -> RunResult:
    """Write the same for a method that does not maximise information; where there are gradients, it is measured.

    Args:
        config: The settings of the run.
        pool: Its rows.
        budget: Its budget, resolved.
        measured: What was measured of them; :meth:`Measured.without_gradients` where no gradient was.
        choice: The picks.
        method: The method that chose.
        folder: Where to.
        clock: Seconds by stage so far.
        schedule: How the proxy was trained, where it was.

    Raises:
        ConfigError: A setting of the selection section that the gradients don't allow.
        OutputError, ResourceError: Something cannot be written.
    """
    with clock.stage("information"):
        found = found_by_choice(config, pool, budget, measured, choice)
    return _write(
        config,
        pool,
        budget,
        measured,
        found,
        folder,
        clock,
        method=method,
        schedule=schedule,
        choice=choice,
    )


def _write(
    config: RunConfig,
    pool: Pool,
    budget: Budget,
    measured: Measured,
    found: Found,
    folder: RunFolder,
    clock: Clock,
    *,
    method: MethodRecord | None,
    schedule: ScheduleRecord | None,
    choice: Choice | None = None,
) -> RunResult:
    record = build_record(
        config, pool, budget, measured, found, folder, clock.seconds, method=method, schedule=schedule
    )
    scores = None if choice is None else choice.pool_scores
    with staged(folder.path) as place:
        stage = RunFolder(place)
        write_text(stage.config, to_yaml(config))
        with clock.stage("write"):
            written = write_dataset(
                stage.path,
                pool.rows,
                pool.schemas,
                found.picked,
                _card_facts(config, record, folder),
                special_tokens=pool.tokenizer.all_special_tokens,
            )
            if choice is not None:
                usable = measured.usable & ~excluded_rows(config, pool)
                write_pool(stage.path / POOL_FILE, pool.source_labels, measured.lengths, usable, scores)
        with clock.stage("report"):
            write_page(stage, record, found.picked, config, pool, measured, pool_scores=scores)
        kept = [*written.data, written.trace, *stage.path.glob(POOL_FILE)]
        record = record.model_copy(
            update={
                "timings": dict(clock.seconds),
                "notes": (*record.notes, *written.notes),
                "files": {path.relative_to(stage.path).as_posix(): sha256_file(path) for path in kept},
            }
        )
        record.write(stage.record)
    return RunResult(folder, record)


def _card_facts(config: RunConfig, record: SelectionRecord, folder: RunFolder) -> CardFacts:
    settings: dict[str, object] = {"budget": settings_text(record.budget.asked)}
    objective = record.objective
    if objective is not None:
        # What did not choose is no setting of the choice: of the penalty's nothing is said where none was paid.
        unused = set() if record.maximised else {"conflict_weight", "penalty"}
        settings = {**objective.model_dump(exclude=unused), **settings}
    if record.model is None:
        settings["tokenizer"] = _model_title(config)
    return CardFacts(
        title=folder.path.absolute().name,
        proxy="" if record.model is None else _model_title(config),
        settings=settings,
        stop_reason=STOPS[record.stop_reason],
        information=record.information,
        warnings=record.warnings,
        version=record.versions.get("spice-select", ""),
        method=record.method,
        maximised=record.maximised,
        penalised=objective is not None and objective.conflict_weight > 0,
        measured=record.information is not None,
        prefixes=record.prefixes,
    )


def _model_title(config: RunConfig) -> str:
    # A local folder is named without the path to it, which says more of the author's machine than of the model.
    name = config.model.name
    title = Path(name).name if Path(name).exists() else name
    return f"{title}@{config.model.revision}" if config.model.revision else title


def settings_text(value: object) -> str:
    """A setting as a person reads it."""
    return "none" if value is None else str(value)
