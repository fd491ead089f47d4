"""Adam's step instead of the gradient: the worked answer, and against autograd on whole gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spice_select.config import GradientConfig, resolve
from spice_select.errors import ConfigError, ModelError
from spice_select.gradients import GradientEngine, Proxy
from spice_select.gradients.layers import Layer
from spice_select.gradients.oracles import RawSketch
from spice_select.gradients.precondition import (
    Moments,
    Preconditioned,
    adam_direction,
    check_precondition,
    layer_moments,
    moments_digest,
)
from spice_select.gradients.sketch import build_sketch
from spice_select.reporter import Silent
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.session import warm_engine, warmed
from tests.proxies import autograd_gradients, examples, own_loss, tiny_model
from tests.schedules import SEED, trained
from tests.schedules import engine as learning_engine
from tests.stores import examples as encoded_examples

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def _moments(layers: tuple[Layer, ...], seed: int = 0, size: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
    """Moments of the size that gradients have, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        first = size * torch.randn(layer.rows, layer.columns, generator=generator)
        second = 1e-2 * size**2 * torch.rand(layer.rows, layer.columns, generator=generator)
        found[layer.name] = first * (second > 1e-3 * size**2), second * (second > 1e-3 * size**2)
    return found


def _of_adapters(proxy: Proxy, ids: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    """One example's gradients of the factors themselves, which are found under PEFT's names."""
    weights = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): weight
        for name, weight in proxy.model.named_parameters()
        if ".lora_" in name
    }
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(own_loss(proxy.model, ids, mask), list(weights.values()))
    finally:
        proxy.model.requires_grad_(False)
    return dict(zip(weights, gradients, strict=True))


def _steps(proxy: Proxy, moments: Moments, ids: list[np.ndarray], masks: list[np.ndarray]) -> list[dict[str, Tensor]]:
    """Brute force: whole gradients by autograd, one example at a time, in float64."""
    found = []
    for row, mask in zip(ids, masks, strict=True):
        adapted = hasattr(proxy.model, "peft_config")
        gradients = _of_adapters(proxy, row, mask) if adapted else autograd_gradients(proxy, row, mask)
        found.append(
            {
                name: adam_direction(gradient.double(), *(each.double() for each in moments[name]))
                for name, gradient in gradients.items()
            }
        )
    return found


def test_the_worked_answer() -> None:
    gradient, first, second = (torch.tensor(x) for x in ([0.5, 0.1, -0.3], [0.1, -0.2, 0.0], [0.01, 0.04, 1e-4]))
    expected = torch.tensor([1.383496, -0.850319, -2.176944])
    torch.testing.assert_close(adam_direction(gradient, first, second), expected, rtol=0, atol=1e-6)


def test_epsilon_is_inside_the_root_and_early_values_are_not_corrected() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(adam_direction(zero + 1e-3, zero, zero)) == pytest.approx(1e-4 / (1e-9 + 1e-8) ** 0.5)
    assert float(adam_direction(zero + 3, zero + 1, zero, beta1=0.0, beta2=0.0, eps=7.0)) == pytest.approx(3 / 4)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "mixtral", "gpt-oss"])
def test_rows_of_full_layers_are_the_sketched_steps(family: str) -> None:
    config = GradientConfig(sketch="dense", dim=64)
    proxy = Proxy.from_model(tiny_model(family), None, config)
    moments = _moments(proxy.layers)
    engine = GradientEngine(proxy, config, precondition=moments)
    ids, masks = examples(4)
    found = engine.batch(ids, masks)
    plain = engine.new_sketch()
    for number, steps in enumerate(_steps(proxy, moments, ids, masks)):
        assert steps.keys() == {layer.name for layer in proxy.layers}
        size = sum(float(step.square().sum()) for step in steps.values())
        assert found.squared_norms[number] == pytest.approx(size, rel=1e-5)
        expected = plain.apply(steps).numpy()
        assert np.linalg.norm(found.rows[number] - expected) < 1e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(found.losses, engine.losses(ids, masks), rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_both_trained_factors_are_the_sketched_steps(family: str) -> None:
    proxy = trained(family)
    moments = _moments(proxy.layers)
    config = learning_engine(proxy, sketch="dense", dim=48).config
    engine = GradientEngine(proxy, config, precondition=moments)
    ids, masks = examples(4)
    found = engine.batch(ids, masks)
    steps = _steps(proxy, moments, ids, masks)
    assert {name.rpartition(".")[2] for name in steps[0]} == {"lora_A", "lora_B"}
    for number, each in enumerate(steps):
        expected = engine.new_sketch().apply(each).numpy()
        assert np.linalg.norm(found.rows[number] - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("sketch", ["fold", "two-sided", "dense", "none"])
def test_every_sketch_takes_whole_gradients_as_it_takes_factors(sketch: Any) -> None:
    layers = (Layer("wide", 6, 40), Layer("tall", 50, 5), Layer("big", 30, 33))
    device = torch.device("cpu")
    config = GradientConfig(sketch=sketch, dim=32, rank=8)
    generator = torch.Generator().manual_seed(1)
    whole = {layer.name: torch.randn(3, layer.rows, layer.columns, generator=generator) for layer in layers}
    direct = build_sketch(config, layers, device)
    direct.begin(3)
    for index, layer in enumerate(layers):
        direct.add_whole(index, [0], whole[layer.name][:1].clone())
        direct.add_whole(index, [1, 2], whole[layer.name][1:].clone())
    rows, norms = direct.finish().clone(), direct.squared_norms().clone()
    for example in range(3):
        one = {name: table[example] for name, table in whole.items()}
        torch.testing.assert_close(rows[example], build_sketch(config, layers, device).apply(one), rtol=1e-5, atol=1e-5)
        size = sum(float(table.square().sum()) for table in one.values())
        assert float(norms[example]) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("sketch", ["fold", "two-sided"])
def test_the_same_steps_whatever_the_sketch(sketch: Any) -> None:
    proxy = trained()
    moments = _moments(proxy.layers)
    ids, masks = examples(4)
    config = learning_engine(proxy, sketch=sketch, dim=512, rank=4).config
    found = GradientEngine(proxy, config, precondition=moments).batch(ids, masks)
    raw = GradientEngine(proxy, config.model_copy(update={"sketch": "none"}), precondition=moments).batch(ids, masks)
    np.testing.assert_allclose(found.squared_norms, (raw.rows.astype(float) ** 2).sum(1), rtol=1e-5)
    cosine = found.rows @ found.rows.T, raw.rows @ raw.rows.T
    scale = np.sqrt(np.outer(np.diag(cosine[1]), np.diag(cosine[1])))
    assert np.abs(cosine[0] - cosine[1]).max() < 0.4 * scale.max()


def test_whole_gradients_and_inner_products_are_of_the_steps_too() -> None:
    proxy = trained()
    moments = _moments(proxy.layers)
    engine = GradientEngine(proxy, learning_engine(proxy).config, precondition=moments)
    ids, masks = examples(5)
    steps = _steps(proxy, moments, ids, masks)
    whole = engine.materialise(ids, masks, layers=[1, 4])
    assert list(whole) == [proxy.layers[1].name, proxy.layers[4].name]
    for name, table in whole.items():
        expected = torch.stack([each[name] for each in steps]).float()
        torch.testing.assert_close(table, expected, rtol=1e-4, atol=1e-5)
    flat = torch.stack([torch.cat([step.flatten() for step in each.values()]) for each in steps])
    # So little memory that the layers go in several passes.
    gram = engine.gram(ids, masks, memory=20_000)
    np.testing.assert_allclose(gram, (flat @ flat.t()).numpy(), rtol=1e-5, atol=1e-5)


def test_the_scale_of_half_precision_is_out_before_the_step() -> None:
    config = GradientConfig(sketch="none")
    exact, half = (Proxy.from_model(model, None, config) for model in (tiny_model("llama"), tiny_model("llama").half()))
    moments = _moments(exact.layers)
    ids, masks = examples(3)
    expected = GradientEngine(exact, config, precondition=moments).batch(ids, masks)
    engine = GradientEngine(half, config, precondition=moments)
    assert engine.scale == 1024.0
    found = engine.batch(ids, masks)
    np.testing.assert_allclose(found.squared_norms, expected.squared_norms, rtol=0.02)
    assert np.linalg.norm(found.rows - expected.rows) < 0.03 * np.linalg.norm(expected.rows)


def test_examples_in_one_batch_do_not_touch_each_other() -> None:
    proxy = trained()
    engine = GradientEngine(proxy, learning_engine(proxy).config, precondition=_moments(proxy.layers))
    ids, masks = examples(5)
    together = engine.batch(ids, masks).rows
    alone = np.concatenate([engine.batch([row], [mask]).rows for row, mask in zip(ids, masks, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-5 * np.abs(alone).max())
    assert engine.batch(ids, masks).rows.tobytes() == together.tobytes()


def test_a_layer_that_no_gradient_reached_steps_by_its_moments() -> None:
    layers = (Layer("seen", 2, 3), Layer("unseen", 2, 2))
    moments = _moments(layers)
    sketch = Preconditioned(RawSketch(layers, torch.device("cpu")), moments)
    gradient = torch.arange(6.0).view(2, 3)
    row = sketch.apply({"seen": gradient})
    expected = [adam_direction(gradient, *moments["seen"]), adam_direction(torch.zeros(2, 2), *moments["unseen"])]
    torch.testing.assert_close(row, torch.cat([each.flatten() for each in expected]))
    assert float(sketch.squared_norms()[0]) == pytest.approx(float(row.square().sum()), rel=1e-6)


def test_the_moments_are_named_in_what_identifies_a_row() -> None:
    proxy = trained()
    config = learning_engine(proxy).config
    moments, others = _moments(proxy.layers), _moments(proxy.layers, seed=1)
    plain, adam, other = (GradientEngine(proxy, config, precondition=x).spec() for x in (None, moments, others))
    assert "precondition" not in plain
    assert {**plain, "precondition": adam["precondition"]} == adam
    assert adam["precondition"]["moments"] == moments_digest(moments) != other["precondition"]["moments"]


def test_a_layer_without_moments_is_refused() -> None:
    proxy = trained()
    moments = _moments(proxy.layers)
    name = proxy.layers[3].name
    del moments[name]
    with pytest.raises(ModelError, match=f"{name} has no Adam moments"):
        GradientEngine(proxy, learning_engine(proxy).config, precondition=moments)


def _warm(family: str, folder: Path, **sections: Any) -> tuple[Any, Proxy, Any]:
    """A run's configuration, and its proxy after a warm-up with adam's moments."""
    given = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.0}, "warmup_steps": 4, "learning_rate": 1e-2, "batch_size": 3}
    config = resolve(
        {
            "gradients": {
                "precondition": "adam",
                "sketch": "none",
                "batch_tokens": 64,
                **sections.pop("gradients", {}),
            },
            "schedule": {**given, **sections.pop("schedule", {})},
            "seed": SEED,
        }
    )
    check_precondition(config)
    encoded = encoded_examples(12, vocabulary=90)
    base = Proxy.from_model(tiny_model(family), None, config.gradients)
    # Hashed from the weights; a tokenizer is not asked for.
    proxy, warm = warmed(config, base, encoded, encoded.usable, folder / "schedule", Ranks(), Silent())
    return config, proxy, warm


@pytest.mark.parametrize(
    ("family", "scope"), [("llama", "lora"), ("llama", "full"), ("gpt2", "full"), ("mixtral", "full")]
)
def test_a_run_takes_the_steps_by_its_warm_ups_moments(family: str, scope: str, tmp_path: Path) -> None:
    config, proxy, warm = _warm(family, tmp_path, schedule={"scope": scope})
    engine = warm_engine(config, proxy, warm)
    moments = layer_moments(proxy.scope, warm.moments)
    assert moments.keys() == {layer.name for layer in proxy.layers}
    assert all(name.endswith(("lora_A", "lora_B")) == (scope == "lora") for name in moments)
    assert all(bool(first.any()) and bool((second >= 0).all()) for first, second in moments.values())
    ids, masks = examples(3)
    found = engine.batch(ids, masks).rows
    for number, steps in enumerate(_steps(proxy, moments, ids, masks)):
        expected = torch.cat([step.flatten() for step in steps.values()]).numpy()
        assert np.linalg.norm(found[number] - expected) < 2e-4 * np.linalg.norm(expected)


def test_moments_of_transposed_weights_are_turned(tmp_path: Path) -> None:
    """GPT-2 has square weights that lie transposed: there is no telling from the shape."""
    _, proxy, warm = _warm("gpt2", tmp_path, schedule={"scope": "full"})
    name = next(layer.name for layer in proxy.layers if layer.rows == layer.columns)
    first, _ = layer_moments(proxy.scope, warm.moments)[name]
    assert torch.equal(first, warm.moments[f"{name}.exp_avg"].t()) and not torch.equal(first, first.t())


def test_a_warm_up_that_is_taken_up_has_the_same_moments(tmp_path: Path) -> None:
    config, proxy, warm = _warm("llama", tmp_path)
    _, again, other = _warm("llama", tmp_path)
    assert warm.digest == other.digest and warm.training == other.training
    assert warm_engine(config, proxy, warm).spec() == warm_engine(config, again, other).spec()


def test_without_adam_a_warm_proxy_is_merged_and_measured_as_ever(tmp_path: Path) -> None:
    config, proxy, warm = _warm("llama", tmp_path, gradients={"precondition": "none"})
    assert not warm.moments
    spec = warm_engine(config, proxy, warm).spec()
    assert "precondition" not in spec and spec["lora"] is None
    assert len(proxy.layers) == len(Proxy.from_model(tiny_model("llama"), None, GradientConfig()).layers)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "without a warm-up"),
        ({"schedule": {"kind": "pools", "warmup_steps": 3}}, "with schedule.kind pools"),
        ({"schedule": {"scope": "full", "warmup_steps": 3}, "gradients": {"lora": {}}}, "trains no adapters"),
        ({"schedule": {"warmup_share": 0.1}, "gradients": {"lora": {"factors": "B"}}}, "cannot name other adapters"),
        ({"schedule": {"warmup_share": 0.1}, "gradients": {"lora": {"factors": "both", "r": 3}}}, "other adapters"),
    ],
)
def test_settings_without_moments_are_refused(settings: dict[str, Any], sentence: str) -> None:
    given = {**settings, "gradients": {"precondition": "adam", **settings.get("gradients", {})}}
    with pytest.raises(ConfigError, match=sentence) as found:
        check_precondition(resolve(given))
    assert str(found.value).count(". ") == 0 and str(found.value).endswith(".")


def test_settings_with_moments_are_taken() -> None:
    for share, lora in ((0.05, None), (None, {"factors": "both", "r": 16, "alpha": 32.0})):
        warm = {"warmup_share": share} if share else {"warmup_steps": 10}
        check_precondition(resolve({"gradients": {"precondition": "adam", "lora": lora}, "schedule": warm}))
    check_precondition(resolve({}))
