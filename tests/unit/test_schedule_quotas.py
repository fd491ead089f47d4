"""Quotas that come out over a walk, whatever single pools hold."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.schedule.quotas import WalkQuotas
from spice_select.schedule.walk import Walk
from spice_select.selection import select_gram


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [3, 10, 40])
@pytest.mark.parametrize(
    "quotas", ["proportional", {"rare": {"min": 0.1}}, {"usual": {"max": 0.5}}, {"some": {"min": 0.25, "max": 0.25}}]
)
def test_quotas_and_budget_come_out_over_all_pools(quotas: object, size: int, seed: int) -> None:
    """Pools lack groups, or have fewer rows of one than its share of the picks."""
    random = np.random.default_rng(seed)
    labels = random.permutation(["usual"] * 120 + ["some"] * 64 + ["rare"] * 16).tolist()
    offered = np.ones(len(labels), dtype=bool)
    walk, budget = Walk.plan(offered, size, seed), 40
    shares = WalkQuotas(labels, quotas, offered, walk, budget)  # type: ignore[arg-type]
    picked: list[int] = []
    for number in range(len(walk)):
        rows = walk.pool(number)
        due = walk.due(budget, number, len(picked))
        if not due:
            continue
        factor = random.normal(size=(len(rows), 8))
        there = [labels[row] for row in rows]
        found = select_gram(factor @ factor.T, due, groups=there, quotas=shares.of_pool(number, rows, due, picked))
        picked += rows[found.indices].tolist()
    assert len(picked) == budget
    counts = {name: sum(labels[row] == name for row in picked) for name in ("usual", "some", "rare")}
    # The last pools may lack the rows that would make up for what is missing.
    slack = 2
    if quotas == "proportional":
        assert all(abs(counts[name] - due) <= slack for name, due in {"usual": 24, "some": 13, "rare": 3}.items())
    elif quotas == {"rare": {"min": 0.1}}:
        assert counts["rare"] >= 4 - slack
    elif quotas == {"usual": {"max": 0.5}}:
        assert counts["usual"] <= 20 + slack
    else:
        assert abs(counts["some"] - 10) <= slack


def test_without_making_up_each_pool_has_its_own_share() -> None:
    labels = ["a", "b"] * 10
    walk = Walk(np.arange(20), 10)
    shares = WalkQuotas(labels, {"a": {"min": 0.5}}, np.ones(20, dtype=bool), walk, 8)
    for number in range(2):
        found = shares.of_pool(number, walk.pool(number), 4, None)
        assert found["a"]["min"] == 2
    only_b = np.array([1, 3, 5])
    assert shares.of_pool(0, only_b, 3, None) == {"b": {"min": 0, "max": 3}}
