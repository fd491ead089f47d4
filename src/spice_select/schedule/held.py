"""Whole gradients of a pool while they are held, and the products of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spice_select.gradients.factors import Materialising
from spice_select.gradients.layers import Layer

_COLUMNS = 4096  # a block of 120 rows in float64 is 4 MB: about a core's cache


@final
class HeldGradients(Materialising):
    """Keeps the gradients of some examples, a table for each group of layers.

    Attributes:
        tables: Gradients by group, the layers side by side.
        wanted: Layers of the groups.
        offset: Row of the first example of the batch at hand.
    """

    def __init__(self, layers: Sequence[Layer], groups: Sequence[range], rows: int, place: torch.device) -> None:
        super().__init__(layers, place)
        self.offset = 0
        self.tables: list[Tensor] = []
        self._spans: dict[int, tuple[int, slice]] = {}
        for number, group in enumerate(groups):
            first = 0
            for index in group:
                self._spans[index] = (number, slice(first, first + layers[index].size))
                first += layers[index].size
            self.tables.append(torch.zeros(rows, first, device=place))
        self.wanted = frozenset(self._spans)

    @property
    @override
    def dim(self) -> int:
        return sum(table.shape[1] for table in self.tables)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        return torch.cat(self.tables, dim=1).cpu()

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        number, columns = self._spans[layer]
        rows = slice(self.offset + examples[0], self.offset + examples[-1] + 1)
        self.tables[number][rows, columns] += flat.to(self.device)


def inner_products(rows: Float[Tensor, "n columns"]) -> Float[Tensor, "n n"]:
    """Products of all pairs of rows, formed and added up in float64, a block of columns at a time."""
    count, columns = rows.shape
    if rows.device.type != "cpu":
        total = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
        for part in rows.split(_COLUMNS * 16, dim=1):
            wide = part.double()
            total.addmm_(wide, wide.t())
        return total
    # NumPy sees that the factors are one matrix, and forms half of the product.
    result = np.zeros((count, count))
    buffer = np.empty((count, min(columns, _COLUMNS)))
    values = rows.numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, columns, _COLUMNS):
            part = values[:, first : first + _COLUMNS]
            wide = buffer[:, : part.shape[1]]
            wide[...] = part
            result += wide @ wide.T
    return torch.from_numpy(result)
