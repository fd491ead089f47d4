"""Whatever the shape of the shards, a store gives back the rows that were measured, in the order asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.data.status import Status
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.shards import plan_shards, stored
from tests.stores import FakeEngine, contents, examples, fill


@settings(max_examples=25)
@given(data=st.data())
def test_any_rows_in_any_order_from_any_shards(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40), label="rows")
    shard_rows = data.draw(st.integers(1, 48), label="rows of a shard")
    dim = data.draw(st.sampled_from([1, 3, 16]), label="dim")
    dtype = data.draw(st.sampled_from(["float32", "float16"]), label="dtype")
    left_out = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from([2, 4]), max_size=count - 1))
    encoded = examples(count, statuses={row: Status(status) for row, status in left_out.items()})
    engine = FakeEngine(dim)
    wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=60), label="indices")
    size = data.draw(st.integers(1, 50), label="block")
    one_by_one = data.draw(st.sampled_from([0, 256]), label="rows read one by one")
    truth = np.zeros((count, dim), np.float32)
    for row in np.flatnonzero(encoded.usable):
        truth[row] = engine.row(encoded.example(row).input_ids)
    with tempfile.TemporaryDirectory() as folder:
        store = fill(Path(folder), encoded, engine, shard_rows=shard_rows, store_dtype=dtype).store
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spice_select.gradients.store._ONE_BY_ONE", one_by_one)
            found = store.rows(wanted)
        blocks = np.concatenate([block for _, block in store.blocks(size)])
        if dtype == "float32":
            assert np.array_equal(found, truth[wanted])
            assert np.array_equal(blocks, truth)
        else:
            slack = 1e-3 * np.linalg.norm(truth, axis=1)
            assert (np.linalg.norm(found - truth[wanted], axis=1) <= slack[wanted]).all()
            assert (np.linalg.norm(blocks - truth, axis=1) <= slack).all()
        assert np.array_equal(store.usable, encoded.usable)


@settings(max_examples=25)
@given(
    count=st.integers(1, 30),
    shard_rows=st.integers(1, 12),
    lost=st.sets(st.integers(0, 30)),
    damage=st.sampled_from(["json", "npy", "meta.npy"]),
)
def test_resumed_equals_fresh(count: int, shard_rows: int, lost: set[int], damage: str) -> None:
    encoded = examples(count)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), encoded, shard_rows=shard_rows)
        fresh = contents(Path(folder))
        for shard in plan_shards(count, shard_rows):
            if shard.number in lost:
                (Path(folder) / "shards" / f"{shard.name}.{damage}").unlink()
        fill(Path(folder), encoded, shard_rows=shard_rows)
        assert contents(Path(folder)) == fresh


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64),
    st.floats(-30, 30),
)
def test_half_precision_is_true_to_a_thousandth_at_any_scale(values: list[float], exponent: float) -> None:
    row = (np.array([values]) * 10.0**exponent).astype(np.float32)
    norm = np.sqrt(np.square(row.astype(np.float64)).sum(axis=1)).astype(np.float32)
    back = stored(row, norm, "float16").astype(np.float32) * norm[:, None]
    # Norms near the end of float32's range are not to a thousandth themselves.
    if norm[0] > 1e-34 or norm[0] == 0:
        assert np.linalg.norm((back - row).astype(np.float64)) <= 1e-3 * norm[0]


@given(st.lists(st.integers(0, 3000), max_size=200), st.integers(1, 5000))
def test_every_example_is_in_one_batch_under_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    batches = plan_batches(array, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths))) if lengths else batches == []
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget
