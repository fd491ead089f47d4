"""What is told of a walk while it goes on: to the terminal, and to a tracker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from spice_select.analysis.record import TrainingRecord
from spice_select.reporter import Reporter
from spice_select.schedule.log import PoolEntry
from spice_select.schedule.tracking import Tracking
from spice_select.schedule.walk import Walk


class Progress:
    """Counts what this process has done, and tells of it.

    Args:
        walk: The order of the rows.
        reporter: Hears of every micro-batch and pool.
        tracking: Is told of every pool and training.

    Attributes:
        tokens: Tokens of the pools that this process has finished.
        seconds: Seconds by stage.
    """

    def __init__(self, walk: Walk, reporter: Reporter, tracking: Tracking) -> None:
        self.tokens = 0
        self.seconds: dict[str, float] = {}
        self._walk = walk
        self._reporter = reporter
        self._tracking = tracking
        self._detail = ""

    def timed(self, stage: str, began: float) -> None:
        """Count the time since ``began`` by ``time.perf_counter``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def within(self, number: int, tokens: int) -> Callable[[float], None]:
        """What tells of the progress inside a pool, which may take minutes.

        Args:
            number: The pool.
            tokens: Its tokens.
        """
        began = time.perf_counter()
        before, rows, total = number * self._walk.pool_size, len(self._walk.pool(number)), len(self._walk.order)

        def tell(share: float) -> None:
            # The end is told once, by the pool itself.
            done = min(before + int(share * rows), before + rows - 1)
            seconds = sum(self.seconds.values()) + time.perf_counter() - began
            self._reporter.advance(done, total, self.tokens + int(share * tokens), seconds, self._detail)

        return tell

    def tell(self, entries: Sequence[PoolEntry]) -> None:
        """A pool is done, the last of ``entries``."""
        entry = entries[-1]
        picked = sum(len(done.picks) for done in entries)
        gain = entry.information / len(entry.picks) if entry.picks else 0.0
        opposing = float(np.mean(np.array(entry.conflicts) > 0)) if entry.conflicts else 0.0
        self._detail = f"pool {entry.pool + 1}/{len(self._walk)}, {picked:,} picks"
        values = {"pool/picks": float(len(entry.picks)), "pool/gain": gain, "pool/conflict": opposing}
        if (loss := entry.mean_loss) is not None:
            self._detail += f", loss {loss:.3f}, gain {gain:.3g}, in conflict {opposing:.0%}"
            values["pool/loss"] = loss
        if entry.activity is not None and entry.activity.opposing_pairs_share is not None:
            values["pool/opposing_pairs"] = entry.activity.opposing_pairs_share
        offered = min((entry.pool + 1) * self._walk.pool_size, len(self._walk.order))
        self._reporter.advance(offered, len(self._walk.order), self.tokens, sum(self.seconds.values()), self._detail)
        self._tracking.log(values, entry.pool + 1)

    def trained(self, training: TrainingRecord) -> None:
        """The proxy was trained."""
        self._tracking.log({"training/loss": training.loss, "training/lr": training.learning_rate}, training.after)
