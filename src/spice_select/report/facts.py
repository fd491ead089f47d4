"""What was asked, with what, and on what: names and values under heads."""

from __future__ import annotations

from collections.abc import Sequence

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.record import SPICE, SelectionRecord
from spice_select.report.content import STOPS
from spice_select.report.render import number

Facts = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def method(record: SelectionRecord) -> list[tuple[str, str]]:
    """Which method chose, and by what."""
    found = record.method
    if found is None:
        return []
    return [
        ("Method", found.name),
        ("What it maximises", found.summary),
        *((f"method.{name}", "none" if value is None else str(value)) for name, value in found.settings.items()),
        ("Score of a row", found.score),
        ("Method from", found.origin),
    ]


def settings(record: SelectionRecord) -> list[tuple[str, str]]:
    """What was asked for; empty where it was not."""
    budget = record.budget
    return [
        *method(record),
        ("Budget", "none" if budget.asked is None else str(budget.asked)),
        ("Rows at most", "" if budget.rows is None else number(budget.rows)),
        ("Response tokens at most", number(budget.tokens) if budget.tokens is not None else ""),
        ("Stop ratio", "" if budget.stop_ratio is None else f"{budget.stop_ratio:g}"),
        ("Quotas by", budget.groups or ""),
        ("Rows in hand", number(budget.initial) if budget.initial else ""),
        ("Rows excluded", number(budget.excluded) if budget.excluded else ""),
        *_objective(record),
        ("Preset", record.preset if record.maximised else ""),
        ("Loop", record.loop),
        ("Samples", "" if record.sampling_epsilon is None else f"for a shortfall of {record.sampling_epsilon:g}"),
        ("Partitions", number(record.partitions) if record.partitions > 1 else ""),
        ("Seed", str(record.seed)),
    ]


def _objective(record: SelectionRecord) -> list[tuple[str, str]]:
    aim = record.objective
    if aim is None:
        return []
    return [
        ("Fisher information", aim.fisher if record.maximised else f"{aim.fisher}, measured and not maximised"),
        ("Fisher scale", f"{aim.alpha:.6g}" + (f" ({aim.alpha_asked})" if isinstance(aim.alpha_asked, str) else "")),
        ("Conflict weight", f"{aim.conflict_weight:g}, {aim.penalty}" if record.maximised else ""),
        ("Conflict with", "the mean of the picks" if aim.reference == "selected" else "the mean of the pool"),
        ("Hinge", f"{aim.hinge:.4g}"),
        ("Normalisation", aim.normalize),
    ]


def passes(record: SelectionRecord) -> list[tuple[str, str]]:
    """What went through the model, measurement by measurement."""
    return [] if record.method is None else [(one.what.capitalize(), one.describe()) for one in record.method.passes]


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
    norm = summary.norm_median
    return [
        ("Picks", number(record.k)),
        ("Usable rows", f"{record.usable:,} of {record.n:,}"),
        ("Ended because", STOPS.get(record.stop_reason, record.stop_reason)),
        ("Information, nats", "" if record.information is None else number(record.information)),
        ("Share of the best, at least", percent_down(record.certificate.best) if record.certificate else ""),
        ("First gain, nats", "" if summary.first_gain is None or not record.maximised else number(summary.first_gain)),
        ("Median response of the picks, tokens", number(summary.length_median.picks)),
        ("Median response of the pool, tokens", number(summary.length_median.pool)),
        ("Median gradient norm of the picks", "" if norm is None else number(norm.picks, 3)),
        ("Median gradient norm of the pool", "" if norm is None else number(norm.pool, 3)),
        ("Picks in conflict", "" if summary.opposing_share is None else f"{summary.opposing_share:.1%}"),
        ("Largest conflict of a pick", "" if summary.largest_conflict is None else f"{summary.largest_conflict:.3f}"),
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
        ("Passes of the model", passes(record)),
        ("Seconds by stage", [(name, f"{value:,.2f}") for name, value in record.timings.items()]),
        ("Versions", list(record.versions.items())),
        ("Fingerprints", [(name.capitalize(), value or "") for name, value in record.fingerprints]),
    )
    return tuple((head, tuple((n, v) for n, v in lines if v)) for head, lines in blocks if any(v for _, v in lines))


def beside_title(records: Sequence[SelectionRecord]) -> str:
    """Title of several runs side by side."""
    labels = {record.label for record in records}
    return f"{labels.pop()} selections side by side" if len(labels) == 1 else "Selections side by side"


def made_with(records: Sequence[SelectionRecord]) -> str:
    """What made a selection, or several, and where its method is from."""
    version = records[0].versions.get("spice-select", "")
    said = f"Selected with spice-select {version}" if len(records) == 1 else f"Made with spice-select {version}"
    methods = {record.label: record.method for record in records}
    if set(methods) == {"SPICE"}:
        return f"{said} after SPICE (ICLR 2026, arXiv 2601.23155)."
    named = [
        f"{label} (arXiv 2601.23155)"
        if found is None or found.name == SPICE
        else f"{label} ({found.origin})"
        if found.origin
        else label
        for label, found in methods.items()
    ]
    return f"{said}; method{'s' if len(named) > 1 else ''}: {', '.join(named)}."
