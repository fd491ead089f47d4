"""One quantity, or one share, among the picks and in the pool."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

FACTOR = 2.0
"""A ratio between picks and pool beyond this, or below its inverse, is worth a warning."""


class Numbers(BaseModel):
    """Base of the results here: frozen, closed to unknown fields, and JSON by ``model_dump_json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Comparison(Numbers):
    """One quantity among the picks and in the pool; None where there was no row to measure."""

    picks: float | None
    pool: float | None

    @property
    def ratio(self) -> float | None:
        """Picks over pool."""
        if self.picks is None or self.pool is None or self.pool <= 0:
            return None
        return self.picks / self.pool

    @property
    def apart(self) -> bool:
        """Whether they lie further apart than a factor of 2."""
        return self.ratio is not None and not 1 / FACTOR <= self.ratio <= FACTOR


class Share(Numbers):
    """One source, or one value of another grouping, before and after.

    Attributes:
        name: Its name.
        pool: Its usable rows.
        pool_share: Those, over all usable rows.
        picks: Its rows among the picks.
        picks_share: Those, over all picks.
        expected: Picks that its share of the pool would give it.
    """

    name: str
    pool: int
    pool_share: float
    picks: int
    picks_share: float
    expected: float

    @property
    def apart(self) -> bool:
        """Whether its share changed beyond a factor of 2, by more than one row."""
        if self.pool == 0 or abs(self.picks - self.expected) <= 1:
            return False
        return not 1 / FACTOR <= self.picks / self.expected <= FACTOR
