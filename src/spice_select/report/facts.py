"""What was asked, with what, and on what: names and values under heads."""

from __future__ import annotations

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.record import SelectionRecord
from spice_select.report.content import STOPS
from spice_select.report.render import number

Facts = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def settings(record: SelectionRecord) -> list[tuple[str, str]]:
    """What was asked for; empty where it was not."""
    aim, budget = record.objective, record.budget
    return [
        ("Budget", "none" if budget.asked is None else str(budget.asked)),
        ("Rows at most", "" if budget.rows is None else number(budget.rows)),
        ("Response tokens at most", number(budget.tokens) if budget.tokens is not None else ""),
        ("Stop ratio", "" if budget.stop_ratio is None else f"{budget.stop_ratio:g}"),
        ("Quotas by", budget.groups or ""),
        ("Rows in hand", number(budget.initial) if budget.initial else ""),
        ("Rows excluded", number(budget.excluded) if budget.excluded else ""),
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


def proxy(record: SelectionRecord) -> list[tuple[str, str]]:
    """The model that the gradients are of."""
    model = record.model
    if model is None:
        return []
    return [
        ("Model", model.name),
        ("Revision", model.revision or ""),
        ("Dtype", model.dtype),
        ("Device", model.device),
        ("Weights covered", "" if model.coverage is None else f"{model.coverage:.1%}"),
        ("Sketch", record.sketch),
        *((f"Note {place}", line) for place, line in enumerate(model.summary, 1)),
    ]


def results(record: SelectionRecord) -> list[tuple[str, str]]:
    """What came of it, in the order in which a person asks."""
    summary = record.summary
    return [
        ("Picks", number(record.k)),
        ("Usable rows", f"{record.usable:,} of {record.n:,}"),
        ("Ended because", STOPS.get(record.stop_reason, record.stop_reason)),
        ("Information, nats", number(record.information)),
        ("Share of the best, at least", percent_down(record.certificate.best) if record.certificate else ""),
        ("First gain, nats", "" if summary.first_gain is None else number(summary.first_gain)),
        ("Median response of the picks, tokens", number(summary.length_median.picks)),
        ("Median response of the pool, tokens", number(summary.length_median.pool)),
        ("Median gradient norm of the picks", number(summary.norm_median.picks, 3)),
        ("Median gradient norm of the pool", number(summary.norm_median.pool, 3)),
        ("Picks in conflict", f"{summary.opposing_share:.1%}"),
        ("Largest conflict of a pick", f"{summary.largest_conflict:.3f}"),
        (
            "Picks changed by the penalty",
            "" if summary.changed_by_penalty is None else number(summary.changed_by_penalty),
        ),
    ]


def facts(record: SelectionRecord) -> Facts:
    """Headed lists of names and values; what is empty is left out."""
    blocks = (
        ("What was asked", settings(record)),
        ("Proxy", proxy(record)),
        ("Seconds by stage", [(name, f"{value:,.2f}") for name, value in record.timings.items()]),
        ("Versions", list(record.versions.items())),
        ("Fingerprints", [(name.capitalize(), value or "") for name, value in record.fingerprints]),
    )
    return tuple((head, tuple((n, v) for n, v in lines if v)) for head, lines in blocks if any(v for _, v in lines))
