"""A sketch that multiplies each gradient from both sides before it exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spice_select.gradients.factors import Factors, Sketch, squared_norms
from spice_select.gradients.fold import LANES, add_lanes, fold_lanes, period
from spice_select.gradients.layers import Layer
from spice_select.gradients.random import Stream
from spice_select.gradients.token_norms import TokenNorms


@final
class TwoSidedSketch(Sketch):
    """A ``rank x rank`` table per layer, folded to ``dim`` where all tables together are longer.

    A side of a layer that is no wider than ``rank`` is kept as it is. The projections are signs over the root of
    their width. Exact squared norms come from the Gram matrices of tokens where that takes fewer products than the
    gradient itself, as it does for sequences of a few hundred tokens.
    """

    def __init__(
        self, layers: Sequence[Layer], rank: int, dim: int, seed: int, device: torch.device, norms: bool = True
    ) -> None:
        super().__init__(layers, device)
        self._exact = TokenNorms(device) if norms else None
        self._sides = [
            tuple(
                _projection(Stream(seed, x.name, f"two-sided {side}"), count, rank).to(device) if count > rank else None
                for side, count in (("rows", x.rows), ("columns", x.columns))
            )
            for x in layers
        ]
        sizes = [min(rank, x.rows) * min(rank, x.columns) for x in layers]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        total = int(self._starts[-1])
        self._dim = min(dim, total)
        self._rolls: list[int] | None = None
        if total > dim:
            self._rolls = [int(roll) for roll in Stream(seed, "", "fold rolls").integers(LANES, dim)]
        self._periods = [period(min(rank, x.columns), dim) for x in layers]
        self._offsets = [
            int(Stream(seed, x.name, "fold offset").integers(1, places)[0])
            for x, places in zip(layers, self._periods, strict=True)
        ]
        self._rows = torch.zeros(0)

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @override
    def begin(self, examples: int) -> None:
        self._norms = torch.zeros(len(self.layers), examples, device=self.device)
        self._rows = torch.zeros(examples, self._dim * LANES if self._rolls else self._dim, device=self.device)

    @override
    def add(self, factors: Factors) -> None:
        rows_side, columns_side = self._sides[factors.layer]
        if factors.padded is not None:
            inputs, outputs = (x.float() for x in factors.padded)
            a = inputs if columns_side is None else inputs @ columns_side
            d = outputs if rows_side is None else outputs @ rows_side
            tables = torch.bmm(d.transpose(1, 2), a)
            self._take(factors.layer, factors.examples, tables.flatten(1))
        for example, inputs, outputs in zip(factors.examples, factors.inputs, factors.outputs, strict=True):
            inputs, outputs = inputs.float(), outputs.float()
            if factors.padded is None:
                a = inputs if columns_side is None else inputs @ columns_side
                d = outputs if rows_side is None else outputs @ rows_side
                self._take(factors.layer, [example], (d.t() @ a).flatten()[None])
            if self._exact is not None:
                self._norms[factors.layer, example] = self._exact.squared(inputs, outputs)

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        rows_side, columns_side = self._sides[layer]
        tables = gradients if rows_side is None else rows_side.t() @ gradients
        tables = tables if columns_side is None else tables @ columns_side
        self._take(layer, examples, tables.flatten(1))
        if self._exact is not None:
            self._norms[layer, examples[0] : examples[-1] + 1] = squared_norms(gradients)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        if self._exact is not None:
            self._exact.clear()
        rows = fold_lanes(self._rows, self._rolls) if self._rolls else self._rows
        return rows.cpu()

    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        rows = self._rows[examples[0] : examples[-1] + 1]
        if self._rolls:
            # The columns of the projections have independent signs already.
            add_lanes(rows, flat, self._offsets[layer], self._periods[layer], self._buffer)
        else:
            rows[:, self._starts[layer] : self._starts[layer + 1]] += flat


def _projection(stream: Stream, count: int, rank: int) -> Float[Tensor, "count rank"]:
    return torch.from_numpy(stream.signs(count * rank)).float().view(count, rank) * rank**-0.5
