"""Hidden states at the positions that predict tokens: one forward pass of every row, kept on disk.

Rows have as many states as they have such positions, so that they do not fit the store of one row of numbers each.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from spice_select.data.encoded import Encoded
from spice_select.errors import DataError, ResourceError, StoreCorrupt
from spice_select.features.bench import Bench, Passes
from spice_select.features.readout import Readout, head_width
from spice_select.features.token_chunks import Chunk, TokenFeatures, TokenFiles
from spice_select.files import Lock, free_bytes, make_folder
from spice_select.gradients.batches import out_of_memory, plan_batches
from spice_select.gradients.random import Stream
from spice_select.reporter import heard

NAME = "tokens"
_NAMED = 10


def collect_tokens(bench: Bench, *, positions: str, dim: int | None) -> TokenFeatures:
    """Hidden states that the proxy's head reads, of every usable row, or what is there of the same.

    A run that is cut off goes on after the last whole chunk; a damaged chunk is computed anew. Two runs at once take
    turns, and the second finds what the first has left.

    Args:
        bench: Pool, proxy, and where measurements are kept.
        positions: ``"response"``: positions that predict a trained token; ``"all"``: every position that predicts one.
        dim: Project states to this length by random signs, seeded by ``gradients.seed``; inner products keep their
            mean. None, or no less than a state's own length: exact.

    Raises:
        DataError: No row is usable.
        ModelError: A proxy that cannot be read in this way.
        OutputError: The chunks cannot be written.
        ResourceError: They do not fit the disk, or a single row does not fit into memory.
    """
    assert positions in ("response", "all")
    encoded = bench.pool.encoded
    if not encoded.usable.any():
        raise DataError(
            "No example has a response to read hidden states of; see why under 'rows', and change the data."
        )
    bench.reporter.stage("Token features")
    with bench.clock.stage(NAME), heard(bench.reporter):
        width = head_width(bench.proxy)
        projected = dim if dim is not None and dim < width else None
        identity = _identity(bench, positions, projected)
        counts = _counts(encoded, positions)
        files = TokenFiles(make_folder(bench.place(NAME, identity)), identity, counts, projected or width)
        path = files.folder / "tokens.lock"
        lock = Lock.try_acquire(path)
        if lock is None:
            bench.reporter.note(f"Waiting for another run that is at {files.folder}.")
            lock = Lock.acquire(path)
        with lock:
            return _Collector(bench, files, identity, positions, width, projected).run()


def _identity(bench: Bench, positions: str, dim: int | None) -> str:
    """SHA-256 of all that decides the numbers."""
    content = {
        "version": 1,
        "examples": bench.pool.encoded.digest,
        "positions": positions,
        "dim": dim,
        "seed": None if dim is None else bench.config.gradients.seed,
        **bench.identity(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _counts(encoded: Encoded, positions: str) -> Int[np.ndarray, " n"]:
    # The first token is predicted by none.
    lengths = encoded.response_tokens if positions == "response" else np.maximum(encoded.lengths - 1, 0)
    return np.where(encoded.usable, lengths, 0).astype(np.int64)


def sign_matrix(width: int, dim: int, seed: int) -> Float32[np.ndarray, "width dim"]:
    """Random signs over the root of ``dim``: products of projected vectors have the exact ones as their mean."""
    signs = Stream(seed, "tokens", "signs").signs(width * dim).reshape(width, dim)
    return (signs / np.sqrt(dim)).astype(np.float32)


@dataclass
class _Collector:
    """One run over the chunks; it holds their lock."""

    bench: Bench
    files: TokenFiles
    identity: str
    positions: str
    width: int
    dim: int | None
    non_finite: list[int] = field(default_factory=list)
    readout: Readout | None = None
    signs: Tensor | None = None
    most_tokens: int | None = None
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def run(self) -> TokenFeatures:
        """Compute what is missing or damaged, and open the whole."""
        todo = [chunk for chunk in self.files.plan if not self._whole(chunk)]
        self._require_space(todo)
        usable = self.bench.pool.encoded.usable
        total = int(usable.sum())
        self.done = total - sum(int(usable[chunk.start : chunk.stop].sum()) for chunk in todo)
        self._count(Passes(what=NAME))
        for chunk in todo:
            self._work(chunk, total)
        reused = len(self.files.plan) - len(todo)
        self.bench.reporter.note(
            f"Computed {len(todo)} of {len(self.files.plan)} chunks of token features, and reused {reused}."
        )
        if self.non_finite:
            lost = sorted(self.non_finite)
            few = ", ".join(map(str, lost[:_NAMED])) + (", ..." if len(lost) > _NAMED else "")
            self.bench.reporter.warn(f"Left out {len(lost)} rows with a NaN or infinite hidden state: {few}.")
        return TokenFeatures(self.files, self.non_finite)

    def _whole(self, chunk: Chunk) -> bool:
        if not self.files.marked(chunk):
            return False
        try:
            self.non_finite += self.files.check(chunk)
            return True
        except StoreCorrupt:
            self.bench.reporter.warn(f"Chunk {chunk.number} of the token features is damaged and computed anew.")
            return False

    def _require_space(self, todo: Sequence[Chunk]) -> None:
        needed, free = self.files.needed_bytes(todo), free_bytes(self.files.folder)
        if needed > free:
            raise ResourceError(
                f"The token features in {self.files.folder} need {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB "
                f"are free; make room, or set method.dim below {self.files.dim} to project them."
            )

    def _count(self, passes: Passes) -> None:
        self.bench.count(NAME, self.identity, passes)

    def _work(self, chunk: Chunk, total: int) -> None:
        """Compute and write one chunk."""
        encoded = self.bench.pool.encoded
        rows = chunk.start + np.flatnonzero(encoded.usable[chunk.start : chunk.stop])
        counts = self.files.counts[chunk.start : chunk.stop]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        states = np.zeros((self.files.tokens(chunk), self.files.dim), np.float32)
        lost: list[int] = []
        lengths = encoded.lengths[rows]
        tokens, spent = 0, 0.0
        for batch in plan_batches(lengths, self.bench.config.gradients.batch_tokens):
            begun = time.perf_counter()
            for row, found in zip(rows[batch].tolist(), self._measure(rows[batch].tolist()), strict=True):
                if not np.isfinite(found).all():
                    lost.append(row)
                    continue
                first = offsets[row - chunk.start]
                states[first : first + len(found)] = found
            spent += time.perf_counter() - begun
            tokens += int(lengths[batch].sum())
            self.done += len(batch)
            self.bench.reporter.advance(self.done, total, self.tokens + tokens, self.seconds + spent)
        self.files.write(chunk, states, lost)
        self.non_finite += lost
        self.tokens += tokens
        self.seconds += spent
        # Chunk by chunk, so that a killed run is counted too.
        self._count(Passes(what=NAME, forwards=len(rows), tokens=tokens, seconds=spent))

    def _measure(self, rows: list[int]) -> list[Float32[np.ndarray, "t d"]]:
        """States of rows together, or in halves where memory runs out."""
        padded = len(rows) * max(len(self.bench.pool.encoded.example(row).input_ids) for row in rows)
        found = None
        # Once a size has failed, batches as large are not tried again.
        if len(rows) == 1 or self.most_tokens is None or padded <= self.most_tokens:
            found = self._attempt(rows)
        if found is not None:
            return found
        if len(rows) == 1:
            raise ResourceError(
                f"Row {rows[0]} with {padded} tokens doesn't fit into memory by itself; set a smaller "
                "data.max_length, model.dtype to bfloat16, or use a device with more memory."
            )
        self.most_tokens = min(padded - 1, self.most_tokens or padded)
        half = (len(rows) + 1) // 2
        return self._measure(rows[:half]) + self._measure(rows[half:])

    def _attempt(self, rows: list[int]) -> list[Float32[np.ndarray, "t d"]] | None:
        try:
            return self._states(rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out of the handler, so that the traceback no longer keeps the tensors alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.no_grad()
    def _states(self, rows: list[int]) -> list[Float32[np.ndarray, "t d"]]:
        if self.readout is None:
            self.readout = Readout(self.bench.proxy)
        examples = [self.bench.pool.encoded.example(row) for row in rows]
        masks = [e.labels_mask if self.positions == "response" else np.ones(len(e.input_ids), bool) for e in examples]
        batch = self.readout.build([e.input_ids for e in examples], masks)
        states: Float[Tensor, "n d"] = self.readout.states(batch).float()
        assert states.shape[1] == self.width
        if self.dim is not None:
            if self.signs is None:
                signs = sign_matrix(self.width, self.dim, self.bench.config.gradients.seed)
                self.signs = torch.from_numpy(signs).to(states.device)
            states = states @ self.signs
        ends = np.cumsum(self.files.counts[rows])
        assert ends[-1] == len(states)
        return np.split(states.cpu().numpy(), ends[:-1])
