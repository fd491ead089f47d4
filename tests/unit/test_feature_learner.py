"""A training while rows are selected: what it tells of its rows, that it learns, and that it repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ModelError
from spice_select.features.bench import Bench
from spice_select.features.gather import gather
from spice_select.features.learner import NAME, ProxyLearner, learning_schedule, make_learner
from spice_select.gradients import GradientEngine
from spice_select.methods import make_method
from spice_select.methods.lead import Lead
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.selection.budget import Budget
from tests.benches import family_proxy, make_bench

ROWS = [{"prompt": f"What is {i} times {i}?", "response": f"It is {i * i}, " + "yes " * (i % 4)} for i in range(9)]
SETTINGS: dict[str, Any] = {
    "lora_r": 4, "lora_alpha": 8.0, "batch_size": 4, "learning_rate": 5e-3, "dim": 256, "decay": 0.5, "decay_steps": 2,
}  # fmt: skip


def _bench(folder: Path, family: str = "llama", **config: Any) -> Bench:
    bench = make_bench(folder, ROWS, proxy=family, **config)
    bench.load_base = lambda: family_proxy(family)
    return bench


def _learner(bench: Bench, seed: int = 0, **settings: Any) -> ProxyLearner:
    found = make_learner(bench, Lead.model_validate({**SETTINGS, **settings}), seed=seed)
    assert isinstance(found, ProxyLearner)
    return found


def test_losses_are_those_of_the_proxy_until_it_learns(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    learner = _learner(bench)
    rows = [7, 0, 3, 5]
    examples = [bench.pool.encoded.example(row) for row in rows]
    plain = GradientEngine(bench.proxy, bench.config.gradients)
    expected = plain.losses([e.input_ids for e in examples], [e.labels_mask for e in examples])
    assert learner.losses(rows) == pytest.approx(expected, rel=1e-5)
    for _ in range(6):
        learner.train(rows)
    assert learner.losses(rows).mean() < expected.mean() - 0.1


def test_a_step_tells_losses_before_it_and_the_mean_gradient(tmp_path: Path) -> None:
    bench = _bench(tmp_path, gradients={"batch_tokens": 64})
    settings = Lead.model_validate({**SETTINGS, "dim": 4096})
    learner = _learner(bench, dim=4096)
    before = learner.losses([2, 6, 1])
    step = learner.train([2, 6, 1])
    # One optimiser step: all three were measured before it.
    assert step.losses == pytest.approx(before, rel=1e-5)
    proxy = attach_adapters(family_proxy("llama"), learning_schedule(settings), 0)
    engine = GradientEngine(proxy, trained_scope(bench.config.gradients, learning_schedule(settings)))
    examples = [bench.pool.encoded.example(row) for row in (2, 6, 1)]
    whole = engine.materialise([e.input_ids for e in examples], [e.labels_mask for e in examples])
    mean = torch.cat([table.flatten(1).double() for table in whole.values()], dim=1).mean(dim=0)
    assert step.squared_norm == pytest.approx(float(mean @ mean), rel=0.1)
    assert step.gradient.shape == (4096,) and step.squared_norm == pytest.approx(float(step.gradient @ step.gradient))


def test_later_examples_of_a_round_are_measured_after_earlier_steps(tmp_path: Path) -> None:
    learner = _learner(_bench(tmp_path), learning_rate=0.05)
    rows = list(range(9))
    before = learner.losses(rows)
    step = learner.train(rows)
    same = np.isclose(step.losses, before, rtol=1e-5)
    assert same.sum() == 4  # those of the first batch
    assert not same.all()


def test_the_learning_rate_decays_by_optimiser_steps(tmp_path: Path) -> None:
    learner = _learner(_bench(tmp_path))
    rates = [learner.train([0]).learning_rate for _ in range(5)]
    assert rates == pytest.approx([5e-3, 5e-3, 2.5e-3, 2.5e-3, 1.25e-3])
    assert learner.train(list(range(9))).learning_rate == pytest.approx(5e-3 * 0.5**3)


def test_the_same_seed_ends_in_the_same_bits(tmp_path: Path) -> None:
    def walk(folder: str, seed: int) -> tuple[str, bytes]:
        learner = _learner(_bench(tmp_path / folder), seed)
        steps = [learner.train(rows) for rows in ([0, 1, 2, 3, 4], [5, 2])]
        return learner.weights_digest, b"".join(step.losses.tobytes() + step.gradient.tobytes() for step in steps)

    before = torch.random.get_rng_state()
    first = walk("a", 3)
    assert first == walk("b", 3)
    assert first != walk("c", 4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_passes_are_counted_over_all_runs(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    learner = _learner(bench)
    learner.losses([0, 1])
    learner.train([0, 1, 2])
    (found,) = bench.passes.values()
    lengths = bench.pool.encoded.lengths
    assert found.what == NAME
    assert (found.forwards, found.backwards) == (2 + 6, 6)
    assert found.tokens == lengths[:2].sum() + 2 * lengths[:3].sum()
    assert found.backward_tokens == 2 * lengths[:3].sum()
    again = _bench(tmp_path)
    _learner(again).train([0])
    assert next(iter(again.passes.values())).forwards == found.forwards + 2


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_other_families_learn(tmp_path: Path, family: str) -> None:
    learner = _learner(_bench(tmp_path, family), learning_rate=2e-2)
    before = learner.losses([1, 2]).mean()
    for _ in range(5):
        step = learner.train([1, 2])
    assert np.isfinite(step.losses).all() and step.squared_norm > 0
    assert learner.losses([1, 2]).mean() < before


def test_a_learning_rate_that_diverges_is_named(tmp_path: Path) -> None:
    learner = _learner(_bench(tmp_path), learning_rate=1e30, decay=1.0)
    with pytest.raises(ModelError, match=r"set method\.learning_rate below 1e\+30"):
        for _ in range(4):
            learner.train(list(range(9)))


def test_lead_chooses_with_a_real_training(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    method = make_method("lead", {**SETTINGS, "rounds": 3, "clusters": 2, "share": 0.5})
    inputs = gather(method, bench, Budget(5), None, seed=1)
    choice = method.choose(inputs)
    assert len(set(choice.indices.tolist())) == 5 and not choice.warnings
    assert np.array_equal(choice.indices, method.choose(inputs).indices)
    assert np.array_equal(choice.scores, method.choose(inputs).scores)
