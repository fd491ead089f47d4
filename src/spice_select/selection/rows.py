"""Gradient rows wherever they live: an array, a memory map, a tensor or a store, never loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from spice_select.errors import ConfigError, DataError

BLOCK_BYTES = 8 << 20
MEASURED_BYTES = 1 << 20
_FLOAT32_NORMS = (1e-30, 1e30)
"""Norms of rows that float32 holds with all their digits, and their inverses."""
CACHE_BYTES = 192 << 20


@runtime_checkable
class Rows(Protocol):
    """What selection asks of gradient rows; a gradient store has just these."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n and dimension d."""
        ...

    def rows(self, indices: Int[np.ndarray, " m"], /) -> Float[np.ndarray, "m d"]:
        """The rows of those numbers, in that order."""
        ...

    def blocks(self, size: int, /) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
        """Every row once, in order, as (number of the first row, at most ``size`` rows)."""
        ...


class ArrayRows:
    """Rows of a numpy array or memory map."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n and dimension d."""
        return self._array.shape[0], self._array.shape[1]

    def rows(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """The rows of those numbers, in that order."""
        return np.asarray(self._array[indices])

    def blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
        """Every row once, in order."""
        for start in range(0, self.shape[0], size):
            yield start, np.asarray(self._array[start : start + size])


class TensorRows:
    """Rows of a torch tensor of any floating dtype on any device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n and dimension d."""
        return self._tensor.shape[0], self._tensor.shape[1]

    def rows(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """The rows of those numbers, in that order."""
        where = torch.as_tensor(np.asarray(indices), device=self._tensor.device)
        return self._numpy(self._tensor[where])

    def blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
        """Every row once, in order."""
        for start in range(0, self.shape[0], size):
            yield start, self._numpy(self._tensor[start : start + size])

    @staticmethod
    def _numpy(part: torch.Tensor) -> np.ndarray:
        wide = torch.float64 if part.dtype == torch.float64 else torch.float32
        return part.to(wide).cpu().numpy()


def as_rows(gradients: Any) -> Rows:
    """Wrap whatever the user gave.

    Args:
        gradients: A two-dimensional array, memory map, torch tensor, nested sequence, or an object with ``shape``,
            ``rows(indices)`` and ``blocks(size)`` such as a gradient store.

    Raises:
        ConfigError: Nothing of the kind, or not two-dimensional.
        DataError: No row at all.
    """
    rows: Rows
    if isinstance(gradients, torch.Tensor):
        if gradients.is_complex() or gradients.dtype == torch.bool:
            raise ConfigError(f"gradients must be real numbers, not {gradients.dtype}; pass a floating tensor.")
        _check_shape(tuple(gradients.shape))
        rows = TensorRows(gradients)
    elif isinstance(gradients, Rows):
        _check_shape(tuple(gradients.shape))
        rows = gradients
    else:
        array = _as_array(gradients)
        _check_shape(array.shape)
        rows = ArrayRows(array)
    return rows


def _as_array(gradients: Any) -> np.ndarray:
    if isinstance(gradients, np.ndarray):
        array = gradients
    elif isinstance(gradients, Sequence) and not isinstance(gradients, str):
        try:
            array = np.asarray(gradients)
        except ValueError:
            raise ConfigError("gradients must be rows of one length; pass an array of shape [n, d].") from None
    else:
        raise ConfigError(
            f"gradients cannot be of type {type(gradients).__name__}; pass an array or tensor of shape [n, d], "
            "or a gradient store."
        )
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"gradients must be real numbers, not {array.dtype}; pass an array of float32.")
    return array


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ConfigError(f"gradients must have two dimensions [n, d], not shape {list(shape)}; one row per example.")
    if shape[0] == 0 or shape[1] == 0:
        raise DataError(f"gradients of shape {list(shape)} hold nothing to choose from; pass at least one row.")


class Pool:
    """Rows as selection sees them: scaled, in float64, unusable ones zeroed, rows already in hand behind the last.

    Row numbers from ``n`` up are the rows of ``extra``; they enter the information and the mean, and are no candidates.

    Attributes:
        n: Rows that were given.
        dim: Dimension d.
        finite: Which of the n rows hold finite numbers only.
        usable: Which of them are not marked unusable either.
        squared_norms: |g|^2 of the scaled rows, extra ones included; 0 where not finite.

    Args:
        rows: Where the rows are.
        usable: Rows that are not marked unusable; all where absent.
        squared_norms: |g|^2 of the rows times their factors, where known: no row is read for it then.
        factors: What every row is multiplied by; nothing where absent.
    """

    def __init__(
        self,
        rows: Rows,
        usable: Bool[np.ndarray, " n"] | None = None,
        squared_norms: Float[np.ndarray, " n"] | None = None,
        factors: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        self._rows = rows
        self.n, self.dim = rows.shape
        self._block = max(1, BLOCK_BYTES // (8 * self.dim))
        self._scale = factors
        self._extra = np.zeros((0, self.dim))
        self._cache: list[tuple[int, np.ndarray]] | None = None
        self.squared_norms = self._measured() if squared_norms is None else squared_norms.copy()
        self.finite = np.isfinite(self.squared_norms)
        self.usable = self.finite if usable is None else self.finite & usable
        self._zeroed = ~self.usable
        self.squared_norms[self._zeroed] = 0.0

    def __len__(self) -> int:
        return self.n + len(self._extra)

    def rescale(self, scale: Float[np.ndarray, " n"]) -> None:
        """Multiply every row by its factor from now on."""
        assert self._scale is None and not len(self._extra)
        self._scale = scale
        self.squared_norms = self.squared_norms * scale**2

    @property
    def factors(self) -> Float[np.ndarray, " n"] | None:
        """What every row is multiplied by; None where it is nothing."""
        return self._scale

    def append(self, extra: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
        """Add rows that are in hand already; returns their numbers."""
        self._extra = np.asarray(extra, dtype=np.float64)
        self.squared_norms = np.concatenate([self.squared_norms, np.einsum("ij,ij->i", self._extra, self._extra)])
        return np.arange(self.n, len(self))

    def take(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Scaled rows in float64, gathered by number."""
        indices = np.asarray(indices, dtype=np.int64)
        beyond = indices >= self.n
        if not beyond.any():
            return self._given(indices)
        out = np.empty((len(indices), self.dim))
        out[beyond] = self._extra[indices[beyond] - self.n]
        out[~beyond] = self._given(indices[~beyond])
        return out

    def units(self, indices: Int[np.ndarray, " m"], norms: Float[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Rows over their norms in float32, gathered by number; zero rows stay zero.

        Args:
            indices: Row numbers.
            norms: Norms of the scaled rows.
        """
        if not len(self._extra) and norms.min(initial=1.0) > 0.0:
            # A row's direction does not depend on its factor, and float32 rows need no detour over float64.
            own = norms if self._scale is None else norms / self._scale[indices]
            if own.min(initial=1.0) > _FLOAT32_NORMS[0] and own.max(initial=1.0) < _FLOAT32_NORMS[1]:
                rows = self._rows.rows(indices)
                if rows.dtype == np.float32:
                    return rows * (1.0 / own)[:, None].astype(np.float32)
        wide = self.take(indices)
        return (wide / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)

    def row(self, index: int) -> Float[np.ndarray, " d"]:
        """One scaled row in float64."""
        return self.take(np.array([index]))[0]

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
        """All scaled rows in float64, block by block; kept between calls where they are small."""
        if self._cache is None and 8 * len(self) * self.dim <= CACHE_BYTES:
            self._cache = list(self._read())
        return iter(self._cache) if self._cache is not None else self._read()

    def column(self, index: int) -> Float[np.ndarray, " n"]:
        """Inner products of one row with all rows."""
        row = self.row(index)
        return np.concatenate([block @ row for _, block in self.blocks()])

    def mean_dots(self, members: Bool[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float]:
        """Inner product of every row with the sum of the members, and the norm of that sum."""
        total = np.zeros(self.dim)
        for start, block in self.blocks():
            if start < self.n:
                total += members[start : start + len(block)] @ block
        dots = np.concatenate([block @ total for _, block in self.blocks()])
        return dots, float(np.sqrt(total @ total))

    def _measured(self) -> Float[np.ndarray, " n"]:
        found = np.empty(self.n)
        # Blocks that stay in the processor's own cache take less than half the time of large ones.
        with np.errstate(all="ignore"):
            for start, block in self._rows.blocks(max(1, MEASURED_BYTES // (8 * self.dim))):
                wide = np.asarray(block, dtype=np.float64)
                found[start : start + len(wide)] = np.einsum("ij,ij->i", wide, wide)
        return found if self._scale is None else found * self._scale**2

    def _given(self, indices: np.ndarray) -> np.ndarray:
        if not len(indices):
            return np.zeros((0, self.dim))
        wide = np.array(self._rows.rows(indices), dtype=np.float64)
        if self._scale is not None:
            wide *= self._scale[indices, None]
        zeroed = self._zeroed[indices]
        if zeroed.any():
            wide[zeroed] = 0.0
        return wide

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, block in self._rows.blocks(self._block):
            wide = np.array(block, dtype=np.float64)
            stop = start + len(wide)
            if self._scale is not None:
                wide *= self._scale[start:stop, None]
            zeroed = self._zeroed[start:stop]
            if zeroed.any():
                wide[zeroed] = 0.0
            yield start, wide
        if len(self._extra):
            yield self.n, self._extra
