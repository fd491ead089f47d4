"""LESS: the worked answer, subtasks of any size in any order, ties, and rows without a direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError, DataError
from spice_select.methods import Checkpoint, Choice, Inputs, Need, Target, make_method, method_class
from spice_select.methods.less import Less, subtask_influence
from spice_select.selection.budget import Budget
from spice_select.selection.rows import ArrayRows, as_rows

WEIGHTS = (3.0, 1.0)
TRAIN = ([[1, 0], [0, 1], [3, 4]], [[1, 1], [0, 2], [4, -3]])
VALIDATION = [[1, 0], [0, 1], [1, 1], [1, -1]]
SUBTASKS = ["one", "one", "two", "two"]


def checkpoints(train: Sequence[Any] = TRAIN, validation: Any = VALIDATION) -> tuple[Checkpoint, ...]:
    return tuple(
        Checkpoint(weight, as_rows(np.asarray(rows, np.float32)), as_rows(np.asarray(validation, np.float32)))
        for weight, rows in zip(WEIGHTS, train, strict=True)
    )


def inputs(
    found: tuple[Checkpoint, ...], subtasks: Sequence[str] = SUBTASKS, budget: int | Budget = 3, **values: Any
) -> Inputs:
    n = found[0].rows.shape[0]
    given: dict[str, Any] = {
        "n": n,
        "candidates": np.ones(n, bool),
        "response_tokens": np.arange(n) + 1,
        "sources": ["rows"] * n,
        "budget": budget if isinstance(budget, Budget) else Budget(rows=budget),
        "target": Target(subtasks),
        "checkpoints": found,
    }
    return Inputs(**{**given, **values})


def chosen(
    found: tuple[Checkpoint, ...], subtasks: Sequence[str] = SUBTASKS, budget: int | Budget = 3, **values: Any
) -> Choice:
    return Less().choose(inputs(found, subtasks, budget, **values))


def test_the_worked_answer() -> None:
    names, influence = subtask_influence(checkpoints(), SUBTASKS)
    assert names == ["one", "two"]
    np.testing.assert_allclose(influence, [[0.551777, 0.655330], [0.5, 0], [0.55, 0.459619]], atol=1e-6)
    choice = chosen(checkpoints())
    assert choice.indices.tolist() == [0, 2, 1]
    np.testing.assert_allclose(choice.scores, [0.655330, 0.55, 0.5], atol=1e-6)
    assert choice.pool_scores is not None
    np.testing.assert_allclose(choice.pool_scores, [0.655330, 0.5, 0.55], atol=1e-6)
    assert choice.stop_reason == "budget" and not choice.warnings
    assert choice.notes == ("Chosen rows by the subtask that they help most: one 2, two 1.",)


def test_influence_on_single_examples() -> None:
    """Subtasks of one example each are the influence rows themselves."""
    _, influence = subtask_influence(checkpoints(), ["a", "b", "c", "d"])
    expected = [
        [0.926777, 0.176777, 0.780330, 0.530330],
        [0, 1, 0.707107, -0.707107],
        [0.65, 0.45, 0.777817, 0.141421],
    ]
    np.testing.assert_allclose(influence, expected, atol=1e-6)


def test_subtasks_need_no_order_and_no_equal_sizes() -> None:
    order = [2, 0, 3, 1]
    mixed = [VALIDATION[i] for i in order]
    names, influence = subtask_influence(checkpoints(validation=mixed), [SUBTASKS[i] for i in order])
    assert names == ["two", "one"]
    np.testing.assert_allclose(influence[:, ::-1], subtask_influence(checkpoints(), SUBTASKS)[1], atol=1e-12)
    singles = subtask_influence(checkpoints(), ["a", "b", "c", "d"])[1]
    names, influence = subtask_influence(checkpoints(), ["x", "y", "x", "x"])
    assert names == ["x", "y"]
    np.testing.assert_allclose(influence[:, 0], singles[:, [0, 2, 3]].mean(1), atol=1e-12)
    np.testing.assert_allclose(influence[:, 1], singles[:, 1], atol=1e-12)


def test_only_the_ratio_of_the_learning_rates_counts() -> None:
    tiny = tuple(Checkpoint(c.weight * 1e-6, c.rows, c.target) for c in checkpoints())
    np.testing.assert_allclose(
        subtask_influence(tiny, SUBTASKS)[1], subtask_influence(checkpoints(), SUBTASKS)[1], atol=1e-12
    )


def test_lengths_of_gradients_do_not_count() -> None:
    longer = [np.asarray(rows, float) * [[1e-12], [1.0], [1e12]] for rows in TRAIN]
    found = checkpoints(longer, np.asarray(VALIDATION) * [[1e-9], [1], [5], [1e9]])
    np.testing.assert_allclose(
        subtask_influence(found, SUBTASKS)[1], subtask_influence(checkpoints(), SUBTASKS)[1], atol=1e-6
    )


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_without_a_direction_at_any_checkpoint_is_never_chosen(bad: float) -> None:
    spoilt = [TRAIN[0], [[1, 1], [bad, bad], [4, -3]]]
    choice = chosen(checkpoints(spoilt))
    assert choice.indices.tolist() == [0, 2]
    assert choice.pool_scores is not None and np.isnan(choice.pool_scores).tolist() == [False, True, False]
    assert choice.stop_reason == "exhausted"
    assert choice.warnings == (
        "2 of the 3 rows asked for were chosen, as no other row has a gradient at every checkpoint; give a smaller "
        "budget.",
    )
    assert choice.notes[0] == "1 rows have a gradient of zero at a checkpoint, or none, and were left out."


def test_target_examples_without_a_gradient_do_not_count() -> None:
    spoilt = [*VALIDATION, [0, 0], [np.nan, 1]]
    names, influence = subtask_influence(checkpoints(validation=spoilt), [*SUBTASKS, "one", "three"])
    assert names == ["one", "two"]
    np.testing.assert_allclose(influence, subtask_influence(checkpoints(), SUBTASKS)[1], atol=1e-12)
    with pytest.raises(DataError, match="None of the target examples has a gradient"):
        subtask_influence(checkpoints(validation=[[0, 0]]), ["one"])


def test_one_subtask_is_not_counted_out() -> None:
    choice = chosen(checkpoints(), ["only"] * 4)
    assert not choice.notes
    np.testing.assert_allclose(choice.scores, np.sort(choice.scores)[::-1])


def test_many_subtasks_are_told_in_one_sentence() -> None:
    eye = np.eye(12, dtype=np.float32)
    found = (Checkpoint(1.0, ArrayRows(eye), ArrayRows(eye)),)
    choice = chosen(found, [f"s{i}" for i in range(12)], budget=12)
    assert choice.notes[0].endswith("s7 1, 4 other subtasks 4.")


def test_duplicates_tie_and_the_lowest_row_number_wins() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=(40, 33)).astype(np.float32)
    rows = np.concatenate([base, base, base])[:113]
    validation = ArrayRows(generator.normal(size=(7, 33)).astype(np.float32))
    found = (Checkpoint(1.0, ArrayRows(rows), validation), Checkpoint(0.3, ArrayRows(rows[:, ::-1].copy()), validation))
    choice = chosen(found, list("aabbbbc"), budget=113)
    assert sorted(choice.indices.tolist()) == list(range(113))
    scores = choice.scores
    for first, second in zip(range(112), range(1, 113), strict=True):
        if scores[first] == scores[second]:
            assert choice.indices[first] < choice.indices[second]
    assert len(np.unique(scores)) == 40


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    found = tuple(
        Checkpoint(w, ArrayRows(generator.normal(size=(29, 6))), ArrayRows(generator.normal(size=(11, 6))))
        for w in (1e-5, 7e-6)
    )
    names = generator.choice(list("abc"), size=11).tolist()
    whole = subtask_influence(found, names)[1]
    monkeypatch.setattr("spice_select.methods.less._BLOCK_BYTES", 4 * 8 * 6)
    np.testing.assert_allclose(subtask_influence(found, names)[1], whole, atol=1e-12)


def test_a_single_row_and_all_rows() -> None:
    one = checkpoints([[rows[0]] for rows in TRAIN])
    assert chosen(one, budget=1).indices.tolist() == [0]
    assert sorted(chosen(checkpoints(), budget=3).indices.tolist()) == [0, 1, 2]


def test_token_budget_and_candidates_are_respected() -> None:
    tokens = chosen(checkpoints(), budget=Budget(rows=3, tokens=3))
    assert tokens.indices.tolist() == [0, 1] and tokens.stop_reason == "tokens"
    left = chosen(checkpoints(), budget=2, candidates=np.array([False, True, True]))
    assert left.indices.tolist() == [2, 1]


def test_what_it_needs_and_its_settings() -> None:
    assert method_class("less") is Less
    assert Less().required() == {Need.CHECKPOINTS, Need.TARGET, Need.TRAINING}
    assert Less.varies == "training" and Less.source == "arXiv 2402.04333"
    defaults = Less().model_dump()
    assert (defaults["warmup_share"], defaults["epochs"], defaults["dim"]) == (0.05, 4, 8192)
    with pytest.raises(ConfigError, match="did you mean 'method\\.epochs'"):
        make_method("less", {"epoch": 3})
    with pytest.raises(ConfigError, match=r"warmup_share' of method 'less' cannot be 1\.5"):
        make_method("less", {"warmup_share": 1.5})
