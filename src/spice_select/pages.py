"""Pages of runs: what they show is gathered from the run at hand, or from the folder that it has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.neighbours import near_duplicates
from spice_select.analysis.projection import project
from spice_select.analysis.record import SelectionRecord
from spice_select.analysis.rejected import Rejected, measure_rejected
from spice_select.config import RunConfig
from spice_select.data.row_numbers import read_row_numbers
from spice_select.errors import ConfigError, SpiceError
from spice_select.files import write_text
from spice_select.gradients.store import GradientStore
from spice_select.pool import Pool, excluded_rows, rows_in_hand
from spice_select.report.compare import render_comparison
from spice_select.report.content import RunContent, Trace
from spice_select.report.markdown import render_markdown
from spice_select.report.page import write_report
from spice_select.report.plots import MOST_SERIES
from spice_select.report.points import map_rows
from spice_select.report.saved import (
    first_known,
    no_gradients,
    open_store,
    read_pool_file,
    read_trace,
    source_labels,
    texts_of_picks,
    texts_of_rows,
    texts_of_sources,
)
from spice_select.report.tables import example_tables
from spice_select.run_folder import RunFolder
from spice_select.selection.options import NormalizeName, scale_of


class Measured(Protocol):
    """What was measured of every row of a pool, whether or not its gradient was kept."""

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Response tokens."""
        ...

    @property
    def squared_norms(self) -> Float[np.ndarray, " n"] | None:
        """Squared gradient norms, before any normalisation; None without gradients."""
        ...

    @property
    def usable(self) -> Bool[np.ndarray, " n"]:
        """Rows that could be chosen, but for those excluded by number."""
        ...

    @property
    def store(self) -> GradientStore | None:
        """The gradients, where they were kept."""
        ...


def write_page(
    folder: RunFolder,
    record: SelectionRecord,
    selection: Any,
    config: RunConfig,
    pool: Pool,
    measured: Measured,
    *,
    pool_scores: Float[np.ndarray, " n"] | None = None,
) -> None:
    """Write the page of the run at hand; without a store it says what it lacks.

    Args:
        folder: Where to.
        record: What the run did.
        selection: Its picks: a Selection, or whatever has the same trace.
        config: Its settings.
        pool: Its rows.
        measured: What was measured of them.
        pool_scores: Score of every row, for a method that scores rows by themselves.

    Raises:
        OutputError: It cannot be written.
    """
    store, squared = measured.store, measured.squared_norms
    content = RunContent(
        title=_title(record, folder),
        record=record,
        trace=trace_of(selection),
        sources=pool.source_labels,
        lengths=measured.lengths,
        norms=None if squared is None else np.sqrt(np.asarray(squared, dtype=np.float64)),
        usable=measured.usable & ~excluded_rows(config, pool),
        texts=texts_of_rows(pool.rows, pool.schemas),
        pool_scores=pool_scores,
        remarks=() if store is not None else (no_gradients(record),),
    )
    write_report(folder.report, content if store is None else _measured(content, store, rows_in_hand(config, pool)))


def _title(record: SelectionRecord, folder: RunFolder) -> str:
    return f"{record.label} selection: {folder.path.absolute().name}"


def trace_of(selection: Any) -> Trace:
    """The trace of a selection, or of picks of which less is known, in float64."""
    names = ("gains", "bases", "epsilons", "conflicts", "scores")
    given = {name: getattr(selection, name, None) for name in names}
    numbers = {name: None if values is None else np.asarray(values, np.float64) for name, values in given.items()}
    return Trace(np.asarray(selection.indices, dtype=np.int64), **numbers)


@dataclass(frozen=True)
class Written:
    """What a report has written.

    Attributes:
        page: The page, if one was written.
        markdown: The markdown, if it was asked for.
        markdown_file: Where it is; None where it goes to the terminal.
    """

    page: Path | None
    markdown: str | None
    markdown_file: Path | None


def report_runs(
    folders: Sequence[str | Path],
    *,
    output: Path | None = None,
    markdown: str | None = None,
    gradients: Path | None = None,
) -> Written:
    """Write the page of one finished run, or one that sets several side by side.

    Args:
        folders: Outputs of ``run`` or ``select``.
        output: The page; ``report.html`` in the folder of a single run where absent.
        markdown: File of a short markdown, or ``-`` to return it alone.
        gradients: Folder of the gradients of a single run, where they are elsewhere.

    Raises:
        ConfigError: Arguments that do not fit together.
        StoreError: A folder that holds no finished run.
        OutputError: Something cannot be written.
    """
    runs = [RunFolder(folder) for folder in folders]
    for run in runs:
        run.require_finished()
    page = _page_path(runs, output, markdown)
    file = _markdown_path(runs, markdown)
    if gradients is not None and len(runs) > 1:
        raise ConfigError("--gradients belongs to one run; leave it out when several are set side by side.")
    if len(runs) > MOST_SERIES:
        raise ConfigError(f"{len(runs)} runs are too many to tell apart on one page; give at most {MOST_SERIES}.")
    names = _names(runs)
    if len(runs) == 1:
        content = open_run(runs[0], gradients=gradients)
        contents = [content]
        if page is not None:
            write_report(page, content)
    else:
        contents = [replace(open_run(run, measure=False), title=name) for run, name in zip(runs, names, strict=True)]
        if page is not None:
            write_text(page, render_comparison(contents))
    text = None if markdown is None else render_markdown(contents)
    if file is not None and text is not None:
        write_text(file, text)
    return Written(page, text, file)


def open_run(folder: RunFolder, *, gradients: Path | None = None, measure: bool = True) -> RunContent:
    """What a finished run's page shows, from the folder that it has left.

    Args:
        folder: The folder.
        gradients: Its gradients, where they are elsewhere.
        measure: Whether to look at the gradients as well.

    Raises:
        StoreError: It holds no finished run, or one that cannot be read.
    """
    folder.require_finished()
    record = SelectionRecord.read(folder.record)
    trace = read_trace(folder)
    remarks: list[str] = []
    config = _read_config(folder, remarks)
    own = texts_of_picks(folder, trace)
    saved = read_pool_file(folder, record, remarks)
    rows = texts_of_sources(config, record, remarks) if measure and config is not None else None
    content = RunContent(
        title=_title(record, folder),
        record=record,
        trace=trace,
        sources=source_labels(record),
        lengths=None if saved is None else saved.lengths,
        usable=None if saved is None else saved.usable,
        pool_scores=None if saved is None else saved.scores,
        texts=own if rows is None else first_known(own, rows),
    )
    if measure:
        store = open_store(gradients or record.gradients_of(folder.gradients), record, remarks)
        if store is not None:
            content = _with_store(content, store, config, remarks)
    return replace(content, remarks=tuple(remarks))


def _measured(content: RunContent, store: GradientStore, initial: Sequence[int] | None) -> RunContent:
    """The same with what the gradients of all rows tell."""
    picks = content.trace.indices
    usable = store.usable if content.usable is None else content.usable
    found = replace(content, rejected=_rejected(content, store, usable, initial or ()))
    left = usable.copy()
    left[np.asarray(initial or (), dtype=np.int64)] = False
    neighbours = near_duplicates(store, picks, np.flatnonzero(left))
    found = replace(found, neighbours=neighbours)
    listed = [row for table in example_tables(found) for row in table.rows]
    members = np.flatnonzero(usable)
    placed = map_rows(picks, usable, listed)
    return replace(found, projection=project(store, placed, members=members) if len(members) > 2 else None)


def _rejected(
    content: RunContent, store: GradientStore, usable: Bool[np.ndarray, " n"], initial: Sequence[int]
) -> Rejected | None:
    """What rows left out would add; unknown where the run did not say how information is measured."""
    aim = content.record.objective
    if aim is None:
        return None
    normalize = cast(NormalizeName, aim.normalize)
    factors, _ = scale_of(normalize, store.norms.astype(np.float64), usable, store.lengths)
    return measure_rejected(
        store,
        content.trace.indices,
        alpha=aim.alpha,
        candidates=usable,
        factors=factors,
        initial=initial,
        reference=aim.reference,
        hinge=aim.hinge,
        want=50 if aim.fisher == "exact" else 0,
    )


def _with_store(content: RunContent, store: GradientStore, config: RunConfig | None, remarks: list[str]) -> RunContent:
    """A finished run with its gradients."""
    usable = store.usable.copy()
    initial: list[int] = []
    try:
        if config is not None and config.selection.exclude is not None:
            usable[read_row_numbers(config.selection.exclude, len(store), field="selection.exclude")] = False
        if config is not None and config.selection.initial is not None:
            initial = read_row_numbers(config.selection.initial, len(store), field="selection.initial")
    except SpiceError as error:
        remarks.append(f"Rows excluded or in hand are shown as left out: {error}")
    known = replace(
        content, lengths=store.lengths, norms=np.sqrt(store.squared_norms.astype(np.float64)), usable=usable
    )
    return _measured(known, store, initial)


def _read_config(folder: RunFolder, remarks: list[str]) -> RunConfig | None:
    try:
        return folder.read_config()
    except SpiceError as error:
        remarks.append(f"The texts of rows left out are not shown, as the settings are not at hand: {error}")
        return None


def _page_path(runs: Sequence[RunFolder], output: Path | None, markdown: str | None) -> Path | None:
    if output is None:
        if len(runs) == 1:
            return runs[0].report
        if markdown is None:
            raise ConfigError("Several runs make one page, which needs a file; name it with --output page.html.")
        return None
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output {output} must end in .html, as it is a page; name another file.")
    return output


def _markdown_path(runs: Sequence[RunFolder], markdown: str | None) -> Path | None:
    if markdown is None or markdown == "-":
        return None
    path = Path(markdown)
    if path.suffix.lower() not in (".md", ".markdown", ".txt"):
        raise ConfigError(f"--markdown {markdown} must end in .md, or be - for the terminal; name another file.")
    if any(path.resolve() == run.card.resolve() for run in runs):
        raise ConfigError(f"--markdown {markdown} is the data set card of a run; name another file.")
    return path


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Short names of runs, or their paths where those are not their own."""
    names = [run.path.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
