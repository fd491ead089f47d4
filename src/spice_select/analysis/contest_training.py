"""What trainings on the picks of several methods came to, on rows that none of them could choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.tables import number

APART = 2.0
"""Standard deviations beyond which a difference is told from chance."""
FEW = 3
"""Trainings below which a spread is hardly known."""
_EXACT = 1e-9


class TrainingNumbers(Numbers):
    """One training on some picks, or the model before any.

    Attributes:
        seed: Of the adapters, the order of the picks and the dropout.
        loss_macro: Mean over the domains of the mean held-out loss in each, in nats.
        loss_micro: Mean over all held-out rows; each counts the mean over its response tokens.
        by_domain: Mean over the held-out rows of each domain.
        steps: Optimiser steps.
        tokens: Tokens of the training, padding aside, all epochs together.
        seconds: Time of the training.
        left_out: Picks that the trained model's tokenizer or template leaves without a response.
    """

    seed: int
    loss_macro: float
    loss_micro: float
    by_domain: dict[str, float]
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: int = 0


class TrainingLine(Numbers):
    """All trainings on the picks of one method.

    Attributes:
        trials: Trainings that came to an end.
        loss_macro: Mean of their macro losses.
        deviation: Standard deviation of those (n - 1); None for one.
        from_random: Mean less that of random, in random's standard deviations; None where random has no
            spread, or the method chose another number of rows.
        loss_micro: Mean of their micro losses.
        by_domain: Mean loss in each domain.
        steps: Mean number of optimiser steps.
        tokens: Mean number of tokens trained on.
        seconds: Mean time of a training.
        error: Why a training has no loss.
    """

    trials: int
    loss_macro: float | None = None
    deviation: float | None = None
    from_random: float | None = None
    loss_micro: float | None = None
    by_domain: dict[str, float] = Field(default_factory=dict)
    steps: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    error: str | None = None


class TrainingSetup(Numbers):
    """What all trainings share.

    Attributes:
        model: Name of the trained model.
        settings: The training section, without the names of model and files.
        rows: Held-out rows.
        domains: Held-out rows by domain.
        in_pool: Held-out rows that are rows of the pool as well.
        untrained: The model before any training.
        fingerprints: Digests of the weights and of the held-out rows.
    """

    model: str
    settings: dict[str, Any]
    rows: int
    domains: dict[str, int]
    in_pool: int
    untrained: TrainingNumbers
    fingerprints: dict[str, str]


def training_line(trials: Sequence[TrainingNumbers], error: str | None, unit: TrainingLine | None) -> TrainingLine:
    """Means and spreads of a method's trainings.

    Args:
        trials: Those that came to an end.
        error: Why one did not.
        unit: Random's line, the unit of differences; None where the method is not to be compared with it.
    """
    if not trials:
        return TrainingLine(trials=0, error=error)
    macro = [one.loss_macro for one in trials]
    mean = _mean(macro)
    apart = None
    if unit is not None and unit.loss_macro is not None and unit.deviation:
        # A spread that is rounding alone measures nothing.
        known = unit.deviation > _EXACT * abs(unit.loss_macro)
        apart = (mean - unit.loss_macro) / unit.deviation if known else None
    return TrainingLine(
        trials=len(trials),
        loss_macro=mean,
        deviation=float(np.std(macro, ddof=1)) if len(macro) > 1 else None,
        from_random=apart,
        loss_micro=_mean([one.loss_micro for one in trials]),
        by_domain={name: _mean([one.by_domain[name] for one in trials]) for name in trials[0].by_domain},
        steps=_mean([one.steps for one in trials]),
        tokens=_mean([one.tokens for one in trials]),
        seconds=_mean([one.seconds for one in trials]),
        error=error,
    )


def training_sentence(lines: Mapping[str, TrainingLine], random: str | None, setup: TrainingSetup) -> str:
    """What the trainings say, in one sentence.

    Args:
        lines: By label, the methods that chose as many rows as random.
        random: Label of random; None without it.
        setup: What all trainings share.
    """
    before = f"untrained the model has {number(setup.untrained.loss_macro)} nats"
    known = {label: line for label, line in lines.items() if line.loss_macro is not None}
    base = known.get(random) if random is not None else None
    if base is None or base.deviation is None or base.loss_macro is None:
        why = "no training on random picks" if base is None else "one training on random picks"
        means = ", ".join(f"{label} {number(line.loss_macro)}" for label, line in known.items())
        return (
            f"Held-out loss after training cannot be told from chance, with {why} (give --seeds 5)"
            f"{': ' + means if means else ''}; {before}."
        )
    lower, alike, higher = [], [], []
    for label, line in known.items():
        if label == random or line.loss_macro is None:
            continue
        apart = line.loss_macro - base.loss_macro
        # A method's own spread counts too: several of its trainings may lie within random's.
        chance = max(APART * max(base.deviation, line.deviation or 0.0), _EXACT * abs(base.loss_macro))
        by = "" if line.from_random is None else f" ({line.from_random:+,.1f})"
        (alike if abs(apart) <= chance else lower if apart < 0 else higher).append(
            label if abs(apart) <= chance else f"{label}{by}"
        )
    spread = (
        f"random: {number(base.loss_macro)} \N{PLUS-MINUS SIGN}{number(base.deviation, digits=2)} nats over "
        f"{base.trials} seeds{', too few to tell a spread well' if base.trials < FEW else ''}"
    )
    others = sorted({line.trials for label, line in known.items() if label != random})
    if others:
        counts = str(others[0]) if len(others) == 1 else f"{others[0]} to {others[-1]}"
        spread += f"; the others: {counts}"
    more = f"; to a higher one by as much: {', '.join(higher)}" if higher else ""
    if lower:
        rest = f"; not told apart: {', '.join(alike)}" if alike else ""
        return (
            f"Picks that trained to a lower held-out loss than random's by more than twice its spread: "
            f"{', '.join(lower)}{rest}{more} ({spread}); {before}."
        )
    return (
        f"No method's picks trained to a lower held-out loss than random's by more than twice its spread{more} "
        f"({spread}); {before}."
    )


def shared_sentence(shared: int, rows: int) -> str:
    """The warning of held-out rows that could be chosen."""
    return (
        f"{shared:,} of the {rows:,} held-out rows are rows of the pool as well, so that methods that choose them look "
        "better than they are; leave them out of one of the two."
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
