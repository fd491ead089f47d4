"""Time and memory of a piece of work in this process."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_INTERVAL_S = 0.005


@dataclass
class Meter:
    """What the work took; known when its block ends.

    Attributes:
        seconds: Time.
        process_seconds: Processor time of all threads of this process.
        memory_bytes: Growth of the process's own memory (what it shares with files aside) at its height, looked at
            every few milliseconds; None where the system doesn't tell.
    """

    seconds: float = 0.0
    process_seconds: float = 0.0
    memory_bytes: int | None = None


@contextmanager
def metered() -> Iterator[Meter]:
    """Measure what runs inside; memory that was free before is given back first, so that its use is seen."""
    meter = Meter()
    gc.collect()
    _give_back()
    before = own_memory()
    watch = None if before is None else _Watch(before)
    began, worked = time.perf_counter(), time.process_time()
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - began
        meter.process_seconds = time.process_time() - worked
        if watch is not None and before is not None:
            meter.memory_bytes = max(0, watch.stop() - before)


def own_memory() -> int | None:
    """Bytes of memory that are this process's own and no file's; None where the system doesn't tell."""
    try:
        resident, shared = _STATM.read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


class _Watch:
    """Looks at the memory from a thread of its own."""

    def __init__(self, start: int) -> None:
        self._height = start
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        self._once()
        return self._height

    def _look(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            self._once()

    def _once(self) -> None:
        self._height = max(self._height, own_memory() or 0)


def _give_back() -> None:
    """Hand freed memory to the system, where the C library can; a later use of it would not show as growth."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return
