"""What a page is made of: the numbers of one run, and a way to the texts of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.neighbours import Neighbours
from spice_select.analysis.projection import Projection
from spice_select.analysis.record import PoolRecord, SelectionRecord
from spice_select.analysis.rejected import Rejected

Messages = Sequence[tuple[str, str]]
"""Role and text of every message of a row."""
Texts = Callable[[Sequence[int]], Mapping[int, Messages]]
"""The messages of these rows, by row number; a row whose text is not at hand is absent."""

STOPS = {
    "budget": "the budget is filled",
    "stop_ratio": "the stop ratio ended the run",
    "tokens": "no further row fits the token budget",
    "exhausted": "no further row was left",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """One value for every pick, in order of choice.

    Attributes:
        indices: Row numbers.
        gains: Marginal information gains, in nats.
        bases: What each is worth alone, in nats.
        epsilons: What the picks before it take away, in nats.
        conflicts: Conflicts when picked.
    """

    indices: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"]
    bases: Float[np.ndarray, " k"]
    epsilons: Float[np.ndarray, " k"]
    conflicts: Float[np.ndarray, " k"]


def _no_texts(rows: Sequence[int]) -> Mapping[int, Messages]:
    return {}


@dataclass(frozen=True, eq=False)
class RunContent:
    """Everything that the page of one run shows; what is None or empty is left out of it.

    Attributes:
        title: Title of the page, or name of the run beside others.
        record: What the run did.
        trace: Its picks.
        sources: Name of every row's source; None where it is not known.
        lengths: Response tokens of every row of the pool.
        norms: Gradient norm of every row, before any normalisation.
        usable: Rows that could be chosen.
        projection: Rows as points of the plane.
        rejected: What the rows left out would add now, and their conflicts.
        neighbours: Rows left out whose gradient is nearly that of a pick.
        texts: Messages of rows.
        remarks: What is missing and why, in plain sentences.
    """

    title: str
    record: SelectionRecord
    trace: Trace
    sources: Sequence[str] | None = None
    lengths: Int[np.ndarray, " n"] | None = None
    norms: Float[np.ndarray, " n"] | None = None
    usable: Bool[np.ndarray, " n"] | None = None
    projection: Projection | None = None
    rejected: Rejected | None = None
    neighbours: Neighbours | None = None
    texts: Texts = _no_texts
    remarks: tuple[str, ...] = field(default=())

    @property
    def pools(self) -> tuple[PoolRecord, ...]:
        """Pools of a run that chose pool by pool."""
        schedule = self.record.schedule
        return () if schedule is None else schedule.pools

    @property
    def conflicts(self) -> dict[int, float]:
        """Conflict of every row that has one: of a pick when it was picked, of another after the last pick."""
        found: dict[int, float] = {}
        if self.rejected is not None:
            rows = np.flatnonzero(self.rejected.conflicts > 0)
            if self.usable is not None:
                rows = rows[self.usable[rows]]
            found = dict(zip(rows.tolist(), self.rejected.conflicts[rows].tolist(), strict=True))
        for index, conflict in zip(self.trace.indices.tolist(), self.trace.conflicts.tolist(), strict=True):
            found.pop(index, None)
            if conflict > 0:
                found[index] = conflict
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the run, each once."""
        return tuple(dict.fromkeys((*self.record.warnings, *self.record.summary.warnings)))


def verdict(content: RunContent) -> tuple[str, str, str]:
    """The outcome in three plain sentences: how much information, how near the best, penalty and warnings."""
    record = content.record
    how = STOPS.get(record.stop_reason, record.stop_reason)
    total = np.cumsum(content.trace.gains)
    half = int(np.searchsorted(total, total[-1] / 2)) + 1 if len(total) else 0
    where = f", half of it in the first {half:,}" if len(total) > 3 and total[-1] > 0 and not content.pools else ""
    added = ", each pool's within it, added up" if content.pools else ""
    first = (
        f"{record.k:,} of {record.usable:,} usable rows were chosen, and they hold {record.information:,.4g} nats of"
        f" Fisher information{where}{added}; {how}."
    )
    return first, _bound(content), _penalty(record.summary.changed_by_penalty, len(content.warnings))


def _bound(content: RunContent) -> str:
    record = content.record
    if record.certificate_sentence:
        return record.certificate_sentence
    proven = [pool.certificate for pool in content.pools if pool.certificate is not None]
    if proven:
        return (
            f"Within each pool the picks hold at least {percent_down(min(proven))} of the Fisher information that as"
            " many of its rows could hold (proven for this run); bounds of pools don't add up to one of the whole."
        )
    if record.objective.fisher != "exact":
        return f"No bound on their quality is stated, as the {record.objective.fisher} form is no exact information."
    return "No bound on their quality was computed."


def _penalty(changed: int | None, warnings: int) -> str:
    if changed is None:
        said = "No conflict penalty was on"
    elif changed == 0:
        said = "The conflict penalty changed none of the picks"
    else:
        said = f"The conflict penalty changed {changed:,} of the picks"
    if warnings:
        return f"{said}; read the warning{'s' if warnings > 1 else ''} below before you train on them."
    return f"{said}; in response length, gradient norm and source they stay within a factor of 2 of the pool."
