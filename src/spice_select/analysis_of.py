"""The analysis of what a run, a collect or a select has left in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from spice_select.analysis.account import Analysis, PoolFacts, Subject
from spice_select.analysis.assemble import CLUSTERS, NO_PICKS, Material, Trace, assemble, penalty_text
from spice_select.analysis.given import scaling_of
from spice_select.analysis.overlap import require_same_rows
from spice_select.analysis.record import SelectionRecord
from spice_select.config import RunConfig
from spice_select.data.row_numbers import read_row_numbers
from spice_select.data.sources import RowSet, load_rows
from spice_select.errors import ConfigError, SpiceError, StoreError, StoreMismatch
from spice_select.gradients.manifest import MANIFEST_NAME
from spice_select.gradients.store import GradientStore
from spice_select.reporter import Reporter, Silent
from spice_select.run_folder import RunFolder
from spice_select.selection.options import NormalizeName

_COLUMNS = {"index": "indices", "gain": "gains", "base": "bases", "epsilon": "epsilons", "conflict": "conflicts"}


def analyse_folder(
    folder: str | Path,
    *,
    gradients: str | Path | None = None,
    against: Sequence[str | Path] = (),
    by: Sequence[str] = (),
    clusters: int = CLUSTERS,
    samples: int = 200,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Analysis:
    """Analyse what a run, a collect or a select has left.

    Args:
        folder: Output folder, or a gradient store by itself.
        gradients: Gradient store of the run, where it lies elsewhere.
        against: Folders of other runs on the same rows.
        by: Columns of the rows to count the picks by.
        clusters: Clusters of gradient directions.
        samples: Random pairs of each size for the theory.
        seed: Of every random choice.
        reporter: Hears the progress.

    Raises:
        ConfigError: A column that the rows don't have, or a run on other rows.
        StoreError: No run and no gradients in the folder.
        StoreMismatch: Gradients or rows that are not those of the run.
        DataError: Rows that cannot be read, where a column of theirs was asked for.
    """
    path, reporter = Path(folder), reporter or Silent()
    reporter.stage("Gradients")
    if (path / MANIFEST_NAME).is_file() and not RunFolder(path).config.is_file():
        store = _open(path)
        config = RunConfig()
        material = _of_store(path, store, config)
        if by:
            raise ConfigError(f"--by needs the rows, and {path} holds gradients alone; name the folder above it.")
    else:
        config = RunFolder(path).read_config()
        material = _of_run(RunFolder(path), config, None if gradients is None else Path(gradients))
        _label_columns(material, RunFolder(path), config, by)
    if against:
        _read_others(material, RunFolder(path), against)
    return assemble(material, clusters=clusters, samples=samples, seed=seed, reporter=reporter)


def _of_store(path: Path, store: GradientStore, config: RunConfig) -> Material:
    """A pool of which nothing was chosen, as the selection settings of a configuration see it."""
    settings = config.selection
    usable = store.usable & ~_numbered(settings.exclude, "selection.exclude", len(store))
    factors, alpha = _scaling(store, settings.normalize, usable, settings.alpha)
    return Material(
        subject=Subject(
            kind="store",
            name=str(path),
            rows=len(store),
            usable=int(usable.sum()),
            dim=store.dim,
            alpha=alpha,
            normalize=settings.normalize,
        ),
        gradients=store,
        factors=factors,
        usable=usable,
        lengths=store.lengths,
        left_out=[NO_PICKS],
    )


def _of_run(folder: RunFolder, config: RunConfig, elsewhere: Path | None) -> Material:
    where = elsewhere or folder.gradients
    if elsewhere is None and folder.record.is_file():
        where = SelectionRecord.read(folder.record).gradients_of(folder.gradients)
    store = _open(where) if elsewhere is not None or (where / MANIFEST_NAME).is_file() else None
    if not folder.record.is_file():
        if store is None:
            folder.require_finished()
        assert store is not None
        return _of_store(folder.path, store, config)
    folder.require_finished()
    record = SelectionRecord.read(folder.record)
    objective, schedule = record.objective, record.schedule
    pools = PoolFacts.of(schedule) if schedule is not None and schedule.kind == "pools" else None
    material = Material(
        subject=Subject(
            kind="run",
            name=str(folder.path),
            rows=record.n,
            usable=record.usable,
            picks=record.k,
            dim=None if store is None else store.dim,
            alpha=None if pools or objective is None else objective.alpha,
            normalize="none" if objective is None else objective.normalize,
            fisher="exact" if objective is None else objective.fisher,
            conflict_weight=None if objective is None else objective.conflict_weight,
            penalty=penalty_text(objective) if objective is not None and record.maximised else "",
            method=None if record.method is None else record.label,
            maximised=record.maximised,
            information=record.information,
            stop_reason=record.stop_reason,
        ),
        trace=_read_trace(folder, record),
        certificate=record.certificate,
        pools=pools,
    )
    if pools:
        material.left_out.append(
            "Theory, diversity, length and cluster: every pool of a schedule has gradients of its own, which are not"
            " kept; the report of the run goes pool by pool."
        )
    elif objective is None:
        material.left_out.append(
            f"Certificate, theory, diversity, length and cluster: {record.label} measured no gradients."
        )
        store = None
    elif store is None:
        material.left_out.append(
            f"Theory, diversity, length and cluster: {folder.path} holds no gradients; name them with --gradients."
        )
    if store is not None and not pools:
        if store.manifest.fingerprint != record.fingerprints.sketch or len(store) != record.n:
            raise StoreMismatch(
                f"The gradients in {where} are not those that {folder.path} was selected from; name those."
            )
        settings = config.selection
        usable = store.usable & ~_numbered(settings.exclude, "selection.exclude", len(store))
        in_hand = _numbered(settings.initial, "selection.initial", len(store))
        _require_row_numbers(record, usable, in_hand, material)
        material.gradients, material.usable, material.lengths = store, usable, store.lengths
        assert objective is not None
        material.factors = _scaling(store, objective.normalize, usable, objective.alpha)[0]
        material.initial = np.flatnonzero(in_hand).tolist()
    counts = [source.rows for source in record.sources]
    if sum(counts) == record.n:
        material.labels["source"] = np.repeat([source.name for source in record.sources], counts).tolist()
    else:
        material.left_out.append("Coverage by source: the record does not say which rows came from which.")
    return material


def _open(path: Path) -> GradientStore:
    return GradientStore.open(path, verify=True)


def _scaling(
    store: GradientStore, normalize: str, usable: Bool[np.ndarray, " n"], alpha: float | str
) -> tuple[Float[np.ndarray, " n"] | None, float]:
    """Factors of the rows and the Fisher scale, as the selection takes them."""
    return scaling_of(store, cast(NormalizeName, normalize), alpha, members=usable)


def _numbered(name: str | None, field: str, rows: int) -> Bool[np.ndarray, " n"]:
    """The rows that a file of row numbers names, as a mask."""
    mask = np.zeros(rows, dtype=np.bool_)
    if name is not None:
        mask[read_row_numbers(name, rows, field=field)] = True
    return mask


def _require_row_numbers(
    record: SelectionRecord, usable: Bool[np.ndarray, " n"], in_hand: Bool[np.ndarray, " n"], of: Material
) -> None:
    """Refuse files of row numbers that have changed since the run, as far as that shows."""
    assert of.trace is not None
    picks = of.trace.indices
    same = int(usable.sum()) == record.usable and int(in_hand.sum()) == record.budget.initial
    if not same or not usable[picks].all() or in_hand[picks].any():
        raise StoreMismatch(
            f"The files that selection.exclude and selection.initial of {of.subject.name} name have changed since it "
            "was selected; restore them, or select again."
        )


def _read_trace(folder: RunFolder, record: SelectionRecord) -> Trace:
    if not folder.trace.is_file():
        raise StoreError(f"{folder.trace} is missing; select again to write it anew.")
    try:
        table = pq.read_table(folder.trace, columns=list(_COLUMNS))
        columns = {
            to: None if len(table) and table.column(name).null_count == len(table) else table.column(name).to_numpy()
            for name, to in _COLUMNS.items()
        }
        columns = {
            to: None if found is None else found.astype(np.int64 if to == "indices" else np.float64, casting="safe")
            for to, found in columns.items()
        }
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(f"{folder.trace} cannot be read ({reason}); select again to write it anew.") from None
    indices = columns["indices"]
    if indices is None or len(table) != record.k or (len(table) and not 0 <= indices.min() <= indices.max() < record.n):
        raise StoreError(f"{folder.trace} is not the trace of {folder.record}; select again to write both anew.")
    return Trace(indices, columns["gains"], columns["bases"], columns["epsilons"], columns["conflicts"])


def _read_others(material: Material, folder: RunFolder, against: Sequence[str | Path]) -> None:
    """The picks of other runs, matched by row number."""
    if material.trace is None:
        raise ConfigError(f"--against compares selections, and {folder.path} holds none; select from it first.")
    ours = SelectionRecord.read(folder.record)
    seen = {folder.path.resolve()}
    for name in against:
        other = RunFolder(name)
        other.read_config()
        other.require_finished()
        record = SelectionRecord.read(other.record)
        require_same_rows(ours, record, name=str(name))
        picks = _read_trace(other, record).indices
        if Path(name).resolve() in seen:
            raise ConfigError(f"--against names {name} twice, or the run itself; name each other run once.")
        seen.add(Path(name).resolve())
        material.others[str(name)] = picks.tolist()


def _label_columns(material: Material, folder: RunFolder, config: RunConfig, by: Sequence[str]) -> None:
    """Labels from the rows themselves: columns that were asked for, the grouping of the run, and a store's sources."""
    grouped = config.selection.groups
    wanted = [*dict.fromkeys(name for name in by if name != "source")]
    if grouped not in (None, "source") and grouped not in wanted:
        wanted.append(grouped)
    needs_source = "source" not in material.labels and material.trace is None
    if not wanted and not needs_source:
        return
    asked = [name for name in wanted if name in by]
    local = all(os.path.exists(source) for source in config.data.sources)
    if not asked and not local:
        material.left_out.append("Coverage by source or group: the rows are no longer where the run read them.")
        return
    try:
        rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
        _require_rows(rows, material, folder)
    except SpiceError as error:
        if asked:
            raise
        material.left_out.append(f"Coverage by source or group: {error}")
        return
    if needs_source:
        material.labels["source"] = [rows.sources[source].name for source in rows.source_ids]
    for name in wanted:
        if name not in rows.columns:
            known = ", ".join(["source", *rows.columns])
            raise ConfigError(f"--by names no column of the rows: '{name}'; there are {known}.")
        material.labels[name] = [None if value is None else str(value) for value in rows.column(name)]


def _require_rows(rows: RowSet, material: Material, folder: RunFolder) -> None:
    known = SelectionRecord.read(folder.record).fingerprints.rows if material.trace is not None else None
    if len(rows) != material.subject.rows or (known is not None and rows.fingerprint != known):
        raise StoreMismatch(f"The rows are no longer those that {folder.path} was measured on; restore them.")
