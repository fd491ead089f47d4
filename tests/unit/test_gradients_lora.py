"""Gradients of low-rank adapters against PEFT with autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from spice_select.config import GradientConfig, LoraConfig, ModelConfig
from spice_select.errors import ModelError
from spice_select.gradients import GradientEngine, Proxy
from spice_select.gradients.layers import initial_factor
from spice_select.gradients.proxy import load_proxy
from tests.proxies import examples, own_loss, relative_error, tiny_model
from tests.unit.test_gradients_proxy import write_model

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

RANK, ALPHA = 4, 12.0
FAMILIES = ["llama", "qwen2", "gemma2", "gpt2"]


def _config(factors: str, sketch: str = "fold") -> GradientConfig:
    lora = LoraConfig(r=RANK, alpha=ALPHA, factors=factors)  # type: ignore[arg-type]
    return GradientConfig(lora=lora, sketch=sketch, dim=64, rank=3)  # type: ignore[arg-type]


def _wrapped(family: str, *, trained: bool, seed: int = 0) -> Any:
    """PEFT's model with the adapters that the engine has in mind, or with some that look trained."""
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.3,
        fan_in_fan_out=family == "gpt2",
        target_modules="all-linear",
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )
    model = peft.get_peft_model(tiny_model(family), settings).eval()
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                weight = module.lora_A["default"].weight
                weight.copy_(initial_factor(seed, name, RANK, weight.shape[1]))
                if trained:
                    values = torch.randn(
                        module.lora_B["default"].weight.shape, generator=torch.Generator().manual_seed(1)
                    )
                    module.lora_B["default"].weight.copy_(0.1 * values)
    return model


def _autograd(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    model.zero_grad()
    own_loss(model, ids, mask).backward()
    found = {
        name.removesuffix(".default.weight"): parameter.grad.clone()
        for name, parameter in model.get_base_model().named_parameters()
        if ".lora_" in name
    }
    model.requires_grad_(False)
    return found


@pytest.mark.parametrize("factors", ["B", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_at_initialisation(family: str, factors: str) -> None:
    config = _config(factors)
    engine = GradientEngine(Proxy.from_model(tiny_model(family), None, config), config)
    ids, masks = examples()
    batch, whole = engine.batch(ids, masks), engine.materialise(ids, masks)
    reference = _wrapped(family, trained=False)
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        expected = _autograd(reference, row, mask)
        assert all(not value.any() for name, value in expected.items() if name.endswith("lora_A"))
        expected = {name: value for name, value in expected.items() if name in whole}
        assert len(expected) == len(engine.proxy.layers)
        assert relative_error({name: table[number] for name, table in whole.items()}, expected) < 1e-5
        folded = engine.new_sketch().apply(expected).numpy()
        assert np.linalg.norm(batch.rows[number] - folded) <= 1e-5 * np.linalg.norm(folded)


@pytest.mark.parametrize("factors", ["B", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_adapters_of_a_peft_model(family: str, factors: str) -> None:
    config = _config(factors)
    model = _wrapped(family, trained=True)
    engine = GradientEngine(Proxy.from_model(model, None, config), config)
    ids, masks = examples()
    whole = engine.materialise(ids, masks)
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        expected = {k: v for k, v in _autograd(model, row, mask).items() if factors == "both" or k.endswith("B")}
        assert {layer.name for layer in engine.proxy.layers} == set(expected)
        assert relative_error({name: table[number] for name, table in whole.items()}, expected) < 1e-5


def test_full_gradients_of_a_model_with_adapters_on_it() -> None:
    model = _wrapped("llama", trained=True)
    config = GradientConfig(dim=64)
    engine = GradientEngine(Proxy.from_model(model, None, config), config)
    plain = GradientEngine(Proxy.from_model(tiny_model("llama"), None, config), config)
    assert [layer.name for layer in engine.proxy.layers] == [layer.name for layer in plain.proxy.layers]
    ids, masks = examples()
    model.requires_grad_(True)
    model.zero_grad()
    own_loss(model, ids[0], masks[0]).backward()
    name = "model.layers.1.self_attn.q_proj"
    expected = model.get_base_model().get_submodule(f"{name}.base_layer").weight.grad.clone()
    model.requires_grad_(False)
    found = engine.materialise(ids, masks)[name][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_two_sided_sketch_of_adapters() -> None:
    config = _config("B", "two-sided")
    engine = GradientEngine(Proxy.from_model(tiny_model("llama"), None, config), config)
    ids, masks = examples()
    batch, whole = engine.batch(ids, masks), engine.materialise(ids, masks)
    expected = engine.new_sketch().apply({name: table[2] for name, table in whole.items()}).numpy()
    np.testing.assert_allclose(batch.rows[2], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_adapter_folder(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama")
    _wrapped("llama", trained=True).save_pretrained(tmp_path / "adapter")
    config = GradientConfig(
        dim=64, lora=LoraConfig(r=RANK, alpha=ALPHA, factors="both", adapter=str(tmp_path / "adapter"))
    )
    proxy = load_proxy(ModelConfig(name=str(base), device="cpu"), config)
    plain = load_proxy(ModelConfig(name=str(base), device="cpu"), GradientConfig())
    assert proxy.weights_hash != plain.weights_hash
    ids, masks = examples()
    memory = Proxy.from_model(_wrapped("llama", trained=True), None, config)
    np.testing.assert_allclose(
        GradientEngine(proxy, config).batch(ids, masks).rows,
        GradientEngine(memory, config).batch(ids, masks).rows,
        rtol=1e-4,
        atol=1e-6,
    )


def test_missing_adapter_folder(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama")
    config = GradientConfig(lora=LoraConfig(adapter=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_proxy(ModelConfig(name=str(base), device="cpu"), config)
