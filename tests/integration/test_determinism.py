"""The same picks for any batch, number of threads, shard, loop, order of rows and history of a collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from spice_select import select
from spice_select.config import GradientConfig
from spice_select.data.encoded import Encoded, EncodingStats, Example, collect_examples
from spice_select.data.status import Status
from spice_select.gradients import GradientEngine, Proxy
from spice_select.gradients.batches import Engine
from spice_select.gradients.collect import collect
from spice_select.gradients.store import GradientStore
from tests import determinism
from tests.proxies import tiny_model
from tests.stores import IDENTITY, FakeBatch, FakeEngine, contents

ROWS, PICKS, DIM = 48, 12, 32
TOLERANCE = 1e-5
"""Largest difference of a row between batches, threads and shards, as a share of the row's norm."""

LOOPS = ("brute", "dense", "kernel", "lazy")
WAYS = [
    {"batch_tokens": 30},
    {"batch_tokens": 64},
    {"batch_tokens": 1 << 14},
    {"shard_rows": 7},
    {"batch_tokens": 90, "shard_rows": 5},
]


def encoded(order: Sequence[int] | None = None) -> Encoded:
    made = [Example(np.asarray(ids, np.int32), mask, Status.OK) for ids, mask in determinism.pool(ROWS, None, None)]
    return collect_examples([made[i] for i in order or range(ROWS)], EncodingStats(rows=ROWS), {})


POOL = encoded()


class NoisyEngine(FakeEngine):
    """Numbers with noise as large as the tolerance, by the company that an example was measured in."""

    def batch(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> FakeBatch:
        found = super().batch(ids, masks)
        noise = np.random.default_rng([len(ids), *(len(row) for row in ids)]).standard_normal(found.rows.shape)
        size = np.linalg.norm(found.rows, axis=1, keepdims=True) / self.dim**0.5
        rows = (found.rows + TOLERANCE * size * noise).astype(np.float32)
        return FakeBatch(rows, found.losses, np.square(rows.astype(np.float64)).sum(axis=1))


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    config = GradientConfig(dim=DIM)
    return {
        "model": GradientEngine(Proxy.from_model(tiny_model("llama"), None, config), config),
        "noisy": NoisyEngine(DIM),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def store(folder: Path, engine: Engine, pool: Encoded = POOL, /, **settings: object) -> GradientStore:
    config = GradientConfig.model_validate({"dim": DIM, "shard_rows": 12, "batch_tokens": 200, **settings})
    return collect(pool, engine, folder, config, identity=IDENTITY).store


def picks(rows: GradientStore, loop: str = "auto", weight: float = 0.1) -> list[int]:
    return select(rows, budget=PICKS, loop=loop, conflict_weight=weight).indices.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["model", "noisy"])
def test_ways_of_measuring_change_no_pick(tmp_path: Path, engines: dict[str, Engine], kind: str) -> None:
    first = store(tmp_path / "first", engines[kind])
    rows, expected = first.rows(range(ROWS)), {weight: picks(first, weight=weight) for weight in (0.0, 0.1, 1.0)}
    different = 0
    for number, way in enumerate(WAYS):
        other = store(tmp_path / str(number), engines[kind], **way)
        again = other.rows(range(ROWS))
        relative = np.linalg.norm(again - rows, axis=1) / np.linalg.norm(rows, axis=1)
        assert relative.max() < 4 * TOLERANCE
        different += int((relative > 0).sum())
        for weight, chosen in expected.items():
            assert picks(other, weight=weight) == chosen
    # There is something to hide.
    assert different
    copies = {copy: int(row) for copy, row in enumerate(first.first_of_equal) if copy != row}
    assert len(copies) >= ROWS // 4
    for copy in copies.keys() & set(expected[0.1]):
        assert expected[0.1].index(copies[copy]) < expected[0.1].index(copy)


def test_threads_change_no_pick(tmp_path: Path, engines: dict[str, Engine]) -> None:
    first = store(tmp_path / "1", engines["model"])
    for count in (2, 4):
        with threads(count):
            other = store(tmp_path / str(count), engines["model"])
            assert picks(other) == picks(first)
        rows = first.rows(range(ROWS))
        assert np.abs(other.rows(range(ROWS)) - rows).max() < TOLERANCE * np.abs(rows).max()


def test_a_collection_in_parts_has_the_bytes_of_one_in_a_piece(tmp_path: Path, engines: dict[str, Engine]) -> None:
    store(tmp_path, engines["model"])
    whole = contents(tmp_path)
    # The last shard first, and then those that another process might have been at.
    for gone in ((0, 1, 2), (3,), (1, 3)):
        for number in gone:
            (tmp_path / "shards" / f"{number:06d}.json").unlink()
        store(tmp_path, engines["model"])
        assert contents(tmp_path) == whole


def test_loops_agree_among_copies(tmp_path: Path, engines: dict[str, Engine]) -> None:
    rows = store(tmp_path, engines["noisy"])
    assert len({tuple(picks(rows, loop)) for loop in LOOPS}) == 1


@pytest.mark.parametrize("kind", ["model", "noisy"])
def test_another_order_of_rows_permutes_the_picks(tmp_path: Path, engines: dict[str, Engine], kind: str) -> None:
    order = np.random.default_rng(3).permutation(ROWS).tolist()
    first, other = store(tmp_path / "a", engines[kind]), store(tmp_path / "b", engines[kind], encoded(order))
    # Of copies, whichever stands first is chosen first: the same tokens in the same order.
    chosen, again = ([table.digests[i].tobytes() for i in picks(table)] for table in (first, other))
    assert chosen == again


def test_half_precision_keeps_nearly_all_picks(tmp_path: Path, engines: dict[str, Engine]) -> None:
    first = store(tmp_path / "a", engines["noisy"])
    half = store(tmp_path / "b", engines["noisy"], store_dtype="float16")
    rows = first.rows(range(ROWS))
    errors = np.linalg.norm(half.rows(range(ROWS)) - rows, axis=1) / np.linalg.norm(rows, axis=1)
    assert 0 < errors.max() < 5e-4
    assert len(set(picks(half)) & set(picks(first))) >= PICKS - 1
