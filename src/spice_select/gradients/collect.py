"""One gradient row per example, shard by shard, each shard whole or absent.

What a shard holds, and which examples share a batch, follows from the examples and the settings alone: a run that was
killed any number of times ends in the same bytes as one that was not. That is as true as the device repeats itself: on
a CPU with the same number of threads it does. Where a batch did not fit into memory and was halved, or a later run goes
on with another device or token budget, rows agree to about 1e-5 and bytes may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from spice_select.config import GradientConfig
from spice_select.data.encoded import Encoded
from spice_select.data.status import Status
from spice_select.errors import DataError, ResourceError, StoreCorrupt
from spice_select.files import free_bytes
from spice_select.gradients.batches import Engine
from spice_select.gradients.crew import Alone, Crew, Described, Job
from spice_select.gradients.locks import joined
from spice_select.gradients.manifest import Manifest, build_manifest, read_manifest
from spice_select.gradients.shard_work import Done
from spice_select.gradients.shards import REMEDY, Shard, ShardFiles
from spice_select.gradients.store import GradientStore, estimated_bytes


@dataclass(frozen=True)
class CollectResult:
    """What a collect left, and how it came about.

    Attributes:
        store: The whole store.
        shards: Shards of the store.
        reused_shards: Found whole and verified.
        written_shards: Computed by this run.
        peer_shards: Computed by other runs meanwhile.
        damaged: What was wrong with each shard that was found damaged and computed anew.
        non_finite: Rows whose loss or gradient is NaN or infinite; they are left out.
        halvings: Times that memory ran out and a batch was halved.
        tokens: Tokens that this run has worked through, padding aside.
        seconds: Wall-clock time of the gradients and their writing in this run.
        examples: Examples that this run has measured.
        worked: Seconds of the gradients and their writing, all workers together.
    """

    store: GradientStore
    shards: int
    reused_shards: int
    written_shards: int
    peer_shards: int
    damaged: tuple[str, ...]
    non_finite: tuple[int, ...]
    halvings: int
    tokens: int
    seconds: float
    examples: int
    worked: float

    def describe(self) -> list[str]:
        """The same in plain sentences, without what did not occur."""
        lines = [f"Computed {self.written_shards} of {self.shards} shards, and reused {self.reused_shards}."]
        if self.peer_shards:
            lines.append(f"Other runs computed {self.peer_shards} shards meanwhile.")
        if self.damaged:
            lines.append(f"Computed {len(self.damaged)} damaged shards anew: {self.damaged[0]}")
        if self.halvings:
            lines.append(f"Halved a batch {self.halvings} times because memory ran out; smaller batches run smoother.")
        if self.non_finite:
            few = ", ".join(map(str, self.non_finite[:10])) + (", ..." if len(self.non_finite) > 10 else "")
            lines.append(f"Left out {len(self.non_finite)} rows with a NaN or infinite loss or gradient: {few}.")
        return lines


def collect(
    encoded: Encoded,
    engine: Engine,
    folder: str | Path,
    config: GradientConfig,
    *,
    identity: Mapping[str, Any],
    progress: Callable[[int, int, int, float], None] | None = None,
    note: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> CollectResult:
    """Measure the gradient of every usable example and keep them in a store.

    Whole shards that are there already are verified and kept; damaged ones are computed anew. Several processes may
    collect into one folder at once: each takes the shards that no other is at, and all return when the store is whole.

    Args:
        encoded: The examples; row i of the store is example i.
        engine: What measures them.
        folder: Where the store goes.
        config: Token budget of a batch, rows of a shard, and dtype of the store.
        identity: Hashes of weights, tokenizer and template, and whatever else decides the numbers.
        progress: Called after every batch with the usable rows that are done, those there are in all, and the tokens
            and seconds that this run has taken.
        note: Called with sentences that a user should read as they arise.
        overwrite: Throw away what is in the folder, once everything else has been found in order.

    Raises:
        DataError: No example is usable.
        StoreMismatch: The folder's store belongs to other settings.
        OutputBusy: Another run is writing the store that is to be thrown away.
        OutputError: The store cannot be written.
        ResourceError: The disk is full, or a single example doesn't fit into memory.
    """
    return collect_by(
        Alone(engine),
        encoded,
        engine,
        folder,
        config,
        identity=identity,
        progress=progress,
        note=note,
        overwrite=overwrite,
    )


def collect_by(
    crew: Crew,
    encoded: Encoded,
    described: Described,
    folder: str | Path,
    config: GradientConfig,
    *,
    identity: Mapping[str, Any],
    progress: Callable[[int, int, int, float], None] | None = None,
    note: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> CollectResult:
    """As :func:`collect`, with a crew that does the measuring; ``described`` says what with."""
    folder = Path(folder)
    if not encoded.usable.any():
        raise DataError("No example has a response to take a gradient of; see why under 'rows', and change the data.")
    requested = _requested(encoded, described, config, identity)
    if not overwrite and (found := read_manifest(folder)) is not None:
        found.require(requested, folder)
    _require_space(folder, requested)
    with joined(folder, requested, overwrite=overwrite) as manifest:
        return _Collection(encoded, folder, manifest, config, progress, note).run(crew)


def start_again(
    encoded: Encoded, engine: Described, folder: str | Path, config: GradientConfig, *, identity: Mapping[str, Any]
) -> None:
    """Throw away what is in a store and leave an empty one, that several processes may then collect into.

    Raises:
        OutputBusy: Another run is writing the store.
        OutputError: The store cannot be written.
    """
    with joined(Path(folder), _requested(encoded, engine, config, identity), overwrite=True):
        pass


def _requested(encoded: Encoded, engine: Described, config: GradientConfig, identity: Mapping[str, Any]) -> Manifest:
    return build_manifest(
        rows=len(encoded),
        dim=engine.dim,
        shard_rows=config.shard_rows,
        store_dtype=config.store_dtype,
        examples=encoded.digest,
        gradient=engine.spec(),
        sources=identity,
        batch_tokens=config.batch_tokens,
    )


@dataclass
class _Collection:
    """One run over one store; hears of the shards that its crew computes."""

    encoded: Encoded
    folder: Path
    manifest: Manifest
    config: GradientConfig
    progress: Callable[[int, int, int, float], None] | None
    note: Callable[[str], None] | None
    files: ShardFiles = field(init=False)
    usable: Bool[np.ndarray, " n"] = field(init=False)
    total: int = field(init=False)
    written: int = 0
    peers: int = 0
    halvings: int = 0
    done: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    worked: float = 0.0
    damaged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = ShardFiles(self.folder, self.manifest)
        self.usable = self.encoded.usable
        self.total = int(self.usable.sum())

    def run(self, crew: Crew) -> CollectResult:
        """Have computed what is missing, and open the store."""
        # Reading a shard to hash it costs about a thousandth of computing it, so that nothing is reused on trust.
        todo = tuple(shard for shard in self.files.plan if not self._whole(shard))
        self.done = self.total - sum(int(self.usable[shard.start : shard.stop].sum()) for shard in todo)
        self._report()
        if todo:
            crew.compute(Job(self.folder, self.manifest, self.config.batch_tokens, todo, self._part), self)
        store = GradientStore.open(self.folder)
        return CollectResult(
            store=store,
            shards=len(self.files.plan),
            reused_shards=len(self.files.plan) - len(todo),
            written_shards=self.written,
            peer_shards=self.peers,
            damaged=tuple(self.damaged),
            non_finite=tuple(map(int, np.flatnonzero(store.statuses == Status.NON_FINITE))),
            halvings=self.halvings,
            tokens=self.tokens,
            seconds=self.seconds,
            examples=self.examples,
            worked=self.worked,
        )

    def advance(self, examples: int, tokens: int, seconds: float) -> None:
        """A batch was measured, or lost with its worker."""
        self.done += examples
        self.examples += max(0, examples)
        self.tokens += tokens
        self.seconds = seconds
        self._report()

    def finished(self, shard: Shard, done: Done, seconds: float) -> None:
        """A shard is whole."""
        self.seconds = seconds
        self.halvings += done.halvings
        self.worked += done.seconds
        if done.written:
            self.written += 1
            return
        self.peers += 1
        self.done += done.examples
        self._report()

    def say(self, sentence: str) -> None:
        """A sentence that a user should read."""
        if self.note is not None:
            self.note(sentence)

    def _part(self, shard: Shard) -> Encoded:
        return self.encoded.part(shard.start, shard.stop)

    def _whole(self, shard: Shard) -> bool:
        if not self.files.marker_path(shard).is_file():
            return False
        try:
            self.files.check(shard, verify=True)
            return True
        except StoreCorrupt as error:
            self.damaged.append(str(error).removesuffix(REMEDY) + ".")
            self.say(f"Shard {shard.number} is damaged and will be computed anew: {self.damaged[-1]}")
            return False

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, self.tokens, self.seconds)


def _require_space(folder: Path, requested: Manifest) -> None:
    """Refuse early what the disk cannot hold, counting what is there already.

    Raises:
        ResourceError: The store is larger than what is free.
    """
    needed = estimated_bytes(requested.rows, requested.dim, requested.store_dtype, requested.shard_rows)
    files = ShardFiles(folder, requested)
    for shard in files.plan:
        for path in (files.rows_path(shard), files.meta_path(shard), files.marker_path(shard)):
            if path.is_file():
                needed -= path.stat().st_size
    free = free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"The gradient store {folder} needs {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free; make "
            "room, set a smaller gradients.dim, or gradients.store_dtype to float16."
        )
