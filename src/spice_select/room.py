"""What this machine has room for: processes of one command beside each other."""

from __future__ import annotations

import os
from pathlib import Path

from spice_select.errors import ConfigError

LEAST_BYTES = 300 << 20
"""What a process holds at least: libraries, before any model."""
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes of memory that processes could still take here; None where the system doesn't tell."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
    except (OSError, ValueError, LookupError):
        pass
    try:
        # The bound of a container, which the machine's own numbers don't know.
        most, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(min(most, max(0, most - used) + _cached()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _cached() -> int:
    """Bytes of files that a container is charged for, and that give way to processes."""
    try:
        lines = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return int(lines["inactive_file"]) + int(lines["active_file"])
    except (OSError, ValueError, LookupError):
        return 0


def check_workers(workers: int | None, devices: int = 0) -> str | None:
    """See whether so many processes have room on this machine.

    Args:
        workers: How many were asked for; None: as many as fit.
        devices: Accelerators that they take turns at; their processors then have little to do.

    Returns:
        What to warn of: more processes than processors.

    Raises:
        ConfigError: More than memory holds.
    """
    if workers is None or workers <= 1:
        return None
    free, here = free_memory(), cores()
    has = f"{here} processor{'' if here == 1 else 's'}" + ("" if free is None else f" and {free / 1e9:.1f} GB to spare")
    fitting = workers if free is None else max(1, free // LEAST_BYTES)
    good = max(1, min(max(here, devices), fitting))
    if workers > fitting:
        raise ConfigError(
            f"--workers cannot be {workers} on this machine, which has {has}: each takes {LEAST_BYTES / 1e9:.1f} GB "
            f"before its model; give {good} or fewer, or use more machines."
        )
    if workers > max(here, devices):
        return (
            f"--workers {workers} share {has}, and each holds a model of its own: more than {good} make nothing faster."
        )
    return None
