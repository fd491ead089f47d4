"""What every sketch must be: linear, unbiased in inner products, and indifferent to order and company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.config import GradientConfig
from spice_select.gradients.factors import Factors, Sketch
from spice_select.gradients.layers import Layer
from spice_select.gradients.sketch import build_sketch
from spice_select.gradients.tensor_sketch import TensorSketch

CPU = torch.device("cpu")
KINDS = ["fold", "two-sided", "tensor", "dense"]
shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)


def _layers(sides: list[tuple[int, int]]) -> list[Layer]:
    return [Layer(f"layer.{number}", *pair) for number, pair in enumerate(sides)]


def _build(kind: str, layers: list[Layer], dim: int, seed: int) -> Sketch:
    if kind == "tensor":
        # Layers as small as these would be folded.
        return TensorSketch(layers, dim, seed, CPU, folded_below=0)
    return build_sketch(GradientConfig(sketch=kind, dim=dim, rank=3, seed=seed), layers, CPU)  # type: ignore[arg-type]


def _gradients(layers: list[Layer], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.rows, layer.columns, generator=generator) for layer in layers}


@pytest.mark.parametrize("kind", KINDS)
@given(sides=shapes, dim=st.integers(1, 40), seed=st.integers(0, 1000), scale=st.floats(-3, 3))
@settings(max_examples=40)
def test_linear(kind: str, sides: list[tuple[int, int]], dim: int, seed: int, scale: float) -> None:
    layers = _layers(sides)
    sketch = _build(kind, layers, dim, seed)
    x, y = _gradients(layers, 1), _gradients(layers, 2)
    mixed = sketch.apply({name: x[name] + scale * y[name] for name in x})
    torch.testing.assert_close(mixed, sketch.apply(x) + scale * sketch.apply(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@given(sides=shapes, tokens=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_factors_and_whole_gradients_agree(
    kind: str, sides: list[tuple[int, int]], tokens: list[int], seed: int
) -> None:
    layers = _layers(sides)
    sketch = _build(kind, layers, 16, seed)
    generator = torch.Generator().manual_seed(seed)
    longest, count = max(tokens), len(tokens)
    inputs = [torch.randn(count, longest, x.columns, generator=generator) for x in layers]
    outputs = [torch.randn(count, longest, x.rows, generator=generator) for x in layers]
    for table in outputs:
        for number, length in enumerate(tokens):
            table[number, length:] = 0
    rows = {}
    for padded in (True, False):
        sketch.begin(count)
        for index in reversed(range(len(layers))):
            a = [inputs[index][number, :length] for number, length in enumerate(tokens)]
            d = [outputs[index][number, :length] for number, length in enumerate(tokens)]
            sketch.add(Factors(index, range(count), a, d, (inputs[index], outputs[index]) if padded else None))
        rows[padded] = sketch.finish().clone(), sketch.squared_norms()
    torch.testing.assert_close(rows[True][0], rows[False][0], rtol=1e-4, atol=1e-4)
    for number in range(count):
        whole = {layer.name: outputs[index][number].t() @ inputs[index][number] for index, layer in enumerate(layers)}
        torch.testing.assert_close(rows[True][0][number], sketch.apply(whole), rtol=1e-4, atol=1e-3)
        exact = sum(float(value.double().square().sum()) for value in whole.values())
        for _, norms in rows.values():
            assert float(norms[number]) == pytest.approx(exact, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("kind", "slack"), [("fold", 1.25), ("two-sided", 6.0), ("tensor", 1.25), ("dense", 1.25)])
def test_unbiased_with_the_variance_it_should_have(kind: str, slack: float) -> None:
    layers = _layers([(9, 14), (5, 20)])
    dim, seeds = 16, 600
    # Gradients of low rank, whose rows are alike: the hard case for signs that are products.
    generator = torch.Generator().manual_seed(0)
    x, y = (
        {
            layer.name: torch.randn(layer.rows, 1, generator=generator)
            @ torch.randn(1, layer.columns, generator=generator)
            for layer in layers
        }
        for _ in range(2)
    )
    inner = sum(float((x[name] * y[name]).sum()) for name in x)
    squares = [sum(float(value.square().sum()) for value in side.values()) for side in (x, y)]
    products, norms = [], []
    for seed in range(seeds):
        sketch = _build(kind, layers, dim, seed)
        a, b = sketch.apply(x).double(), sketch.apply(y).double()
        products.append(float(a @ b))
        norms.append(float(a @ a))
    spread = (slack * (squares[0] * squares[1] + inner**2) / dim) ** 0.5
    assert np.mean(products) == pytest.approx(inner, abs=4 * np.std(products) / seeds**0.5)
    assert np.mean(norms) == pytest.approx(squares[0], abs=4 * np.std(norms) / seeds**0.5)
    assert np.std(products) <= 1.5 * spread
