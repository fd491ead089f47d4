"""Gram matrices, shared and unreached layers, and the account an engine gives of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spice_select.config import GradientConfig, LoraConfig
from spice_select.errors import ConfigError, ModelError
from spice_select.gradients import GradientEngine, Proxy
from spice_select.gradients.check import autograd_error
from spice_select.gradients.tensor_sketch import FOLDED_BELOW
from tests.proxies import autograd_gradients, examples, relative_error, tiny_model, tiny_proxy


def _engine(family: str = "llama", **settings: object) -> GradientEngine:
    config = GradientConfig(**settings)  # type: ignore[arg-type]
    return GradientEngine(Proxy.from_model(tiny_model(family), None, config), config)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=3)])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_gram_is_that_of_whole_gradients(family: str, lora: LoraConfig | None) -> None:
    if family == "mixtral" and lora is not None:
        with pytest.warns(UserWarning, match="of the non-embedding weights"):
            engine = _engine(family, lora=lora, batch_tokens=30)
    else:
        engine = _engine(family, lora=lora, batch_tokens=30)
    ids, masks = examples(6)
    whole = engine.materialise(ids, masks)
    flat = torch.cat([table.flatten(1).double() for table in whole.values()], dim=1)
    expected = (flat @ flat.t()).numpy()
    # Small enough a limit for several groups of layers.
    found = engine.gram(ids, masks, memory=4 * 6 * 5000)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.max())
    np.testing.assert_allclose(np.diag(found), engine.batch(ids, masks).squared_norms, rtol=1e-5)


def test_none_keeps_every_number() -> None:
    engine = _engine(sketch="none")
    ids, masks = examples()
    whole = engine.materialise(ids, masks)
    expected = torch.cat([table.flatten(1) for table in whole.values()], dim=1).numpy()
    batch = engine.batch(ids, masks)
    assert engine.dim == sum(layer.size for layer in engine.proxy.layers)
    np.testing.assert_array_equal(batch.rows, expected)


def test_a_layer_called_twice_adds_up() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model.model.layers[1].self_attn.o_proj.weight = model.model.layers[0].self_attn.o_proj.weight
    config = GradientConfig(dim=64)
    engine = GradientEngine(Proxy.from_model(model, None, config), config)
    assert len(engine.proxy.layers) == 10
    ids, masks = examples()
    batch, whole = engine.batch(ids, masks), engine.materialise(ids, masks)
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        expected = autograd_gradients(engine.proxy, row, mask)
        assert relative_error({name: table[number] for name, table in whole.items()}, expected) < 1e-5
        norm = sum(float(value.double().square().sum()) for value in expected.values())
        assert batch.squared_norms[number] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_tensor_rows_are_those_of_whole_gradients_in_any_company(family: str) -> None:
    # A row this short leaves some layers to the fold and some to the transforms.
    engine = _engine(family, sketch="tensor", dim=3)
    assert {layer.size < FOLDED_BELOW * 3 for layer in engine.proxy.layers} == {True, False}
    ids, masks = examples(6)
    batch, whole = engine.batch(ids, masks), engine.materialise(ids, masks)
    for number in range(len(ids)):
        alone = engine.batch(ids[number : number + 1], masks[number : number + 1])
        expected = engine.new_sketch().apply({name: table[number] for name, table in whole.items()}).numpy()
        size = float(np.sqrt(batch.squared_norms[number]))
        np.testing.assert_allclose(batch.rows[number], expected, atol=1e-5 * size)
        np.testing.assert_allclose(alone.rows[0], batch.rows[number], atol=1e-5 * size)
        exact = sum(float(table[number].double().square().sum()) for table in whole.values())
        assert batch.squared_norms[number] == pytest.approx(exact, rel=1e-5)


def test_experts_that_no_token_chose_have_zero_gradients() -> None:
    engine = _engine("mixtral", dim=64)
    ids, masks = [np.array([5, 9, 7])], [np.array([False, False, True])]
    whole = engine.materialise(ids, masks)
    expected = autograd_gradients(engine.proxy, ids[0], masks[0])
    unused = [name for name, value in expected.items() if not value.any()]
    assert unused and all(not whole[name].any() for name in unused)
    assert relative_error({name: table[0] for name, table in whole.items()}, expected) < 1e-5


def test_layers_after_the_last_gradient_are_not_needed() -> None:
    with pytest.warns(UserWarning, match="of the non-embedding weights"):
        proxy = tiny_proxy("llama", layers=r".*layers\.0\.self_attn\.q_proj", dim=64)
    engine = GradientEngine(proxy, GradientConfig(dim=64))
    ids, masks = examples()
    found = engine.materialise(ids, masks)["model.layers.0.self_attn.q_proj"]
    expected = autograd_gradients(proxy, ids[3], masks[3])["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(found[3], expected, rtol=1e-4, atol=1e-7)


def test_spec_is_json_and_knows_every_difference() -> None:
    base = _engine(dim=64).spec()
    assert json.loads(json.dumps(base)) == base
    others = [
        _engine(dim=32).spec(),
        _engine(dim=64, seed=1).spec(),
        _engine(dim=64, sketch="two-sided", rank=2).spec(),
        _engine(dim=64, sketch="tensor").spec(),
        _engine(dim=64, lora=LoraConfig(r=2)).spec(),
        _engine("qwen2", dim=64, loss="all").spec(),
    ]
    specs = [json.dumps(spec, sort_keys=True) for spec in [base, *others]]
    assert len(set(specs)) == len(specs)


def test_batch_size_and_attention_are_no_part_of_the_spec() -> None:
    assert _engine(dim=64, batch_tokens=64).spec() == _engine(dim=64).spec()


def test_a_loss_of_its_own_kind_is_refused() -> None:
    model = tiny_model("llama")
    model.loss_function = lambda logits, labels, **_: logits.square().mean()
    config = GradientConfig(dim=64)
    with pytest.raises(ModelError, match="next-token loss"):
        GradientEngine(Proxy.from_model(model, None, config), config)


def test_sketches_for_small_models_refuse_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from spice_select.gradients import oracles

    monkeypatch.setattr(oracles, "_MOST_RAW", 1000)
    with pytest.raises(ConfigError, match=r"gradients\.sketch"):
        _engine(sketch="none")
    with pytest.raises(ConfigError, match=r"gradients\.sketch"):
        _engine(sketch="dense", dim=1 << 25)


def test_a_weight_read_past_its_layer_is_warned_of() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * (x @ layer.weight.t()))
    config = GradientConfig(dim=64)
    with pytest.warns(UserWarning, match=r"Layer model\.layers\.0\.mlp\.up_proj of"):
        GradientEngine(Proxy.from_model(model, None, config), config)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=3)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_self_test_passes_and_sees_a_wrong_gradient(family: str, lora: LoraConfig | None) -> None:
    engine = _engine(family, lora=lora)
    ids, masks = examples(3)
    assert autograd_error(engine, ids, masks) < 1e-5
    # Gradients of other labels than autograd was told of.
    shifted = [np.roll(mask, 1) for mask in masks]
    honest = engine.materialise
    engine.materialise = lambda ids, masks, layers=None: honest(ids, shifted, layers)  # type: ignore[method-assign]
    assert autograd_error(engine, ids, masks) > 0.01
