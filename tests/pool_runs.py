"""Runs of the command line in one or several processes, killed or not: ``python -m tests.pool_runs JOBS.json``.

Each process is a fork of one that has imported everything, which saves most of the time that torchrun would take. A
job that is to be killed is begun, its processes killed by SIGKILL at a random moment, and begun again, until it has
been killed as often as asked; then it may end. Prints the exit codes of each job's last processes as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        arguments: Of ``spice-select``.
        world: Processes.
        kills: Times that it is killed before it may end.
    """

    arguments: tuple[str, ...]
    world: int = 1
    kills: int = 0


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        codes: Exit codes of its last processes.
        killed: Times that a process died by the signal.
        early: Times that it had ended before the signal.
    """

    codes: tuple[int, ...]
    killed: int
    early: int


def begin(job: Job, messages: Path) -> list[int]:
    """Start the processes of a job, with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(job.world):
        child = os.fork()
        if child == 0:
            _command(job, rank, port, messages)
        children.append(child)
    return children


def _command(job: Job, rank: int, port: int, messages: Path) -> None:
    code = 70
    try:
        torch.set_num_threads(1)
        if job.world > 1:
            os.environ.update(WORLD_SIZE=str(job.world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        with messages.open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.argv = ["spice-select", *job.arguments]
        from spice_select.cli import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: Sequence[int]) -> tuple[int, ...]:
    return tuple(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def finish(job: Job, messages: Path, moments: random.Random, longest: float) -> Ended:
    """Kill a job as often as asked, and let it end."""
    killed = early = 0
    while killed < job.kills:
        children = begin(job, messages)
        time.sleep(moments.uniform(0, longest))
        for child in children:
            os.kill(child, signal.SIGKILL)
        codes = wait(children)
        if -signal.SIGKILL in codes:
            killed += 1
            continue
        early, longest = early + 1, longest / 2
        if early > 5:
            break
    return Ended(wait(begin(job, messages)), killed, early)


def main() -> None:
    path = Path(sys.argv[1])
    jobs = [Job(**{**job, "arguments": tuple(job["arguments"])}) for job in json.loads(path.read_text())]
    torch.set_num_threads(1)
    # What is imported on first use is imported once, here.
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import spice_select.pipeline  # noqa: F401

    moments, longest = random.Random(), 5.0
    found = []
    for job in jobs:
        begun = time.perf_counter()
        found.append(asdict(finish(job, path.with_suffix(".log"), moments, longest)))
        if not job.kills:
            # An undisturbed run says how long one takes.
            longest = time.perf_counter() - begun
    print(json.dumps(found))


if __name__ == "__main__":
    main()
