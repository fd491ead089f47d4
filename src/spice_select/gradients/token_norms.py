"""Exact squared norms of gradients that nobody materialises, from the Gram matrices of their tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spice_select.gradients.factors import squared_norms

# Rows of a strip at least, and input matrices kept: those of a batch's examples for one layer and the next.
_STRIP = 48
_HELD = 64


class TokenNorms:
    """``|D^T A|^2 = sum((A A^T) * (D D^T))``, or the gradient itself where that takes fewer products.

    The matrices of tokens are symmetric, so that little more than half of each is formed, and layers that share their
    input (query, key and value; gate and up) share its matrix. While a matrix is held, so is its input, and the
    address that it is known by stays its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._zero = torch.zeros((), device=device)
        self._held: dict[tuple[int, int, int], tuple[Tensor, list[Tensor]]] = {}
        self._gradient = torch.empty(0, device=device)

    def squared(self, inputs: Float[Tensor, "t columns"], outputs: Float[Tensor, "t rows"]) -> Float[Tensor, ""]:
        """Squared norm of ``outputs.T @ inputs``; both float32."""
        tokens, columns, rows = len(inputs), inputs.shape[1], outputs.shape[1]
        # Little more than half of the two matrices of tokens is formed.
        if tokens * (rows + columns) >= 1.6 * rows * columns:
            if self._gradient.numel() < rows * columns:
                self._gradient = torch.empty(rows * columns, device=inputs.device)
            gradient = self._gradient[: rows * columns].view(rows, columns)
            torch.mm(outputs.t(), inputs, out=gradient)
            return squared_norms(gradient[None])[0]
        pairs = zip(self._input_strips(inputs), _strips(outputs), strict=True)
        return sum((torch.dot(a.view(-1), d.view(-1)) for a, d in pairs), start=self._zero)

    def clear(self) -> None:
        """Let go of the matrices held, at the end of a batch."""
        self._held.clear()

    def _input_strips(self, inputs: Float[Tensor, "t columns"]) -> list[Tensor]:
        """Strips of the lower triangle of the inputs seen last, with all off the diagonal doubled."""
        key = (inputs.data_ptr(), len(inputs), inputs.shape[1])
        if key not in self._held:
            if len(self._held) >= _HELD:
                self._held.pop(next(iter(self._held)))
            strips = _strips(inputs)
            for strip in strips:
                strip[:, : strip.shape[1] - len(strip)] *= 2
            self._held[key] = inputs, strips
        return self._held[key][1]


def _strips(values: Float[Tensor, "t width"]) -> list[Tensor]:
    """The lower triangle of ``values @ values.T``, in strips of rows that end with a square on the diagonal."""
    tokens = len(values)
    step = -(-tokens // max(1, min(8, tokens // _STRIP)))
    return [values[first : first + step] @ values[: first + step].t() for first in range(0, tokens, step)]
