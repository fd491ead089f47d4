"""The gradient store, token features, and what a schedule leaves: files whose bytes are sealed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spice_select.gradients.manifest import _canonical
from spice_select.gradients.store import GradientStore
from tests.fuzz.base import Format, Wrong
from tests.fuzz.mutators import BYTES, JSON, LINES, NPY, json_value, npy_header

ROWS, DIM = 20, 4


def _made(folder: Path, dtype: str = "float32") -> Path:
    from tests.stores import FakeEngine, examples, fill

    fill(folder, examples(ROWS), FakeEngine(DIM), store_dtype=dtype)
    return folder


def _account(store: GradientStore) -> tuple:
    rows = store.rows(range(len(store))).tobytes()
    names = ("digests", "losses", "lengths", "squared_norms", "norms", "statuses")
    return store.shape, rows, *(getattr(store, name).tobytes() for name in names)


class _Store(Format):
    """One file of a store; the store is opened with every byte hashed, and without."""

    file = ""

    def make_seeds(self) -> list[bytes]:
        self.store = _made(self.folder / "store")
        self.path = self.store / self.file
        self.whole = _account(GradientStore.open(self.store, verify=True))
        return [self.path.read_bytes()]

    def read(self, content: bytes) -> None:
        self.place(self.path, content)
        if _account(GradientStore.open(self.store, verify=True)) != self.whole:
            raise Wrong("a damaged store was read as another")


class Manifest(_Store):
    """``manifest.json``."""

    name = "manifest.json"
    file = "manifest.json"
    mutators = JSON
    weight = 6.0


def resealed(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A manifest that someone has changed and given a fitting checksum."""
    content = json_value(rng, seeds)
    try:
        value = json.loads(content)
        value.pop("checksum", None)
        value["checksum"] = hashlib.sha256(_canonical(value)).hexdigest()
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except (ValueError, AttributeError, TypeError, RecursionError, UnicodeEncodeError):
        return content


class ForgedManifest(_Store):
    """A manifest with a fitting checksum: it must fit its shards, too."""

    name = "manifest (forged)"
    file = "manifest.json"
    mutators = (resealed,)
    weight = 0.5

    def read(self, content: bytes) -> None:
        self.place(self.path, content)
        _account(GradientStore.open(self.store))


class Marker(_Store):
    """``shards/000001.json``."""

    name = "shard marker"
    file = "shards/000001.json"
    mutators = JSON
    weight = 4.0


class ShardRows(_Store):
    """``shards/000001.npy``."""

    name = "shard rows"
    file = "shards/000001.npy"
    mutators = NPY
    weight = 3.0


class ShardMeta(_Store):
    """``shards/000001.meta.npy``."""

    name = "shard records"
    file = "shards/000001.meta.npy"
    mutators = NPY
    weight = 3.0


class _Forged(_Store):
    """An array file whose marker vouches for it: what it declares must still be that of its shard."""

    mutators = (npy_header,)
    part = "rows"

    def read(self, content: bytes) -> None:
        marker = self.store / "shards/000001.json"
        said = json.loads(marker.read_bytes())
        said[self.part] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        marker.write_bytes((json.dumps(said, indent=2) + "\n").encode())
        self.place(self.path, content)
        shape = _account(GradientStore.open(self.store, verify=True))[0]
        if shape != (ROWS, DIM):
            raise Wrong(f"a store of shape {shape}")


class ForgedRows(_Forged):
    """Rows under another header."""

    name = "shard rows (forged)"
    file = "shards/000001.npy"
    weight = 2.0


class ForgedMeta(_Forged):
    """Records under another header."""

    name = "shard records (forged)"
    file = "shards/000001.meta.npy"
    part = "meta"
    weight = 2.0


class TokenStates(Format):
    """A chunk of token features, and its marker, one after the other in an input."""

    name = "token features"
    mutators = (*NPY[:4], *BYTES)
    weight = 4.0

    def make_seeds(self) -> list[bytes]:
        from spice_select.features.token_chunks import TokenFiles

        self.counts = np.array([2, 0, 3, 1])
        self.files = TokenFiles(self.folder, "a" * 64, self.counts, 3)
        self.states = np.arange(18, dtype=np.float32).reshape(6, 3)
        self.files.write(self.files.plan[0], self.states, (2,))
        return [self.files.states_path(self.files.plan[0]).read_bytes()]

    def read(self, content: bytes) -> None:
        chunk = self.files.plan[0]
        self.place(self.files.states_path(chunk), content)
        mapped = self.files.map(chunk)
        if mapped.shape != self.states.shape:
            raise Wrong(f"states of shape {mapped.shape}")
        self.files.check(chunk)
        if not np.array_equal(mapped, self.states):
            raise Wrong("damaged states were read")


class TokenMarker(TokenStates):
    """The marker of a chunk of token features."""

    name = "token features marker"
    mutators = JSON
    weight = 5.0

    def make_seeds(self) -> list[bytes]:
        super().make_seeds()
        return [self.files.marker_path(self.files.plan[0]).read_bytes()]

    def read(self, content: bytes) -> None:
        chunk = self.files.plan[0]
        self.place(self.files.marker_path(chunk), content)
        if self.files.check(chunk) != (2,):
            raise Wrong("a damaged marker was read")


class PoolLog(Format):
    """``log.jsonl`` of a schedule of pools."""

    name = "pool log"
    mutators = LINES
    weight = 5.0

    def make_seeds(self) -> list[bytes]:
        from spice_select.schedule.log import PoolEntry, SelectionLog

        self.path = self.folder / "log.jsonl"
        log = SelectionLog(self.path, "b" * 64)
        for pool in range(4):
            rows = tuple(range(4 * pool, 4 * pool + 4))
            log.append(PoolEntry(pool=pool, rows=rows, due=2, picks=rows[:2], gains=(0.5, 0.25), losses=(1.0, None)))
        self.entries = log.entries
        return [self.path.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.schedule.log import SelectionLog

        self.place(self.path, content)
        found = SelectionLog(self.path, "b" * 64).entries
        # Lines that are gone from the end look as if they had never been written.
        if found != self.entries[: len(found)]:
            raise Wrong("a damaged log was read")


class ScheduleCheckpoint(Format):
    """``checkpoint.json`` of a schedule."""

    name = "checkpoint.json"
    file = "checkpoint.json"
    mutators = JSON
    weight = 0.3

    def make_seeds(self) -> list[bytes]:
        from spice_select.schedule.checkpoints import save_checkpoint
        from spice_select.schedule.trainer import ProxyTrainer
        from tests.schedules import SEED, learner, schedule

        self.trainer = ProxyTrainer(learner(), schedule(), SEED, 10)
        self.kept = self.folder / "kept"
        save_checkpoint(self.kept, self.trainer, {"pool": 3})
        self.path = self.kept / self.file
        self.digest = self.trainer.digest
        return [self.path.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.schedule.checkpoints import load_checkpoint

        self.place(self.path, content)
        found = load_checkpoint(self.kept, self.trainer)
        if found != {"pool": 3} or self.trainer.digest != self.digest:
            raise Wrong("a damaged checkpoint was read")


class ScheduleWeights(ScheduleCheckpoint):
    """Weights of a schedule's checkpoint."""

    name = "checkpoint weights"
    file = "adapter/adapter_model.safetensors"
    mutators = BYTES


class RowMemory(Format):
    """The rows of all picks of a schedule with a memory."""

    name = "row memory"
    mutators = BYTES

    def make_seeds(self) -> list[bytes]:
        return [np.arange(24, dtype="<f4").tobytes()]

    def read(self, content: bytes) -> None:
        from spice_select.schedule.memory import RowFile

        path = self.folder / "rows.f32"
        self.place(path, content)
        found = RowFile(path, 4, 6).read()
        if found.shape != (6, 4) or found.tobytes() != content[:96]:
            raise Wrong("other rows were read")


class TrainingSeal(Format):
    """``sealed.json`` of a training's checkpoint: the checkpoint is whole, or passed over."""

    name = "sealed.json"
    mutators = JSON

    def make_seeds(self) -> list[bytes]:
        from spice_select.training.checkpoints import SEAL, seal

        self.kept = self.folder / "checkpoint-5"
        self.kept.mkdir()
        (self.kept / "weights.bin").write_bytes(b"weights")
        seal(self.kept, 2.5)
        self.path = self.kept / SEAL
        return [self.path.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.training.checkpoints import last_whole

        self.place(self.path, content)
        found = last_whole(self.folder)
        if found is not None and found[1].files != {"weights.bin": hashlib.sha256(b"weights").hexdigest()}:
            raise Wrong("another seal was read")


FORMATS = (
    Manifest, ForgedManifest, Marker, ShardRows, ShardMeta, ForgedRows, ForgedMeta, TokenStates, TokenMarker, PoolLog,
    ScheduleCheckpoint, ScheduleWeights, RowMemory, TrainingSeal,
)  # fmt: skip
