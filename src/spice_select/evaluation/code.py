"""Whether programs that a model wrote pass their checks, found by running them in the sandbox."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from spice_select.evaluation.sandbox import Ended, Limits, run_program
from spice_select.evaluation.sandbox_child import OUT_OF_MEMORY

Status = Literal["passed", "failed", "timeout", "memory", "killed", "error"]
_DETAIL = 200


@dataclass(frozen=True)
class Outcome:
    """What came of one program.

    Attributes:
        passed: It ran to the end of its text, and so through all the checks in it.
        status: ``failed``: a check or the program itself raised, or it ended before its checks. ``timeout`` and
            ``memory``: it passed a limit. ``killed``: a signal ended it, or it wrote too much. ``error``: no end of it
            was seen.
        detail: The same in words, one line.
    """

    passed: bool
    status: Status
    detail: str


CodeRunner = Callable[[Sequence[str]], Sequence[Outcome]]
"""Runs programs, each with its checks at its end; their outcomes in the same order."""


class SandboxRunner:
    """Runs programs one by one, or several at once.

    Args:
        limits: What each may use.
        workers: How many at once.
    """

    def __init__(self, limits: Limits | None = None, workers: int = 1) -> None:
        assert workers >= 1
        self.limits = limits or Limits()
        self._workers = workers

    def __call__(self, programs: Sequence[str]) -> tuple[Outcome, ...]:
        """Run them.

        Raises:
            ResourceError: Generated code cannot be contained on this machine; nothing is run then.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox")
        try:
            return tuple(pool.map(self._judge, programs))
        finally:
            # After an interrupt or an error, those that have not begun are left alone.
            pool.shutdown(wait=True, cancel_futures=True)

    def _judge(self, program: str) -> Outcome:
        return judged(run_program(program, self.limits), self.limits)


def judged(ended: Ended, limits: Limits) -> Outcome:
    """What the end of a program says of it."""
    if ended.passed:
        return Outcome(True, "passed", "")
    if ended.stopped == "disk":
        return Outcome(False, "killed", f"wrote more than {limits.disk_bytes >> 20} MiB, or too many files")
    if ended.stopped == "time":
        return Outcome(False, "timeout", f"ran for more than {limits.wall_s:g} s")
    if ended.signal == signal.SIGXCPU or (ended.signal == signal.SIGKILL and ended.cpu_s >= limits.cpu_s):
        return Outcome(False, "timeout", f"used more than {limits.cpu_s} s of processor time")
    if ended.signal is not None:
        return Outcome(False, "killed", f"ended by {signal.Signals(ended.signal).name}")
    if ended.exit_status == OUT_OF_MEMORY:
        return Outcome(False, "memory", f"needed more than {limits.memory_bytes >> 20} MiB")
    if ended.exit_status == 0:
        return Outcome(False, "failed", "ended before its checks")
    if ended.exit_status is None:
        return Outcome(False, "error", "no end of it was seen")
    return Outcome(False, "failed", _last_line(ended.output) or f"exit status {ended.exit_status}")


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip()[:_DETAIL] if lines else ""
