"""Columns and words for trainings on the picks of several methods."""

from __future__ import annotations

from collections.abc import Callable

from spice_select.analysis.contest import Contest, MethodLine, TrainingLine
from spice_select.analysis.contest_training import training_line
from spice_select.analysis.tables import number
from spice_select.report.contest_columns import Column

UNTRAINED = "untrained"
"""Name of the line of the model before any training."""
MOST_DOMAINS = 12
"""Domains that a table has columns for."""


def _cell(value: Callable[[TrainingLine], str]) -> Callable[[MethodLine], str]:
    return lambda line: "-" if line.training is None else value(line.training)


def _loss(line: TrainingLine) -> str:
    if line.loss_macro is None:
        return "failed"
    text = number(line.loss_macro)
    return text if line.deviation is None else f"{text} \N{PLUS-MINUS SIGN}{number(line.deviation, digits=2)}"


def _apart(line: TrainingLine) -> str:
    return "-" if line.from_random is None else f"{line.from_random:+,.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


TRAINING = (
    Column("Held-out loss, mean of domains", "held-out", _cell(_loss)),
    Column("From random, in its standard deviations", "loss vs random", _cell(_apart)),
    Column("Held-out loss, mean of rows", "by rows", _cell(lambda line: number(line.loss_micro))),
    Column("Trainings", "trainings", _cell(lambda line: str(line.trials))),
    Column("Optimiser steps", "steps", _cell(lambda line: _count(line.steps))),
    Column("Tokens trained on", "trained", _cell(lambda line: _count(line.tokens))),
    Column("Seconds of a training", "train s", _cell(lambda line: number(line.seconds, digits=3))),
)


def domain_columns(contest: Contest) -> tuple[Column, ...]:
    """Mean held-out loss in each domain, the largest first; none where there is but one."""
    domains = {} if contest.training is None else contest.training.domains
    if len(domains) < 2:
        return ()

    def column(name: str) -> Column:
        return Column(name, name, _cell(lambda line: number(line.by_domain.get(name))))

    return tuple(map(column, sorted(domains, key=lambda name: -domains[name])[:MOST_DOMAINS]))


def untrained_line(contest: Contest) -> MethodLine:
    """The model before any training as a line of these tables."""
    assert contest.training is not None
    line = training_line([contest.training.untrained], None, None).model_copy(
        update={"trials": 0, "tokens": None, "seconds": None}
    )
    return MethodLine(
        label=UNTRAINED,
        method=UNTRAINED,
        varies="no",
        seeds=(contest.seed,),
        error=None,
        spreads=(),
        seconds=None,
        process_seconds=None,
        memory_bytes=None,
        work=0.0,
        training=line,
    )


def training_note(contest: Contest) -> str:
    """What was trained, and what the losses are of."""
    assert contest.training is not None
    found = contest.training
    settings, count = found.settings, len(found.domains)
    return (
        f"{found.model} with adapters of rank {settings['lora_r']}, {settings['epochs']} "
        f"epoch{'s' if settings['epochs'] > 1 else ''} of each method's picks from the model as it came, learning "
        f"rate {settings['lr']:g}; loss in nats on {found.rows:,} held-out rows of {count:,} "
        f"domain{'s' if count > 1 else ''}, lower is better. A small trial with this package's own training loop, not "
        "the fine-tuning of a target."
    )
