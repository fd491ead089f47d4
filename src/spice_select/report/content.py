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
    """One value for every pick, in order of choice; what needs gradients is None where there were none.

    Attributes:
        indices: Row numbers.
        gains: Marginal information gains, in nats.
        bases: What each is worth alone, in nats.
        epsilons: What the picks before it take away, in nats.
        conflicts: Conflicts when picked.
        scores: What each was chosen by.
    """

    indices: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"] | None
    bases: Float[np.ndarray, " k"] | None
    epsilons: Float[np.ndarray, " k"] | None
    conflicts: Float[np.ndarray, " k"] | None
    scores: Float[np.ndarray, " k"] | None = None


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
        pool_scores: Score of every row of the pool, for a method that scores rows by themselves.
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
    pool_scores: Float[np.ndarray, " n"] | None = None
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
        picks = self.trace.indices.tolist()
        # Without gradients there are neither conflicts of picks nor of others.
        own = np.zeros(len(picks)) if self.trace.conflicts is None else self.trace.conflicts
        for index, conflict in zip(picks, own.tolist(), strict=True):
            found.pop(index, None)
            if conflict > 0:
                found[index] = conflict
        return found

    @property
    def score_name(self) -> str:
        """What the scores of the picks are, in a few words."""
        method = self.record.method
        return (method.score if method is not None else "") or "score"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the run, each once."""
        return tuple(dict.fromkeys((*self.record.warnings, *self.record.summary.warnings)))


def verdict(content: RunContent) -> tuple[str, str, str]:
    """The outcome in three parts: how much information, how near the best or by what score, penalty and warnings."""
    if not content.record.maximised:
        return _chosen(content), _bound(content), _likeness(content)
    return _maximised(content), _bound(content), _penalty(content)


def _maximised(content: RunContent) -> str:
    record, gains = content.record, content.trace.gains
    total = np.cumsum(() if gains is None else gains)
    half = int(np.searchsorted(total, total[-1] / 2)) + 1 if len(total) else 0
    where = f", half of it in the first {half:,}" if len(total) > 3 and total[-1] > 0 and not content.pools else ""
    added = ", each pool's within it, added up" if content.pools else ""
    by = "" if record.label == "SPICE" else f" by {record.label}"
    return (
        f"{record.k:,} of {record.usable:,} usable rows were chosen{by}, and they hold"
        f" {record.information or 0.0:,.4g} nats of Fisher information{where}{added}; {_end(record)}."
    )


def _chosen(content: RunContent) -> str:
    record = content.record
    first = f"{record.k:,} of {record.usable:,} usable rows were chosen by {record.label}; {_end(record)}."
    if content.score_name != "score":
        first += f" Score of a row: {content.score_name}."
    return first


def _end(record: SelectionRecord) -> str:
    return STOPS.get(record.stop_reason, record.stop_reason)


def _bound(content: RunContent) -> str:
    record = content.record
    if not record.maximised:
        if record.information is None:
            return "How much Fisher information the picks hold is not known, as no gradients were measured."
        return (
            f"The picks hold {record.information:,.4g} nats of Fisher information, which was measured and not"
            f" maximised. {record.certificate_sentence or ''}"
        ).strip()
    if record.certificate_sentence:
        return record.certificate_sentence
    proven = [pool.certificate for pool in content.pools if pool.certificate is not None]
    if proven:
        return (
            f"Within each pool the picks hold at least {percent_down(min(proven))} of the Fisher information that as"
            " many of its rows could hold (proven for this run); bounds of pools don't add up to one of the whole."
        )
    if record.objective is not None and record.objective.fisher != "exact":
        return f"No bound on their quality is stated, as the {record.objective.fisher} form is no exact information."
    return "No bound on their quality was computed."


def _penalty(content: RunContent) -> str:
    changed, warnings = content.record.summary.changed_by_penalty, len(content.warnings)
    if changed is None:
        said = "No conflict penalty was on"
    elif changed == 0:
        said = "The conflict penalty changed none of the picks"
    else:
        said = f"The conflict penalty changed {changed:,} of the picks"
    if warnings:
        return f"{said}; read the warning{'s' if warnings > 1 else ''} below before you train on them."
    return f"{said}; in response length, gradient norm and source they stay within a factor of 2 of the pool."


def _likeness(content: RunContent) -> str:
    warnings = len(content.warnings)
    if warnings:
        return f"Read the warning{'s' if warnings > 1 else ''} below before you train on them."
    norm = "" if content.record.summary.norm_median is None else ", gradient norm"
    return f"In response length{norm} and source they stay within a factor of 2 of the pool."
