"""Gram matrices of pools against whole gradients of autograd, and the shares of several processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spice_select import select, select_gram
from spice_select.errors import ResourceError
from spice_select.gradients import GradientEngine, Proxy
from spice_select.gradients.equals import firsts_of_equal
from spice_select.gradients.layers import Layer
from spice_select.schedule.gram import pool_gram, pool_rows
from spice_select.schedule.held import inner_products
from spice_select.schedule.shares import layer_groups, share_batches
from tests.proxies import examples, own_loss
from tests.schedules import ALONE, engine, flat, learner, schedule, trained

PLENTY = 1 << 30
FULL = schedule(scope="full")


def _autograd_gram(proxy: Proxy, ids: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
    """From plain backward passes in float64, of the layers in the proxy's scope."""
    weights: list[Any] = [module.weight for module, _ in proxy.scope.modules]
    model: Any = proxy.model.double()
    rows = []
    for row, mask in zip(ids, masks, strict=True):
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        own_loss(model, row, mask).backward()
        rows.append(torch.cat([weight.grad.flatten() for weight in weights]))
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
    model.float()
    whole = torch.stack(rows)
    return (whole @ whole.t()).numpy()


def _assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Each product relative to the norms of its two gradients."""
    norms = np.sqrt(np.diag(expected))
    assert np.abs((found - expected) / np.outer(norms, norms)).max() < tolerance


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_adapters_have_the_products_of_autograd(family: str) -> None:
    proxy = trained(family)
    ids, masks = examples(7)
    found = pool_gram(engine(proxy), ids, masks, ranks=ALONE, memory=PLENTY)
    assert found.exact
    assert found.how == f"exact over {len(proxy.layers)} adapter factors"
    assert all(layer.name.rpartition(".")[2] in ("lora_A", "lora_B") for layer in proxy.layers)
    assert found.tokens == sum(map(len, ids))
    _assert_close(found.gram, _autograd_gram(proxy, ids, masks), 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_layers_have_the_products_of_autograd(family: str) -> None:
    proxy = learner(family, scope="full")
    ids, masks = examples(6)
    found = pool_gram(engine(proxy, FULL), ids, masks, ranks=ALONE, memory=PLENTY)
    assert found.exact and found.how == f"exact over {len(proxy.layers)} layers"
    _assert_close(found.gram, _autograd_gram(proxy, ids, masks), 1e-6)


@pytest.mark.parametrize("plan", [schedule(), FULL])
def test_products_are_those_of_the_materialised_gradients(plan: Any) -> None:
    measured = engine(trained() if plan.scope == "lora" else learner(scope="full"), plan)
    ids, masks = examples(9)
    whole = flat(measured, ids, masks)
    found = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    _assert_close(found.gram, whole @ whole.T, 1e-6)
    np.testing.assert_array_equal(found.gram, found.gram.T)
    np.testing.assert_allclose(found.losses, measured.losses(ids, masks), rtol=1e-5)


def test_stacked_experts_are_in_the_products() -> None:
    proxy = learner("mixtral", scope="full")
    measured = engine(proxy, FULL)
    ids, masks = examples(4)
    whole = flat(measured, ids, masks)
    found = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    assert proxy.scope.experts
    _assert_close(found.gram, whole @ whole.T, 1e-6)


def test_several_passes_change_no_bit() -> None:
    measured = engine(trained())
    ids, masks = examples(8)
    size = sum(layer.size for layer in measured.proxy.layers)
    groups = layer_groups(measured.proxy.layers, 8, PLENTY)
    once = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    # The groups depend on the memory only where they would not fit into a quarter of it.
    memory = 4 * 4 * 8 * size // 16 + 4 * 8 * max(layer.size for layer in measured.proxy.layers)
    assert layer_groups(measured.proxy.layers, 8, memory) == groups
    several = pool_gram(measured, ids, masks, ranks=ALONE, memory=memory)
    assert several.how.endswith(" passes") and several.exact
    np.testing.assert_array_equal(several.gram, once.gram)
    np.testing.assert_array_equal(several.losses, once.losses)


def test_adapters_are_exact_in_whatever_memory() -> None:
    measured = engine(trained())
    ids, masks = examples(5)
    once = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    tight = pool_gram(measured, ids, masks, ranks=ALONE, memory=1)
    assert tight.exact and tight.how.endswith(f"in {len(measured.proxy.layers)} passes")
    _assert_close(tight.gram, once.gram, 1e-12)


def test_full_layers_too_large_for_four_passes_are_folded() -> None:
    measured = engine(learner(scope="full"), FULL, dim=64)
    ids, masks = examples(6)
    size = 4 * 6 * sum(layer.size for layer in measured.proxy.layers)
    exact = pool_gram(measured, ids, masks, ranks=ALONE, memory=-(-size // 4))
    folded = pool_gram(measured, ids, masks, ranks=ALONE, memory=size // 4 - 1)
    assert exact.exact and not folded.exact
    assert folded.how == "fold, D = 8,192"
    np.testing.assert_array_equal(folded.losses, exact.losses)
    _assert_close(folded.gram, exact.gram, 0.1)
    assert not np.array_equal(folded.gram, exact.gram)


def test_rows_of_the_engines_own_sketch() -> None:
    measured = engine(trained(), dim=128)
    ids, masks = examples(7)
    found = pool_rows(measured, ids, masks, ranks=ALONE)
    expected = measured.batch(ids, masks)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-5 * np.abs(expected.rows).max())
    np.testing.assert_allclose(found.squared_norms, expected.squared_norms, rtol=1e-5)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert found.tokens == sum(map(len, ids))


def test_one_example() -> None:
    measured = engine(trained())
    ids, masks = examples(1)
    found = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    assert found.gram.shape == (1, 1)
    assert found.gram[0, 0] == pytest.approx(measured.batch(ids, masks).squared_norms[0], rel=1e-5)


def test_untrained_adapters_have_gradients_of_b_alone() -> None:
    proxy = learner()
    measured = engine(proxy)
    ids, masks = examples(5)
    whole = measured.materialise(ids, masks)
    assert all(not table.any() for name, table in whole.items() if name.endswith("lora_A"))
    found = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    _assert_close(found.gram, _autograd_gram(proxy, ids, masks), 1e-6)


@pytest.mark.parametrize("plan", [schedule(), FULL])
def test_a_gradient_that_is_not_finite_is_alone(plan: Any) -> None:
    measured = engine(trained() if plan.scope == "lora" else learner(scope="full"), plan)
    ids, masks = examples(6)
    ids = [np.minimum(row, 95) for row in ids]
    clean = pool_gram(measured, ids, masks, ranks=ALONE, memory=PLENTY)
    ids[2][0] = 96
    with torch.no_grad():
        measured.proxy.model.get_input_embeddings().weight[96] = float("nan")
    for memory in (PLENTY, 1):
        found = pool_gram(measured, ids, masks, ranks=ALONE, memory=memory)
        others = np.arange(6) != 2
        assert np.isnan(found.gram[2]).all() and np.isnan(found.gram[:, 2]).all()
        assert not np.isfinite(found.losses[2])
        if found.exact:
            _assert_close(found.gram[np.ix_(others, others)], clean.gram[np.ix_(others, others)], 1e-6)
        assert np.isfinite(found.gram[np.ix_(others, others)]).all()


def test_running_out_of_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = engine(trained())

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(GradientEngine, "fill", fail)
    with pytest.raises(ResourceError, match=r"gradients\.batch_tokens"):
        pool_gram(measured, *examples(3), ranks=ALONE, memory=PLENTY)


def test_other_faults_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = engine(trained())

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(GradientEngine, "fill", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        pool_gram(measured, *examples(3), ranks=ALONE, memory=PLENTY)


def test_inner_products_add_up_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 10_000, generator=generator) * 10.0 ** torch.arange(-2, 3)[:, None]
    found = inner_products(rows).numpy()
    wide = rows.double().numpy()
    _assert_close(found, wide @ wide.T, 1e-14)


def test_groups_are_whole_layers_in_order() -> None:
    layers = [Layer(str(number), 2, 1 + number % 5) for number in range(40)]
    groups = layer_groups(layers, 10, PLENTY)
    assert [index for group in groups for index in group] == list(range(40))
    assert 16 <= len(groups) <= 32
    tight = layer_groups(layers, 10, 4 * 4 * 10 * 12)
    assert all(sum(layers[index].size for index in group) <= 12 for group in tight)
    assert layer_groups(layers, 10, 1) == [range(number, number + 1) for number in range(40)]


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_every_batch_is_someones(world: int) -> None:
    costs = [90, 80, 60, 50, 20, 10, 1]
    shares = share_batches(costs, world)
    assert len(shares) == world
    assert sorted(number for share in shares for number in share) == list(range(7))
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= sum(costs) / world + max(costs)
    if world > len(costs):
        assert min(loads) == 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_picks_from_the_products_are_those_of_brute_force(weight: float) -> None:
    """The kernel loop on a pool's products, against the definition on whole gradients."""
    proxy = trained()
    ids, masks = examples(12)
    gram = pool_gram(engine(proxy), ids, masks, ranks=ALONE, memory=PLENTY).gram
    whole = engine(proxy).materialise(ids, masks)
    rows = torch.cat([table.flatten(1) for table in whole.values()], dim=1).double().numpy()
    scale = 5.0 / float(np.median(np.diag(gram)))
    brute = select(rows, budget=8, alpha=scale, conflict_weight=weight, loop="brute")
    kernel = select_gram(gram, 8, alpha=scale, conflict_weight=weight)
    assert kernel.indices.tolist() == brute.indices.tolist()
    np.testing.assert_allclose(kernel.gains, brute.gains, rtol=1e-5)
    np.testing.assert_allclose(kernel.conflicts, brute.conflicts, atol=1e-5)


def test_examples_of_the_same_tokens_have_the_same_numbers() -> None:
    ids, masks = examples(9)
    # The first of each pair goes with other lengths than the second would, and one differs in its mask alone.
    ids, masks = [*ids, ids[4], ids[0], ids[2]], [*masks, masks[4], masks[0], ~masks[2] & (np.arange(len(ids[2])) > 0)]
    expected = [*range(9), 4, 0, 11]
    np.testing.assert_array_equal(firsts_of_equal(ids, masks), expected)
    for source, memory in ((engine(trained()), PLENTY), (engine(learner(scope="full"), FULL, dim=64), 1 << 12)):
        found = pool_gram(source, ids, masks, ranks=ALONE, memory=memory)
        for copy, first in ((9, 4), (10, 0)):
            np.testing.assert_array_equal(found.gram[copy], found.gram[first])
            np.testing.assert_array_equal(found.gram[:, copy], found.gram[:, first])
            assert found.losses[copy] == found.losses[first]
        assert not np.array_equal(found.gram[11], found.gram[2])
    rows = pool_rows(source, ids, masks, ranks=ALONE)
    np.testing.assert_array_equal(rows.rows[[9, 10]], rows.rows[[4, 0]])
    np.testing.assert_array_equal(rows.squared_norms[[9, 10]], rows.squared_norms[[4, 0]])
