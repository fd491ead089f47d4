"""Lazy greedy for the log-determinant, in blocks: matrix products instead of one row at a time.

Every row has an upper bound, the gain when it was last looked at. An *active set* holds the rows with the highest
bounds; their q = g^T (I + a F_S)^-1 g and inner products with the sum of S are exact at every step. As long as the
best exact score beats the highest bound outside, a pick costs a few vector operations on the active set:

    <g_i, M_t g_x> = <g_i, M_0 g_x> - sum over the picks s since of w_s[i] w_s[x],   q_i -= w_t[i]^2,

with M_0 g_x made for several likely picks at once. Otherwise the exact gains are written back as bounds and the active
set is chosen anew. A row that enters it is brought up to date by the update vectors since it was last looked at where
these are few, else by the matrix. All of it is float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from spice_select.selection.bounds import Bounds
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.fisher import LogDet
from spice_select.selection.greedy import Choice, lowest_best, slack
from spice_select.selection.outlook import Ending
from spice_select.selection.rows import Pool

ACTIVE_BYTES = 64 << 20
WINDOW_BYTES = 32 << 20
PRODUCT_BYTES = 48 << 20
GATHER = 1024
CHUNKS = (4, 32)
PICKS_BEFORE_SHRINKING = 32


def window(dim: int) -> int:
    """Update vectors worth keeping beside the matrix."""
    return int(max(16, min(dim // 2, WINDOW_BYTES // (8 * dim))))


class BlockedLazy:
    """Lazy greedy with an exact active set.

    Args:
        pool: The rows.
        information: Empty log-determinant.
        conflict: What opposes.
        score: What is compared.
        eligible: Candidates, extra rows of the pool included as False.
        active: Rows of the active set at the start.
        most: Rows that the active set may grow to.
        chunk: Likely picks whose products with the active set are made at once.
    """

    def __init__(
        self,
        pool: Pool,
        information: LogDet,
        conflict: Conflict,
        score: Score,
        eligible: np.ndarray,
        active: int | None = None,
        most: int | None = None,
        chunk: int = CHUNKS[1],
    ) -> None:
        self._pool = pool
        self._information = information
        self._conflict = conflict
        self._score = score
        self._norms = np.sqrt(pool.squared_norms)
        # A zero row scores exactly 0 for ever, so only the first of them is ever a candidate.
        self._known = Bounds(pool, information, conflict, score, eligible & (self._norms > 0))
        self._zeros = eligible & (self._norms == 0)
        self._first_zero = 0
        self._size = active or max(64, min(1024, len(pool) // 32))
        self._usual = self._size
        self._most = most or max(64, ACTIVE_BYTES // (8 * pool.dim))
        self._chunk = self._most_chunk = chunk
        self._least_chunk = min(CHUNKS[0], chunk)
        self._wants_dots = bool(score.weight) and conflict.fixed is None
        self._picks = 0
        self._work = 0.0
        self._outside = np.inf
        self._set_active(np.zeros(0, np.int64), np.zeros((0, pool.dim)), np.zeros(0))

    def best(self) -> Choice | None:
        """The best eligible row."""
        while True:
            choice = self._best_active()
            score = choice.score if choice else -np.inf
            if self._outside == -np.inf or self._outside < score - 2 * slack(score):
                return choice
            if not self._rebuild():
                return self._scan()

    def add(self, index: int) -> None:
        """Put a row into S and bring the active set up to date."""
        self._picks += 1
        if self._norms[index] == 0:
            return
        at = int(np.searchsorted(self._ids, index))
        if at == len(self._ids) or self._ids[at] != index:
            self._add_outsider(index)
            return
        slot = self._slot_of(at)
        done = self._products[: self._steps]
        potential = self._active_potentials[at]
        factor = np.sqrt(self._information.alpha / (1.0 + self._information.alpha * potential))
        past = done[:, at]
        product = (self._inner[slot] - past @ done) * factor
        self._vectors[self._steps] = (self._images[slot] - past @ self._vectors[: self._steps]) * factor
        self._products[self._steps] = product
        self._steps += 1
        self._active_potentials = np.maximum(self._active_potentials - product * product, 0.0)
        self._conflict.add(self._rows[at])
        if self._wants_dots:
            self._dots += self._plain[slot]

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._known.close(indices)
        self._zeros[indices] = False
        at = np.searchsorted(self._ids, indices)
        inside = at < len(self._ids)
        inside[inside] = self._ids[at[inside]] == indices[inside]
        self._offset[at[inside]] = -np.inf

    def ending(self) -> Ending:
        """The last potential of every row, and the information without what only a running engine needs."""
        self._flush()
        self._known.potentials[self._ids] = self._active_potentials
        potentials = self._known.at_end()
        self._information.forget()
        return Ending(potentials, self._information, self._work + self._known.work)

    def _best_active(self) -> Choice | None:
        gains = self._information.gains(self._active_potentials)
        conflicts = None
        if self._active_fixed is not None:
            conflicts = self._active_fixed
        elif self._wants_dots:
            conflicts = self._conflict.of_dots(self._dots, self._active_norms)
        self._scores = self._score(self._ids, gains, conflicts) + self._offset
        self._zero = self._zero_choice()
        self._best = float(self._scores.max(initial=self._zero.score if self._zero else -np.inf))
        return self._lowest(self._best)

    def _lowest(self, best: float) -> Choice | None:
        """The lowest row number of the active set and the zero rows whose score ties with the best."""
        at = lowest_best(self._scores, best)
        zero = self._zero if self._zero and self._zero.score >= best - slack(best) else None
        if at is None or (zero and zero.index < self._ids[at]):
            return zero
        gain = self._information.gains(self._active_potentials[at : at + 1])[0]
        return Choice(int(self._ids[at]), float(gain), self._conflict_at(at), float(self._scores[at]))

    def _conflict_at(self, at: int) -> float:
        if self._active_fixed is not None:
            return float(self._active_fixed[at])
        dot = self._dots[at] if self._wants_dots else self._rows[at] @ self._conflict.total
        return float(self._conflict.of_dots(np.array([dot]), self._active_norms[at : at + 1])[0])

    def _zero_choice(self) -> Choice | None:
        while self._first_zero < len(self._zeros) and not self._zeros[self._first_zero]:
            ahead = self._zeros[self._first_zero :].argmax()
            if ahead == 0:
                self._first_zero = len(self._zeros)
                return None
            self._first_zero += int(ahead)
        return Choice(self._first_zero, 0.0, 0.0, 0.0) if self._first_zero < len(self._zeros) else None

    def _rebuild(self) -> bool:
        """Choose the active set anew; False where that cannot settle the next pick."""
        self._flush()
        live = self._offset == 0.0
        self._known.write_back(self._ids[live], self._active_potentials[live])
        self._known.tighten()
        count = int(np.count_nonzero(self._known.values > -np.inf))
        if self._picks > PICKS_BEFORE_SHRINKING and self._size > self._usual:
            self._size = max(self._usual, self._size // 2)
        size = min(self._size, count)
        top = self._top(size)
        if self._picks == 0 and size < count and self._known.current(top):
            # Nothing new to look at: penalties or ties reach further down than the active set.
            if self._size >= self._most:
                # The active set stays, so the highest bound outside is that outside of it, not of the top.
                others = self._known.values.copy()
                others[self._ids] = -np.inf
                self._outside = float(others.max())
                return False
            self._size = min(2 * self._size, self._most)
            size = min(self._size, count)
            top = self._top(size)
        self._picks = 0
        kept, at_old, at_new = np.intersect1d(self._ids, top, assume_unique=True, return_indices=True)
        rows = np.empty((len(top), self._pool.dim))
        rows[at_new] = self._rows[at_old]
        potentials = np.empty(len(top))
        potentials[at_new] = self._known.potentials[kept]
        fresh = np.setdiff1d(np.arange(len(top)), at_new, assume_unique=True)
        for start in range(0, len(fresh), GATHER):
            part = fresh[start : start + GATHER]
            found = self._pool.take(top[part])
            rows[part] = found
            potentials[part] = self._known.refresh(top[part], found)
        self._set_active(top, rows, potentials)
        return True

    def _top(self, size: int) -> np.ndarray:
        """Rows with the highest bounds, by number; the highest bound among the others is noted."""
        cut = len(self._known.values) - size
        order = np.argpartition(self._known.values, max(cut - 1, 0))
        self._outside = float(self._known.values[order[cut - 1]]) if cut > 0 else -np.inf
        return np.sort(order[cut:])

    def _set_active(self, ids: np.ndarray, rows: np.ndarray, potentials: np.ndarray) -> None:
        self._ids = ids
        self._rows = rows
        self._active_potentials = potentials
        self._active_norms = self._norms[ids]
        self._active_fixed = None if self._conflict.fixed is None else self._conflict.fixed[ids]
        self._dots = rows @ self._conflict.total if self._wants_dots else np.zeros(0)
        self._offset = np.zeros(len(ids))
        self._scores = np.zeros(len(ids))
        self._drop_products()

    def _drop_products(self) -> None:
        self._slots = np.full(len(self._ids), -1)
        self._made = 0
        self._steps = 0
        self._room = int(
            max(1, min(len(self._ids), PRODUCT_BYTES // (8 * max(1, 2 * len(self._ids) + self._pool.dim))))
        )
        self._inner = np.empty((self._room, len(self._ids)))
        self._plain = np.empty((self._room if self._wants_dots else 0, len(self._ids)))
        self._images = np.empty((self._room, self._pool.dim))
        self._vectors = np.empty((self._room, self._pool.dim))
        self._products = np.empty((self._room, len(self._ids)))

    def _slot_of(self, at: int) -> int:
        """Where the products of an active row with the active set are; made for the likeliest next picks with it.

        They are those of the last flush; the picks since then are taken off when a row is picked.
        """
        if self._slots[at] < 0:
            if self._made == self._room:
                self._flush()
            size = min(self._chunk, self._room - self._made, len(self._ids))
            likely = np.where(self._slots < 0, self._scores, -np.inf)
            likely[at] = np.inf
            chosen = np.argpartition(likely, len(likely) - size)[len(likely) - size :]
            chosen = chosen[likely[chosen] > -np.inf]
            made = slice(self._made, self._made + len(chosen))
            rows = self._rows[chosen]
            self._images[made] = self._information.times(rows)
            self._work += float(len(chosen)) * self._pool.dim * (self._pool.dim + len(self._ids))
            np.matmul(self._images[made], self._rows.T, out=self._inner[made])
            if self._wants_dots:
                np.matmul(rows, self._rows.T, out=self._plain[made])
            self._slots[chosen] = np.arange(made.start, made.stop)
            self._made = made.stop
        return int(self._slots[at])

    def _flush(self) -> None:
        """Hand the update vectors of the picks since the last time to the information."""
        if self._steps:
            self._information.append(self._vectors[: self._steps])
            if 3 * self._steps < self._made:
                self._chunk = max(self._least_chunk, self._chunk // 2)
            elif 3 * self._steps > 2 * self._made:
                self._chunk = min(self._most_chunk, self._chunk * 2)
        self._drop_products()

    def _add_outsider(self, index: int) -> None:
        self._flush()
        row = self._pool.row(index)
        self._information.add(row)
        self._conflict.add(row)
        self._active_potentials = self._information.updated(self._rows, self._active_potentials)
        if self._wants_dots:
            self._dots += self._rows @ row

    def _scan(self) -> Choice | None:
        """Settle a pick that too many rows may still win, a batch of the highest bounds after the other."""
        waiting = self._known.values.copy()
        waiting[self._ids] = -np.inf
        size = min(1024, len(waiting))
        self._best_active()
        best = self._best
        choices: list[Choice] = []
        while True:
            top = np.argpartition(waiting, len(waiting) - size)[len(waiting) - size :]
            top = np.sort(top[(waiting[top] > -np.inf) & (waiting[top] >= best - 2 * slack(best))])
            if not len(top):
                break
            rows = self._pool.take(top)
            gains = self._information.gains(self._known.refresh(top, rows))
            conflicts = self._conflict.of_rows(top, rows, self._norms[top])
            scores = self._score(top, gains, conflicts)
            best = max(best, float(scores.max()))
            near = scores >= best - slack(best)
            columns = (top[near].tolist(), gains[near].tolist(), conflicts[near].tolist(), scores[near].tolist())
            choices += [Choice(*values) for values in zip(*columns, strict=True)]
            waiting[top] = -np.inf
        # Only now is the best known that decides which scores tie.
        tied = [choice for choice in choices if choice.score >= best - slack(best)]
        active = self._lowest(best)
        return min([*tied, active] if active else tied, default=None)
