"""Whole gradients, and a dense sketch of them: for small models, tests and exact Gram matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spice_select.errors import ConfigError
from spice_select.gradients.factors import Factors, Materialising
from spice_select.gradients.layers import Layer
from spice_select.gradients.random import Stream

_MOST_RAW = 1 << 26


@final
class DenseSketch(Materialising):
    """A dense matrix of signs over the root of ``dim``: the oracle for small models."""

    def __init__(self, layers: Sequence[Layer], dim: int, seed: int, device: torch.device) -> None:
        super().__init__(layers, device)
        size = sum(x.size for x in layers)
        if size * dim > 1 << 34:
            raise ConfigError(
                f"Setting 'gradients.sketch' cannot be 'dense' for {size:,} weights and gradients.dim {dim}: it is the "
                "oracle for small models; use 'fold'."
            )
        self._dim = dim
        self._seed = seed
        self._rows = torch.zeros(0)

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @override
    def begin(self, examples: int) -> None:
        super().begin(examples)
        self._rows = torch.zeros(examples, self._dim, device=self.device)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        return self._rows.cpu()

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        rows = self._rows[examples[0] : examples[-1] + 1]
        stream = Stream(self._seed, self.layers[layer].name, "dense")
        step = max(256, (1 << 24) // self._dim // 256 * 256)
        for first in range(0, flat.shape[1], step):
            part = flat[:, first : first + step]
            signs = stream.signs(part.shape[1] * self._dim, first * self._dim)
            matrix = torch.from_numpy(signs).to(self.device, torch.float32).view(-1, self._dim)
            rows += part @ matrix * self._dim**-0.5


@final
class RawSketch(Materialising):
    """No sketch: the layers' gradients one after the other, for small models."""

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        super().__init__(layers, device)
        self._starts = np.concatenate([[0], np.cumsum([x.size for x in layers])])
        if self.dim > _MOST_RAW:
            raise ConfigError(
                f"Setting 'gradients.sketch' cannot be 'none' with {self.dim:,} numbers a row; use 'fold', or the "
                "Gram matrix of a pool."
            )
        self._rows = torch.zeros(0)

    @property
    @override
    def dim(self) -> int:
        return int(self._starts[-1])

    @override
    def begin(self, examples: int) -> None:
        super().begin(examples)
        self._rows = torch.zeros(examples, self.dim, device=self.device)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        return self._rows.cpu()

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        self._rows[examples[0] : examples[-1] + 1, self._starts[layer] : self._starts[layer + 1]] += flat


@final
class GradientTables(Materialising):
    """Keeps the gradients of some layers as they are, for oracles and exact Gram matrices."""

    def __init__(self, layers: Sequence[Layer], chosen: Sequence[int], device: torch.device) -> None:
        super().__init__(layers, device)
        self.tables: dict[int, Tensor] = {}
        self._chosen = frozenset(chosen)

    @property
    @override
    def dim(self) -> int:
        return sum(self.layers[index].size for index in self._chosen)

    @override
    def begin(self, examples: int) -> None:
        super().begin(examples)
        self.tables = {
            index: torch.zeros(examples, self.layers[index].size, device=self.device) for index in self._chosen
        }

    @override
    def add(self, factors: Factors) -> None:
        if factors.layer in self._chosen:
            super().add(factors)

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        if layer in self._chosen:
            super().add_whole(layer, examples, gradients)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        return torch.cat([self.tables[index] for index in sorted(self._chosen)], dim=1).cpu()

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        self.tables[layer][examples[0] : examples[-1] + 1] += flat
