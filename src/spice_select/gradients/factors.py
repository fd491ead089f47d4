"""What every sketch shares: the factors of a layer's gradients, and the rows that they are added into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from spice_select.gradients.layers import Layer

_MATERIALISED = 1 << 21  # numbers of one group of small gradients on a CPU: about its cache
_MATERIALISED_DEVICE = 1 << 27


@dataclass(frozen=True, eq=False)
class Factors:
    """What one layer's gradients are made of: ``gradient[b] = outputs[b].T @ inputs[b]``.

    Attributes:
        layer: Position of the layer.
        examples: Example of each entry.
        inputs: Inputs of the linear map, tokens by columns.
        outputs: Gradients with respect to its outputs, tokens by rows.
        padded: The same as whole tensors, ``[b, t, columns]`` and ``[b, t, rows]``, where all examples are there and
            padding has zero output gradients.
    """

    layer: int
    examples: Sequence[int]
    inputs: Sequence[Float[Tensor, "t columns"]]
    outputs: Sequence[Float[Tensor, "t rows"]]
    padded: tuple[Tensor, Tensor] | None = None


def squared_norms(gradients: Float[Tensor, "g rows columns"]) -> Float[Tensor, " g"]:
    """Squared norms, row by row: one sum over millions of numbers is off by up to 1e-4 in float32."""
    return torch.linalg.vector_norm(torch.linalg.vector_norm(gradients, dim=2), dim=1).square()


class Sketch(ABC):
    """A linear map of gradients, filled layer by layer and batch by batch."""

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        self.layers = tuple(layers)
        self.device = device
        self._scratch: dict[str, Tensor] = {}
        self._norms = torch.zeros(0)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a row."""

    @abstractmethod
    def begin(self, examples: int) -> None:
        """Start a batch."""

    @abstractmethod
    def add(self, factors: Factors) -> None:
        """Take in one layer of the batch; a layer may come once for each example."""

    @abstractmethod
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        """Take in one layer's gradients of consecutive examples as they are; they may be changed in place."""

    @abstractmethod
    def finish(self) -> Float[Tensor, "b dim"]:
        """Rows of the batch, float32 on the host."""

    def squared_norms(self) -> Float64[Tensor, " b"]:
        """Exact squared norms of the batch's gradients, summed over the layers in float64."""
        return self._norms.cpu().double().sum(0)

    def apply(self, gradients: Mapping[str, Float[Tensor, "rows columns"]]) -> Float[Tensor, " dim"]:
        """Sketch one materialised gradient, given by layer name."""
        self.begin(1)
        for index, layer in enumerate(self.layers):
            if layer.name in gradients:
                gradient = gradients[layer.name].to(self.device, torch.float32)
                eye = torch.eye(layer.rows, device=self.device)
                self.add(Factors(index, [0], [gradient], [eye]))
        return self.finish()[0]

    def _buffer(self, key: str, *shape: int) -> Tensor:
        """Memory that is used again, since fresh pages cost more than the arithmetic that fills them."""
        size = int(np.prod(shape))
        flat = self._scratch.get(key)
        if flat is None or flat.numel() < size:
            flat = self._scratch[key] = torch.empty(size, device=self.device)
        return flat[:size].view(shape)


class Materialising(Sketch):
    """A sketch that sees each layer's gradient whole."""

    @override
    def begin(self, examples: int) -> None:
        self._norms = torch.zeros(len(self.layers), examples, device=self.device)

    @override
    def add(self, factors: Factors) -> None:
        for first, gradients in self._gradients(factors):
            self._put(factors.layer, factors.examples[first : first + len(gradients)], gradients)

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        signs = self._signs(layer)
        if signs is not None:
            gradients.mul_(signs[0][:, None]).mul_(signs[1])
        self._put(layer, examples, gradients)

    def _put(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        """Note the norms of gradients that have their signs, and add them."""
        self._norms[layer, examples[0] : examples[-1] + 1] = squared_norms(gradients)
        self._take(layer, examples, gradients.reshape(len(gradients), -1))

    @abstractmethod
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        """Add flattened gradients of consecutive examples."""

    def _signs(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Signs of rows and columns, applied before the gradient is formed."""
        return None

    def _gradients(self, factors: Factors) -> Iterator[tuple[int, Float[Tensor, "g rows columns"]]]:
        """Gradients of consecutive examples, as many at a time as fit near the cache."""
        layer = self.layers[factors.layer]
        signs = self._signs(factors.layer)
        limit = _MATERIALISED if self.device.type == "cpu" else _MATERIALISED_DEVICE
        together = max(1, limit // layer.size) if factors.padded is not None else 1
        if together > 1:
            assert factors.padded is not None
            inputs, outputs = factors.padded
            for first in range(0, len(inputs), together):
                part = slice(first, first + together)
                tokens = max(len(x) for x in factors.inputs[part])
                a, d = inputs[part, :tokens].float(), outputs[part, :tokens].float()
                if signs is not None:
                    d, a = d * signs[0], a * signs[1]
                out = self._buffer("gradients", len(a), layer.rows, layer.columns)
                yield first, torch.bmm(d.transpose(1, 2), a, out=out)
            return
        for number, (inputs, outputs) in enumerate(zip(factors.inputs, factors.outputs, strict=True)):
            if signs is None:
                a, d = inputs.float(), outputs.float()
            else:
                a = torch.mul(inputs, signs[1], out=self._buffer("inputs", *inputs.shape))
                d = torch.mul(outputs, signs[0], out=self._buffer("outputs", *outputs.shape))
            out = self._buffer("gradients", 1, layer.rows, layer.columns)
            torch.mm(d.t(), a, out=out[0])
            yield number, out
