"""Held-out rows of a study: files of the user's, or rows taken out of the pool before anything is chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spice_select.config import RunConfig
from spice_select.data.encoded import collect_examples
from spice_select.data.row_numbers import read_row_numbers
from spice_select.errors import ConfigError
from spice_select.features.heldout import HeldOut, as_in_pool, of_responses, read_heldout, trained_model
from spice_select.features.target import TargetRows, encode_as
from spice_select.files import make_folder, write_text
from spice_select.gradients.proxy import load_tokenizer
from spice_select.pool import Pool
from spice_select.reporter import Clock, Reporter

HELDOUT = "heldout-rows.json"
"""Rows of the pool that are held out, in the form of ``selection.exclude``."""
EXCLUDED = "excluded-rows-{digest}.json"
"""All rows that no arm may choose: those held out, their copies, and those that the user excludes; by their content."""
_SHARE, _MOST = 0.1, 100


def held_out(
    config: RunConfig, pool: Pool, count: int | None, folder: Path, reporter: Reporter, clock: Clock
) -> tuple[RunConfig, HeldOut]:
    """The rows whose loss judges every training, and the configuration under which no arm can choose them.

    Args:
        config: The settings; ``training.heldout`` names files where there are any.
        pool: The rows.
        count: Rows of every source to hold out where no files are named; None: a tenth, at most 100.
        folder: Folder of the study.
        reporter: Hears what was found.
        clock: Seconds by stage.

    Raises:
        ConfigError: Both files and a count, or a source too small to give as many.
        DataError: A file that cannot be read.
    """
    usable = pool.encoded.usable
    excluded = np.zeros(len(usable), np.bool_)
    if config.selection.exclude is not None:
        excluded[read_row_numbers(config.selection.exclude, len(usable), field="selection.exclude")] = True
    make_folder(folder)
    if config.training.heldout:
        if count is not None:
            raise ConfigError("--heldout names files and --holdout takes rows out of the pool; give one of them.")
        held = read_heldout(config, pool, reporter, clock)
        found = as_in_pool(held.rows, config, held.tokenizer, pool.tokenizer)
        digests = found.digests[found.usable]
    else:
        rows = _drawn(pool, usable & ~excluded, count, config.seed)
        write_text(folder / HELDOUT, json.dumps(rows) + "\n")
        held = _of_pool(config, pool, rows)
        reporter.note(f"held out: {len(rows):,} rows of the pool ({_shares(held)}); no arm can choose them")
        excluded[rows] = True
        digests = pool.encoded.digests[rows]
    # A copy of a held-out row in the pool would be learnt by heart.
    there = {digest.tobytes() for digest in digests}
    copies = np.fromiter((one.tobytes() in there for one in pool.encoded.digests), np.bool_, len(usable))
    copies &= usable & ~excluded
    if copies.any():
        reporter.note(f"{int(copies.sum()):,} rows of the pool are copies of held-out rows; no arm can choose them")
    everything = excluded | copies
    if not everything.any():
        return config, held
    content = json.dumps(np.flatnonzero(everything).tolist()) + "\n"
    # Two studies of one output that hold out different rows must not exclude each other's.
    path = folder / EXCLUDED.format(digest=hashlib.sha256(content.encode()).hexdigest()[:8])
    write_text(path, content)
    selection = config.selection.model_copy(update={"exclude": str(path.absolute())})
    return config.model_copy(update={"selection": selection}), held


def _drawn(pool: Pool, free: np.ndarray, count: int | None, seed: int) -> list[int]:
    """Rows of every source, drawn without regard to anything else; copies of one row come or stay together."""
    labels = np.array(pool.source_labels)
    equal = pool.encoded.first_of_equal
    generator = np.random.default_rng([seed, 0x4E10])
    found: list[int] = []
    for source in dict.fromkeys(labels.tolist()):
        rows = np.flatnonzero(free & (labels == source) & (equal == np.arange(len(labels))))
        wanted = min(_MOST, max(1, round(_SHARE * len(rows)))) if count is None else count
        if wanted < 1 or wanted >= len(rows):
            raise ConfigError(
                f"--holdout cannot take {wanted:,} rows out of {source}, which has {len(rows):,} different ones; give "
                "fewer, or name files with --heldout."
            )
        found += sorted(int(row) for row in generator.choice(rows, wanted, replace=False))
    return found


def _of_pool(config: RunConfig, pool: Pool, rows: Sequence[int]) -> HeldOut:
    model = trained_model(config)
    labels = pool.source_labels
    subset = pool.rows.subset(np.array(rows))
    if model == config.model:
        tokenizer = pool.tokenizer
        response = config.gradients.loss == "response"
        encoded = (
            collect_examples([pool.encoded.example(row) for row in rows], pool.encoded.stats, pool.encoded.identity)
            if response
            else encode_as(subset, pool.schemas, tokenizer, of_responses(config))
        )
    else:
        tokenizer = load_tokenizer(model)
        encoded = encode_as(subset, pool.schemas, tokenizer, of_responses(config))
    return HeldOut(TargetRows(subset, pool.schemas, encoded, tuple(labels[row] for row in rows)), tokenizer, 0)


def _shares(held: HeldOut) -> str:
    return ", ".join(f"{count:,} of {name}" for name, count in held.domains.items())
