"""Linear maps that shorten a gradient and keep its inner products, in the mean exactly.

Every sketch is linear in the gradient, draws its random numbers by layer name from counter-based streams, and never
rescales a coordinate, so that ``E <S x, S y> = <x, y>`` and the Fisher scale keeps its meaning.

``fold`` is a CountSketch (Charikar et al. 2002) of the whole gradient: each layer's gradient of each example is
materialised, its values get random signs, and chunks of D values are rolled and added into one row of D numbers. The
variance of an inner product is about ``(|x|^2 |y|^2 + <x, y>^2) / D``.

``two-sided`` multiplies each layer's gradient by a random sign matrix from the left and the right, which the inputs
and output gradients take before they meet, so that no gradient is materialised; cheaper, and coarser.

``tensor`` is a CountSketch as well, with places and signs that are sums and products of those of rows and columns, so
that fast Fourier transforms of the tokens take the place of the gradient: as exact as a fold, and cheaper for wide
layers; narrow ones are folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spice_select.config import GradientConfig
from spice_select.gradients.factors import Sketch
from spice_select.gradients.fold import FoldSketch
from spice_select.gradients.layers import Layer
from spice_select.gradients.oracles import DenseSketch, RawSketch
from spice_select.gradients.tensor_sketch import FOLDED_BELOW, TensorSketch
from spice_select.gradients.two_sided import TwoSidedSketch


def build_sketch(config: GradientConfig, layers: Sequence[Layer], device: torch.device) -> Sketch:
    """The sketch that ``gradients.sketch`` names."""
    if config.sketch == "fold":
        return FoldSketch(layers, config.dim, config.seed, device)
    if config.sketch == "two-sided":
        return TwoSidedSketch(layers, config.rank, config.dim, config.seed, device)
    if config.sketch == "tensor":
        return TensorSketch(layers, config.dim, config.seed, device)
    if config.sketch == "dense":
        return DenseSketch(layers, config.dim, config.seed, device)
    return RawSketch(layers, device)


def reference_vector(config: GradientConfig) -> list[float]:
    """The first numbers of the sketch of a fixed small gradient: equal only where the random numbers are.

    The gradient holds small integers, so that the vector is exact in every order of summation.
    """
    layer = Layer("test.vector", 48, 80)
    device = torch.device("cpu")
    if config.sketch == "tensor":
        # A layer as small as this would be folded.
        sketch = TensorSketch([layer], 8, config.seed, device, folded_below=0)
    else:
        sketch = build_sketch(config.model_copy(update={"dim": 8, "rank": 16}), [layer], device)
    gradient = (torch.arange(layer.size) % 251 - 125).float().view(layer.rows, layer.columns)
    vector = sketch.apply({layer.name: gradient})[:8]
    # A Fourier transform of whole numbers leaves them to within rounding.
    return [float(value) for value in (vector.round() if config.sketch == "tensor" else vector)]


def summary(config: GradientConfig, sketch: Sketch) -> dict[str, Any]:
    """What identifies a sketch, in what JSON can hold."""
    spec: dict[str, Any] = {"kind": config.sketch, "dim": sketch.dim, "seed": config.seed, "version": 2}
    if config.sketch == "two-sided":
        spec["rank"] = config.rank
    if config.sketch == "tensor":
        spec["folded_below"] = FOLDED_BELOW
    return {**spec, "test_vector": reference_vector(config)}
