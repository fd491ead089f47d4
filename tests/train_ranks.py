"""Trainings in processes of their own: one that is killed, and two that share each step.

The processes are forks of one that has imported everything, which saves most of the time that torchrun would take.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from spice_select.reporter import Silent
from spice_select.training import train as training
from spice_select.training.sft import fine_tune, require_trainer

SETTINGS = {"epochs": 2, "lr": 1e-2, "batch_size": 4}
OVERRIDES = ("training.dropout=0", "training.save_steps=2")
DROPOUT = ("training.dropout=0.3", "training.save_steps=2")
KILLED_AT = 3


class Kill(TrainerCallback):
    """Ends the process as a lack of memory or of power does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(run: Path, output: Path) -> None:
    """A training that never comes to its end."""

    def doomed(*args: Any, callbacks: Any = (), **options: Any) -> Any:
        return fine_tune(*args, callbacks=[*callbacks, Kill()], **options)

    training.fine_tune = doomed  # type: ignore[assignment]
    training.train(run, output, Silent(), settings=SETTINGS, overrides=DROPOUT)


def shared(run: Path, output: Path) -> None:
    """One of several processes."""
    result = training.train(run, output, Silent(), settings=SETTINGS, overrides=OVERRIDES)
    assert (result is not None) == (os.environ["RANK"] == "0")


def fork(work: Any, run: Path, output: Path, environment: Mapping[str, str]) -> int:
    """Start a process; its number."""
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    try:
        work(run, output)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Folder of the run, and of what the processes write."""
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    require_trainer()
    torch.set_num_threads(1)
    _, status = os.waitpid(fork(killed, run, folder / "killed", {}), 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        fork(shared, run, folder / "shared", {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    assert codes == [0, 0], codes


if __name__ == "__main__":
    main()
