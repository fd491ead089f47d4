"""Results on stdout: a few lines for a person, or one JSON object."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from spice_select.cost import Cost
    from spice_select.results import RunResult, StoreResult


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Print what was chosen and where it is."""
    if as_json:
        typer.echo(result.record.model_dump_json())
        return
    for line in result.describe():
        typer.echo(line)


def show_store(result: StoreResult, *, as_json: bool) -> None:
    """Print what was collected and where it is."""
    if as_json:
        typer.echo(result.model_dump_json())
        return
    for line in result.describe():
        typer.echo(line)


def show_cost(cost: Cost, *, as_json: bool) -> None:
    """Print the predicted cost of a run, once where several processes were started."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(cost.model_dump_json())
        return
    typer.echo("Predicted cost on this machine; nothing was written.")
    gathers = cost.gradient_seconds > 0
    lines = {
        "examples": f"{cost.examples:,} ({cost.usable:,} usable, {cost.picks:,} would be chosen)",
        "tokens": f"{cost.tokens:,} ({cost.response_tokens:,} in responses)",
        **(
            {
                "compute": f"{cost.flops / 1e12:,.1f} TFLOP",
                "gradients": f"{duration(cost.gradient_seconds)} at {cost.measured_tokens_per_second:,.0f} tokens/s, "
                f"measured on {cost.measured_batches} batches",
            }
            if gathers
            else {"gradients": f"none of the proxy as it is, as method {cost.method} needs none"}
        ),
        **({"other passes": duration(cost.measuring_seconds)} if cost.measuring_seconds else {}),
        **({"selection": duration(cost.selection_seconds)} if cost.selection_seconds else {}),
        **({"training": duration(cost.training_seconds)} if cost.training_seconds else {}),
        "disk": f"{size(cost.disk_bytes)} ({size(cost.disk_free_bytes)} free)"
        if cost.kept and not gathers
        else f"{size(cost.disk_bytes)} for gradients of {cost.gradient_dim:,} numbers "
        f"({size(cost.disk_free_bytes)} free)"
        if cost.kept
        else f"{size(cost.disk_bytes)} for inner products ({size(cost.disk_free_bytes)} free)",
        **({"peak memory": size(cost.peak_memory_bytes)} if cost.peak_memory_bytes else {}),
    }
    for name, value in lines.items():
        typer.echo(f"  {name:<12} {value}")
    if cost.disk_bytes > cost.disk_free_bytes:
        typer.echo("warning: the gradients do not fit on this disk; name another output folder.", err=True)


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
