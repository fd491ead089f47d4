"""The choice of an arm that chooses in pools: a run of its own, made once, and made anew where it is another's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spice_select.analysis.record import SelectionRecord
from spice_select.config import RunConfig
from spice_select.errors import RowsChanged, StoreError
from spice_select.export.tables import read_chosen
from spice_select.files import make_folder, remove_tree, write_text
from spice_select.pipeline import run as run_selection
from spice_select.pool import Pool, excluded_rows, read_pool, require_same_rows
from spice_select.reporter import Clock, Reporter
from spice_select.run_folder import RunFolder, differences


def picked_in_pools(
    config: RunConfig, known: Path, rows_known: str, reporter: Reporter
) -> tuple[tuple[int, ...], int, float]:
    """Rows that a run in pools chooses, tokens that pass through its proxy, forward and backward, and its seconds.

    A run that was cut off goes on. One of other settings, of other rows, or of other rows that could be chosen, is
    made anew: the label of an arm says nothing of them.

    Args:
        config: The settings of the run; ``output.folder`` is its place.
        known: File that tells the rows that could be chosen, beside that folder.
        rows_known: Fingerprint of the rows.
        reporter: Hears the progress.

    Raises:
        RowsChanged: The rows are others.
        SpiceError: As a run raises it.
    """
    pool, folder = read_pool(config, reporter, Clock()), RunFolder(config.output.folder)
    require_same_rows(pool, rows_known)
    free = pool.encoded.usable & ~excluded_rows(config, pool)
    candidates = hashlib.sha256(free.tobytes() + bytes.fromhex(pool.encoded.digest)).hexdigest()
    if folder.path.is_dir() and _is_of_another(folder, config, pool, known, candidates):
        reporter.note(f"{folder.path} is of other settings or rows, and is chosen anew")
        remove_tree(folder.path)
    if not _is_whole(folder):
        # What it has committed pool by pool is in its log, so that one whose results are damaged goes on from there.
        make_folder(known.parent)
        write_text(known, candidates)
        run_selection(config, reporter)
    record = SelectionRecord.read(folder.record)
    if record.fingerprints.rows != rows_known:
        # The run has read them once more.
        raise RowsChanged(f"The rows changed while {folder.path} was chosen; run the study again.")
    rows = tuple(int(row) for row in read_chosen(folder.data).column("spice_index").to_pylist())
    # Every row once, and the picks once more.
    tokens = int(pool.encoded.lengths[pool.encoded.usable].sum() + pool.encoded.lengths[list(rows)].sum())
    return rows, tokens, sum(record.timings.values())


def _is_of_another(folder: RunFolder, config: RunConfig, pool: Pool, known: Path, candidates: str) -> bool:
    # The file of excluded rows has the same name whatever it holds.
    ignored = [("preset",), ("selection", "exclude")]
    if folder.config.is_file() and differences(folder.read_config(), config, ignored=ignored):
        return True
    if known.is_file():
        return known.read_bytes() != candidates.encode()
    if not _is_whole(folder):
        return False
    record = SelectionRecord.read(folder.record)
    rows = read_chosen(folder.data).column("spice_index").to_numpy()
    same = (record.fingerprints.rows, record.fingerprints.encoded) == (pool.rows.fingerprint, pool.encoded.digest)
    return not same or bool(excluded_rows(config, pool)[rows].any())


def _is_whole(folder: RunFolder) -> bool:
    """Whether a finished selection is there, every byte of it."""
    try:
        folder.require_finished()
    except StoreError:
        return False
    return True
