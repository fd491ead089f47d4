"""Upper bounds of every row's score, and how old each is: what the lazy loops share.

Gains only shrink, so that a gain of any earlier step bounds the gain of now. A row's potential q = g^T (I + a F_S)^-1 g
is kept with the step at which it was measured; a row is brought up to date by the update vectors since then where these
are few, else by the matrix.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import LogDet
from spice_select.selection.rows import Pool
from spice_select.selection.symmetric import SCREENING_ERROR

NEVER = -(1 << 62)
"""Step at which a row was last measured exactly, where only a bound is known."""
TIGHTEN_EVERY = 1.2
"""Growth of the picks between two looks at the largest eigenvalue."""
TIGHTEN_AT_FIRST = 1.03
"""The same from d to 2 d picks, while it falls fast, for a loop that only now and then asks."""


class Bounds:
    """A potential, its age and an upper bound of the score for each row.

    Args:
        pool: The rows.
        information: The log-determinant, empty.
        conflict: What opposes.
        score: What is compared.
        candidates: Rows that may be chosen; the bound of any other row is -inf.
        at_first: Growth of the picks between two looks at the largest eigenvalue, from d to 2 d picks.

    Attributes:
        values: Upper bound of each row's score.
        potentials: Potential of each row as it was last measured.
        work: Multiply-adds spent on measuring rows again.
    """

    def __init__(
        self,
        pool: Pool,
        information: LogDet,
        conflict: Conflict,
        score: Score,
        candidates: Bool[np.ndarray, " n"],
        at_first: float = TIGHTEN_AT_FIRST,
    ) -> None:
        self._information = information
        self._conflict = conflict
        self._score = score
        self.potentials = pool.squared_norms.copy()
        self._seen = np.zeros(len(pool), dtype=np.int64)
        # Only for a loop that screens.
        self._screened: np.ndarray | None = None
        bounds = score.bound(slice(None), information.gains(self.potentials), conflict.fixed)
        self.values = np.where(candidates, bounds, -np.inf)
        self.work = 0.0
        self._squared_norms = pool.squared_norms
        self._next_tightening = information.dim
        self._at_first = at_first

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self.values[indices] = -np.inf

    def tighten(self) -> None:
        """Bring bounds down by the largest eigenvalue of the inverse, q <= that times |g|^2, now and then.

        Once every direction is known to some degree this settles at no cost most rows that were never looked at.
        """
        information = self._information
        if information.matrix is None or information.size < self._next_tightening:
            return
        often = self._at_first if information.size < 2 * information.dim else TIGHTEN_EVERY
        self._next_tightening = int(often * information.size) + 1
        bounds = information.matrix.largest() * self._squared_norms
        self.work += float(information.dim) ** 3
        lower = np.flatnonzero((bounds < self.potentials) & (self.values > -np.inf))
        self.write_back(lower, bounds[lower])
        self._seen[lower] = NEVER

    def current(self, ids: Int[np.ndarray, " m"]) -> bool:
        """Whether every one of these rows was measured at this very step."""
        return bool(np.all(self._seen[ids] == self._information.size))

    def unseen(self, ids: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Picks since these rows were last measured or screened."""
        seen = self._seen[ids]
        if self._screened is not None:
            seen = np.maximum(seen, self._screened[ids])
        return self._information.size - seen

    def at_end(self) -> Float[np.ndarray, " n"]:
        """Upper bounds of the potentials of all rows, of those as well that were never candidates."""
        information = self._information
        if information.matrix is not None and information.size >= information.dim:
            bounds = information.matrix.largest() * self._squared_norms
            self.potentials = np.minimum(self.potentials, bounds)
        return self.potentials

    def write_back(self, ids: Int[np.ndarray, " m"], potentials: Float[np.ndarray, " m"]) -> None:
        """Note potentials of now."""
        self.potentials[ids] = potentials
        self._seen[ids] = self._information.size
        fixed = None if self._conflict.fixed is None else self._conflict.fixed[ids]
        self.values[ids] = self._score.bound(ids, self._information.gains(potentials), fixed)

    def screen(self, pool: Pool, ids: Int[np.ndarray, " m"], norms: Float[np.ndarray, " m"]) -> None:
        """Bring the bounds of rows down to what float32 tells of their potentials, in half the time of an exact look.

        Args:
            pool: Where the rows are.
            ids: Row numbers.
            norms: Their norms.
        """
        information = self._information
        forms = information.screening_forms(pool.units(ids, norms))
        self.work += 0.5 * float(len(ids)) * information.dim * min(information.dim, max(1, 2 * information.size))
        # The bound that was there may be the lower one; it may also have been exact, which it then no longer is.
        self.write_back(ids, np.minimum((forms + SCREENING_ERROR) * norms * norms, self.potentials[ids]))
        self._seen[ids] = NEVER
        if self._screened is None:
            self._screened = np.full(len(self.values), NEVER, dtype=np.int64)
        self._screened[ids] = information.size

    def refresh(self, ids: Int[np.ndarray, " m"], rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Exact potentials of rows, by update vectors where few are new to a row, else by the matrix; noted."""
        information = self._information
        step = information.size
        ages = step - self._seen[ids]
        limit = min(step - information.first_vector, information.dim // 2)
        potentials = self.potentials[ids]
        old = ages > limit
        if old.any():
            potentials[old] = information.potentials(rows[old])
            self.work += float(old.sum()) * information.dim**2
        low = 0
        while low < limit:
            high = min(max(16, 2 * low), limit)
            group = np.flatnonzero((ages > low) & (ages <= high))
            if len(group):
                since = step - int(ages[group].max())
                onto = rows[group] @ information.vectors(since).T
                self.work += float(onto.size) * information.dim
                onto[np.arange(since, step) < self._seen[ids[group], None]] = 0.0
                potentials[group] = np.maximum(potentials[group] - np.einsum("ij,ij->i", onto, onto), 0.0)
            low = high
        self.write_back(ids, potentials)
        return potentials
