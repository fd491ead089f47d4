"""A comparison of methods as comma-separated values: one line for each method and seed."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from spice_select.analysis.contest import Contest, Contestant, PickNumbers
from spice_select.analysis.contest_lines import MEASURES
from spice_select.analysis.contest_training import training_line
from spice_select.report.csv_cells import cells

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
TRAINING_COLUMNS: tuple[str, ...] = (
    "trainings",
    "loss_macro",
    "loss_micro",
    "train_steps",
    "train_tokens",
    "train_seconds",
    "training_error",
)
"""Further columns of a comparison that has trained: means over the trainings on a choice."""


def render_csv(contest: Contest) -> str:
    """One line for each method and seed; what is unknown is empty."""
    buffer = io.StringIO()
    columns = CSV_COLUMNS if contest.training is None else (*CSV_COLUMNS, *TRAINING_COLUMNS)
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for one in contest.contestants:
        writer.writerow(cells(_csv_line(one)))
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
    if one.training is not None:
        cells |= _training_cells(one)
    return cells


def _training_cells(one: Contestant) -> dict[str, Any]:
    line = training_line(one.training or (), one.training_error, None)
    return {
        "trainings": line.trials,
        "loss_macro": line.loss_macro,
        "loss_micro": line.loss_micro,
        "train_steps": line.steps,
        "train_tokens": line.tokens,
        "train_seconds": line.seconds,
        "training_error": line.error,
    }
