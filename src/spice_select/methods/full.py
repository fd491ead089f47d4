"""Every row, as the reference that a selection is compared with."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from spice_select.methods.base import Choice, Method
from spice_select.methods.inputs import Inputs


class Full(Method):
    """Takes every row that can be chosen, in the order of the rows; budget and quotas do not apply."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "nothing: takes every row, as a reference"
    cost: ClassVar[str] = "nothing"
    takes_budget: ClassVar[bool] = False

    def choose(self, inputs: Inputs) -> Choice:
        """Every candidate; a note says so where the budget or quotas ask for less."""
        picks = np.flatnonzero(inputs.candidates)
        notes: tuple[str, ...] = ()
        unmet = _unmet(inputs, picks)
        if unmet:
            notes = (f"Method 'full' takes all {len(picks):,} rows that can be chosen, whatever {unmet} asks for.",)
        return Choice(picks, np.ones(len(picks)), "constant", "budget", notes=notes)


def _unmet(inputs: Inputs, picks: np.ndarray) -> str:
    """What of the budget and quotas taking every row goes against."""
    tokens = inputs.budget.tokens
    if tokens is not None and int(inputs.response_tokens[picks].sum()) > tokens:
        return f"the budget of {tokens:,} tokens"
    if inputs.budget.rows < len(picks):
        return f"the budget of {inputs.budget.rows:,} rows"
    if inputs.groups is not None and not _within(inputs, picks):
        return "the quotas"
    return ""


def _within(inputs: Inputs, picks: np.ndarray) -> bool:
    assert inputs.groups is not None
    groups = inputs.groups()
    counts = np.bincount(groups.codes[picks], minlength=len(groups.most))
    return bool((counts <= groups.most).all())
