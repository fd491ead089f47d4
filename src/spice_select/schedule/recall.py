"""Memory across pools: gradients in a sketch, so that those of one pool can meet those of pools before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spice_select.gradients.capture import GradientEngine
from spice_select.schedule.gram import PoolGram, pool_rows
from spice_select.schedule.memory import FrequentDirections, RowFile
from spice_select.schedule.ranks import Ranks
from spice_select.selection import Selection


class Recall:
    """What the picks of earlier pools have told, and the sketched rows of the pool at hand.

    Args:
        path: File of the sketched rows of all picks.
        rows: Rows of the sketch that stands for them.
        dim: Dimension D of the gradients' sketch.
        picked: Picks in the selection log.
        ranks: The processes that share the work; all read the file, the first writes it.

    Raises:
        StoreCorrupt: The file lacks rows that the log names.
    """

    def __init__(self, path: Path, rows: int, dim: int, picked: int, ranks: Ranks) -> None:
        self._directions = FrequentDirections(rows, dim)
        self._main = ranks.main
        with ranks.together():
            self._file = RowFile(path, dim, picked) if ranks.main else None
        with ranks.together():
            if picked:
                self._directions.add((self._file or RowFile(path, dim, picked)).read())
        self._rows = np.zeros((0, dim), dtype=np.float32)

    def measure(
        self,
        engine: GradientEngine,
        ids: list[np.ndarray],
        masks: list[np.ndarray],
        ranks: Ranks,
        progress: Callable[[float], None] | None = None,
    ) -> PoolGram:
        """Inner products of the pool's sketched gradients, which are kept for :meth:`earlier` and :meth:`add`."""
        measured = pool_rows(engine, ids, masks, ranks=ranks, progress=progress)
        self._rows = measured.rows
        wide = measured.rows.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gram = wide @ wide.T
        return PoolGram(
            gram=gram,
            losses=measured.losses,
            tokens=measured.tokens,
            exact=False,
            how=f"fold, D = {wide.shape[1]:,}, with a memory of earlier pools",
        )

    def earlier(self) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "m m"]] | None:
        """Inner products of the pool's rows with the sketch, and of its own with each other; None while it is empty."""
        sketch = self._directions.sketch
        if not len(sketch):
            return None
        rows = np.where(np.isfinite(self._rows), self._rows, 0.0).astype(np.float64)
        return rows @ sketch.T, sketch @ sketch.T

    def add(self, selection: Selection) -> None:
        """Remember the picks of the pool, scaled as they were selected."""
        rows = self._rows[selection.indices].astype(np.float64)
        if selection.factors is not None:
            rows *= selection.factors[selection.indices, None]
        # What is remembered now must be what would be read after a crash.
        narrow = rows.astype(np.float32)
        self._directions.add(narrow.astype(np.float64))
        if self._file is not None:
            self._file.append(narrow)
