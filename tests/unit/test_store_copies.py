"""Examples of the same tokens have the same numbers in a store, whatever batch each was measured in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from spice_select.data.encoded import Encoded, EncodingStats, collect_examples
from spice_select.data.status import Status
from spice_select.gradients.equals import first_of_equal
from spice_select.gradients.store import GradientStore
from tests.stores import FakeBatch, FakeEngine, contents, examples, fill, with_status

N, SHARD = 40, 8
# Copies in the shard of their first, in others, and of one that is no first any more.
COPIES = {5: 2, 11: 2, 30: 2, 39: 7, 12: 4}


class NoisyEngine(FakeEngine):
    """Numbers that differ a little by the company that an example was measured in."""

    def batch(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> FakeBatch:
        found = super().batch(ids, masks)
        factors = 1 + 1e-6 * (np.arange(len(ids)) + 3 * len(ids))
        rows = (found.rows * factors[:, None]).astype(np.float32)
        return FakeBatch(rows, found.losses * factors, np.square(rows.astype(np.float64)).sum(axis=1))


def pool(left_out: int | None = None) -> Encoded:
    drawn = examples(N)
    made = [drawn.example(COPIES.get(row, row)) for row in range(N)]
    encoded = collect_examples(made, EncodingStats(rows=N), {})
    return encoded if left_out is None else with_status(encoded, left_out, Status.EXCLUDED)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_copies_have_the_numbers_of_the_first(tmp_path: Path, dtype: str) -> None:
    fill(tmp_path, pool(), NoisyEngine(), store_dtype=dtype, shard_rows=SHARD)
    store = GradientStore.open(tmp_path, verify=True)
    expected = np.arange(N)
    expected[list(COPIES)] = list(COPIES.values())
    np.testing.assert_array_equal(store.first_of_equal, expected)
    rows = store.rows(range(N))
    for copy, first in COPIES.items():
        np.testing.assert_array_equal(rows[copy], rows[first])
        for column in (store.losses, store.squared_norms, store.norms):
            assert column[copy] == column[first]
    # The files hold what was measured, and there the numbers differ.
    raw = {n: np.load(tmp_path / "shards" / f"{n:06d}.npy").astype(np.float32) for n in (0, 1)}
    measured = np.load(tmp_path / "shards" / "000001.meta.npy")
    assert measured["squared_norm"][11 - SHARD] != store.squared_norms[11]
    if dtype == "float32":
        assert not np.array_equal(raw[0][2], raw[1][11 - SHARD])
    for size in (1, 3, SHARD, 1000):
        np.testing.assert_array_equal(np.concatenate([block for _, block in store.blocks(size)]), rows)
    # Few rows and many are read in different ways.
    many = np.tile(np.arange(N)[::-1], 10)
    np.testing.assert_array_equal(store.rows(many), rows[many])


def test_a_row_left_out_lends_its_numbers_to_nobody(tmp_path: Path) -> None:
    fill(tmp_path, pool(left_out=2), NoisyEngine(), shard_rows=SHARD)
    store = GradientStore.open(tmp_path)
    assert not store.rows([2]).any()
    assert store.first_of_equal[[2, 5, 11, 30]].tolist() == [2, 5, 5, 5]
    np.testing.assert_array_equal(store.rows([11])[0], store.rows([5])[0])
    assert store.rows([5]).any()


def test_part_of_a_store_knows_the_copies_that_are_there(tmp_path: Path) -> None:
    fill(tmp_path, pool(), NoisyEngine(), shard_rows=SHARD)
    before = contents(tmp_path)
    (tmp_path / "shards" / "000000.json").unlink()
    store = GradientStore.open(tmp_path, partial=True)
    assert store.first_of_equal[[11, 30]].tolist() == [11, 11]
    np.testing.assert_array_equal(store.rows([30])[0], store.rows([11])[0])
    fill(tmp_path, pool(), NoisyEngine(), shard_rows=SHARD)
    assert contents(tmp_path) == before


def test_first_of_equal_compares_whole_digests() -> None:
    digests = np.zeros((6, 32), np.uint8)
    digests[:, 0] = [1, 1, 1, 0, 0, 1]
    digests[:, 31] = [7, 8, 7, 7, 7, 8]
    usable = np.array([True, True, True, True, True, True])
    # Two agree in their first bytes alone; a digest without any is not known.
    assert first_of_equal(digests, usable).tolist() == [0, 1, 0, 3, 4, 1]
    usable[0] = False
    assert first_of_equal(digests, usable).tolist() == [0, 1, 2, 3, 4, 1]
    assert first_of_equal(digests[:0], usable[:0]).tolist() == []


def test_first_of_equal_is_that_of_the_examples() -> None:
    for left_out in (None, 2, 7):
        encoded = pool(left_out)
        np.testing.assert_array_equal(first_of_equal(encoded.digests, encoded.usable), encoded.first_of_equal)
