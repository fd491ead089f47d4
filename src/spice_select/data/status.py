"""What became of a row on its way to a gradient."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """State of one example; its number is what the gradient store writes."""

    OK = 0
    TRUNCATED = 1
    """Usable; some of the prompt or of the response did not fit."""
    NO_RESPONSE = 2
    """No token to take a loss on."""
    NON_FINITE = 3
    """The loss or the gradient is NaN or infinite."""
    EXCLUDED = 4
    """Left out by request, as a row of an evaluation file."""

    @property
    def usable(self) -> bool:
        """Whether the row has a gradient to select by."""
        return self in (Status.OK, Status.TRUNCATED)
