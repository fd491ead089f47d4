"""What a person hears of a training while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from spice_select.reporter import Reporter

_TIMED_STEPS = 3


class Progress(TrainerCallback):
    """Hands every step on to the reporter, and after a few says how long all will take.

    Args:
        reporter: Hears it.
        rows: Rows of all steps.
        tokens_a_row: Their mean length.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, reporter: Reporter, rows: int, tokens_a_row: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._reporter = reporter
        self._rows = rows
        self._tokens_a_row = tokens_a_row
        self._clock = clock
        self._begun, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._begun, self._first = self._clock(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One step is done."""
        if not logs or "loss" not in logs:
            return
        steps, took = state.global_step - self._first, self._clock() - self._begun
        each = self._rows / max(1, state.max_steps)
        done = min(self._rows, round(state.global_step * each))
        tokens = round(steps * each * self._tokens_a_row)
        self._reporter.advance(done, self._rows, tokens, took, f"loss {logs['loss']:.3f}")
        if steps == _TIMED_STEPS and state.max_steps > state.global_step:
            left = took / steps * (state.max_steps - state.global_step)
            self._reporter.note(f"About {left:,.0f} s to go at the speed of the first {steps} steps.")
