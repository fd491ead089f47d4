"""The default sketch: every gradient materialised, signed, rolled and added into one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from spice_select.gradients.factors import Materialising
from spice_select.gradients.layers import Layer
from spice_select.gradients.random import Stream

LANES = 16
"""Different rolls: chunks whose numbers are equal modulo this many share one."""


@final
class FoldSketch(Materialising):
    """The default: signs, rolls, and one row of ``dim`` numbers.

    Value ``(o, i)`` of a layer with ``c`` columns has the flat index ``p = o * c + i``. It gets the sign
    ``u[o] * v[i]``, moves to ``q = (p + offset) mod (16 * dim)`` and is added to
    ``(q + roll[q // dim]) mod dim``. Signs and offset belong to the layer, the 16 rolls to the sketch.
    """

    def __init__(self, layers: Sequence[Layer], dim: int, seed: int, device: torch.device) -> None:
        super().__init__(layers, device)
        self._dim = dim
        self._width = LANES * dim
        self._rolls = [int(roll) for roll in Stream(seed, "", "fold rolls").integers(LANES, dim)]
        self._offsets = [int(Stream(seed, x.name, "fold offset").integers(1, self._width)[0]) for x in layers]
        self._tables = [
            tuple(
                torch.from_numpy(Stream(seed, x.name, f"fold {side} signs").signs(count)).float().to(device)
                for side, count in (("row", x.rows), ("column", x.columns))
            )
            for x in layers
        ]
        self._lanes = torch.zeros(0)

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @override
    def begin(self, examples: int) -> None:
        super().begin(examples)
        self._lanes = torch.zeros(examples, self._width, device=self.device)

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        return fold_lanes(self._lanes, self._rolls).cpu()

    @override
    def _signs(self, layer: int) -> tuple[Tensor, Tensor]:
        rows, columns = self._tables[layer]
        return rows, columns

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        lanes = self._lanes[examples[0] : examples[-1] + 1]
        add_lanes(lanes, flat, self._offsets[layer], self._buffer)


def add_lanes(
    lanes: Float[Tensor, "g width"],
    flat: Float[Tensor, "g size"],
    offset: int,
    buffer: Callable[..., Tensor],
) -> None:
    """Add values into ``width`` places in turn, starting at ``offset`` and wrapping around."""
    width = lanes.shape[1]
    whole = flat.shape[1] // width
    if whole > 1:
        stacked = flat[:, : whole * width].view(len(flat), whole, width)
        pieces = [torch.sum(stacked, 1, out=buffer("lanes", len(flat), width))]
    else:
        pieces = [flat[:, :width]] if whole else []
    if flat.shape[1] > whole * width:
        pieces.append(flat[:, whole * width :])
    for piece in pieces:
        first = min(piece.shape[1], width - offset)
        lanes[:, offset : offset + first] += piece[:, :first]
        if first < piece.shape[1]:
            lanes[:, : piece.shape[1] - first] += piece[:, first:]


def fold_lanes(lanes: Float[Tensor, "b width"], rolls: Sequence[int]) -> Float[Tensor, "b dim"]:
    """Roll each lane by its own step and add them up."""
    parts = lanes.view(len(lanes), len(rolls), -1)
    total = torch.zeros_like(parts[:, 0])
    for lane, roll in enumerate(rolls):
        total += torch.roll(parts[:, lane], roll, dims=1)
    return total


def indices(layer: Layer, dim: int, seed: int) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """Places and signs of a layer's values under ``fold``, by the formula of :class:`FoldSketch`."""
    flat = np.arange(layer.size)
    width = LANES * dim
    offset = Stream(seed, layer.name, "fold offset").integers(1, width)[0]
    rolls = Stream(seed, "", "fold rolls").integers(LANES, dim)
    moved = (flat + offset) % width
    rows = Stream(seed, layer.name, "fold row signs").signs(layer.rows)
    columns = Stream(seed, layer.name, "fold column signs").signs(layer.columns)
    return (moved + rolls[moved // dim]) % dim, np.outer(rows, columns).ravel().astype(np.int64)
