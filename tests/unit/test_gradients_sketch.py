"""Sketches against their formulas, and random numbers that must never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spice_select.config import GradientConfig
from spice_select.gradients.factors import Factors
from spice_select.gradients.fold import FoldSketch, indices
from spice_select.gradients.layers import Layer, initial_factor
from spice_select.gradients.oracles import DenseSketch
from spice_select.gradients.random import Stream
from spice_select.gradients.sketch import reference_vector
from spice_select.gradients.tensor_sketch import FOLDED_BELOW, TensorSketch, places
from spice_select.gradients.two_sided import TwoSidedSketch

CPU = torch.device("cpu")
LAYERS = [Layer("a.first", 7, 11), Layer("b.second", 40, 33), Layer("c.third", 64, 5)]


def _gradients(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.rows, layer.columns, generator=generator) for layer in LAYERS}


@pytest.mark.parametrize("dim", [1, 5, 16, 64, 4096])
def test_fold_is_its_formula(dim: int) -> None:
    gradients = _gradients(0)
    expected = np.zeros(dim)
    for layer in LAYERS:
        places, signs = indices(layer, dim, seed=3)
        np.add.at(expected, places, signs * gradients[layer.name].numpy().ravel().astype(np.float64))
    found = FoldSketch(LAYERS, dim, 3, CPU).apply(gradients).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fold_places_are_spread_evenly() -> None:
    places, signs = indices(Layer("wide", 400, 300), 256, seed=0)
    counts = np.bincount(places, minlength=256)
    # The period of this layer is 16 * 253, so that one lane of 16 misses 48 of its 256 places.
    assert counts.min() >= 400 * 300 // 256 - 32 and counts.max() <= 400 * 300 // 256 + 17
    assert abs(signs.mean()) < 0.02


@pytest.mark.parametrize(
    ("rows", "columns", "dim"), [(512, 512, 512), (512, 1024, 512), (512, 256, 512), (300, 96, 512)]
)
def test_fold_is_as_exact_for_one_token_and_widths_that_share_factors_with_dim(
    rows: int, columns: int, dim: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer, ratios = Layer("wide", rows, columns), []
    for seed in range(40):
        gradient = torch.randn(rows, 1, generator=generator) @ torch.randn(1, columns, generator=generator)
        row = FoldSketch([layer], dim, seed, CPU).apply({layer.name: gradient})
        ratios.append(float(row.double().square().sum() / gradient.double().square().sum()))
    # sqrt(2 / dim) is 0.0625 for independent signs; those of whole rows cost at most as much again in variance.
    assert np.std(ratios) < 0.125 and abs(np.mean(ratios) - 1) < 0.05


def test_two_sided_is_its_formula() -> None:
    gradients = _gradients(0)
    found = TwoSidedSketch(LAYERS, 8, 10**6, 3, CPU).apply(gradients).numpy()
    parts = []
    for layer in LAYERS:
        table = gradients[layer.name].numpy().astype(np.float64)
        for side, count in (("rows", layer.rows), ("columns", layer.columns)):
            if count > 8:
                signs = Stream(3, layer.name, f"two-sided {side}").signs(count * 8).reshape(count, 8) / 8**0.5
                table = signs.T @ table if side == "rows" else table @ signs
        parts.append(table.ravel())
    np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-4)


def test_two_sided_tables_are_folded_to_dim() -> None:
    assert TwoSidedSketch(LAYERS, 8, 50, 3, CPU).dim == 50
    assert TwoSidedSketch(LAYERS, 8, 10**6, 3, CPU).dim == 7 * 8 + 8 * 8 + 8 * 5
    rows = TwoSidedSketch(LAYERS, 8, 50, 3, CPU).apply(_gradients(0))
    assert rows.shape == (50,) and float(rows.square().sum()) > 0


def _tensor_by_definition(layers: list[Layer], dim: int, seed: int, gradients: dict[str, torch.Tensor]) -> np.ndarray:
    expected = np.zeros(dim)
    for layer in layers:
        (p, u), (q, v) = (places(layer, "row", dim, seed), places(layer, "column", dim, seed))
        values = np.outer(u, v) * gradients[layer.name].numpy().astype(np.float64)
        np.add.at(expected, (p[:, None] + q) % dim, values)
    return expected


@pytest.mark.parametrize("dim", [1, 2, 5, 16, 63, 64, 4096])
def test_tensor_is_its_formula(dim: int) -> None:
    gradients = _gradients(0)
    expected = _tensor_by_definition(LAYERS, dim, 3, gradients)
    found = TensorSketch(LAYERS, dim, 3, CPU, folded_below=0).apply(gradients).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_tensor_of_many_tokens_is_its_formula(padded: bool, dtype: torch.dtype, tolerance: float) -> None:
    layer, dim = Layer("wide", 130, 70), 96
    generator = torch.Generator().manual_seed(0)
    # More tokens than go together, of very unequal size, and fewer.
    lengths = [75, 3]
    a = (torch.randn(2, 80, 70, generator=generator) * torch.logspace(-2, 2, 80)[:, None]).to(dtype)
    d = (torch.randn(2, 80, 130, generator=generator) * 1e-4).to(dtype)
    for example, length in enumerate(lengths):
        d[example, length:] = 0
    sketch = TensorSketch([layer], dim, 1, CPU, folded_below=0)
    # The way of a device that has room, here on the CPU.
    sketch._padded = padded
    for most in (32, 80, 4096):
        sketch._tokens = most
        sketch.begin(2)
        parts = [[x[e, :n] for e, n in enumerate(lengths)] for x in (a, d)]
        sketch.add(Factors(0, range(2), parts[0], parts[1], (a, d)))
        for row, inputs, outputs in zip(sketch.finish().numpy(), a.double(), d.double(), strict=True):
            expected = _tensor_by_definition([layer], dim, 1, {"wide": outputs.t() @ inputs})
            assert np.abs(row - expected).max() < tolerance * np.abs(expected).max()


def test_tensor_folds_narrow_layers_and_tells_them_by_their_shape() -> None:
    dim = 4
    narrow, wide = Layer("narrow", 40, 40), Layer("wide", 64, 64)
    assert narrow.size < FOLDED_BELOW * dim <= wide.size
    generator = torch.Generator().manual_seed(0)
    gradients = {x.name: torch.randn(x.rows, x.columns, generator=generator) for x in (narrow, wide)}
    sketch = TensorSketch([narrow, wide], dim, 2, CPU)
    found = sketch.apply(gradients)
    squares = sum(float(x.double().square().sum()) for x in gradients.values())
    assert float(sketch.squared_norms()[0]) == pytest.approx(squares, rel=1e-5)
    folded = FoldSketch([narrow], dim, 2, CPU).apply(gradients).numpy()
    expected = folded + _tensor_by_definition([wide], dim, 2, gradients)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [1, 2])
def test_squared_norms_of_large_layers_are_exact(together: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Layer("large", 1500, 1300)
    a, d = torch.randn(together, 40, 1300, generator=generator), torch.randn(together, 40, 1500, generator=generator)
    # Channels of very unequal size, as those of real models are.
    a *= torch.exp(2 * torch.randn(1300, generator=generator))
    exact = [float((y.double().t() @ x.double()).square().sum()) for x, y in zip(a, d, strict=True)]
    for sketch in (FoldSketch([layer], 64, 0, CPU), TwoSidedSketch([layer], 4, 64, 0, CPU)):
        sketch.begin(together)
        sketch.add(Factors(0, range(together), list(a), list(d), (a, d)))
        np.testing.assert_allclose(sketch.squared_norms().numpy(), exact, rtol=3e-6)
        sketch.begin(together)
        sketch.add_whole(0, range(together), d.transpose(1, 2) @ a)
        np.testing.assert_allclose(sketch.squared_norms().numpy(), exact, rtol=3e-6)


@pytest.mark.parametrize(("rows", "columns"), [(10, 16), (16, 40), (40, 16), (33, 50)])
def test_tensor_places_are_spread_evenly(rows: int, columns: int) -> None:
    layer = Layer("any", rows, columns)
    for side, count in (("row", rows), ("column", columns)):
        found, signs = places(layer, side, 16, 0)  # type: ignore[arg-type]
        assert len(found) == count and set(np.unique(signs)) <= {-1, 1}
        assert np.bincount(found, minlength=16).max() <= -(-count // 16)


def test_dense_is_its_formula() -> None:
    layer, dim = LAYERS[1], 24
    gradient = _gradients(0)[layer.name]
    found = DenseSketch([layer], dim, 3, CPU).apply({layer.name: gradient}).numpy()
    signs = Stream(3, layer.name, "dense").signs(layer.size * dim).reshape(layer.size, dim)
    np.testing.assert_allclose(found, gradient.numpy().ravel() @ signs / dim**0.5, atol=1e-4)


def test_random_numbers_are_frozen() -> None:
    assert Stream(0, "model.layers.0.mlp.up_proj", "fold row signs").raw(3).tolist() == FROZEN_RAW
    assert Stream(7, "x", "y").signs(16).tolist() == FROZEN_SIGNS
    assert Stream(7, "x", "y").integers(4, 1000).tolist() == FROZEN_INTEGERS
    np.testing.assert_allclose(initial_factor(0, "q_proj", 1, 3).numpy().ravel(), FROZEN_FACTOR, rtol=1e-6)


@pytest.mark.parametrize("kind", ["fold", "two-sided", "tensor", "dense", "none"])
def test_reference_vectors_are_frozen(kind: str) -> None:
    config = GradientConfig(sketch=kind, seed=5)  # type: ignore[arg-type]
    np.testing.assert_allclose(reference_vector(config), FROZEN_VECTORS[kind], rtol=1e-5)


def test_streams_are_counter_based() -> None:
    stream = Stream(1, "name", "purpose")
    np.testing.assert_array_equal(stream.raw(40)[12:], stream.raw(28, start=12))
    np.testing.assert_array_equal(stream.signs(2000)[512:], stream.signs(1488, start=512))
    assert (stream.raw(4) != Stream(2, "name", "purpose").raw(4)).all()
    assert (stream.raw(4) != Stream(1, "other", "purpose").raw(4)).all()
    assert (stream.raw(4) != Stream(1, "name", "else").raw(4)).all()


def test_uniform_stays_in_range() -> None:
    values = Stream(0, "u", "u").uniform(10_000)
    assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.02


def test_the_global_random_state_is_left_alone() -> None:
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    FoldSketch(LAYERS, 16, 0, CPU).apply(_gradients(0))
    TwoSidedSketch(LAYERS, 4, 16, 0, CPU)
    TensorSketch(LAYERS, 16, 0, CPU, folded_below=0).apply(_gradients(0))
    assert torch.equal(before_torch, torch.get_rng_state())
    np.testing.assert_array_equal(before_numpy, np.random.get_state()[1])  # type: ignore[arg-type]


FROZEN_RAW = [12706834230258594384, 4372925903936611276, 15961717997116720996]
FROZEN_SIGNS = [-1, -1, 1, 1, -1, 1, -1, 1, 1, -1, 1, 1, -1, 1, 1, -1]
FROZEN_INTEGERS = [947, 29, 880, 955]
FROZEN_FACTOR = [-0.51721019, -0.35904822, -0.31482568]
FROZEN_VECTORS = {
    "fold": [-1809.0, -1478.0, 671.0, -443.0, -474.0, -372.0, -919.0, 1310.0],
    "two-sided": [3260.25, 2226.375, -3019.0, -1853.5, -618.375, 558.625, -1400.875, 2366.5],
    "tensor": [1094.0, 760.0, -319.0, -2195.0, -2595.0, -1203.0, -2119.0, -953.0],
    "dense": [1070.56, -1975.656, 1216.931, 673.8727, 556.493, -1801.708, -1289.056, -654.0738],
    "none": [-125.0, -124.0, -123.0, -122.0, -121.0, -120.0, -119.0, -118.0],
}
