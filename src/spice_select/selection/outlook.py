"""What a run knows at its end about rows it did not choose, for whoever wants to say how good its choice is.

Gains only shrink, so that a gain measured at any step bounds the gain at the end from above. A lazy run has such a
bound for every row and has refreshed most of those that matter; a dense one has all of them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from spice_select.selection.fisher import LogDet


@dataclass(frozen=True, eq=False)
class Ending:
    """What an engine hands over.

    Attributes:
        potentials: q = g^T (I + a F_S)^-1 g of each row, as last measured, extra rows of the pool included.
        information: The state of S, from which they can be measured again; None where they are all of the end.
        work: Multiply-adds that the engine has spent on rows.
    """

    potentials: Float[np.ndarray, " n"]
    information: LogDet | None
    work: float


@dataclass(frozen=True, eq=False)
class Outlook:
    """Upper bounds of what every row could still add at the end of a run, but for rounding.

    S holds the rows in hand and all picks, or all but the last.

    Attributes:
        alpha: Fisher scale a.
        potentials: At least g^T (I + a F_S)^-1 g of each scaled row, shape [n].
        squared_norms: |g|^2 of each scaled row; 0 for an unusable one.
        gains: Gain of each pick in nats, in order.
        held: a sum |g|^2 over S and the last pick, at least a |F_S|_2, by which rounding is bounded.
        members: Rows of S and the last pick.
        work: Multiply-adds that the run has spent on rows.
        information: Measures potentials of rows again, given S; None where they are exact.
    """

    alpha: float
    potentials: Float[np.ndarray, " n"]
    squared_norms: Float[np.ndarray, " n"]
    gains: Float[np.ndarray, " t"]
    held: float
    members: int
    work: float
    information: LogDet | None = None

    def fits(self, n: int, alpha: float, picks: int, held: int) -> bool:
        """Whether this can be of a run over n rows at that scale which made so many picks beyond those in hand."""
        same = len(self.potentials) == n and self.alpha == alpha
        return same and len(self.gains) == picks and self.members == held + picks

    @property
    def bounds(self) -> Float[np.ndarray, " n"]:
        """Upper bound of each row's gain at the end, in nats, but for rounding; picks have theirs too."""
        return np.log1p(self.alpha * self.potentials)


def outlook_of(
    ending: Ending | None,
    alpha: float,
    squared_norms: Float[np.ndarray, " n"],
    in_hand: Int[np.ndarray, " m"],
    picks: Sequence[int],
    gains: Float[np.ndarray, " t"],
) -> Outlook | None:
    """What an engine knows, with what belongs to it; None where it knows nothing."""
    if ending is None:
        return None
    members = np.concatenate([in_hand, np.array(picks, dtype=np.int64)])
    return Outlook(
        alpha=alpha,
        potentials=ending.potentials,
        squared_norms=squared_norms,
        gains=gains,
        held=alpha * float(squared_norms[members].sum()),
        members=len(members),
        work=ending.work,
        information=ending.information,
    )
