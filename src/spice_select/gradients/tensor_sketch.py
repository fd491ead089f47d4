"""A CountSketch of each wide layer's gradient, taken from its factors without forming it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from typing_extensions import override

from spice_select.gradients.factors import Factors, Sketch, squared_norms
from spice_select.gradients.fold import FoldSketch
from spice_select.gradients.layers import Layer
from spice_select.gradients.random import Stream
from spice_select.gradients.token_norms import TokenNorms

FOLDED_BELOW = 512
"""A layer of fewer weights than this times ``dim`` is folded: forming its gradient costs less than the transforms."""

# Tokens transformed together: what a CPU's cache holds of them, and what a device has room for.
_TOKENS = 32
_TOKENS_DEVICE = 4096

Side = Literal["row", "column"]


@final
class TensorSketch(Sketch):
    """Value ``(o, i)`` of a wide layer gets the sign ``u[o] * v[i]`` and is added to ``(p[o] + q[i]) mod dim``.

    A CountSketch of an outer product is the circular convolution of the CountSketches of its factors (Pham and Pagh,
    KDD 2013), so that the products of their Fourier transforms are summed over the tokens, and over the layers, and
    transformed back once an example. That takes O(T (I + O + D log D)) for a layer instead of O(T I O). Narrow layers
    are folded, as by :class:`~spice_select.gradients.fold.FoldSketch`, and added to the same row; which they are
    follows from their shape alone. Exact squared norms come as in
    :class:`~spice_select.gradients.two_sided.TwoSidedSketch`.

    A side no longer than ``dim`` has places of its own, and no two of its values meet; a longer one has as many in
    each place as in any other. Values that meet within a side are what makes the variance of a tensor sketch up to
    ``(2 + 3^2) / D``; without them it is that of a fold, about ``(|x|^2 |y|^2 + <x, y>^2) / D``.

    Args:
        layers: The layers of the gradient.
        dim: Numbers of a row.
        seed: Seed of the counter-based random numbers.
        device: Where the factors are.
        norms: Whether exact squared norms are wanted.
        folded_below: Layers of fewer weights than this times ``dim`` are folded.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        dim: int,
        seed: int,
        device: torch.device,
        norms: bool = True,
        folded_below: int = FOLDED_BELOW,
    ) -> None:
        super().__init__(layers, device)
        self._dim = dim
        self._fold = FoldSketch(layers, dim, seed, device)
        self._exact = TokenNorms(device) if norms else None
        self._sides = [
            None
            if x.size < folded_below * dim
            else (_Places.of(x, "row", dim, seed, device), _Places.of(x, "column", dim, seed, device))
            for x in layers
        ]
        # On a CPU each example goes by itself, and its sum doesn't depend on the others of its batch.
        self._padded = device.type != "cpu"
        self._tokens = _TOKENS_DEVICE if self._padded else _TOKENS
        self._sums = torch.zeros(0)

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @override
    def begin(self, examples: int) -> None:
        self._fold.begin(examples)
        self._norms = torch.zeros(len(self.layers), examples, device=self.device)
        self._sums = torch.zeros(examples, self._dim // 2 + 1, dtype=torch.complex64, device=self.device)

    @override
    def add(self, factors: Factors) -> None:
        sides = self._sides[factors.layer]
        if sides is None:
            self._fold.add(factors)
            return
        padded = factors.padded if self._padded else None
        if padded is not None and padded[0].shape[1] <= self._tokens:
            self._add_padded(sides, factors.examples, *padded)
        else:
            for example, inputs, outputs in zip(factors.examples, factors.inputs, factors.outputs, strict=True):
                for a, d in zip(inputs.split(self._tokens), outputs.split(self._tokens), strict=True):
                    self._sums[example] += self._products(sides, a, d).sum(0)
        for example, inputs, outputs in zip(factors.examples, factors.inputs, factors.outputs, strict=True):
            if self._exact is not None:
                self._norms[factors.layer, example] = self._exact.squared(inputs.float(), outputs.float())

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        sides = self._sides[layer]
        if sides is None:
            self._fold.add_whole(layer, examples, gradients)
            return
        for example, gradient in zip(examples, gradients, strict=True):
            for first, a in _parts(gradient, self._tokens):
                # Each row of the gradient is a token whose output gradient is 1 in one place.
                d = torch.zeros(len(a), len(gradient), device=self.device)
                d.diagonal(first).fill_(1)
                self._sums[example] += self._products(sides, a, d).sum(0)
            if self._exact is not None:
                self._norms[layer, example] = squared_norms(gradient[None])[0]

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        if self._exact is not None:
            self._exact.clear()
        return torch.fft.irfft(self._sums, n=self._dim).cpu() + self._fold.finish()

    @override
    def squared_norms(self) -> Float64[Tensor, " b"]:
        return super().squared_norms() + self._fold.squared_norms()

    def _add_padded(self, sides: tuple[_Places, _Places], examples: Sequence[int], a: Tensor, d: Tensor) -> None:
        """Whole examples at a time; padding has no output gradient and adds nothing."""
        tokens = a.shape[1]
        for first, part in _parts(a, max(1, self._tokens // tokens)):
            outputs = d[first : first + len(part)]
            products = self._products(sides, part.flatten(0, 1), outputs.flatten(0, 1))
            rows = self._sums[examples[first] : examples[first] + len(part)]
            rows += products.view(len(part), tokens, -1).sum(1)

    def _products(
        self, sides: tuple[_Places, _Places], inputs: Float[Tensor, "t columns"], outputs: Float[Tensor, "t rows"]
    ) -> Tensor:
        """Fourier transform of each token's sketch, in memory that the next call uses again."""
        products = self._transform("row", sides[0], outputs)
        products *= self._transform("column", sides[1], inputs)
        return products

    def _transform(self, side: Side, places: _Places, values: Float[Tensor, "t count"]) -> Tensor:
        tokens, slots = len(values), len(places.signs)
        if places.order is None:
            placed = torch.mul(values, places.signs, out=self._buffer(f"{side} signed", tokens, slots))
        else:
            placed = self._buffer(f"{side} placed", tokens, slots)
            torch.index_select(values.float(), 1, places.order, out=placed)
            placed *= places.signs
            if slots > self._dim:
                summed = self._buffer(f"{side} summed", tokens, self._dim)
                placed = torch.sum(placed.view(tokens, -1, self._dim), 1, out=summed)
        pairs = self._buffer(f"{side} transformed", tokens, self._dim // 2 + 1, 2)
        return torch.fft.rfft(placed, n=self._dim, out=torch.view_as_complex(pairs))


@dataclass(frozen=True, eq=False)
class _Places:
    """Where one side's values go.

    Attributes:
        signs: Of the values; with an order, of its entries, and 0 for an empty place.
        order: The value at each place, as often over as one place has values; none: value ``i`` is at place ``i``.
    """

    signs: Float[Tensor, " n"]
    order: Int[Tensor, " n"] | None

    @classmethod
    def of(cls, layer: Layer, side: Side, dim: int, seed: int, device: torch.device) -> _Places:
        signs = Stream(seed, layer.name, f"tensor {side} signs").signs(_length(layer, side)).astype(np.float32)
        slots = _slots(layer, side, dim, seed)
        if slots is None:
            return cls(torch.from_numpy(signs).to(device), None)
        count = -(-len(slots) // dim) * dim
        order, held = np.zeros(count, np.int64), np.zeros(count, np.float32)
        order[slots], held[slots] = np.arange(len(slots)), signs
        return cls(torch.from_numpy(held).to(device), torch.from_numpy(order).to(device))


def places(
    layer: Layer, side: Side, dim: int, seed: int
) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
    """Places and signs of one side's values, by the formula of :class:`TensorSketch`."""
    count = _length(layer, side)
    slots = _slots(layer, side, dim, seed)
    signs = Stream(seed, layer.name, f"tensor {side} signs").signs(count).astype(np.int64)
    return (np.arange(count) if slots is None else slots % dim), signs


def _slots(layer: Layer, side: Side, dim: int, seed: int) -> Int[np.ndarray, " count"] | None:
    """A slot of its own for each value, of as many as fill the places evenly; none: in order.

    Where rows keep their order and columns are spread at random, two values of the gradient meet as seldom as if both
    were spread.
    """
    count = _length(layer, side)
    if side == "row" and count <= dim:
        return None
    numbers = Stream(seed, layer.name, f"tensor {side} places").raw(-(-count // dim) * dim)
    return np.argsort(numbers, kind="stable")[:count]


def _length(layer: Layer, side: Side) -> int:
    return layer.rows if side == "row" else layer.columns


def _parts(values: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(values), size):
        yield first, values[first : first + size]
