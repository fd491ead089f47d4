"""The walk over the data: which rows make up which pool, and how many of each may be picked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from spice_select.gradients.random import Stream


@dataclass(frozen=True)
class Walk:
    """Rows in the order in which they are offered, each exactly once.

    Attributes:
        order: Row numbers, shuffled.
        pool_size: Rows of a pool; the last may be short.
    """

    order: Int[np.ndarray, " m"]
    pool_size: int

    @staticmethod
    def plan(offered: Bool[np.ndarray, " rows"], pool_size: int, seed: int) -> Walk:
        """Shuffle the rows that may be picked.

        Args:
            offered: Which rows may be picked.
            pool_size: Rows of a pool.
            seed: The seed alone decides the order of given rows.
        """
        rows = np.flatnonzero(offered)
        keys = Stream(seed, "walk", "order").uniform(len(rows))
        return Walk(rows[np.argsort(keys, kind="stable")], pool_size)

    def __len__(self) -> int:
        return -(-len(self.order) // self.pool_size)

    def pool(self, number: int) -> Int[np.ndarray, " p"]:
        """Rows of a pool."""
        return self.order[number * self.pool_size : (number + 1) * self.pool_size]

    def share(self, total: int, pools: int) -> int:
        """How much of a total the first pools are due: its share of the rows, rounded half up."""
        rows = min(pools * self.pool_size, len(self.order))
        return (2 * total * rows + len(self.order)) // (2 * len(self.order))

    def due(self, total: int, number: int, spent: int) -> int:
        """What a pool may spend so that the total comes out exactly, whatever was left over by the pools before it."""
        return max(0, self.share(total, number + 1) - spent)

    def fair(self, total: int, number: int) -> int:
        """What a pool may spend where pools need not fill their share."""
        return self.share(total, number + 1) - self.share(total, number)

    def steps(self, due: Callable[[int], int], interval: int, batch_size: int) -> int:
        """Optimiser steps of all trainings if each pool gives what it may: the length of the learning-rate schedule.

        Args:
            due: Picks of a pool.
            interval: Pools between two trainings; after the last pool there is none.
            batch_size: Examples of one step.
        """
        boundaries = range(interval, len(self), interval)
        return sum(-(-sum(map(due, range(last - interval, last))) // batch_size) for last in boundaries)
