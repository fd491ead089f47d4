"""The whole analysis of a run, a store or an array: its parts, as text, as JSON and as tables."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from spice_select.analysis.certificate import Certificate, percent_down
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.coverage import Coverage
from spice_select.analysis.diversity import Diversity
from spice_select.analysis.overlap import Overlaps
from spice_select.analysis.pool_theory import PoolTheory
from spice_select.analysis.record import ScheduleRecord
from spice_select.analysis.tables import number, percent
from spice_select.analysis.theory import TheoryReport
from spice_select.analysis.theory_text import sections

if TYPE_CHECKING:
    import pandas

WIDTH = 80


class Subject(Numbers):
    """What was analysed.

    Attributes:
        kind: ``run``: a folder with a selection; ``store``: gradients of which nothing was chosen; ``array``.
        name: Folder, or what the caller called it.
        rows: Rows that were read.
        usable: Rows that could be chosen.
        picks: Rows that were chosen; None for a store.
        dim: Length of a gradient row; None without gradients.
        alpha: Fisher scale a; None where there was one for each pool.
        normalize: Normalisation of the rows.
        fisher: Form of the Fisher information.
        conflict_weight: Weight of the penalty.
        penalty: Its form and what conflict is measured against, in words.
        information: F of the picks, in nats.
        stop_reason: Why the run ended.
        method: Name of the method that chose, where the run names one.
        maximised: Whether the picks maximise information, rather than being measured by it or not at all.
    """

    kind: Literal["run", "store", "array"]
    name: str
    rows: int
    usable: int
    picks: int | None = None
    dim: int | None = None
    alpha: float | None = None
    normalize: str = "none"
    fisher: str = "exact"
    conflict_weight: float | None = None
    penalty: str = ""
    information: float | None = None
    stop_reason: str | None = None
    method: str | None = None
    maximised: bool = True

    def describe(self) -> list[str]:
        """A few lines of names and values."""
        chosen = "nothing chosen" if self.picks is None else f"{self.picks:,} chosen"
        if self.picks and self.usable:
            chosen += f" ({self.picks / self.usable:.1%} of the usable)"
        scale = "" if self.alpha is None else f", a = {number(self.alpha)}"
        objective = _OBJECTIVES.get(self.fisher, self.fisher) + scale
        if not self.maximised:
            objective = f"its own; information is {objective}" if self.alpha is not None else "its own"
        facts = {
            "method": self.method or "",
            "rows": f"{self.rows:,} ({self.usable:,} usable), {chosen}",
            "gradients": "not here" if self.dim is None else f"{self.dim:,} numbers each, normalised: {self.normalize}",
            "objective": objective,
            "penalty": self.penalty,
            "information": "" if self.information is None else f"{self.information:,.3f} nats",
        }
        return [f"  {name:<13}{value}" for name, value in facts.items() if value]


_OBJECTIVES = {"exact": "log det (I + a F)"}


class TraceFacts(Numbers):
    """What the trace of a run says by itself, where its gradients are not at hand.

    Attributes:
        picks: Picks in the trace.
        first_gain: Gain of the first pick, in nats.
        median_gain: Median gain.
        median_base: Median of what a pick is worth alone.
        median_epsilon: Median epsilon.
        opposing: Share of the picks with conflict above 0.
        gain: Spearman of conflict with gain; None where a side is constant.
        epsilon: Spearman of conflict with |epsilon|.
        half_life: First pick whose gain is at most half of the first; None where none is, or pools have their own.
    """

    picks: int
    first_gain: float
    median_gain: float
    median_base: float
    median_epsilon: float
    opposing: float
    gain: float | None
    epsilon: float | None
    half_life: int | None

    def describe(self) -> list[str]:
        """A few lines."""
        lines = [
            f"  Gain {number(self.first_gain)} of the first pick, median {number(self.median_gain)} = base"
            f" {number(self.median_base)} + epsilon {number(self.median_epsilon)} (medians each).",
            f"  {self.opposing:.1%} of the picks oppose; Spearman of conflict with gain {_show(self.gain)}, with"
            f" |epsilon| {_show(self.epsilon)}.",
        ]
        if self.half_life is not None:
            lines.append(f"  Half of the first gain is gone at pick {self.half_life:,}.")
        return lines


class PoolFacts(Numbers):
    """The pools of a schedule, each of which was selected from by itself.

    Attributes:
        pools: Number of pools.
        offered: Rows that they offered.
        certificate_least: Least certificate of a pool; a certificate never speaks of several together.
        certificate_median: Median of theirs.
        opposing_first: Share of the pairs of rows whose gradients oppose, in the first pool.
        opposing_last: The same in the last pool.
        changed_by_penalty: Picks that the penalty changed, over all pools; None without penalty.
    """

    pools: int
    offered: int
    certificate_least: float | None
    certificate_median: float | None
    opposing_first: float | None
    opposing_last: float | None
    changed_by_penalty: int | None

    @classmethod
    def of(cls, schedule: ScheduleRecord) -> PoolFacts:
        """Gather what a record says pool by pool."""
        proven = [pool.certificate for pool in schedule.pools if pool.certificate is not None]
        changed = [pool.changed_by_penalty for pool in schedule.pools if pool.changed_by_penalty is not None]
        return cls(
            pools=len(schedule.pools),
            offered=schedule.offered,
            certificate_least=min(proven, default=None),
            certificate_median=float(np.median(proven)) if proven else None,
            opposing_first=schedule.pools[0].opposing_pairs if schedule.pools else None,
            opposing_last=schedule.pools[-1].opposing_pairs if schedule.pools else None,
            changed_by_penalty=sum(changed) if changed else None,
        )

    def describe(self) -> list[str]:
        """A few lines."""
        lines = [f"  {self.pools:,} pools offered {self.offered:,} rows; the information above is a sum over them."]
        if self.certificate_least is not None:
            lines.append(
                f"  Each pool's picks hold at least {percent_down(self.certificate_least)} of what as many rows of it"
                f" could hold (proven; median {percent_down(self.certificate_median or 0.0)})."
            )
        if self.opposing_first is not None:
            lines.append(
                f"  Pairs of gradients that oppose: {percent(self.opposing_first)} in the first pool,"
                f" {percent(self.opposing_last)} in the last."
            )
        if self.changed_by_penalty is not None:
            lines.append(f"  Picks changed by the penalty: {self.changed_by_penalty:,}.")
        return lines


class Analysis(Numbers):
    """All that could be measured; what could not is None, and ``left_out`` says why.

    Attributes:
        subject: What was analysed.
        certificate: What the picks are proven to hold.
        certificate_sentence: The same in words.
        theory: The theory beside the picks.
        pool_theory: The part of it that needs no picks, where there are none.
        trace: What the trace says alone, where there are no gradients.
        pools: The pools of a schedule, where there were any.
        diversity: Picks beside random rows.
        coverage: By source, length, cluster and whatever columns were asked for.
        overlap: With other selections of the same rows.
        notes: What a reader of the numbers should know, in plain sentences.
        left_out: Parts that are missing and why, in plain sentences.
        seed: Of every random choice.
    """

    subject: Subject
    certificate: Certificate | None = None
    certificate_sentence: str | None = None
    theory: TheoryReport | None = None
    pool_theory: PoolTheory | None = None
    trace: TraceFacts | None = None
    pools: PoolFacts | None = None
    diversity: Diversity | None = None
    coverage: tuple[Coverage, ...] = ()
    overlap: Overlaps | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seed: int = 0

    def describe(self, width: int = WIDTH) -> list[str]:
        """Titles, tables and sentences; prose is broken at the width, tables are 80 columns at most."""
        subject = self.subject
        names = {"run": "Run", "store": "Gradients", "array": "Array"}
        parts: list[tuple[str, list[str]]] = [(f"{names[subject.kind]} {subject.name}", subject.describe())]
        if self.certificate is not None:
            parts.append(("Certificate", [f"  {self.certificate.sentence()}", *self._certificate_lines()]))
        if self.pools is not None:
            parts.append(("Pools", self.pools.describe()))
        if self.theory is not None:
            theory = self.theory
            parts += sections(
                picks=theory.picks,
                random=theory.random,
                bounds=theory.bounds,
                curvature=theory.curvature,
                trajectory=theory.trajectory,
                correlations=theory.correlations,
            )
        elif self.pool_theory is not None:
            pool = self.pool_theory
            parts += sections(random=pool.random, bounds=pool.bounds, curvature=pool.curvature)
        if self.trace is not None:
            parts.append(("Trace", self.trace.describe()))
        if self.diversity is not None:
            first, *table = self.diversity.describe()
            parts.append(("Diversity of directions", [*table, f"  {first}"]))
        parts += [(f"Coverage by {one.by}", one.describe()) for one in self.coverage]
        if self.overlap is not None:
            parts.append(("Overlap", self.overlap.describe()))
        parts += [
            (title, [f"  - {sentence}" for sentence in sentences])
            for title, sentences in (("Notes", self.notes), ("Left out", self.left_out))
            if sentences
        ]
        lines: list[str] = []
        for title, content in parts:
            lines += ["", title] if lines else [title]
            for line in content:
                lines += _wrapped(line, width)
        return lines

    def to_pandas(self) -> dict[str, pandas.DataFrame]:
        """Every table by name; coverage and overlap where they are there."""
        import pandas

        tables: dict[str, pandas.DataFrame] = {"subject": pandas.DataFrame([self.subject.model_dump()])}
        theory = self.theory or self.pool_theory
        if theory is not None:
            tables |= theory.to_pandas()
        if self.trace is not None:
            tables["trace"] = pandas.DataFrame([self.trace.model_dump()])
        if self.pools is not None:
            tables["pools"] = pandas.DataFrame([self.pools.model_dump()])
        if self.diversity is not None:
            tables["diversity"] = self.diversity.to_pandas()
        if self.coverage:
            tables["coverage"] = pandas.concat([one.to_pandas() for one in self.coverage], ignore_index=True)
        if self.overlap is not None:
            tables["overlap"] = self.overlap.to_pandas()
        return tables

    def _certificate_lines(self) -> list[str]:
        certificate = self.certificate
        assert certificate is not None
        where = f"after {certificate.prefix:,} picks" if certificate.prefix else "before the first pick"
        lines = [
            f"  F(S) = {number(certificate.information, digits=6)} nats; no choice holds more than"
            f" {number(certificate.upper_bound, digits=6)}, by the gains {where}."
        ]
        if self.theory is not None and certificate.penalised:
            lines.append(
                "  The bound of curvature, (1 - e^-c)/c below, is of greedy without penalty and not of this run."
            )
        return lines


def _wrapped(line: str, width: int) -> list[str]:
    """Prose broken at the width with its indent; what fits, such as a table's line, is left as it is."""
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    hanging = indent + ("  " if line.lstrip().startswith("- ") else "")
    return textwrap.wrap(line.strip(), width, initial_indent=indent, subsequent_indent=hanging, break_long_words=False)


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:+.2f}"
