"""A model whose gradients were taken in the midst of its training is as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ConfigError, ModelError, ResourceError
from spice_select.training import LiveSelection
from spice_select.training.live_measure import LiveGradients, trained_scope, untouched
from tests.live_runs import adapted, autograd_gram, model_of, rows
from tests.proxies import tiny_model

SETTINGS = LiveSelection().settings


def examples(data: Any, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return (
        [np.array(data[number]["input_ids"]) for number in range(count)],
        [np.array(data[number]["labels"]) != -100 for number in range(count)],
    )


def state(model: Any) -> dict[str, Any]:
    """All that a measurement must leave alone."""
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    return {
        "asks": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "forwards": [vars(module).get("forward") for module in model.modules()],
        "random": torch.random.get_rng_state().tolist(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
        "numpy": np.random.get_state()[1].tolist(),
    }


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_nothing_is_left_behind(kind: str) -> None:
    model = model_of(kind, dropout=0.3) if kind == "lora" else model_of(kind)
    model.train()
    # Some modules in another mode than the rest, and a weight that is held still.
    model.get_submodule("base_model.model.model.layers.1" if kind == "lora" else "model.layers.1").eval()
    next(parameter for parameter in model.parameters() if parameter.requires_grad).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = state(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.is_autocast_enabled("cpu")
        found = LiveGradients(model, SETTINGS).measure(*examples(rows(), 5))
        assert torch.is_autocast_enabled("cpu") == inside
    assert state(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 0.5).all() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert np.isfinite(found.gram).all()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_products_are_those_of_autograd(kind: str) -> None:
    model = model_of(kind)
    measured = LiveGradients(model, SETTINGS).measure(*examples(rows(), 8))
    expected = autograd_gram(model, rows(), range(8))
    assert measured.exact
    np.testing.assert_allclose(measured.gram, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_layers_that_are_not_trained_have_no_say() -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    measured = LiveGradients(model, SETTINGS).measure(*examples(rows(), 4))
    expected = autograd_gram(model, rows(), range(4))
    np.testing.assert_allclose(measured.gram, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert "7 layers" in measured.how


def test_an_error_leaves_nothing_behind_either() -> None:
    model = model_of("lora")
    model.train()
    before = state(model)
    gradients = LiveGradients(model, SETTINGS)
    gradients.engine.fill = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match="set batch_tokens below 1024"):
        gradients.measure(*examples(rows(), 3))
    assert state(model) == before


def test_accelerates_wrapper_is_put_back() -> None:
    model = tiny_model("llama")
    original = model.forward
    model._original_forward = original

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    model.forward = wrapper
    with untouched(model):
        assert model.forward == original
    assert model.forward is wrapper


def test_models_with_nothing_to_go_by() -> None:
    frozen = tiny_model("llama").requires_grad_(False)
    with pytest.raises(ConfigError, match="no low-rank adapter of the model is trained"):
        trained_scope(frozen)
    with pytest.raises(ModelError, match="no output head"):
        trained_scope(torch.nn.Linear(2, 2))
    import peft

    model = adapted(tiny_model("llama"))
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="several adapters"):
        trained_scope(model)


def test_factors_that_are_trained() -> None:
    model = adapted(tiny_model("llama"))
    found = trained_scope(model)
    assert found.lora is not None
    assert (found.lora.factors, found.layers) == ("both", "all-linear")
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "q_proj" in name:
            parameter.requires_grad_(False)
    found = trained_scope(model)
    assert found.lora is not None
    assert found.lora.factors == "B"
    assert "k_proj" in found.layers and "q_proj" not in found.layers
