"""LESS on any small pool: brute force, permutations, duplicates and budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.methods import Checkpoint
from spice_select.methods.less import subtask_influence
from spice_select.selection.budget import Budget
from spice_select.selection.rows import ArrayRows
from tests.unit.test_method_less import chosen

PROFILE = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[float, np.ndarray, np.ndarray]], list[str]]:
    """Weights, rows and target rows by checkpoint, of small whole numbers (so with ties and zero rows); subtasks."""
    n, m = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        dim = draw(st.integers(1, 4))
        target = generator.integers(-2, 3, size=(m, dim)).astype(np.float32)
        target[0, 0] = 1.0
        found.append((draw(st.floats(1e-6, 1.0)), generator.integers(-2, 3, size=(n, dim)).astype(np.float32), target))
    return found, draw(st.lists(st.sampled_from("abc"), min_size=m, max_size=m))


def _checkpoints(case: Any, order: np.ndarray | None = None) -> tuple[Checkpoint, ...]:
    return tuple(
        Checkpoint(weight, ArrayRows(rows if order is None else rows[order]), ArrayRows(target))
        for weight, rows, target in case
    )


def _brute(case: Any, subtasks: list[str]) -> np.ndarray:
    """By the formula, a pair of vectors at a time."""
    n, m = len(case[0][1]), len(subtasks)
    total = sum(weight for weight, _, _ in case)
    pairs = np.zeros((n, m))
    for weight, rows, target in case:
        for i in range(n):
            for z in range(m):
                lengths = np.linalg.norm(rows[i]) * np.linalg.norm(target[z])
                pairs[i, z] += weight / total * (float(rows[i] @ target[z]) / lengths if lengths else np.nan)
    counted = [all(target[z].any() for _, _, target in case) for z in range(m)]
    groups = [[z for z in range(m) if subtasks[z] == name and counted[z]] for name in sorted(set(subtasks))]
    means = [pairs[:, members].mean(1) for members in groups if members]
    return np.max(means, axis=0) if means else np.full(n, np.nan)


@given(cases())
@PROFILE
def test_scores_are_those_of_the_formula(case: Any) -> None:
    given_rows, subtasks = case
    expected = _brute(given_rows, subtasks)
    _, influence = subtask_influence(_checkpoints(given_rows), subtasks)
    np.testing.assert_allclose(influence.max(1), expected if np.isfinite(expected).any() else np.nan, atol=1e-6)


@given(cases(), st.integers(1, 9))
@PROFILE
def test_choices_are_the_best_rows_each_once(case: Any, budget: int) -> None:
    given_rows, subtasks = case
    choice = chosen(_checkpoints(given_rows), subtasks, budget)
    again = chosen(_checkpoints(given_rows), subtasks, budget)
    assert choice.indices.tolist() == again.indices.tolist()
    assert choice.pool_scores is not None
    known = np.flatnonzero(~np.isnan(choice.pool_scores))
    assert len(set(choice.indices.tolist())) == len(choice) == min(budget, len(known))
    assert set(choice.indices.tolist()) <= set(known.tolist())
    assert bool(choice.warnings) == (len(choice) < budget)
    left = np.setdiff1d(known, choice.indices)
    if len(left) and len(choice):
        assert choice.pool_scores[left].max() <= choice.scores.min()
    for first, second in zip(choice.indices[:-1], choice.indices[1:], strict=True):
        worth = choice.pool_scores[[first, second]]
        assert worth[0] > worth[1] or (worth[0] == worth[1] and first < second)


@given(cases(), st.randoms(use_true_random=False))
@PROFILE
def test_the_order_of_rows_and_target_examples_does_not_matter(case: Any, random: Any) -> None:
    given_rows, subtasks = case
    order = list(range(len(given_rows[0][1])))
    random.shuffle(order)
    targets = list(range(len(subtasks)))
    random.shuffle(targets)
    moved = [(weight, rows, target[targets]) for weight, rows, target in given_rows]
    plain = chosen(_checkpoints(given_rows), subtasks, 1).pool_scores
    found = chosen(_checkpoints(moved, np.array(order)), [subtasks[i] for i in targets], 1).pool_scores
    assert plain is not None and found is not None
    np.testing.assert_allclose(found, plain[order], atol=2e-12)


@given(cases(), st.integers(1, 30))
@PROFILE
def test_a_token_budget_is_never_passed(case: Any, tokens: int) -> None:
    given_rows, subtasks = case
    n = len(given_rows[0][1])
    choice = chosen(_checkpoints(given_rows), subtasks, Budget(rows=n, tokens=tokens))
    assert (choice.indices + 1).sum() <= tokens
