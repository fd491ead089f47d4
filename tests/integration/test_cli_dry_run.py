"""What a run of another size would cost, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from spice_select import pricing
from spice_select.cli import options
from spice_select.errors import ConfigError
from spice_select.reporter import Silent
from tests.integration.command import Command


def test_a_larger_size_is_priced_by_the_rows_at_hand(command: Command, model: Path, rows_file: Path) -> None:
    asked = (
        "run",
        rows_file,
        "-m",
        model,
        "-b",
        "10%",
        "--dry-run",
        "--at-rows",
        "100000",
        "--set",
        "gradients.dim=64",
    )
    cost = command.json(*asked, "--workers", "8", "--at-machines", "4", "--set", "selection.partitions=4")
    assert (cost["examples"], cost["rows_read"], cost["picks"]) == (100_000, 40, 10_000)
    assert (cost["workers"], cost["machines"], cost["partitions"]) == (8, 4, 4)
    assert cost["collect_network_bytes"] > cost["disk_bytes"] / 2 and cost["select_network_bytes"] > 0
    assert cost["select_seconds"] > cost["selection_seconds"] > 0
    said = command(*asked).out
    assert "of lengths as those of the 40 rows read" in said
    assert "none, as all of it is on one machine" in said


def test_sizes_that_cannot_be_are_refused(command: Command, model: Path, rows_file: Path) -> None:
    asked = ("collect", rows_file, "-m", model, "--dry-run")
    assert "--at-rows cannot be 0" in command.refused(2, *asked, "--at-rows", "0")
    assert "at most" in command.refused(2, *asked, "--at-rows", "1" + 400 * "0")
    assert "at most" in command.refused(2, *asked, "--workers", "1" + 400 * "0")
    assert "one for each at least" in command.refused(2, *asked, "--workers", "2", "--at-machines", "3")
    assert "add --at-machines" in command.refused(2, *asked, "--engine", "ray", "--address", "auto")
    assert "goes with --engine ray" in command.refused(2, *asked, "--address", "auto")
    # More picks than the rows at hand are no fault where more rows are priced, and one where they are not.
    assert "asks for 500 rows" in command.refused(2, "run", rows_file, "-m", model, "-b", "500", "--dry-run")


def test_what_the_figures_do_not_know_is_said(
    command: Command, model: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("run", rows_file, "-m", model, "-b", "10%", "--dry-run", "--set", "gradients.dim=64")
    pools = ("--schedule", "pools", "--set", "schedule.pool_size=8")
    said = command.refused(2, *asked, *pools, "--engine", "ray", "--workers", "2")
    assert said.startswith("schedule.kind pools has no part for --engine ray")
    cost = command.json(*asked)
    assert cost["notes"] == []
    device = ("--set", "selection.device=cuda", "--at-rows", "1000")

    def none(name: str) -> None:
        raise ConfigError(f"device '{name}' cannot be used here; give 'cpu'.")

    monkeypatch.setattr(pricing, "usable_device", none)
    assert "device 'cuda' cannot be used here" in command.refused(2, *asked, *device)
    # As if there were one.
    monkeypatch.setattr(pricing, "usable_device", lambda name: None)
    done = command(*asked, *device)
    assert done.code == 0, done.err
    notes = [line for line in done.out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: The selection is priced as the processor's work; on selection.device cuda it takes another time, and "
        "that device's memory."
    ]


def test_sizes_without_a_dry_run_are_said_to_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "warn", lambda self, line: said.append(line))
    options.warn_unused(Silent(), None, None)
    assert not said
    options.warn_unused(Silent(), 1000, 2)
    assert said == [
        "--at-rows 1000 has no effect without --dry-run.",
        "--at-machines 2 has no effect without --dry-run.",
    ]
