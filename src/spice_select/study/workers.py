"""Further processes of one study on this machine: each takes trainings that none has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spice_select.errors import ConfigError
from spice_select.reporter import Reporter
from spice_select.room import check_workers, cores

SHARE = "--share"


@contextmanager
def started(workers: int, *, reporter: Reporter, overwrite: bool = False) -> Iterator[None]:
    """Run the same command in ``workers - 1`` further processes while the block runs; they end before it is left.

    Each has an accelerator of its own where there are several, and its share of the processors' threads.

    Args:
        workers: Processes in all.
        overwrite: Refused with several processes, as each would start again.
        reporter: Hears where they are more than the machine has processors.

    Raises:
        ConfigError: Fewer than one, more than memory holds, or ``--overwrite`` with several.
    """
    if workers < 1:
        raise ConfigError(f"--workers cannot be {workers}; give at least 1.")
    if workers == 1 or SHARE in sys.argv:
        yield
        return
    if overwrite:
        raise ConfigError("--overwrite and --workers cannot go together; remove the folder, or start with one worker.")
    crowded = check_workers(workers, len(_devices()))
    if crowded is not None:
        reporter.warn(crowded)
    command = [sys.executable, "-m", "spice_select", *sys.argv[1:], SHARE, "--quiet"]
    processes = [subprocess.Popen(command, env=_environment(number, workers)) for number in range(1, workers)]
    try:
        yield
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _environment(number: int, workers: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))
    devices = _devices()
    if len(devices) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environment


def _devices() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
