"""A comparison of methods as a short table and as markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.contest import Contest, MethodLine, Sharing
from spice_select.analysis.tables import aligned, number, percent
from spice_select.report.contest_columns import Column
from spice_select.report.contest_training import TRAINING, domain_columns, training_note, untrained_line
from spice_select.report.text import escape_markdown

_BYTES = 1_000_000


def spread_cell(measure: str, digits: int = 4) -> Callable[[MethodLine], str]:
    """Mean over the seeds, and the standard deviation where there are several."""

    def cell(line: MethodLine) -> str:
        spread = line.spread(measure)
        text = number(spread.mean, digits=digits)
        return text if spread.deviation is None else f"{text} ±{number(spread.deviation, digits=2)}"

    return cell


def share_cell(measure: str) -> Callable[[MethodLine], str]:
    """Mean share over the seeds as a percentage."""
    return lambda line: percent(line.mean(measure))


def best_cell(line: MethodLine) -> str:
    """Proven share of the best, rounded down, as a lower bound must be."""
    share = line.mean("share_of_best")
    return "-" if share is None else percent_down(share)


def random_cell(line: MethodLine) -> str:
    """Information less that of random, in random's standard deviations."""
    apart = line.spread("information").from_random
    return "-" if apart is None else f"{apart:+,.1f}"


def count_cell(measure: str) -> Callable[[MethodLine], str]:
    """Mean count over the seeds."""

    def cell(line: MethodLine) -> str:
        mean = line.mean(measure)
        return "-" if mean is None else f"{mean:,.0f}"

    return cell


def seconds_cell(line: MethodLine) -> str:
    """Seconds of one choice."""
    return _seconds(line.seconds)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"


def memory_cell(line: MethodLine) -> str:
    """Growth of memory while choosing, in megabytes."""
    return "-" if line.memory_bytes is None else f"{line.memory_bytes / _BYTES:,.0f}"


def work_cell(line: MethodLine) -> str:
    """Work of the measurements, in thousands of tokens."""
    return f"{line.work / 1000:,.0f}" if line.seeds else "-"


PICKS = (
    Column("Picks", "picks", count_cell("k")),
    Column("Information, nats", "information", spread_cell("information")),
    Column("Share of the best, at least", "of best", best_cell),
    Column("From random, in its standard deviations", "vs random", random_cell),
    Column("Response tokens", "tokens", count_cell("tokens")),
    Column("Median tokens", "median", count_cell("tokens_median")),
    Column("Median gradient norm", "norm", spread_cell("norm_median", 3)),
    Column("Opposing picks", "opposing", share_cell("opposing_share")),
    Column("Imbalance", "imbalance", spread_cell("imbalance", 3)),
)
DIVERSITY = (
    Column("Vendi", "Vendi", spread_cell("vendi")),
    Column("Vendi, order 2", "Vendi 2", spread_cell("vendi_2")),
    Column("G-Vendi", "G-Vendi", spread_cell("g_vendi")),
    Column("NovelSum, paper", "NovelSum", spread_cell("novelsum_paper")),
    Column("NovelSum, official", "official", spread_cell("novelsum_official")),
    Column("log det (K + I)", "log det", spread_cell("logdet")),
    Column("LDD (lower is more diverse)", "LDD", spread_cell("ldd")),
    Column("Mean cosine (lower is more diverse)", "cosine", spread_cell("mean_cosine", 3)),
)
COST = (
    Column("Seconds to choose", "seconds", seconds_cell),
    Column("Processor seconds", "cpu s", lambda line: _seconds(line.process_seconds)),
    Column("Memory, MB", "MB", memory_cell),
    Column("Measurements alone, thousand tokens", "k tokens", work_cell),
)
_TERMINAL = ("picks", "information", "vs random", "of best", "tokens", "Vendi", "seconds")


def describe(contest: Contest, width: int = 80) -> list[str]:
    """The comparison in a few lines for a terminal: a table, the verdict, and warnings last.

    Args:
        contest: The comparison.
        width: Columns of the terminal; the last columns of the table give way.
    """
    known = {column.short: column for column in (*PICKS, *DIVERSITY, *COST)}
    columns = [known[name] for name in _TERMINAL]
    if contest.yardstick is None:
        columns = [known[name] for name in ("picks", "tokens", "median", "imbalance", "seconds")]
    if contest.training is not None:
        columns[1:1] = TRAINING[:2]
    table = _aligned(contest.methods, columns)
    while len(columns) > 2 and max(map(len, table)) > width:
        columns.pop()
        table = _aligned(contest.methods, columns)
    lines = [headline(contest), *table]
    lines += contest.verdict
    lines += shared_sentences(contest)
    lines += [f"Warning: {warning}" for warning in contest.warnings]
    return lines


def headline(contest: Contest) -> str:
    """What was compared, in one sentence."""
    amount = f"{contest.rows:,} rows" if contest.rows is not None else f"{contest.tokens or 0:,} response tokens"
    count = len(contest.methods)
    return (
        f"{count} method{'s' if count > 1 else ''} on {contest.pool.candidates:,} of {contest.pool.n:,} rows, "
        f"{amount} each, by {contest.model}."
    )


def shared_sentences(contest: Contest) -> list[str]:
    """What measuring once saved, in words."""
    found = []
    for shared, whose in (
        (contest.gradient_sharing, "that need gradients of the proxy as it is"),
        (contest.sharing, "together"),
    ):
        if shared.ratio is not None and len(shared.methods) > 1:
            found.append(_shared(shared, whose))
    return found


def _shared(shared: Sharing, whose: str) -> str:
    return (
        f"The {len(shared.methods)} methods {whose} sent {_tokens(shared.total)} through the model, "
        f"{shared.ratio:.2f} times the dearest of them alone and {shared.total / shared.alone:.0%} of what they would "
        "have sent one by one (those of a backward pass counted twice)."
    )


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.1f} million tokens" if count >= 1e6 else f"{count:,.0f} tokens"


def _aligned(lines: Sequence[MethodLine], columns: Sequence[Column]) -> list[str]:
    return aligned(
        ["method", *(column.short for column in columns)],
        [[line.label, *(_cell(column, line) for column in columns)] for line in lines],
    )


def _cell(column: Column, line: MethodLine) -> str:
    if line.seeds:
        return column.cell(line)
    return "failed" if column.short == "picks" else "-"


def render_markdown(contest: Contest) -> str:
    """The comparison as tables of markdown; no text of a row enters."""
    lines = ["## Methods side by side", "", headline(contest), ""]
    lines += [f"- {escape_markdown(sentence)}" for sentence in contest.verdict]
    lines += [f"- {escape_markdown(sentence)}" for sentence in shared_sentences(contest)]
    lines += ["", "### Picks", "", *_table(contest.methods, PICKS), ""]
    pool = contest.pool
    lines += [
        f"The pool: {pool.candidates:,} rows, median response {number(pool.tokens_median)} tokens, median gradient "
        f"norm {number(pool.norm_median, digits=3)}. {YARDSTICK if contest.yardstick else NO_YARDSTICK}",
        "",
    ]
    if contest.yardstick is not None:
        lines += ["### Diversity", "", *_table(contest.methods, DIVERSITY), "", DIVERSITY_NOTE, ""]
    if contest.training is not None:
        trained = (*contest.methods, untrained_line(contest))
        lines += ["### Training", "", *_table(trained, TRAINING), "", escape_markdown(training_note(contest)), ""]
        if domains := domain_columns(contest):
            lines += ["### Held-out loss by domain", "", *_table(trained, domains), ""]
    lines += ["### Cost", "", *_table(contest.methods, COST), "", COST_NOTE, ""]
    lines += ["### Overlap", "", *_overlap(contest), "", OVERLAP_NOTE, ""]
    shares = _balance(contest)
    if shares:
        lines += [f"### Balance by {balance_head(contest)}", "", *shares, ""]
    lines += [f"> **Warning.** {escape_markdown(warning)}\n" for warning in contest.warnings]
    lines.append(f"Made with spice-select {escape_markdown(contest.versions.get('spice-select', ''))}.")
    return "\n".join(lines).rstrip() + "\n"


YARDSTICK = (
    "Information is log det(I + a F) of all picks by the settings of the selection section, one scale for all methods; "
    "± is the standard deviation over seeds. Imbalance is the total variation distance between the groups' (else the "
    "sources') shares of picks and pool."
)
NO_YARDSTICK = "Gradients were not measured, so that information and diversity are unknown."
DIVERSITY_NOTE = (
    "Diversity is that of gradient directions; higher is more diverse but where a head says otherwise. Most measures "
    "grow with the number of rows, so that only picks of as many rows compare."
)
COST_NOTE = (
    "Seconds and memory are of the choice itself, with all measurements at hand; memory is the growth of the process's "
    "own memory at its height. Measurements are what the method would need alone: tokens through the model, those of a "
    "backward pass counted twice."
)
OVERLAP_NOTE = "Jaccard index, averaged over seeds; in brackets what random sets of those sizes would share."
MOST_GROUPS = 20
"""Groups that a table of markdown has columns for."""


def _table(lines: Sequence[MethodLine], columns: Sequence[Column]) -> list[str]:
    return _rows(
        ["Method", *(column.title for column in columns)],
        [[line.label, *(_cell(column, line) for column in columns)] for line in lines],
    )


def _overlap(contest: Contest) -> list[str]:
    found = contest.overlap
    return _rows(
        ["", *found.labels],
        [
            [label, *(f"{j:.3f} ({e:.3f})" for j, e in zip(line, chance, strict=True))]
            for label, line, chance in zip(found.labels, found.jaccard, found.expected, strict=True)
        ],
    )


def _balance(contest: Contest) -> list[str]:
    pool, shares = mixture(contest)
    names = sorted(pool, key=lambda name: -pool[name])
    if not 1 < len(names) <= MOST_GROUPS:
        return []
    rows = [["pool", *(percent(pool.get(name, 0.0)) for name in names)]]
    rows += [[label, *(percent(found.get(name, 0.0)) for name in names)] for label, found in shares.items()]
    return _rows(["", *names], rows)


def balance_head(contest: Contest) -> str:
    """What the rows of the balance are grouped by."""
    return next((one.numbers.balance[-1].by for one in contest.contestants if one.numbers is not None), "source")


def mixture(contest: Contest) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Share of every group in the pool, and by method among the picks, averaged over seeds."""
    pool: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for line in contest.methods:
        entries = [one.numbers for one in contest.contestants if one.label == line.label and one.numbers is not None]
        for numbers in entries:
            own = shares.setdefault(line.label, {})
            for group in numbers.balance[-1].groups:
                pool[group.name] = group.pool_share
                own[group.name] = own.get(group.name, 0.0) + (group.picks_share or 0.0) / len(entries)
    return pool, shares


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) or " " for cell in cells) + " |"

    ruler = "|" + "|".join("---" if place == 0 else "--:" for place in range(len(head))) + "|"
    return [line(head), ruler, *map(line, rows)]
