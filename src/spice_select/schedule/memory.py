"""What earlier pools have told, in a sketch of bounded size.

Frequent Directions keeps the largest directions of the Fisher information of all rows put in, and never more than was
there: 0 <= F - B^T B <= |G|_F^2 / rows (Ghashami, Liberty, Phillips and Woodruff, arXiv 1501.01711). So a pool's rows
lose at most what earlier picks truly told. The gradients are those of the time of their picking; the proxy has moved on
since. This goes beyond the SPICE paper, where every pool starts empty.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from spice_select.errors import StoreCorrupt
from spice_select.files import explained


class FrequentDirections:
    """A sketch B of ``rows`` rows, whose B^T B stands for the sum of outer products of all rows put in.

    Args:
        rows: Rows of the sketch.
        dim: Dimension of the rows put in.
    """

    def __init__(self, rows: int, dim: int) -> None:
        self._buffer = np.zeros((2 * rows, dim))
        self._rows = rows
        self._filled = 0

    @property
    def sketch(self) -> Float[np.ndarray, "m d"]:
        """B; at most twice the rows asked for, as shrinking waits until there is no room."""
        return self._buffer[: self._filled]

    def add(self, rows: Float[np.ndarray, "m d"]) -> None:
        """Put rows in, one after the other."""
        for row in rows:
            if self._filled == len(self._buffer):
                self._shrink()
            self._buffer[self._filled] = row
            self._filled += 1

    def _shrink(self) -> None:
        values, vectors = np.linalg.eigh(self._buffer @ self._buffer.T)
        # Ascending: the last ``rows`` are the largest, and the first of those is what all give up.
        values, vectors = np.maximum(values[-self._rows :], 0.0), vectors[:, -self._rows :]
        kept = values - values[0]
        # Directions that are there by rounding alone are let go.
        alive = kept > 1e-14 * values[-1]
        factors = np.sqrt(kept[alive] / values[alive])
        shrunk = factors[:, None] * (vectors[:, alive].T @ self._buffer)
        self._buffer[:] = 0.0
        self._buffer[: len(shrunk)] = shrunk
        self._filled = len(shrunk)


class RowFile:
    """The sketched rows of all picks in order, from which the sketch is made again after a crash.

    Rows are written before the log line that names them; what no line names is cut off.

    Args:
        path: The file: float32, row after row.
        dim: Numbers of a row.
        rows: Rows that the log names.

    Raises:
        StoreCorrupt: There are fewer.
    """

    def __init__(self, path: Path, dim: int, rows: int) -> None:
        self._path, self._dim = path, dim
        with explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                if size >= rows * dim * 4:
                    os.ftruncate(descriptor, rows * dim * 4)
            finally:
                os.close(descriptor)
        if size < rows * dim * 4:
            raise StoreCorrupt(
                f"{path} lacks rows that the selection log names; restore it, or start again with --overwrite."
            )

    def read(self) -> Float32[np.ndarray, "m d"]:
        """All rows."""
        with explained(self._path, "read"):
            return np.fromfile(self._path, dtype="<f4").reshape(-1, self._dim)

    def append(self, rows: Float[np.ndarray, "m d"]) -> None:
        """Add rows; they are on the disk when this returns."""
        with explained(self._path), self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
