"""The predicted cost: formulas by hand, growth, disk against real stores, and what is asked of a larger size."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.config import RunConfig, resolve
from spice_select.cost import Cost, Scale, estimate, in_pools, with_warmup
from spice_select.cost.collecting import ALLOCATOR_BYTES, Fleet, Speed, collect_bytes, planned, row_bytes, store_bytes
from spice_select.cost.machine import Speeds, measure_speeds
from spice_select.cost.memory import select_bytes
from spice_select.cost.selecting import (
    PASS,
    Count,
    Work,
    _looked_at,
    activity_seconds,
    certificate_seconds,
    loop_seconds,
    page_seconds,
    resolved_loop,
    select_reads,
)
from spice_select.data.encoded import Encoded, EncodingStats, collect_examples
from spice_select.data.encoded import Example as Row
from spice_select.data.status import Status
from spice_select.errors import ConfigError
from spice_select.gradients.capture import GradientEngine
from spice_select.selection.engines import resolve_loop
from spice_select.selection.fisher import LARGEST_INVERSE
from spice_select.selection.rows import CACHE_BYTES
from tests import proxies, stores

NOTHING = Speeds(**{field.name: 0.0 for field in fields(Speeds)})
USUAL = Speeds(
    product=6e-11, matvec=2.5e-10, stream=5e-10, read=1.9e-9, gather=8.5e-9, sort=3.2e-9, elementwise=1.5e-8,
    pick=1.1e-4, active=1.6e-7, byte=1e-9,
)  # fmt: skip
LOOPS = ("lazy", "dense", "kernel", "stochastic", "brute")


def rows(count: int, seed: int = 0) -> Encoded:
    ids, masks = proxies.examples(count, seed)
    made = [Row(one, mask, Status.OK) for one, mask in zip(ids, masks, strict=True)]
    return collect_examples(made, EncodingStats(rows=count), {})


def configured(**sections: dict) -> RunConfig:
    return resolve({"gradients": {"dim": 64, "shard_rows": 16, "batch_tokens": 60}, **sections})


@pytest.fixture(scope="module")
def engine() -> GradientEngine:
    config = configured().gradients
    return GradientEngine(proxies.tiny_proxy("llama", **config.model_dump()), config)


def ticking(step: float = 0.5):
    """A clock that moves on by the same step whenever it is looked at."""
    times = itertools.count()
    return lambda: next(times) * step


def test_a_count_by_hand() -> None:
    count = Count(scale=3.0, rows=1.0, share=0.5, onset=2.0, knee=2.0, decay=1.0)
    # k / D = 2 is the knee, where half has set in; k / N = 1 / 100.
    assert count.of(Work(rows=20_000, dim=100, picks=200)) == pytest.approx(3.0 * 20_000 * 0.1 * 0.5 / 1.4)
    assert Count(1.0, 1.0, 0.0, 60.0, 1.0, 0.0).of(Work(rows=10**6, dim=8192, picks=1)) < 1e-100


def test_the_dense_loop_by_hand() -> None:
    work = Work(rows=1000, dim=100, picks=10, loop="dense")
    assert loop_seconds(work, replace(NOTHING, read=1.0)) == 1000 * 100
    assert loop_seconds(work, replace(NOTHING, pick=2.0)) == 20
    # Two passes over the rows, in memory, and one over the matrix.
    assert loop_seconds(work, replace(NOTHING, stream=1.0)) == pytest.approx(10 * (PASS * 2 * 1000 * 100 + 100 * 100))
    # Too large to be kept: read again at every pick.
    large = Work(rows=1_000_000, dim=100, picks=10, loop="dense")
    assert loop_seconds(large, replace(NOTHING, read=1.0)) == 11 * 1_000_000 * 100


def test_the_kernel_loop_by_hand() -> None:
    work = Work(rows=1000, dim=100, picks=10, loop="kernel")
    assert loop_seconds(work, replace(NOTHING, stream=1.0)) == pytest.approx(PASS * 10 * (1000 * 100 + 1000 * 10 / 2))


def test_the_stochastic_loop_by_hand() -> None:
    work = Work(rows=1000, dim=100, picks=10, loop="stochastic", epsilon=math.exp(-2))
    assert loop_seconds(work, replace(NOTHING, sort=1.0)) == pytest.approx(10 * 4 * 200)
    assert loop_seconds(work, replace(NOTHING, matvec=1.0)) == pytest.approx(10 * 0.3 * 100 * 10)
    # All that are drawn are gathered where that is fewer than would be screened, and two rows a pick exactly.
    assert loop_seconds(work, replace(NOTHING, gather=1.0)) == pytest.approx((1.1 * _looked_at(work) + 20) * 100)
    alike = replace(work, alike=True)
    assert loop_seconds(alike, replace(NOTHING, gather=1.0)) == pytest.approx((10 * 200 + 20) * 100)


def test_partitions_are_a_pass_over_all_then_their_turns_then_their_picks() -> None:
    work = Work(rows=1_000_000, dim=256, picks=2000, partitions=8)
    part, union = work.rounds()
    assert (part.rows, part.picks, union.rows, union.picks) == (125_000, 2000, 16_000, 2000)
    whole = USUAL.read * 1_000_000 * 256
    alone = whole + 8 * loop_seconds(part, USUAL) + loop_seconds(union, USUAL)
    assert loop_seconds(work, USUAL) == pytest.approx(alone)
    shared = whole + 3 * loop_seconds(part, USUAL) + loop_seconds(union, USUAL)
    assert loop_seconds(replace(work, at_once=3), USUAL) == pytest.approx(shared)
    # The second round looks at the whole pool again, so that one process gains no memory by it.
    assert select_bytes(work) < 1.5 * select_bytes(replace(work, partitions=1))
    few = Work(rows=10, dim=4, picks=8, partitions=5).rounds()
    assert (few[0].rows, few[0].picks, few[1].rows) == (2, 2, 10)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(LOOPS),
    st.integers(4096, 2_000_000),
    st.integers(128, 8192),
    st.integers(64, 20_000),
    st.sampled_from(["rows", "dim", "picks"]),
    st.integers(2, 8),
)
def test_more_costs_more(loop: str, n: int, dim: int, picks: int, what: str, times: int) -> None:
    if what == "dim" and loop in ("lazy", "stochastic"):
        # With fewer picks than dimensions hardly a row is looked at twice, so that more dimensions may cost less.
        picks = 2 * times * dim
        n = 10 * picks
    work = Work(n, dim, min(picks, n // 8), loop)
    more = replace(work, **{what: getattr(work, what) * times})
    for price in (loop_seconds, activity_seconds, page_seconds):
        assert 0 < price(work, USUAL) <= price(more, USUAL) < math.inf
    assert certificate_seconds(more, USUAL) > 0
    # Small pools are kept in memory, larger ones read again.
    assert 0 < select_bytes(work) <= select_bytes(more) + CACHE_BYTES
    assert 0 < select_reads(work) <= select_reads(more) * 1.25


def test_beyond_the_largest_inverse_every_update_vector_is_held() -> None:
    work = Work(200_000, 2 * LARGEST_INVERSE, 20_000, penalised=False)
    assert select_bytes(work) > 8 * work.picks * work.dim
    # The selection without penalty has its own.
    assert select_bytes(replace(work, penalised=True)) > 2 * 8 * work.picks * work.dim


def test_rows_of_one_norm_take_longer() -> None:
    work = Work(20_000, 256, 2000)
    assert loop_seconds(replace(work, alike=True), USUAL) > 3 * loop_seconds(work, USUAL)
    assert select_bytes(replace(work, alike=True)) > select_bytes(work)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slower_machine_takes_longer_in_proportion(loop: str) -> None:
    work = Work(50_000, 512, 2000, loop)
    for price in (loop_seconds, certificate_seconds, activity_seconds, page_seconds):
        assert price(work, USUAL.times(3.0)) == pytest.approx(3.0 * price(work, USUAL))


def test_nothing_chosen_costs_nothing() -> None:
    work = Work(1000, 64, 0)
    assert [price(work, USUAL) for price in (loop_seconds, certificate_seconds, activity_seconds)] == [0, 0, 0]
    assert select_bytes(work) == select_reads(work) == 0


@pytest.mark.parametrize("fisher", ["exact", "diag-logdet"])
@pytest.mark.parametrize(("n", "dim"), [(100, 64), (100, 200), (4096, 256), (4095, 256)])
def test_the_loop_that_is_priced_is_the_one_that_runs(fisher, n: int, dim: int) -> None:
    assert resolved_loop("auto", fisher, n, dim) == resolve_loop("auto", fisher, n, dim)


@pytest.mark.parametrize(("n", "dim", "dtype", "shard_rows"), [
    (700, 24, "float32", 64), (900, 16, "float16", 1024), (300, 128, "float32", 100),
])  # fmt: skip
def test_disk_is_that_of_a_real_store(tmp_path: Path, n: int, dim: int, dtype: str, shard_rows: int) -> None:
    stores.fill(tmp_path / "s", stores.examples(n), stores.FakeEngine(dim), store_dtype=dtype, shard_rows=shard_rows)
    real = sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert store_bytes(n, dim, dtype, shard_rows) == pytest.approx(real, rel=0.02)


def test_batches_beyond_the_rows_known_are_drawn_from_their_lengths() -> None:
    lengths = np.array([10] * 50 + [30] * 50)
    known = planned(lengths, 100, 20, 60)
    assert known.weight == 1.0 and known.padded.sum() == lengths.sum()
    more = planned(lengths, 100_000, 20, 60)
    assert more.weight == 100_000 / 160
    assert more.padded.sum() * more.weight == pytest.approx(100_000 * 20, rel=0.2)
    assert set(more.longest) == {10.0, 30.0}


def test_seconds_of_batches_are_interpolated_by_length() -> None:
    speed = Speed((10.0, 30.0), (1.0, 3.0), 2, 0, 0)
    assert speed.of(np.array([10.0, 20.0, 50.0]), np.array([5.0, 2.0, 1.0])) == 5 * 1 + 2 * 2 + 1 * 3


def test_memory_of_a_collect_by_hand() -> None:
    speed = Speed((1.0,), (1.0,), 1, growth_bytes=100, held_bytes=1000)
    shard = ALLOCATOR_BYTES + 8 * (32 * 4 + 69) + 8 * 32 * 4
    assert collect_bytes(speed, 32, 4, 8, 20, 0, 0) == 1100 + shard + 2 * 69 * 20
    assert collect_bytes(speed, 32, 4, 8, 120, 100, 50) == 1100 + shard + 100 * 50 + 2 * 69 * 120


def test_a_fleet_shares_whole_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spice_select.cost.collecting.cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert Fleet(1, 1).share(10) == 1.0
    # Four workers of two threads find four cores on one machine, so that two are at work at a time.
    assert Fleet(4, 1).speedup == 2.0
    assert Fleet(4, 4).speedup == 4.0
    assert Fleet(4, 4).share(10) == 3 / 10
    assert Fleet(64, 64).share(10) == 1 / 10
    assert Fleet.of(None, 3) == Fleet(3, 3)
    assert Fleet.of(None, None, ray=True) == Fleet(4, 1, ray=True)
    for bad in ((0, None), (None, 0), (2, 3)):
        with pytest.raises(ConfigError, match="--"):
            Fleet.of(*bad)


def test_speeds_are_told_by_the_clock() -> None:
    speeds = measure_speeds(48, "float16", ticking())
    # Every look at the clock is half a second, which is enough for a measurement.
    assert speeds.product == pytest.approx(0.5 / (256 * 48 * 48))
    assert speeds.pick == pytest.approx(0.5 / 120)
    assert speeds.active == 0.0
    assert all(value > 0 for name, value in vars(speeds).items() if name != "active")
    real = measure_speeds(64)
    assert all(0 <= value < 0.1 for value in vars(real).values())


def test_a_prediction_has_all_its_parts(engine: GradientEngine) -> None:
    cost = estimate(engine, rows(40), configured(), picks=4, clock=ticking())
    assert cost.examples == cost.usable == cost.rows_read == 40
    assert cost.gradient_dim == 64 and cost.model_bytes > 0 and cost.flops > 0
    assert cost.disk_bytes == store_bytes(40, 64, "float32", 16)
    parts = (cost.gradient_seconds, cost.selection_seconds, cost.penalty_seconds, cost.certificate_seconds)
    assert all(part > 0 for part in parts)
    assert cost.collect_seconds == cost.gradient_seconds
    assert cost.select_seconds > sum(parts[1:])
    assert cost.network_bytes == 0
    assert cost.peak_memory_bytes == max(cost.collect_memory_bytes, cost.select_memory_bytes) > 1 << 20
    assert {"collect_seconds", "select_seconds", "network_bytes"} <= cost.model_dump().keys()
    only = estimate(engine, rows(40), configured(), picks=0, clock=ticking())
    assert only.selection_seconds == only.result_bytes == only.select_memory_bytes == 0
    free = estimate(engine, rows(40), configured(selection={"conflict_weight": 0}), picks=4, clock=ticking())
    assert free.penalty_seconds == 0


def test_a_larger_size_costs_in_proportion(engine: GradientEngine) -> None:
    def price(count: int | None, workers: int = 1) -> Cost:
        seconds = {"rows": 1.0, "encode": 3.0, "model": 5.0}
        scale = Scale(count, Fleet(workers, workers), seconds, {"rows": 0.5, "encode": 1.5}, 40_000)
        return estimate(engine, rows(40), configured(), picks=4, scale=scale, clock=ticking())

    given_rows, large, shared = price(None), price(160_000), price(160_000, 4)
    assert given_rows.reading_seconds == 4.0 and given_rows.loading_seconds == 5.0
    assert large.reading_seconds == 4.0 + 2.0 * 3999 and large.loading_seconds == 5.0
    assert large.rows_read == 40 and large.usable == 160_000
    assert large.tokens == 4000 * given_rows.tokens
    assert large.disk_bytes == store_bytes(160_000, 64, "float32", 16)
    assert large.gradient_seconds == pytest.approx(4000 * given_rows.gradient_seconds, rel=0.5)
    assert large.collect_memory_bytes > given_rows.collect_memory_bytes + 160_000 * 1000
    assert shared.gradient_seconds == pytest.approx(large.gradient_seconds / 4, rel=1e-6)
    assert large.network_bytes == 0
    moved = 3 * large.model_bytes + (row_bytes(rows(40)) * 160_000 + large.disk_bytes) * 3 / 4
    assert shared.collect_network_bytes == pytest.approx(moved)
    assert shared.select_network_bytes > large.disk_bytes


def test_warm_up_and_pools_change_what_is_priced(engine: GradientEngine) -> None:
    config = configured(schedule={"kind": "pools", "pool_size": 10})
    cost = estimate(engine, rows(40), config, picks=4, clock=ticking())
    assert with_warmup(cost, 100).training_seconds == pytest.approx(100 / cost.measured_tokens_per_second)
    pools = in_pools(cost, config, 0)
    assert pools.disk_bytes == 8 * 4 * 10 * 10 and not pools.kept
    assert pools.training_seconds > 0 and pools.penalty_seconds == 0
