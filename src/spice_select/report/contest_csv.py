"""A comparison of methods as comma-separated values: one line for each method and seed."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from spice_select.analysis.contest import Contest, Contestant, PickNumbers
from spice_select.analysis.contest_lines import MEASURES

CSV_COLUMNS: tuple[str, ...] = (
    "label",
    "method",
    "settings",
    "seed",
    "status",
    "error",
    "stop_reason",
    *MEASURES,
    "without_gradient",
    "diversity_rows",
    "seconds",
    "process_seconds",
    "memory_bytes",
    "forwards",
    "backwards",
    "tokens_forward",
    "tokens_backward",
)
"""Columns of the comma-separated file."""


def render_csv(contest: Contest) -> str:
    """One line for each method and seed; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in contest.contestants:
        writer.writerow(_csv_line(one))
    return buffer.getvalue()


def _csv_line(one: Contestant) -> dict[str, Any]:
    settings = {key: value for key, value in one.settings.items() if value is not None}
    cells: dict[str, Any] = {
        "label": one.label,
        "method": one.method,
        "settings": json.dumps(settings, sort_keys=True),
        "seed": one.seed,
        "status": "failed" if one.error else "chosen",
        "error": one.error,
        "stop_reason": one.stop_reason,
    }
    if one.numbers is not None:
        fields = [name for name in CSV_COLUMNS if name in PickNumbers.model_fields]
        cells |= {name: getattr(one.numbers, name) for name in fields}
    if one.cost is not None:
        taken = one.cost.taken
        cells |= {
            "seconds": one.cost.seconds,
            "process_seconds": one.cost.process_seconds,
            "memory_bytes": one.cost.memory_bytes,
            "forwards": sum(each.forwards for each in taken),
            "backwards": sum(each.backwards for each in taken),
            "tokens_forward": sum(each.tokens for each in taken),
            "tokens_backward": sum(each.backward_tokens for each in taken),
        }
    return cells
