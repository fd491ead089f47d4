"""Small examples, and an engine whose gradients are a pure function of the token ids, for tests of the store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spice_select.config import GradientConfig
from spice_select.data.encoded import Encoded, EncodingStats, Example, collect_examples
from spice_select.data.status import Status
from spice_select.gradients.collect import CollectResult, collect

IDENTITY = {"weights": "a" * 64, "tokenizer": "b" * 64, "template": {"hash": "c" * 64, "clock": None}}


def examples(
    count: int, seed: int = 0, statuses: Mapping[int, Status] | None = None, vocabulary: int = 1000
) -> Encoded:
    """Examples of 2 to 40 random tokens."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(count):
        status = (statuses or {}).get(row, Status.OK)
        length = 0 if status == Status.NO_RESPONSE else int(random.integers(2, 41))
        mask = np.zeros(length, np.bool_)
        mask[length // 2 :] = True
        made.append(Example(random.integers(0, vocabulary, length).astype(np.int32), mask, status))
    return collect_examples(made, EncodingStats(rows=count), {})


@dataclass(frozen=True)
class FakeBatch:
    rows: np.ndarray
    losses: np.ndarray
    squared_norms: np.ndarray


class FakeEngine:
    """Gradients drawn from the token ids; heavy-tailed, as real ones are.

    Args:
        dim: Length of a row.
        sleep: Seconds that an example takes.
        spoiled: First token ids whose example has a NaN gradient.
        most_tokens: Padded tokens above which memory runs out.
        changes: Laid over the spec.
    """

    def __init__(
        self,
        dim: int = 24,
        *,
        sleep: float = 0.0,
        spoiled: Mapping[int, float] | None = None,
        most_tokens: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.dim = dim
        self.sleep = sleep
        self.spoiled = spoiled or {}
        self.most_tokens = most_tokens
        self.changes = changes or {}
        self.batches: list[int] = []
        self.padded: list[int] = []

    def spec(self) -> Mapping[str, Any]:
        return {
            "sketch": {"kind": "fold", "dim": self.dim, "seed": 0, "test_vector": [0.5, -1.25]},
            "layers": ["a.q_proj", "a.k_proj"],
            "loss": "response",
            "dtype": "float32",
            **self.changes,
        }

    def row(self, ids: np.ndarray) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).digest()[:8], "little")
        random = np.random.default_rng(seed)
        return (random.standard_normal(self.dim) * np.exp(random.standard_normal())).astype(np.float32)

    def batch(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> FakeBatch:
        padded = len(ids) * max(map(len, ids))
        self.padded.append(padded)
        if self.most_tokens is not None and padded > self.most_tokens:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        time.sleep(self.sleep * len(ids))
        self.batches.append(len(ids))
        rows = np.stack([self.row(one) for one in ids])
        losses = np.array([float(mask.sum()) / 7 for mask in masks])
        for place, one in enumerate(ids):
            if int(one[0]) in self.spoiled:
                rows[place, 0] = self.spoiled[int(one[0])]
        return FakeBatch(rows, losses, np.square(rows.astype(np.float64)).sum(axis=1))


def settings(**changes: Any) -> GradientConfig:
    return GradientConfig.model_validate({"shard_rows": 8, "batch_tokens": 100, **changes})


def fill(folder: Path, encoded: Encoded, engine: FakeEngine | None = None, **changes: Any) -> CollectResult:
    """Collect with the fake engine; settings may be changed by name."""
    return collect(encoded, engine or FakeEngine(), folder, settings(**changes), identity=IDENTITY)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "locks"
    }


def with_status(encoded: Encoded, row: int, status: Status) -> Encoded:
    changed = encoded.status.copy()
    changed[row] = status
    return replace(encoded, status=changed)
