"""SPICE+: SPICE that stops where gains have become small."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from spice_select.methods.spice import Spice


class SpicePlus(Spice):
    """SPICE with a stop ratio: the budget is a cap, and may be absent."""

    name: ClassVar[str] = "spice_plus"
    summary: ClassVar[str] = "as spice, until a gain falls to a share of the first one"

    stop_ratio: Annotated[float, Field(gt=0)] = 0.5
    """Stop before the first pick whose gain is at most this share of the first (the paper's omega)."""
    robust_stop: bool | None = None
    """Compare with the median of the first few gains instead of the first alone."""
