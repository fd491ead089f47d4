"""What collecting does with rows, batches, memory and NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spice_select.data.status import Status
from spice_select.errors import DataError, ResourceError
from spice_select.gradients.batches import Measurer, plan_batches
from spice_select.gradients.collect import collect
from tests.stores import IDENTITY, FakeEngine, contents, examples, fill, settings


def test_batches_hold_like_lengths_under_the_budget() -> None:
    lengths = np.array([5, 40, 7, 7, 30, 200, 1, 6])
    batches = plan_batches(lengths, 60)
    assert sorted(np.concatenate(batches)) == list(range(8))
    assert [list(lengths[batch]) for batch in batches] == [[200], [40], [30, 7], [7, 6, 5, 1]]
    assert batches[3][0] == 3, "of equal lengths, the earlier row goes first"
    assert plan_batches(np.array([], np.int64), 60) == []


def test_batches_waste_little_on_padding() -> None:
    random = np.random.default_rng(0)
    lengths = np.minimum(np.exp(random.normal(5, 0.8, 1024)).astype(int) + 8, 2048)
    batches = plan_batches(lengths, 4096)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded / lengths.sum() < 1.05
    assert all(len(batch) * lengths[batch].max() <= 4096 for batch in batches)


def test_the_plan_is_followed_and_progress_told(tmp_path: Path) -> None:
    encoded = examples(20, statuses={2: Status.NO_RESPONSE, 9: Status.EXCLUDED})
    engine, told = FakeEngine(), []
    result = collect(
        encoded, engine, tmp_path, settings(), identity=IDENTITY, progress=lambda *numbers: told.append(numbers)
    )
    planned = [
        len(batch)
        for start in (0, 8, 16)
        for batch in plan_batches(
            encoded.lengths[start : start + 8][encoded.usable[start : start + 8]], settings().batch_tokens
        )
    ]
    assert engine.batches == planned
    assert max(engine.padded) <= 100
    assert [done for done, *_ in told] == list(np.cumsum([0, *planned]))
    assert {total for _, total, *_ in told} == {18}
    assert told[-1][2] == encoded.lengths[encoded.usable].sum() == result.tokens
    seconds = [each[3] for each in told]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    assert (result.shards, result.written_shards, result.reused_shards, result.peer_shards) == (3, 3, 0, 0)
    assert result.describe() == ["Computed 3 of 3 shards, and reused 0."]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_a_gradient_that_is_not_finite_is_named_and_left_out(tmp_path: Path, value: float) -> None:
    encoded = examples(20)
    first = [int(encoded.example(row).input_ids[0]) for row in range(20)]
    # Two components near the end of float32 have a norm beyond it.
    engine = FakeEngine(spoiled={first[5]: value, first[17]: value})
    if np.isfinite(value):
        engine.row = lambda ids: np.full(24, 3e38 if int(ids[0]) in engine.spoiled else 1, np.float32)
    said: list[str] = []
    result = collect(encoded, engine, tmp_path, settings(), identity=IDENTITY, note=said.append)
    assert result.non_finite == (5, 17)
    assert sorted(said) == [f"Row {row} has a NaN or infinite loss or gradient and is left out." for row in (17, 5)]
    assert "Left out 2 rows with a NaN or infinite loss or gradient: 5, 17." in result.describe()
    store = result.store
    assert (store.statuses[[5, 17]] == Status.NON_FINITE).all()
    assert not store.rows([5, 17]).any() and not store.usable[[5, 17]].any() and store.usable.sum() == 18
    assert not store.squared_norms[[5, 17]].any() and np.isnan(store.losses[[5, 17]]).all()
    others = [row for row in range(20) if row not in (5, 17)]
    expected = np.stack([engine.row(encoded.example(row).input_ids) for row in others])
    assert np.array_equal(store.rows(others), expected)


def test_a_loss_or_norm_that_is_not_finite_counts_too(tmp_path: Path) -> None:
    class Odd(FakeEngine):
        def batch(self, ids, masks):
            found = super().batch(ids, masks)
            for place, one in enumerate(ids):
                if len(one) == 40:
                    found.losses[place] = np.nan
                if len(one) == 2:
                    found.squared_norms[place] = np.inf
            return found

    encoded = examples(60)
    result = collect(encoded, Odd(), tmp_path, settings(), identity=IDENTITY)
    wanted = np.flatnonzero(np.isin(encoded.lengths, (2, 40)))
    assert len(wanted) >= 2
    assert list(result.non_finite) == list(wanted)


def test_many_bad_rows_are_counted_and_not_all_told(tmp_path: Path) -> None:
    encoded = examples(40)
    spoiled = {int(encoded.example(row).input_ids[0]): np.nan for row in range(30)}
    said: list[str] = []
    result = collect(encoded, FakeEngine(spoiled=spoiled), tmp_path, settings(), identity=IDENTITY, note=said.append)
    assert len(result.non_finite) >= 30 and len(said) == 10
    assert result.describe()[-1].endswith(", ....")


def test_a_batch_is_halved_until_it_fits(tmp_path: Path) -> None:
    encoded = examples(20)
    fill(tmp_path / "roomy", encoded)
    engine = FakeEngine(most_tokens=45)
    said: list[str] = []
    result = collect(encoded, engine, tmp_path / "tight", settings(), identity=IDENTITY, note=said.append)
    assert result.halvings >= 1
    assert len(said) == 1 and "Memory ran out" in said[0]
    failed = [padded for padded in engine.padded if padded > 45]
    assert failed == sorted(failed, reverse=True) and len(set(failed)) == len(failed), "no size is tried in vain twice"
    assert contents(tmp_path / "tight") == contents(tmp_path / "roomy")


def test_one_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    encoded = examples(20)
    row = int(np.argmax(encoded.lengths[:8]))
    length = int(encoded.lengths[row])
    with pytest.raises(
        ResourceError, match=f"Row {row} with {length} tokens doesn't fit into memory by itself"
    ) as caught:
        fill(tmp_path, encoded, FakeEngine(most_tokens=length - 1))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_every_way_of_running_out_of_memory_is_known(error: Exception) -> None:
    class Full(FakeEngine):
        def batch(self, ids, masks):
            if len(ids) > 1:
                raise error
            return super().batch(ids, masks)

    encoded = examples(3)
    measurer = Measurer(Full(), lambda sentence: None)
    assert measurer.measure(range(3), [encoded.example(row) for row in range(3)]).rows.shape == (3, 24)
    assert measurer.halvings >= 1


def test_another_error_is_not_taken_for_it() -> None:
    class Broken(FakeEngine):
        def batch(self, ids, masks):
            raise RuntimeError("shapes do not agree")

    with pytest.raises(RuntimeError, match="shapes"):
        Measurer(Broken(), lambda sentence: None).measure([0, 1], [examples(2).example(row) for row in range(2)])


def test_tensors_are_taken_as_arrays_are(tmp_path: Path) -> None:
    class Tensors(FakeEngine):
        def batch(self, ids, masks):
            found = super().batch(ids, masks)

            class Batch:
                rows = torch.tensor(found.rows)
                losses = torch.tensor(found.losses)
                squared_norms = torch.tensor(found.squared_norms)

            return Batch()

    collect(examples(9), Tensors(), tmp_path / "a", settings(), identity=IDENTITY)
    fill(tmp_path / "b", examples(9))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_no_usable_example_is_a_data_error_and_leaves_nothing(tmp_path: Path) -> None:
    encoded = examples(2, statuses={0: Status.NO_RESPONSE, 1: Status.EXCLUDED})
    with pytest.raises(DataError, match="No example has a response"):
        fill(tmp_path / "store", encoded)
    assert not (tmp_path / "store").exists()


def test_half_precision_keeps_rows_to_a_thousandth(tmp_path: Path) -> None:
    encoded = examples(40, statuses={4: Status.NO_RESPONSE})
    full = fill(tmp_path / "full", encoded).store.rows(range(40)).astype(np.float64)
    store = fill(tmp_path / "half", encoded, store_dtype="float16").store
    half = store.rows(range(40))
    assert half.dtype == np.float32
    error = np.linalg.norm(half - full, axis=1)
    assert (error <= 1e-3 * np.linalg.norm(full, axis=1)).all() and error.any()
    np.testing.assert_allclose(store.norms, np.linalg.norm(full, axis=1), rtol=1e-6)
    assert np.load(tmp_path / "half" / "shards" / "000000.npy", allow_pickle=False).dtype == np.float16
