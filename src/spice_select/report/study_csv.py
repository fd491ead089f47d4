"""A study as comma-separated values: one line for each training."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from spice_select.analysis.study_measures import DOMAIN, MACRO, MICRO, values_of
from spice_select.analysis.study_record import UNTRAINED, Cost, Losses, Outcome, Study
from spice_select.report.csv_cells import cells

COLUMNS: tuple[str, ...] = (
    "key",
    "arm",
    "budget",
    "equal",
    "seed",
    "status",
    "error",
    "loss_macro",
    "loss_micro",
    "first_loss",
    "train_loss",
    "rows",
    "response_tokens",
    "tokens",
    "steps",
    "subset",
    "sources",
    *Cost.model_fields,
    "written",
)
"""Columns that every study has; a column for each domain and each metric of a benchmark follows."""


def render_csv(study: Study) -> str:
    """One line for each training, and one for the model before any; what is unknown is empty."""
    lines = [cells(_line(one)) for one in study.outcomes]
    if study.untrained is not None and not any(one.budget == UNTRAINED for one in study.outcomes):
        before = {"arm": UNTRAINED, "budget": UNTRAINED, "status": "measured"}
        lines.insert(0, cells(before | _values(study.untrained, {})))
    more = dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, (*COLUMNS, *more), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _line(one: Outcome) -> dict[str, Any]:
    return {
        "key": one.key,
        "arm": one.arm,
        "budget": one.budget,
        "equal": one.equal,
        "seed": one.seed,
        "status": "failed" if one.error else "trained",
        "error": one.error,
        "first_loss": one.first_loss,
        "train_loss": one.train_loss,
        "rows": one.rows,
        "response_tokens": one.response_tokens,
        "tokens": one.tokens,
        "steps": one.steps,
        "subset": one.subset,
        "sources": json.dumps(one.sources, sort_keys=True),
        **one.cost.model_dump(),
        "written": one.written,
        **_values(one.losses, one.suites),
    }


def _values(losses: Losses | None, suites: dict[str, dict[str, float]]) -> dict[str, float]:
    found = values_of(losses, suites, ())
    names = {MACRO: "loss_macro", MICRO: "loss_micro"}
    return {
        names.get(name, f"loss {name.removeprefix(DOMAIN)}" if name.startswith(DOMAIN) else name): value
        for name, value in found.items()
    }
