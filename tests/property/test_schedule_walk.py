"""Every row is offered once, and the budget comes out exactly."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spice_select.schedule.walk import Walk

_walks = st.builds(
    lambda rows, size, seed: Walk.plan(np.ones(rows, dtype=bool), size, seed),
    st.integers(1, 400),
    st.integers(1, 150),
    st.integers(0, 2**31),
)


@given(
    offered=st.lists(st.booleans(), min_size=1, max_size=300).filter(any),
    size=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_every_row_is_offered_exactly_once(offered: list[bool], size: int, seed: int) -> None:
    walk = Walk.plan(np.array(offered), size, seed)
    pools = [walk.pool(number) for number in range(len(walk))]
    assert sorted(np.concatenate(pools).tolist()) == np.flatnonzero(offered).tolist()
    assert {len(pool) for pool in pools[:-1]} <= {size}
    assert 1 <= len(pools[-1]) <= size


@given(walk=_walks, data=st.data())
def test_the_picks_of_all_pools_are_the_budget(walk: Walk, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(walk.order)))
    picked = 0
    for number in range(len(walk)):
        due = walk.due(budget, number, picked)
        # A pool never owes more than it has, as long as those before it gave what they owed.
        assert 0 <= due <= len(walk.pool(number))
        assert due == walk.fair(budget, number)
        picked += due
    assert picked == budget


@given(walk=_walks, data=st.data())
def test_a_short_last_pool_gets_its_fair_share(walk: Walk, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(walk.order)))
    for number in range(len(walk)):
        exact = budget * len(walk.pool(number)) / len(walk.order)
        assert abs(walk.fair(budget, number) - exact) <= 1.0


@given(walk=_walks, data=st.data())
def test_what_a_pool_could_not_give_the_next_makes_up_for(walk: Walk, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(walk.order)))
    given_up, picked = data.draw(st.integers(0, len(walk) - 1)), 0
    for number in range(len(walk)):
        due = walk.due(budget, number, picked)
        picked += 0 if number == given_up else min(due, len(walk.pool(number)))
    if given_up < len(walk) - 1:
        room = sum(len(walk.pool(number)) for number in range(given_up + 1, len(walk)))
        assert picked == budget or budget - picked <= max(0, budget - room)


def test_the_order_is_the_seeds_alone() -> None:
    rows = np.ones(500, dtype=bool)
    first, again, other = (Walk.plan(rows, 50, seed).order for seed in (3, 3, 4))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert first.tolist() != sorted(first.tolist())


def test_steps_count_the_trainings_that_are_of_use() -> None:
    walk = Walk.plan(np.ones(1200, dtype=bool), 120, 0)
    # Ten pools of twelve picks: after the fifth there is one training of 60 picks, after the tenth none.
    assert walk.steps(lambda _: 12, interval=5, batch_size=4) == 15
    assert walk.steps(lambda _: 12, interval=1, batch_size=5) == 9 * 3
    assert walk.steps(lambda _: 12, interval=10, batch_size=4) == 0
