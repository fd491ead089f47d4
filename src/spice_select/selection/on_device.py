"""The dense and the lazy loop on a torch device, a GPU for instance, in plain torch.

Rows lie on the device as float64 where they fit into half of what is free, else as float32. The inverse of the
information, potentials and scores are float64 in both cases. With float64 rows the picks are those of the CPU; with
float32 rows they are so too where the rows came in float32, as those of a store do: what normalisation multiplies them
by is kept beside them. Rows of more digits are rounded to float32 (relative 6e-8). Potentials of the dense loop, which
are brought up to date step by step, are confirmed: the winner and all rows that rounding might put in its place are
measured again from the inverse before a pick is made.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spice_select.errors import ConfigError, ResourceError
from spice_select.selection.conflict import Conflict, Score
from spice_select.selection.greedy import Choice, slack
from spice_select.selection.outlook import Ending
from spice_select.selection.rows import Pool

WAITING = 64
FIRST_BATCH = 64
LARGEST_BATCH = 4096
SHARE_OF_FREE = 0.5
EPS32 = 2.0**-24


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: No such device, or one without float64.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"device '{name}' cannot be used here ({said.rstrip('.')}); give 'cpu', or 'cuda' where there is one."
        ) from None
    return device


class _Inverse:
    """(I + a F_S)^-1 on a device, with the last rows of U waiting until they are taken off together."""

    def __init__(self, alpha: float, dim: int, device: torch.device) -> None:
        self._alpha = alpha
        self._matrix = torch.eye(dim, dtype=torch.float64, device=device)
        self._waiting = torch.empty((WAITING, dim), dtype=torch.float64, device=device)
        self._count = 0

    def times(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """The product with each row."""
        out = rows @ self._matrix
        waiting = self._waiting[: self._count]
        return out - (rows @ waiting.T) @ waiting if self._count else out

    def add(self, row: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Put a row into S; returns the update vector u, by which every potential falls by <g, u>^2."""
        image = self.times(row[None])[0]
        potential = torch.clamp(image @ row, min=0.0)
        vector = image * torch.sqrt(self._alpha / (1.0 + self._alpha * potential))
        if self._count == WAITING:
            self._matrix -= self._waiting.T @ self._waiting
            self._count = 0
        self._waiting[self._count] = vector
        self._count += 1
        return vector


class _OnDevice:
    """What both loops share: rows, inverse, mean and scores on the device."""

    def __init__(
        self,
        pool: Pool,
        alpha: float,
        conflict: Conflict,
        score: Score,
        eligible: Bool[np.ndarray, " n"],
        device: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._device = usable_device(device)
        self._pool = pool
        self._alpha = alpha
        self._conflict = conflict
        self._score = score
        self._inverse = _Inverse(alpha, pool.dim, self._device)
        self._factors: Tensor | None = None
        self._potentials = self._tensor(pool.squared_norms)
        self._rows = self._resident(dtype)
        self._norms = self._potentials.sqrt()
        self._total = torch.zeros(pool.dim, dtype=torch.float64, device=self._device)
        self._eligible = torch.as_tensor(eligible, device=self._device)
        self._fixed = None if conflict.fixed is None else self._tensor(conflict.fixed)
        self._per_row = None if score.per_row is None else self._tensor(score.per_row)
        self._work = 0.0
        self._begin()

    def _begin(self) -> None:
        """Set up what a loop keeps beside this."""

    def close(self, indices: Int[np.ndarray, " m"]) -> None:
        """Take rows out of the candidates."""
        self._eligible[torch.as_tensor(indices, device=self._device)] = False

    def _add(self, index: int) -> tuple[Tensor, Tensor]:
        row = self._scaled(torch.tensor([index], device=self._device))[0]
        self._conflict.add(row.cpu().numpy())
        self._total += row
        return row, self._inverse.add(row)

    def _scaled(self, ids: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Rows in float64."""
        rows = self._rows[ids].double()
        return rows if self._factors is None else rows * self._factors[ids, None]

    def _exact(self, ids: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Potentials of rows, from the inverse."""
        rows = self._scaled(ids)
        self._work += float(len(ids)) * self._pool.dim**2
        return torch.clamp((self._inverse.times(rows) * rows).sum(dim=1), min=0.0)

    def _gains(self, potentials: Tensor) -> Tensor:
        return torch.log1p(self._alpha * potentials)

    def _conflicts(self, ids: Tensor | slice, dots: Tensor | None) -> Tensor:
        norms = self._norms[ids]
        if self._fixed is not None:
            return self._fixed[ids]
        if self._conflict.norm == 0.0 or dots is None:
            return torch.zeros_like(norms)
        cosines = (dots / (torch.where(norms > 0, norms, 1.0) * self._conflict.norm)).clamp(-1.0, 1.0)
        return torch.where(norms > 0, torch.clamp(self._conflict.hinge - cosines, min=0.0), 0.0)

    def _scores(self, ids: Tensor | slice, gains: Tensor, conflicts: Tensor) -> Tensor:
        penalty = self._score.weight * conflicts
        scores = gains * (1.0 - penalty) if self._score.relative else gains - penalty
        return scores if self._per_row is None else scores * self._per_row[ids]

    def _bound(self, ids: Tensor | slice, gains: Tensor) -> Tensor:
        """The most that rows can score now or later; see :meth:`Score.bound`."""
        bounds = gains
        if self._score.weight and self._fixed is not None:
            penalty = self._score.weight * self._fixed[ids]
            bounds = gains * torch.clamp(1.0 - penalty, min=0.0) if self._score.relative else gains - penalty
        return bounds if self._per_row is None else bounds * self._per_row[ids]

    def _settle(self, bounds: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, Choice] | None:
        """Measure rows from the highest bound down until the best exact score beats the next bound.

        Returns:
            The rows measured, their potentials, and the best; None where no row is eligible.
        """
        waiting = torch.where(self._eligible, bounds, -torch.inf)
        size, best = min(FIRST_BATCH, len(waiting)), -math.inf
        seen: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        while True:
            values, ids = torch.topk(waiting, size)
            floor = best - 2 * slack(best) if seen else -math.inf
            ids = ids[(values > -torch.inf) & (values >= floor)]
            if not len(ids):
                break
            potentials = self._exact(ids)
            gains = self._gains(potentials)
            dots = None
            if self._fixed is None and self._conflict.norm:
                dots = self._scaled(ids) @ self._total
            conflicts = self._conflicts(ids, dots)
            scores = self._scores(ids, gains, conflicts)
            seen.append((ids, potentials, gains, conflicts, scores))
            waiting[ids] = -torch.inf
            best = max(best, float(scores.max()))
            size = min(2 * size, LARGEST_BATCH, len(waiting))
        if not seen:
            return None
        ids, potentials, gains, conflicts, scores = (torch.cat(parts) for parts in zip(*seen, strict=True))
        tied = torch.nonzero(scores >= best - slack(best))[:, 0]
        at = tied[torch.argmin(ids[tied])]
        values = torch.stack([gains[at], conflicts[at], scores[at]]).tolist()
        return ids, potentials, Choice(int(ids[at]), *values)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float64, device=self._device)

    def _resident(self, dtype: torch.dtype | None) -> Float[Tensor, "n d"]:
        """All rows on the device, copied block by block."""
        count, dim = len(self._pool), self._pool.dim
        if dtype is None:
            dtype = torch.float64
            if self._device.type == "cuda":
                free = torch.cuda.mem_get_info(self._device)[0]
                dtype = torch.float64 if 8 * count * dim <= SHARE_OF_FREE * free else torch.float32
        try:
            rows = torch.empty((count, dim), dtype=dtype, device=self._device)
        except RuntimeError as error:
            if "memory" not in str(error).lower():
                raise
            raise ResourceError(
                f"{count} gradient rows of {dim} numbers do not fit into the memory of device '{self._device}'; use "
                "device 'cpu', which reads them from disk, or partitions."
            ) from None
        factors = np.ones(count)
        if dtype != torch.float64 and self._pool.factors is not None:
            # What came in float32 comes back to the bit by a division in float64, and is rounded by none.
            factors[: self._pool.n] = np.where(self._pool.factors == 0.0, 1.0, self._pool.factors)
            self._factors = self._tensor(factors)
        for start, block in self._pool.blocks():
            part = slice(start, start + len(block))
            given = block if self._factors is None else block / factors[part, None]
            rows[part] = torch.from_numpy(np.ascontiguousarray(given)).to(self._device, dtype)
            if dtype != torch.float64:
                # Of the rows as they lie here, so that these are bounds of what is measured of them.
                wide = rows[part].double()
                wide = wide if self._factors is None else wide * self._factors[part, None]
                self._potentials[part] = (wide * wide).sum(dim=1)
        return rows


class DeviceDense(_OnDevice):
    """Every row's potential kept up to date by one product of all rows with two vectors a step.

    ``_doubt`` bounds what rounding of float32 rows' products may have done to a potential since it was last measured.
    """

    def _begin(self) -> None:
        self._dots = torch.zeros_like(self._potentials)
        self._doubt = torch.zeros_like(self._potentials) if self._rows.dtype != torch.float64 else None

    def best(self) -> Choice | None:
        """The best eligible row."""
        if self._doubt is not None:
            # A conflict is never negative, so that the gain bounds the score whatever rounding did to a dot.
            found = self._settle(self._bound(slice(None), self._gains(self._potentials + self._doubt)))
            if found is None:
                return None
            ids, potentials, choice = found
            self._potentials[ids], self._doubt[ids] = potentials, 0.0
            return choice
        gains = self._gains(self._potentials)
        conflicts = self._conflicts(slice(None), self._dots)
        scores = torch.where(self._eligible, self._scores(slice(None), gains, conflicts), -torch.inf)
        best = float(scores.max())
        if best == -math.inf:
            return None
        at = int(torch.nonzero(scores >= best - slack(best))[0, 0])
        return Choice(at, *torch.stack([gains[at], conflicts[at], scores[at]]).tolist())

    def add(self, index: int) -> None:
        """Put a row into S and bring every row up to date."""
        row, vector = self._add(index)
        self._work += float(len(self._rows)) * self._pool.dim
        wants_dots = self._fixed is None and self._doubt is None
        both = torch.stack([vector, row] if wants_dots else [vector], dim=1).to(self._rows.dtype)
        products = (self._rows @ both).double()
        products = products if self._factors is None else products * self._factors[:, None]
        onto = products[:, 0]
        self._potentials = torch.clamp(self._potentials - onto * onto, min=0.0)
        if wants_dots:
            self._dots += products[:, 1]
        if self._doubt is not None:
            # Rounding of a product of d terms, as random walks go, with room to spare.
            error = 8.0 * EPS32 * math.sqrt(self._pool.dim) * self._norms * torch.linalg.vector_norm(vector)
            self._doubt += (2.0 * onto.abs() + error) * error

    def ending(self) -> Ending | None:
        """Potentials of the end for every row where rows are float64; nothing else is told."""
        if self._doubt is not None:
            return None
        return Ending(self._potentials.cpu().numpy(), None, self._work)


class DeviceLazy(_OnDevice):
    """Stale scores as upper bounds; the rows with the highest are measured again from the inverse, in batches."""

    def best(self) -> Choice | None:
        """The best eligible row."""
        found = self._settle(self._bound(slice(None), self._gains(self._potentials)))
        if found is None:
            return None
        ids, potentials, choice = found
        self._potentials[ids] = potentials
        return choice

    def add(self, index: int) -> None:
        """Put a row into S; every bound stays one."""
        self._add(index)

    def ending(self) -> None:
        """Nothing: the certificate measures again."""
