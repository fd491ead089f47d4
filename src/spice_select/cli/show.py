"""Results on stdout: a few lines for a person, or one JSON object."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from spice_select.cli.console import say

if TYPE_CHECKING:
    from spice_select.cost import Cost
    from spice_select.results import RunResult, StoreResult


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Print what was chosen and where it is."""
    if as_json:
        say(result.record.model_dump_json())
        return
    for line in result.describe():
        say(line)


def show_store(result: StoreResult, *, as_json: bool) -> None:
    """Print what was collected and where it is."""
    if as_json:
        say(result.model_dump_json())
        return
    for line in result.describe():
        say(line)


def show_cost(cost: Cost, *, as_json: bool) -> None:
    """Print the predicted cost of a run, once where several processes were started."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        say(cost.model_dump_json())
        return
    where = "this machine" if cost.machines == 1 else f"{cost.machines:,} machines like this one"
    with_workers = f", by {cost.workers:,} workers" if cost.workers > 1 else ""
    say(f"Predicted cost on {where}{with_workers}; nothing was written.")
    for name, value in _cost_lines(cost).items():
        say(f"  {name:<16} {value}")
    for note in cost.notes:
        say(f"note: {note}")
    if cost.disk_bytes + cost.result_bytes > cost.disk_free_bytes:
        what = "gradients do" if cost.kept else "inner products do"
        say(f"warning: the {what} not fit on this disk; name another output folder.", err=True)


def _cost_lines(cost: Cost) -> dict[str, str]:
    """What is told of a cost, by name; parts that there are none of are left out."""
    rows = f"{cost.examples:,} ({cost.usable:,} usable, {cost.picks:,} would be chosen)"
    if cost.rows_read != cost.examples:
        rows += f", of lengths as those of the {cost.rows_read:,} rows read"
    lines = {
        "examples": rows,
        "tokens": f"{cost.tokens:,} ({cost.response_tokens:,} in responses)",
    }
    if cost.gradient_seconds:
        lines["compute"] = f"{cost.flops / 1e12:,.1f} TFLOP"
        lines["gradients"] = (
            f"{duration(cost.gradient_seconds)} at {cost.measured_tokens_per_second:,.0f} tokens/s, "
            f"measured on {cost.measured_batches} batches"
        )
    else:
        lines["gradients"] = f"none of the proxy as it is, as method {cost.method} needs none"
    for name, seconds in (("other passes", cost.measuring_seconds), ("training", cost.training_seconds)):
        if seconds:
            lines[name] = duration(seconds)
    if cost.selection_seconds:
        parts = {
            "to pick": cost.selection_seconds,
            "again without penalty": cost.penalty_seconds,
            "certificate and conflicts": cost.certificate_seconds + cost.activity_seconds,
        }
        told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
        two_rounds = f", in {cost.partitions:,} partitions" if cost.partitions > 1 else ""
        lines["selection"] = f"{duration(sum(parts.values()))} ({told}){two_rounds}"
    if cost.picks:
        lines["results"] = duration(cost.result_seconds)
    lines["in all"] = duration(cost.collect_seconds + cost.select_seconds)
    free = f"({size(cost.disk_free_bytes)} free)"
    if not cost.kept:
        lines["disk"] = f"{size(cost.disk_bytes)} for inner products {free}"
    elif cost.gradient_seconds:
        lines["disk"] = f"{size(cost.disk_bytes)} for gradients of {cost.gradient_dim:,} numbers {free}"
    else:
        lines["disk"] = f"{size(cost.disk_bytes)} {free}"
    if cost.result_bytes:
        lines["disk"] += f", {size(cost.result_bytes)} for the results"
    each = f" in each of {cost.workers:,} processes" if cost.workers > 1 else ""
    if cost.collect_memory_bytes:
        lines["memory"] = f"{size(cost.collect_memory_bytes)} to collect{each}"
        if cost.select_memory_bytes:
            lines["memory"] += f", {size(cost.select_memory_bytes)} to select, mapped files aside"
        if cost.device_memory_bytes:
            lines["GPU memory"] = size(cost.device_memory_bytes)
    lines["network"] = (
        "none, as all of it is on one machine"
        if cost.machines == 1
        else f"{size(cost.collect_network_bytes)} to collect: weights and tokens to the machines, gradients to shared "
        "storage" + (f"; {size(cost.select_network_bytes)} to select" if cost.select_network_bytes else "")
    )
    return lines


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
