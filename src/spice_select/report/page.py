"""The page of a run: one file, no network, the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.comparison import Share
from spice_select.analysis.record import PoolRecord, SelectionRecord
from spice_select.files import write_text
from spice_select.report import plots
from spice_select.report.content import STOPS, RunContent, verdict
from spice_select.report.facts import facts, made_with
from spice_select.report.points import point_map
from spice_select.report.render import embedded, render
from spice_select.report.tables import FIRST_PICKS, Table, example_tables

__all__ = ["FIRST_PICKS", "STOPS", "render_report", "verdict", "write_report"]

BALANCE_ROWS = 60
"""Sources that a balance shows one by one."""
LARGEST_SCORE = 1e100
"""Scores beyond this are not drawn."""
POOL_ROWS = 60
"""Pools that are shown one by one."""


@dataclass(frozen=True)
class Plot:
    """A drawing with its head and a sentence on what it shows."""

    title: str
    about: str
    drawing: Markup


@dataclass(frozen=True)
class Balance:
    """Shares of the pool and of the picks, by source or group.

    Attributes:
        head: What the rows are grouped by.
        shares: The largest groups.
        more: Groups that are not shown.
        largest: Largest share, which the bars are drawn against.
    """

    head: str
    shares: tuple[Share, ...]
    more: int
    largest: float


def render_report(content: RunContent) -> str:
    """The page as text.

    Args:
        content: The run.
    """
    record = content.record
    tables = example_tables(content)
    rows = {row for table in tables for row in table.rows}
    if content.projection is not None:
        rows.update(content.projection.indices.tolist())
    texts = content.texts(sorted(rows))
    tables = tuple(table.with_texts(texts) for table in tables)
    chart = point_map(content, texts, _anchors(tables))
    return render(
        "page.html.j2",
        title=content.title,
        record=record,
        proxy=_proxy_name(record),
        verdict=verdict(content),
        warnings=content.warnings,
        remarks=content.remarks,
        data=embedded(record.model_dump(mode="json")),
        facts=facts(record),
        balances=balances(record),
        certified=percent_down(record.certificate.best) if record.certificate else "",
        course=_course(content),
        averaged=len(content.trace.indices) > plots.MOST_POINTS,
        shapes=_shapes(content),
        pools=content.pools,
        pool_lines=_spread(content.pools),
        pool_plots=_pool_plots(content.pools),
        chart=chart,
        made=made_with([record]),
        points=None if chart is None else embedded(chart.data),
        tables=tables,
        shown=sum(len(table.lines) for table in tables),
        missing_texts=sum(not line.turns for table in tables for line in table.lines),
    )


def write_report(path: Path, content: RunContent) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The file.
        content: The run.

    Raises:
        OutputError: It cannot be written.
    """
    write_text(path, render_report(content))


def balances(record: SelectionRecord) -> tuple[Balance, ...]:
    """Balance by source and by group."""
    found = []
    for head, shares in (("source", record.summary.sources), ("group", record.summary.groups)):
        if shares:
            largest = max(max(share.pool_share, share.picks_share) for share in shares)
            shown = sorted(shares, key=lambda share: -share.pool)[:BALANCE_ROWS]
            kept = shares if len(shares) <= BALANCE_ROWS else tuple(shown)
            found.append(Balance(head, kept, len(shares) - len(kept), largest or 1.0))
    return tuple(found)


def _proxy_name(record: SelectionRecord) -> str:
    """The proxy's name; of a folder the last part, as the path to it says more of a machine than of the model."""
    if record.model is None:
        return "gradients as given" if record.method is None else "no model was run"
    name = record.model.name
    return Path(name).name or name if name.startswith(("/", "~", ".")) else name


def _anchors(tables: Sequence[Table]) -> Mapping[int, str]:
    """Where each row stands first."""
    found: dict[int, str] = {}
    for table in tables:
        for line in table.lines:
            found.setdefault(line.index, f"{table.key}-{line.index}")
    return found


def _course(content: RunContent) -> tuple[Plot, ...]:
    trace = content.trace
    drawn = [] if content.record.maximised else [_scores(content)]
    if trace.gains is not None and trace.bases is not None and trace.epsilons is not None:
        added = (
            "What each pick added to the information, and what it would be worth alone."
            if content.record.maximised
            else "What each pick adds to the information of those before it, and what it would be worth alone; the"
            " method did not choose by it."
        )
        drawn += [
            Plot(
                "Gain",
                added,
                plots.curves(
                    [("gain", trace.gains), ("worth alone", trace.bases)],
                    label="nats",
                    description="Marginal information gain of every pick, and what it is worth alone",
                    key="gain",
                    log=True,
                ),
            ),
            Plot(
                "Epsilon",
                "What the earlier picks took away: gain less worth alone.",
                plots.curves(
                    [("epsilon", trace.epsilons)],
                    label="nats",
                    description="What earlier picks take away from every pick's gain",
                    key="epsilon",
                ),
            ),
        ]
    if trace.conflicts is not None:
        drawn.append(
            Plot(
                "Conflict",
                "How far each pick pulls against the reference direction; 0 is not at all.",
                plots.curves(
                    [("conflict", trace.conflicts)],
                    label="conflict",
                    description="Conflict of every pick with the reference direction",
                    key="conflict",
                ),
            )
        )
    return tuple(plot for plot in drawn if plot is not None)


def _scores(content: RunContent) -> Plot | None:
    """Scores by rank; nothing where all picks have one score."""
    given = content.trace.scores
    scores = np.zeros(0) if given is None else _drawable(given)
    known = scores[np.isfinite(scores)]
    if not len(known) or known.min() == known.max():
        return None
    return Plot(
        "Score",
        f"What each pick was chosen by: {content.score_name}.",
        plots.curves([("score", scores)], label="score", description="Score of every pick", key="score"),
    )


def _drawable(scores: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Scores with NaN for those that no axis can hold."""
    return np.where(np.abs(scores) < LARGEST_SCORE, scores, np.nan)


def _shapes(content: RunContent) -> tuple[Plot, ...]:
    picks = content.trace.indices
    scores = None if content.pool_scores is None else _drawable(content.pool_scores)
    found = []
    for values, title, about, label, key, log in (
        (content.lengths, "Response length", "Trained tokens of a row.", "response tokens", "length", True),
        (content.norms, "Gradient norm", "As measured, before any normalisation.", "gradient norm", "norm", True),
        (scores, "Score of a row", f"Of picks and pool: {content.score_name}.", "score", "scores", False),
    ):
        if values is None:
            continue
        column = np.asarray(values, dtype=np.float64)
        pool = column if content.usable is None else column[content.usable]
        description = f"{title} of picks and pool"
        drawing = plots.histogram(column[picks], pool, label=label, description=description, key=key, log=log)
        found.append(Plot(title, about, drawing))
    return tuple(found)


def _pool_plots(pools: Sequence[PoolRecord]) -> tuple[Plot, ...]:
    found = []
    for title, about, label, key, values in (
        ("Loss", "Mean loss of each pool's rows, by the proxy of its time.", "nats", "pool-loss", "loss"),
        ("Information", "Information of each pool's picks.", "nats", "pool-gain", "information"),
        ("Conflict", "Share of each pool's picks in conflict.", "share of picks", "pool-conflict", "opposing_picks"),
        ("Certificate", "Proven share of the best, pool by pool.", "share", "pool-certificate", "certificate"),
    ):
        column = [getattr(line, values) for line in pools]
        if len(pools) > 1 and all(value is not None for value in column):
            drawing = plots.curves(
                [(title.lower(), np.array(column, dtype=np.float64))],
                label=label,
                description=about,
                key=key,
                across="pool",
            )
            found.append(Plot(title, about, drawing))
    return tuple(found)


def _spread(pools: Sequence[PoolRecord]) -> tuple[PoolRecord, ...]:
    """All pools, or evenly spaced ones."""
    if len(pools) <= POOL_ROWS:
        return tuple(pools)
    return tuple(pools[place] for place in np.linspace(0, len(pools) - 1, POOL_ROWS).astype(int).tolist())
