"""The page of a run: one file, no network, the same bytes for the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.record import SelectionRecord
from spice_select.files import write_text
from spice_select.report import plots
from spice_select.report.text import Turn, markup, plain, preview, shown_turns

FIRST_PICKS = 200
"""Picks that the table shows."""
BALANCE_ROWS = 60
"""Sources that a balance shows one by one."""

STOPS = {
    "budget": "the budget is filled",
    "stop_ratio": "the stop ratio ended the run",
    "tokens": "no further row fits the token budget",
    "exhausted": "no further row was left",
}


class Trace(Protocol):
    """One value for every pick, in order of choice; a Selection has just these."""

    @property
    def indices(self) -> Any:
        """Row numbers."""
        ...

    @property
    def gains(self) -> Any:
        """Marginal information gains, in nats."""
        ...

    @property
    def bases(self) -> Any:
        """What each is worth alone, in nats."""
        ...

    @property
    def epsilons(self) -> Any:
        """What the picks before it take away, in nats."""
        ...

    @property
    def conflicts(self) -> Any:
        """Conflicts."""
        ...


@dataclass(frozen=True)
class Pick:
    """One line of the table."""

    rank: int
    index: int
    source: str
    gain: float
    conflict: float
    tokens: int
    norm: float
    preview: str
    turns: tuple[Turn, ...]


def render_report(
    record: SelectionRecord,
    trace: Trace,
    *,
    lengths: Int[np.ndarray, " n"] | Sequence[int],
    squared_norms: Float[np.ndarray, " n"] | Sequence[float],
    sources: Sequence[str],
    usable: Bool[np.ndarray, " n"] | None = None,
    texts: Iterable[Iterable[tuple[str, str]]] = (),
    title: str = "SPICE selection",
) -> str:
    """The page as text.

    Args:
        record: What the run did.
        trace: Its picks.
        lengths: Response tokens of every row of the pool.
        squared_norms: Squared gradient norm of every row.
        sources: Name of every row's source.
        usable: Rows that could be chosen; all where absent.
        texts: Role and text of the messages of the first picks, in order of choice; at most 200 are shown.
        title: Title of the page.
    """
    picks = np.asarray(trace.indices, dtype=np.int64)
    tokens = np.asarray(lengths)
    norms = np.sqrt(np.asarray(squared_norms, dtype=np.float64))
    pool = np.arange(len(tokens)) if usable is None else np.flatnonzero(usable)
    gains = np.asarray(trace.gains, dtype=np.float64)
    conflicts = np.asarray(trace.conflicts, dtype=np.float64)
    script = _asset("page.js")
    environment = _environment()
    return environment.get_template("page.html.j2").render(
        title=title,
        record=record,
        stop=STOPS.get(record.stop_reason, record.stop_reason),
        verdict=verdict(record),
        warnings=tuple(dict.fromkeys((*record.warnings, *record.summary.warnings))),
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_embedded(record),
        facts=_facts(record),
        balances=_balances(record),
        certified=percent_down(record.certificate.best) if record.certificate else "",
        gain_plot=plots.curves(
            [("gain", gains), ("worth alone", np.asarray(trace.bases, dtype=np.float64))],
            label="nats",
            description="Marginal information gain of every pick, and what it is worth alone",
            key="gain",
            log=True,
        ),
        epsilon_plot=plots.curves(
            [("epsilon", np.asarray(trace.epsilons, dtype=np.float64))],
            label="nats",
            description="What earlier picks take away from every pick's gain",
            key="epsilon",
        ),
        conflict_plot=plots.curves(
            [("conflict", conflicts)],
            label="conflict",
            description="Conflict of every pick with the reference direction",
            key="conflict",
        ),
        length_plot=plots.histogram(
            tokens[picks],
            tokens[pool],
            label="response tokens",
            description="Response lengths of picks and pool",
            key="length",
        ),
        norm_plot=plots.histogram(
            norms[picks],
            norms[pool],
            label="gradient norm",
            description="Gradient norms of picks and pool",
            key="norm",
        ),
        picks=_picks(picks, gains, conflicts, tokens, norms, sources, texts),
        averaged=len(picks) > plots.MOST_POINTS,
    )


def write_report(path: Path, record: SelectionRecord, trace: Trace, **columns: Any) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The file.
        record: What the run did.
        trace: Its picks.
        **columns: As for :func:`render_report`.

    Raises:
        OutputError: It cannot be written.
    """
    write_text(path, render_report(record, trace, **columns))


def verdict(record: SelectionRecord) -> tuple[str, ...]:
    """The outcome in at most three plain sentences."""
    how = STOPS.get(record.stop_reason, record.stop_reason)
    first = f"{record.k:,} of {record.usable:,} usable rows were chosen; {how}."
    second = record.certificate_sentence or (
        f"No bound on their quality is stated, as the {record.objective.fisher} form is no exact information."
    )
    warnings = len(dict.fromkeys((*record.warnings, *record.summary.warnings)))
    if warnings:
        third = f"Read the warning{'s' if warnings > 1 else ''} below before you train on them."
    else:
        third = "In response length, gradient norm and source they stay within a factor of 2 of the pool."
    return first, second, third


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spice_select.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["number"] = _number
    environment.filters["commands"] = _commands
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["seconds"] = lambda value: f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"
    return environment


def _finalize(value: object) -> object:
    """Every expression of the template is made plain as well as escaped, whoever wrote it."""
    return value if isinstance(value, Markup) else markup(value)


def _commands(sentence: str) -> Markup:
    """A sentence whose settings look like what is typed, and don't break at their hyphens."""
    return Markup(re.sub(r"--set [a-z_.]+=[a-z_]+", r"<code>\g<0></code>", str(markup(sentence))))


def _number(value: float | int | None, digits: int = 4) -> str:
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _asset(name: str) -> str:
    return files("spice_select.report").joinpath("templates", name).read_text(encoding="utf-8")


def _embedded(record: SelectionRecord) -> Markup:
    """The record as JSON that no HTML parser can take for markup."""
    text = json.dumps(record.model_dump(mode="json"), ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _facts(record: SelectionRecord) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Headed lists of names and values: what was asked, with what, and on what."""
    aim, budget, model, prints = record.objective, record.budget, record.model, record.fingerprints
    asked = [
        ("Budget", "none" if budget.asked is None else str(budget.asked)),
        ("Rows at most", _number(budget.rows)),
        ("Response tokens at most", _number(budget.tokens) if budget.tokens is not None else ""),
        ("Stop ratio", "" if budget.stop_ratio is None else f"{budget.stop_ratio:g}"),
        ("Quotas by", budget.groups or ""),
        ("Rows in hand", _number(budget.initial) if budget.initial else ""),
        ("Rows excluded", _number(budget.excluded) if budget.excluded else ""),
        ("Fisher information", aim.fisher),
        ("Fisher scale", f"{aim.alpha:.6g}" + (f" ({aim.alpha_asked})" if isinstance(aim.alpha_asked, str) else "")),
        ("Conflict weight", f"{aim.conflict_weight:g}, {aim.penalty}"),
        ("Conflict with", "the mean of the picks" if aim.reference == "selected" else "the mean of the pool"),
        ("Hinge", f"{aim.hinge:.4g}"),
        ("Normalisation", aim.normalize),
        ("Preset", record.preset),
        ("Loop", record.loop),
        ("Seed", str(record.seed)),
    ]
    proxy = (
        []
        if model is None
        else [
            ("Model", model.name),
            ("Revision", model.revision or ""),
            ("Dtype", model.dtype),
            ("Device", model.device),
            ("Weights covered", "" if model.coverage is None else f"{model.coverage:.1%}"),
            ("Sketch", record.sketch),
            *((f"Note {place}", line) for place, line in enumerate(model.summary, 1)),
        ]
    )
    hashes = [(name.capitalize(), value or "") for name, value in prints]
    blocks = (
        ("What was asked", asked),
        ("Proxy", proxy),
        ("Seconds by stage", [(name, f"{value:,.2f}") for name, value in record.timings.items()]),
        ("Versions", list(record.versions.items())),
        ("Fingerprints", hashes),
    )
    return tuple((head, tuple((n, v) for n, v in lines if v)) for head, lines in blocks if any(v for _, v in lines))


def _balances(record: SelectionRecord) -> tuple[dict[str, Any], ...]:
    """Balance by source and by group, each with its largest share, which its bars are drawn against."""
    found = []
    for head, shares in (("source", record.summary.sources), ("group", record.summary.groups)):
        if not shares:
            continue
        largest = max(max(share.pool_share, share.picks_share) for share in shares)
        shown = sorted(shares, key=lambda share: -share.pool)[:BALANCE_ROWS] if len(shares) > BALANCE_ROWS else shares
        found.append({"head": head, "shares": shown, "more": len(shares) - len(shown), "largest": largest or 1.0})
    return tuple(found)


def _picks(
    picks: Int[np.ndarray, " k"],
    gains: Float[np.ndarray, " k"],
    conflicts: Float[np.ndarray, " k"],
    tokens: np.ndarray,
    norms: Float[np.ndarray, " n"],
    sources: Sequence[str],
    texts: Iterable[Iterable[tuple[str, str]]],
) -> tuple[Pick, ...]:
    lines = []
    given = iter(texts)
    for place, index in enumerate(picks[:FIRST_PICKS].tolist()):
        turns = shown_turns(next(given, ()))
        lines.append(
            Pick(
                rank=place + 1,
                index=index,
                source=plain(sources[index])[:200],
                gain=float(gains[place]),
                conflict=float(conflicts[place]),
                tokens=int(tokens[index]),
                norm=float(norms[index]),
                preview=preview(turns),
                turns=turns,
            )
        )
    return tuple(lines)
