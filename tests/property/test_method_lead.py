"""What holds for every walk of LEAD, whatever the learner answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.methods import Inputs, Step, make_method
from spice_select.methods.lead import arm_probabilities, best_mixture, scaled_reward, updated_weights
from spice_select.selection.budget import Budget

finite = st.floats(-1e6, 1e6, allow_nan=False)


class Whims:
    """A learner that answers what it likes."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.uses: Counter[int] = Counter()

    def losses(self, rows: Sequence[int]) -> np.ndarray:
        return self._generator.uniform(0, 5, len(rows))

    def train(self, rows: Sequence[int]) -> Step:
        assert len(rows) == len(set(rows)) > 0
        self.uses.update(rows)
        gradient = self._generator.normal(size=3) * self._generator.integers(0, 2)
        return Step(self.losses(rows), gradient, float(gradient @ gradient), 1e-2)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    part=st.floats(0, 1),
    rounds=st.integers(1, 30),
    share=st.sampled_from(["auto", 0.015, 0.4, 1.0]),
    uses=st.integers(1, 4),
    levels=st.sampled_from([1, 3, 1000]),
    tokens=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_every_walk_ends_with_the_rows_asked_for(
    seed: int, n: int, part: float, rounds: int, share: float | str, uses: int, levels: int, tokens: bool
) -> None:
    generator = np.random.default_rng(seed)
    losses = generator.integers(1, levels + 1, size=n) / levels
    lengths = generator.integers(1, 20, size=n)
    k = max(1, round(part * n))
    limit = int(lengths[generator.permutation(n)[:k]].sum())
    learners: list[Whims] = []

    def learner() -> Whims:
        learners.append(Whims(seed))
        return learners[-1]

    inputs = Inputs(
        n=n,
        candidates=np.ones(n, dtype=bool),
        response_tokens=lengths,
        sources=[str(number) for number in generator.integers(0, 3, size=n)],
        budget=Budget(n, limit) if tokens else Budget(k),
        seed=seed,
        losses=losses,
        direct_losses=generator.uniform(0.5, 2.0, size=n),
        learner=learner,
    )
    method = make_method("lead", {"rounds": rounds, "share": share, "max_uses": uses})
    choice = method.choose(inputs)
    chosen = choice.indices.tolist()
    assert len(chosen) == len(set(chosen))
    assert np.array_equal(chosen, method.choose(inputs).indices)
    if tokens:
        left = np.setdiff1d(np.arange(n), chosen)
        spent = int(lengths[chosen].sum())
        assert spent <= limit and (not len(left) or lengths[left].min() > limit - spent)
    else:
        assert len(chosen) == k
    assert set(learners[0].uses) <= set(chosen)
    assert max(learners[0].uses.values(), default=0) <= uses
    assert len(choice.scores) == len(chosen) and np.isfinite(choice.scores).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(0.01, 1), st.floats(-1, 1), st.data())
def test_probabilities_stay_some(weights: list[float], gamma: float, reward: float, data: st.DataObject) -> None:
    arms = np.array(weights)
    p = arm_probabilities(arms, gamma)
    assert abs(p.sum() - 1) < 1e-9 and (p >= gamma / len(arms) - 1e-9).all()
    arm = data.draw(st.integers(0, len(arms) - 1))
    new = updated_weights(arms, p, arm, reward, gamma)
    assert np.isfinite(new).all() and (new > 0).all()
    assert np.array_equal(np.delete(new, arm), np.delete(arms, arm))
    assert (new[arm] - arms[arm]) * reward >= 0


@given(st.lists(finite, min_size=1, max_size=20))
def test_rewards_lie_between_minus_one_and_one(gains: list[float]) -> None:
    assert -1.0 <= scaled_reward(gains) <= 1.0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1, 1))
def test_no_other_mixture_is_shorter(first: float, before: float, cosine: float) -> None:
    def length(beta: float) -> float:
        across = np.sqrt(first * before) * cosine
        return beta**2 * first + (1 - beta) ** 2 * before + 2 * beta * (1 - beta) * across

    beta = best_mixture(first, before, cosine)
    assert np.isfinite(beta)
    best = length(beta)
    for other in (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0):
        assert best <= length(other) + 1e-6 * max(1.0, first, before)
