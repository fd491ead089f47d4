"""Adam's steps from the command line: a run by them, and a choice towards a target by LESS."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spice_select.gradients.store import GradientStore
from tests.integration.command import Command

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ADAM = ("--set", "gradients.precondition=adam", "--set", "schedule.lora.r=2")


def test_spice_by_the_steps_of_adam(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("run", rows_file, "-m", model, "-b", "6", "-o", out, "--set", "gradients.dim=256", *ADAM)
    outcome = command(*args, "--warmup-steps", "4")
    assert outcome.code == 0, outcome.err
    store = GradientStore.open(out / "gradients", verify=True)
    measured = json.loads((out / "gradients" / "manifest.json").read_text())["gradient"]
    assert measured["precondition"]["kind"] == "adam"
    assert measured["lora"] == {"r": 2, "alpha": 32.0, "factors": "both"}
    rows = np.asarray(store.rows(np.arange(40)), dtype=float)
    norms = (rows**2).sum(1)
    # A sketch of the step, whose exact norm stands beside it.
    assert 0.5 < np.median(norms / store.squared_norms) < 2.0
    assert "without a warm-up" in command.refused(2, *args)


def test_less_takes_up_what_is_there(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.jsonl"
    target.write_text(rows_file.read_text().splitlines()[0] + "\n")
    out = tmp_path / "out"
    settings = [f"--set=method.{each}" for each in ("warmup_share=0.2", "epochs=1", "lora_r=2", "dim=256")]
    args = ("run", rows_file, "-m", model, "-b", "5", "-o", out, "--method", "less", *settings)
    assert "--target FILE" in command.refused(2, *args)
    outcome = command(*args, "--target", target)
    assert outcome.code == 0, outcome.err
    first = (out / "trace.parquet").read_bytes()
    again = command(*args, "--target", target)
    assert again.code == 0 and "Took up 1 of the warm-up's 1 epochs" in again.err + again.out
    assert (out / "trace.parquet").read_bytes() == first
