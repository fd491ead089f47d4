"""Hooked gradients against autograd's, family by family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spice_select.config import GradientConfig
from spice_select.gradients import GradientEngine, Proxy
from tests.proxies import FAMILIES, autograd_gradients, examples, own_loss, relative_error, tiny_model

FOLD = GradientConfig(dim=64)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def engine(request: pytest.FixtureRequest) -> GradientEngine:
    return GradientEngine(Proxy.from_model(tiny_model(request.param), None, FOLD), FOLD)


def test_losses_are_the_models_own(engine: GradientEngine) -> None:
    ids, masks = examples()
    found = engine.batch(ids, masks).losses
    expected = [float(own_loss(engine.proxy.model, row, mask)) for row, mask in zip(ids, masks, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(engine.losses(ids, masks), expected, atol=1e-5, rtol=1e-5)


def test_logits_are_formed_only_at_labels(engine: GradientEngine) -> None:
    assert engine.loss_path == "gathered"


def test_gradients_are_those_of_autograd(engine: GradientEngine) -> None:
    ids, masks = examples()
    batch = engine.batch(ids, masks)
    whole = engine.materialise(ids, masks)
    sketch = engine.new_sketch()
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        expected = autograd_gradients(engine.proxy, row, mask)
        assert relative_error({name: table[number] for name, table in whole.items()}, expected) < 1e-5
        folded = sketch.apply(expected).numpy()
        assert np.linalg.norm(batch.rows[number] - folded) <= 1e-5 * np.linalg.norm(folded)
        norm = sum(float(value.double().square().sum()) for value in expected.values())
        assert batch.squared_norms[number] == pytest.approx(norm, rel=1e-5)


def test_two_sided_rows_are_those_of_autograd(engine: GradientEngine) -> None:
    config = GradientConfig(sketch="two-sided", rank=4, dim=100)
    ids, masks = examples()
    two_sided = GradientEngine(engine.proxy, config)
    batch = two_sided.batch(ids, masks)
    expected = two_sided.new_sketch().apply(autograd_gradients(engine.proxy, ids[1], masks[1])).numpy()
    assert np.linalg.norm(batch.rows[1] - expected) <= 1e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(batch.squared_norms, engine.batch(ids, masks).squared_norms, rtol=1e-5)


def test_batch_of_one_equals_batch_of_sixteen(engine: GradientEngine) -> None:
    ids, masks = examples(16, seed=3)
    together = engine.batch(ids, masks)
    for number in range(16):
        alone = engine.batch(ids[number : number + 1], masks[number : number + 1])
        scale = np.linalg.norm(alone.rows[0])
        assert np.linalg.norm(alone.rows[0] - together.rows[number]) <= 1e-5 * scale
        assert alone.losses[0] == pytest.approx(together.losses[number], abs=1e-5)
        assert alone.squared_norms[0] == pytest.approx(together.squared_norms[number], rel=1e-5)


def test_scope_leaves_out_head_biases_and_embeddings(engine: GradientEngine) -> None:
    head = engine.proxy.model.get_output_embeddings()
    names = {name for name, module in engine.proxy.model.named_modules() if module is head}
    assert names and not names & {layer.name for layer in engine.proxy.layers}
    assert 0.9 < engine.proxy.coverage < 1


def test_model_is_left_as_it_was(engine: GradientEngine) -> None:
    model = engine.proxy.model
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    engine.batch(*examples())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_same_numbers_every_time(engine: GradientEngine) -> None:
    ids, masks = examples()
    first, second = engine.batch(ids, masks), engine.batch(ids, masks)
    assert first.rows.tobytes() == second.rows.tobytes()
    assert first.squared_norms.tobytes() == second.squared_norms.tobytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_bfloat16_runs_and_is_close(family: str) -> None:
    ids, masks = examples()
    exact = GradientEngine(Proxy.from_model(tiny_model(family), None, FOLD), FOLD).batch(ids, masks)
    half = GradientEngine(Proxy.from_model(tiny_model(family).bfloat16(), None, FOLD), FOLD)
    assert half.spec()["dtype"] == "bfloat16"
    rows = half.batch(ids, masks).rows
    assert rows.dtype == np.float32
    cosines = (rows * exact.rows).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact.rows, axis=1)
    assert cosines.min() > (0.9 if family == "mixtral" else 0.98)


def test_float16_gradients_do_not_vanish() -> None:
    ids, masks = examples()
    exact = GradientEngine(Proxy.from_model(tiny_model("llama"), None, FOLD), FOLD).batch(ids, masks)
    half = GradientEngine(Proxy.from_model(tiny_model("llama").half(), None, FOLD), FOLD).batch(ids, masks)
    np.testing.assert_allclose(half.squared_norms, exact.squared_norms, rtol=0.02)
    assert np.linalg.norm(half.rows - exact.rows) < 0.02 * np.linalg.norm(exact.rows)


def test_an_infinite_example_spoils_no_other() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = float("nan")
    engine = GradientEngine(Proxy.from_model(model, None, FOLD), FOLD)
    ids, masks = examples(3)
    ids = [np.where(row == 96, 5, row) for row in ids]
    clean = engine.batch(ids, masks)
    ids[1] = ids[1].copy()
    ids[1][0] = 96
    spoilt = engine.batch(ids, masks)
    assert not np.isfinite(spoilt.losses[1]) and not np.isfinite(spoilt.squared_norms[1])
    np.testing.assert_array_equal(spoilt.rows[[0, 2]], clean.rows[[0, 2]])


def test_an_example_without_a_label_is_a_zero_row() -> None:
    engine = GradientEngine(Proxy.from_model(tiny_model("llama"), None, FOLD), FOLD)
    ids, masks = examples(2)
    first_only = np.arange(len(ids[1])) == 0  # nothing comes before the first token, so nothing predicts it
    batch = engine.batch(ids, [masks[0], first_only])
    assert batch.losses[1] == 0 and batch.squared_norms[1] == 0 and not batch.rows[1].any()
    assert batch.squared_norms[0] > 0
    alone = engine.batch(ids[1:], [first_only])
    assert alone.losses.tolist() == [0.0] and not alone.rows.any()
