"""The default sketch: every gradient materialised, signed, rolled and added into one row."""

from __future__ import annotations

import math
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
    ``u[o] * v[i]``, moves to ``q = (p + offset) mod period`` and is added to
    ``(q + roll[q // dim]) mod dim``. Signs, offset and period belong to the layer, the 16 rolls to the sketch.
    """

    def __init__(self, layers: Sequence[Layer], dim: int, seed: int, device: torch.device) -> None:
        super().__init__(layers, device)
        self._dim = dim
        self._periods = [period(x.columns, dim) for x in layers]
        self._rolls = [int(roll) for roll in Stream(seed, "", "fold rolls").integers(LANES, dim)]
        self._offsets = [
            int(Stream(seed, x.name, "fold offset").integers(1, places)[0])
            for x, places in zip(layers, self._periods, strict=True)
        ]
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
        self._lanes = torch.zeros(examples, LANES * self._dim, device=self.device)

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
        add_lanes(lanes, flat, self._offsets[layer], self._periods[layer], self._buffer)


def period(columns: int, dim: int) -> int:
    """Places that a layer's values go round in, at most ``16 * dim``.

    Two rows of a gradient whose columns meet at the same places add up as a whole, under one sign, and in a gradient
    of few tokens all rows are alike: with a period that shares factors with the number of columns, 4096 of both say,
    the error would be that of a few hundred numbers. With this one, only one row in ``dim`` or so meets another.
    """
    return LANES * next(count for count in range(dim, 0, -1) if math.gcd(count, columns) == 1)


def add_lanes(
    lanes: Float[Tensor, "g width"],
    flat: Float[Tensor, "g size"],
    offset: int,
    places: int,
    buffer: Callable[..., Tensor],
) -> None:
    """Add values into the first ``places`` in turn, starting at ``offset`` and wrapping around."""
    whole = flat.shape[1] // places
    if whole > 1:
        stacked = flat[:, : whole * places].view(len(flat), whole, places)
        pieces = [torch.sum(stacked, 1, out=buffer("lanes", len(flat), places))]
    else:
        pieces = [flat[:, :places]] if whole else []
    if flat.shape[1] > whole * places:
        pieces.append(flat[:, whole * places :])
    for piece in pieces:
        first = min(piece.shape[1], places - offset)
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
    around = period(layer.columns, dim)
    offset = Stream(seed, layer.name, "fold offset").integers(1, around)[0]
    rolls = Stream(seed, "", "fold rolls").integers(LANES, dim)
    moved = (flat + offset) % around
    rows = Stream(seed, layer.name, "fold row signs").signs(layer.rows)
    columns = Stream(seed, layer.name, "fold column signs").signs(layer.columns)
    return (moved + rolls[moved // dim]) % dim, np.outer(rows, columns).ravel().astype(np.int64)
