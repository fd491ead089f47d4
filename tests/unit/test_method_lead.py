"""LEAD's parts on worked answers, and its walk with a learner whose losses fall as they are told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from spice_select.errors import ConfigError, DataError
from spice_select.methods import Choice, Inputs, Step, make_method
from spice_select.methods.lead import (
    Lead,
    arm_probabilities,
    best_mixture,
    difficulty_clusters,
    dynamic_uncertainty,
    loss_change,
    scaled_reward,
    updated_weights,
)
from spice_select.selection.budget import Budget


class FakeLearner:
    """A learner that halves the loss of a row each time it is trained on."""

    def __init__(self, losses: np.ndarray, factor: float = 0.5) -> None:
        self.now = losses.copy()
        self.rounds: list[list[int]] = []
        self._factor = factor

    def losses(self, rows: Sequence[int]) -> np.ndarray:
        return self.now[list(rows)]

    def train(self, rows: Sequence[int]) -> Step:
        before = self.now[list(rows)].copy()
        self.now[list(rows)] *= self._factor
        self.rounds.append(list(rows))
        gradient = np.array([float(len(rows)), 1.0])
        return Step(before, gradient, float(gradient @ gradient), 1e-3)


def _inputs(n: int, k: int, seed: int = 0, **given: Any) -> tuple[Inputs, list[FakeLearner]]:
    generator = np.random.default_rng(seed + 100)
    losses = generator.uniform(0.5, 3.0, size=n)
    made: list[FakeLearner] = []

    def learner() -> FakeLearner:
        made.append(FakeLearner(np.asarray(values["losses"])))
        return made[-1]

    values: dict[str, Any] = {
        "candidates": np.ones(n, dtype=bool),
        "response_tokens": generator.integers(1, 40, size=n),
        "sources": [("a", "b")[i % 2] for i in range(n)],
        "budget": Budget(k),
        "seed": seed,
        "losses": losses,
        "direct_losses": losses * generator.uniform(0.8, 2.0, size=n),
        "learner": learner,
    }
    values.update(given)
    return Inputs(n=n, **values), made


def _step(gradient: Sequence[float], rate: float = 0.1) -> Step:
    values = np.asarray(gradient, dtype=np.float64)
    return Step(np.zeros(1), values, float(values @ values), rate)


def _choose(inputs: Inputs, **settings: Any) -> Choice:
    return make_method("lead", settings).choose(inputs)


def test_worked_answers_of_the_bandit() -> None:
    weights = np.ones(3)
    p = arm_probabilities(weights, 0.1)
    assert p == pytest.approx([1 / 3] * 3)
    weights = updated_weights(weights, p, 0, 1.0, 0.1)
    assert weights == pytest.approx([1.105171, 1, 1], abs=1e-6)
    p = arm_probabilities(weights, 0.1)
    assert p == pytest.approx([0.353655, 0.323172, 0.323172], abs=1e-6)
    weights = updated_weights(weights, p, 1, -1.0, 0.1)
    assert weights == pytest.approx([1.105171, 0.901997, 1], abs=1e-6)
    assert arm_probabilities(weights, 0.1) == pytest.approx([0.364094, 0.303287, 0.332618], abs=1e-6)


def test_worked_answers_of_mixture_and_uncertainty() -> None:
    assert best_mixture(0.04, 0.09, 0.5) == pytest.approx(0.857143, abs=1e-6)
    assert best_mixture(0.04, 0.01, 0.5) == pytest.approx(0.0, abs=1e-12)
    assert dynamic_uncertainty(np.array([1.5]), -0.05, np.array([2.0]), 0.1) == pytest.approx([1.505])


def test_arms_that_are_not_open_are_never_drawn() -> None:
    p = arm_probabilities(np.array([5.0, 1.0, 1.0]), 0.1, np.array([False, True, True]))
    assert p == pytest.approx([0, 0.5, 0.5])


def test_the_mixture_is_the_shortest() -> None:
    g1, g2 = np.array([1.0, 2.0, -1.0]), np.array([0.5, -1.0, 2.0])
    cosine = float(g1 @ g2 / np.linalg.norm(g1) / np.linalg.norm(g2))
    beta = best_mixture(float(g1 @ g1), float(g2 @ g2), cosine)
    lengths = [np.linalg.norm(b * g1 + (1 - b) * g2) for b in np.linspace(-2, 3, 2001)]
    assert np.linalg.norm(beta * g1 + (1 - beta) * g2) <= min(lengths) + 1e-12
    change = loss_change(_step(g1.tolist()), _step(g2.tolist()), 0.1)
    assert change == pytest.approx(-0.1 * np.linalg.norm(beta * g1 + (1 - beta) * g2) ** 2)


@pytest.mark.parametrize(
    ("first", "before", "expected"),
    [
        (None, None, 0.0),
        (None, [3.0, 4.0], -2.5),
        ([3.0, 4.0], [3.0, 4.0], -2.5),
        ([0.0, 0.0], [3.0, 4.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_the_expected_change_of_the_loss(
    first: list[float] | None, before: list[float] | None, expected: float
) -> None:
    made = [None if gradient is None else _step(gradient) for gradient in (first, before)]
    assert loss_change(made[0], made[1], 0.1) == pytest.approx(expected, abs=1e-12)


def test_a_negative_norm_takes_no_root() -> None:
    broken = Step(np.zeros(1), np.array([1.0, 0.0]), -1e-9, 0.1)
    assert loss_change(broken, broken, 0.1) == 0.0
    assert best_mixture(-1.0, 0.5, 1.0) == 0.0


def test_rewards_are_scaled_by_what_was_seen() -> None:
    assert scaled_reward([0.3]) == 0.0
    assert scaled_reward([0.3, 0.3]) == 0.0
    assert scaled_reward([0.3, 0.3 + 1e-16]) == 0.0
    assert scaled_reward([0.3, 0.1]) == -1.0
    assert scaled_reward([0.3, 0.1, 0.5]) == 1.0
    assert scaled_reward([0.0, 1.0, 0.75]) == pytest.approx(0.5)
    assert scaled_reward([0.0, 0.0]) == 0.0


def test_clusters_go_from_easy_to_hard_and_unknown_difficulty_is_easy() -> None:
    losses = np.array([0.1, 0.2, 0.11, 2.0, 1.0, 0.5, 0.9])
    direct = np.array([1.0, 2.0, 1.0, 1.0, np.nan, 1.0, 1.0])
    labels = difficulty_clusters(losses, direct, np.array([True] * 5 + [True, False]), 3, 0)
    assert labels[:3].tolist() == [1, 1, 1]
    assert labels[3] == labels[4] == 0
    assert labels[5] == 2 and labels[6] == -1


@pytest.mark.parametrize(("n", "clusters"), [(1, 7), (3, 7), (40, 7), (40, 1)])
def test_there_are_never_more_clusters_than_difficulties(n: int, clusters: int) -> None:
    everyone = np.ones(n, dtype=bool)
    same = difficulty_clusters(np.ones(n), np.full(n, 2.0), everyone, clusters, 0)
    assert same.tolist() == [0] * n
    different = difficulty_clusters(np.arange(1.0, n + 1), np.full(n, 2.0 * n), everyone, clusters, 0)
    assert set(different.tolist()) == set(range(min(n, clusters)))


def test_the_walk_trains_on_the_most_uncertain_rows_and_no_row_too_often() -> None:
    inputs, made = _inputs(80, 40)
    choice = _choose(inputs, rounds=30, share=0.3, max_uses=2)
    assert len(set(choice.indices.tolist())) == len(choice) == 40
    assert len(made) == 1
    uses = Counter(row for rows in made[0].rounds for row in rows)
    assert max(uses.values()) <= 2
    assert set(uses) <= set(choice.indices.tolist())
    assert inputs.losses is not None
    labels = difficulty_clusters(inputs.losses, np.asarray(inputs.direct_losses), inputs.candidates, 7, 0)
    first = made[0].rounds[0]
    assert len({int(labels[row]) for row in first}) == 1
    for source in ("a", "b"):
        members = [row for row in range(80) if labels[row] == labels[first[0]] and inputs.sources[row] == source]
        count = max(1, int(0.3 * len(members) + 1e-9)) if members else 0
        expected = sorted(members, key=lambda row: (-float(np.asarray(inputs.losses)[row]), row))[:count]
        assert [row for row in first if inputs.sources[row] == source] == expected


def test_uncertainty_follows_its_definition() -> None:
    inputs, made = _inputs(30, 20, learner=None)
    losses = np.asarray(inputs.losses)
    inputs, made = _inputs(30, 20)
    choice = _choose(inputs, rounds=2, share=0.2, clusters=1, smoothing=0.25)
    first, second = made[0].rounds
    expected = losses.copy()
    # Nothing is known of the gradient in the first round; in the second, the first stands for it, and it is the
    # cluster's first as well as the one before.
    expected[first] = 0.75 * losses[first] + 0.25 * losses[first]
    change = -1e-3 * (len(first) ** 2 + 1.0)
    now = np.where(np.isin(second, first), 0.5 * losses[second], losses[second])
    expected[second] = 0.75 * (now + change) + 0.25 * expected[second]
    assert choice.pool_scores == pytest.approx(expected)


def test_rounds_that_leave_rows_over_are_made_up_for_and_said_so() -> None:
    inputs, made = _inputs(60, 30)
    choice = _choose(inputs, rounds=2, share=0.05)
    assert len(choice) == 30 and not choice.warnings
    trained = {row for rows in made[0].rounds for row in rows}
    assert trained == set(choice.indices[: len(trained)].tolist())
    assert any(f"The other {30 - len(trained)} were chosen by their uncertainty" in note for note in choice.notes)
    assert any("built from its paper" in note for note in choice.notes)
    rest = choice.indices[len(trained) :]
    assert choice.pool_scores is not None
    left = np.setdiff1d(np.arange(60), choice.indices)
    assert choice.pool_scores[left].max() <= choice.pool_scores[rest].min()
    assert (np.diff(choice.scores[len(trained) :]) <= 0).all()


def test_the_share_that_fills_a_small_budget_is_the_authors() -> None:
    method = Lead()
    inputs, _ = _inputs(400, 10)
    assert method._share(inputs, inputs.limits()) == pytest.approx(0.015)
    assert Lead(share=0.2)._share(inputs, inputs.limits()) == 0.2
    assert Lead(rounds=1)._share(*(lambda made: (made, made.limits()))(_inputs(10, 10)[0])) == 1.0


@pytest.mark.parametrize("k", [1, 20, 100])
def test_the_budget_is_mostly_chosen_while_training(k: int) -> None:
    inputs, made = _inputs(100, k)
    choice = _choose(inputs)
    assert len(choice) == k
    trained = {row for rows in made[0].rounds for row in rows}
    assert len(trained) >= 0.4 * k - 1


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_fewer_rows_than_clusters(n: int) -> None:
    for k in range(1, n + 1):
        choice = _choose(_inputs(n, k)[0])
        assert len(set(choice.indices.tolist())) == k and choice.stop_reason == "budget"


def test_equal_rows_divide_by_nothing() -> None:
    inputs, made = _inputs(40, 25, losses=np.ones(40), direct_losses=np.full(40, 2.0))
    choice = _choose(inputs, rounds=50)
    assert len(choice) == 25 and np.isfinite(choice.scores).all()
    # Of 20 rows of each source 15%, the lowest first.
    assert made[0].rounds[0] == [0, 2, 4, 1, 3, 5]


def test_losses_that_are_no_numbers_change_nothing() -> None:
    class Broken(FakeLearner):
        def train(self, rows: Sequence[int]) -> Step:
            return Step(np.full(len(rows), np.nan), np.zeros(2), 0.0, 1e-3)

    inputs, _ = _inputs(30, 20, learner=lambda: Broken(np.ones(30)))
    choice = _choose(inputs)
    assert len(choice) == 20
    assert choice.pool_scores == pytest.approx(np.asarray(inputs.losses))


def test_rows_without_a_loss_are_never_chosen() -> None:
    losses = np.ones(10)
    losses[4] = np.nan
    inputs, _ = _inputs(10, 9, losses=losses, direct_losses=np.full(10, 3.0))
    choice = _choose(inputs)
    assert 4 not in choice.indices and len(choice) == 9
    inputs, _ = _inputs(10, 10, losses=losses, direct_losses=np.full(10, 3.0))
    assert _choose(inputs).warnings
    with pytest.raises(DataError, match="No row that may be chosen has a loss"):
        _choose(_inputs(4, 2, losses=np.full(4, np.nan))[0])


def test_a_token_budget_is_kept() -> None:
    inputs, _ = _inputs(90, 90, budget=Budget(90, 300))
    choice = _choose(inputs)
    spent = int(inputs.response_tokens[choice.indices].sum())
    assert spent <= 300 and choice.stop_reason == "tokens"
    left = np.setdiff1d(np.arange(90), choice.indices)
    assert inputs.response_tokens[left].min() > 300 - spent


def test_a_seed_gives_the_same_walk() -> None:
    walks = []
    for seed in (1, 1, 2):
        inputs, made = _inputs(100, 30, seed=5)
        inputs = Inputs(**{**vars(inputs), "seed": seed})
        choice = _choose(inputs, share=0.1)
        walks.append((choice.indices.tolist(), made[0].rounds))
    assert walks[0] == walks[1] and walks[0] != walks[2]


def test_a_setting_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="share"):
        make_method("lead", {"share": 0})
    with pytest.raises(ConfigError, match="rounds"):
        make_method("lead", {"rounds": 0})
