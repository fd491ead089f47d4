"""The picks of a run, whatever method chose them, with what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Picked:
    """One value for every pick, in order of choice; what needs gradients is None where there were none.

    Attributes:
        indices: Row numbers.
        scores: What each was chosen by.
        gains: What each adds to the information of those before it, in nats.
        bases: What each is worth alone, in nats.
        epsilons: gain - base: what those before it take away.
        conflicts: Conflict of each with its reference, when its turn came.
    """

    indices: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"] | None = None
    bases: Float[np.ndarray, " k"] | None = None
    epsilons: Float[np.ndarray, " k"] | None = None
    conflicts: Float[np.ndarray, " k"] | None = None
