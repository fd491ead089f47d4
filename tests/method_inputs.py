"""Inputs of methods for tests, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spice_select.methods import Choice, Inputs, Method
from spice_select.selection.budget import Budget
from spice_select.selection.quotas import resolve_groups


def make_inputs(
    n: int,
    budget: int | Budget,
    *,
    seed: int = 0,
    tokens: Sequence[int] | np.ndarray | None = None,
    leave_out: Sequence[int] = (),
    labels: Sequence[str] | None = None,
    quotas: Mapping[str, Any] | str | None = None,
    **measured: Any,
) -> Inputs:
    """What a method is given of n rows; quotas go by ``labels``, which are the sources too."""
    candidates = np.ones(n, dtype=bool)
    candidates[list(leave_out)] = False
    within = Budget(budget) if isinstance(budget, int) else budget
    names = list(labels) if labels is not None else ["rows"] * n
    groups = None
    if quotas is not None:
        groups = lambda: resolve_groups(names, quotas, candidates, np.ones(n, dtype=bool), within.rows)  # noqa: E731
    lengths = np.arange(1, n + 1) if tokens is None else np.asarray(tokens)
    return Inputs(n, candidates, lengths, names, within, seed=seed, groups=groups, **measured)


def picks(method: Method, inputs: Inputs) -> list[int]:
    """Row numbers that a method chooses."""
    return method.choose(inputs).indices.tolist()


def require_sound(choice: Choice, inputs: Inputs) -> None:
    """What holds of every choice: no repeats, candidates only, budget and quotas kept, and fewer never unsaid."""
    chosen = choice.indices
    assert chosen.dtype == np.int64 and len(np.unique(chosen)) == len(chosen) == len(choice.scores)
    assert inputs.candidates[chosen].all() and len(chosen) <= inputs.budget.rows
    tokens = inputs.budget.tokens
    if tokens is not None:
        assert inputs.response_tokens[chosen].sum() <= tokens
        limits = inputs.limits()
        for index in chosen.tolist():
            limits.take(index)
        assert bool(limits.remaining and limits.eligible.any()) == (choice.stop_reason == "exhausted")
        assert (choice.stop_reason == "exhausted") <= bool(choice.warnings)
    elif len(chosen) < inputs.budget.rows:
        assert choice.stop_reason == "exhausted" and choice.warnings
    else:
        assert choice.stop_reason == "budget" and not choice.warnings
    if inputs.groups is not None:
        groups = inputs.groups()
        counts = np.bincount(groups.codes[chosen], minlength=len(groups.most))
        assert (counts <= groups.most).all()
        assert (counts >= groups.least).all() or choice.warnings
