"""Kills a study over and over: ``python -m tests.study_kills FOLDER [--kills 20] [-- ARGUMENTS]``.

The libraries are loaded once; each run is a child of the process that holds them, killed by SIGKILL at a random moment.
Ends by comparing the table with that of an undisturbed run; prints one line, and exits 1 if a number differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spice_select.demo import demo_model_path, demo_rows
from tests.integration.rows import write_jsonl

VOLATILE = {"written", "seconds", "selection_seconds", "training_seconds", "seconds_of_full", "versions"}
DEFAULTS = (
    *("--methods", "random,length,spice,full", "--budgets", "20%,100%", "--seeds", "2", "--full-seeds", "1"),
    *("--holdout", "6", "--set", "training.epochs=1", "--set", "training.lr=1e-3"),
)


def table(folder: Path) -> Any:
    """The numbers of a study without what differs from run to run."""
    return _still(json.loads((folder / "study.json").read_text()))


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _still(inner) for name, inner in value.items() if name not in VOLATILE}
    return [_still(inner) for inner in value] if isinstance(value, list) else value


def child(arguments: Sequence[str]) -> int:
    """Begin a study in a process of its own."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            sys.argv = ["spice-select", *arguments]
            from spice_select.cli import main as run

            try:
                run()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            os._exit(code)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_runs(arguments: Sequence[str], folder: Path, kills: int, seed: int) -> tuple[int, float]:
    """Run a study once undisturbed, and once with kills; both folders are left.

    Returns:
        The kills that met a run at work, and the seconds of the undisturbed run.
    """
    begun = time.perf_counter()
    assert ended(child([*arguments, "--output", str(folder / "undisturbed")])) == 0
    whole = time.perf_counter() - begun
    moments, met = random.Random(seed), 0
    longest = min(whole, 3 * whole / max(1, kills))
    while met < kills:
        process = child([*arguments, "--output", str(folder / "killed")])
        time.sleep(moments.uniform(0.0, longest))
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        met += 1
    assert ended(child([*arguments, "--output", str(folder / "killed")])) == 0
    return met, whole


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    # Threads of the parent would not be there in its children.
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True)
    rows = write_jsonl(asked.folder / "rows.jsonl", demo_rows(seed=3)[: asked.rows])
    preload()
    arguments = ["study", str(rows), "--model", str(demo_model_path()), *DEFAULTS]
    met, whole = killed_runs(arguments, asked.folder, asked.kills, asked.seed)
    same = table(asked.folder / "undisturbed") == table(asked.folder / "killed")
    print(f"{met} kills of a study of {whole:.0f} s: the tables {'agree' if same else 'DIFFER'}")
    return 0 if same else 1


def preload() -> None:
    """What every child would have to load."""
    import datasets  # noqa: F401
    import peft  # noqa: F401

    import spice_select.study.running  # noqa: F401
    from spice_select.training.sft import trainer_class

    trainer_class()


if __name__ == "__main__":
    sys.exit(main())
