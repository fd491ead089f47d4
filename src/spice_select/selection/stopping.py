"""When to stop: pure functions of the trace of gains.

References:
    SPICE+, ICLR 2026, arXiv 2601.23155, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

ROBUST_PICKS = 5
OUTLIER_WINDOW = 10
OUTLIER_FACTOR = 2.0


@dataclass(frozen=True)
class StopRule:
    """Stop before the first later pick whose gain is at most ``ratio`` times the first gain.

    Attributes:
        ratio: omega; None: never stop.
        robust: Compare with the median of the first five gains instead, and never stop among those.
    """

    ratio: float | None = None
    robust: bool = False

    def stops(self, gains: Sequence[float], gain: float) -> bool:
        """Whether a row of this gain is left out, and the selection ends, after these gains."""
        if self.ratio is None or not gains:
            return False
        if not self.robust:
            return gain <= self.ratio * gains[0]
        return len(gains) >= ROBUST_PICKS and gain <= self.ratio * median(gains[:ROBUST_PICKS])


def first_gain_is_outlier(gains: Sequence[float], rejected: float | None = None) -> bool:
    """Whether the first gain is more than twice the median of the next ten, the one that stopped the run included."""
    following = list(gains[1 : 1 + OUTLIER_WINDOW])
    if rejected is not None and len(following) < OUTLIER_WINDOW:
        following.append(rejected)
    return bool(following) and gains[0] > OUTLIER_FACTOR * median(following)
