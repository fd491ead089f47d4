"""What a study would cost, from a few steps of this very model on these very rows; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from spice_select.config import GradientConfig, RunConfig
from spice_select.features.heldout import trained_model
from spice_select.features.heldout_losses import row_losses
from spice_select.features.losses import LossEngine
from spice_select.gradients.proxy import load_proxy
from spice_select.methods import Need
from spice_select.pool import excluded_rows, read_pool
from spice_select.reporter import Clock, Reporter, heard
from spice_select.study.arms import FULL, StudyArm
from spice_select.study.choosing import budgets_of, ground_of, share_of
from spice_select.study.heldout import held_out
from spice_select.study.ledger import LEDGER, Ledger
from spice_select.study.running import StudySettings
from spice_select.training.sft import fine_tune, planned_steps, restore, trainable

_STEPS = 3


@dataclass(frozen=True)
class StudyPrice:
    """What a study would take.

    Attributes:
        trainings: Trainings of the plan.
        known: Those whose arm, budget and seed the ledger has an outcome of.
        tokens: Tokens to train on for the rest, all epochs together.
        collections: Times that gradients of the whole pool are taken.
        pool_tokens: Tokens of the pool.
        train_rate: Tokens trained on in a second, as measured.
        evaluation_seconds: Time of one measurement of the held-out rows.
    """

    trainings: int
    known: int
    tokens: int
    collections: int
    pool_tokens: int
    train_rate: float
    evaluation_seconds: float

    @property
    def seconds(self) -> float:
        """Trainings and measurements of held-out rows, and gradients at the pace of training."""
        rest = self.trainings - self.known
        return (
            self.tokens / self.train_rate
            + rest * self.evaluation_seconds
            + self.collections * self.pool_tokens / self.train_rate
        )

    def describe(self) -> list[str]:
        """The price in a few lines."""
        return [
            f"{self.trainings:,} trainings, of which the ledger knows up to {self.known:,}; the rest train on about "
            f"{self.tokens:,} tokens.",
            f"Gradients of the pool ({self.pool_tokens:,} tokens) are taken {self.collections:,} times, unless they "
            "are there already.",
            f"Measured here: {self.train_rate:,.0f} tokens a second in training, {self.evaluation_seconds:.1f} s for "
            f"the held-out rows; together about {_time(self.seconds)} with one worker.",
            "Other measurements of methods, benchmarks, and arms that choose the same rows are not counted.",
        ]


def price(config: RunConfig, arms: Sequence[StudyArm], settings: StudySettings, reporter: Reporter) -> StudyPrice:
    """Price a study.

    Args:
        config: The settings that all arms share.
        arms: Ways of choosing.
        settings: The plan.
        reporter: Hears the progress.

    Raises:
        ConfigError, DataError, ModelError: As the study itself would raise them.
    """
    clock = Clock()
    pool = read_pool(config, reporter, clock)
    with TemporaryDirectory(prefix="spice-price-") as temporary:
        config, held = held_out(config, pool, settings.holdout, Path(temporary), reporter, clock)
        free = pool.encoded.usable & ~excluded_rows(config, pool)
        rows = np.flatnonzero(free)
        lengths, responses = pool.encoded.lengths[rows], pool.encoded.response_tokens[rows]
        budgets = budgets_of(settings.budgets, settings.equals, len(rows), int(responses.sum()))
        whole = any(arm.spec.name == FULL for arm in arms) or any(
            share_of(name, len(rows)) >= 1 for name in settings.budgets
        )
        epochs, each = config.training.epochs, float(lengths.mean())
        fixed = planned_steps(len(rows), config.training) * config.training.batch_size * each
        choosing = [arm for arm in arms if arm.spec.name != FULL]
        known = {
            (one.arm, one.budget, str(one.equal), one.seed)
            for one in Ledger(settings.ledger or Path(config.output.folder) / LEDGER).read()
        }
        sizes: list[tuple[tuple[str, str, str, int], float]] = []
        for seed in settings.seeds:
            for budget in budgets:
                amount = (
                    fixed if budget.equal == "steps" else share_of(budget.name, len(rows)) * len(rows) * each * epochs
                )
                sizes += [((arm.label, budget.name, budget.equal, seed), amount) for arm in choosing]
        if whole:
            sizes += [((FULL, "100%", settings.equals[0], seed), each * len(rows) * epochs)
                      for seed in settings.seeds[: settings.full_seeds]]  # fmt: skip
        grounds = {
            f"pools-{arm.label}" if arm.in_pools else ground_of(arm.config)
            for arm in choosing
            if arm.in_pools or Need.GRADIENTS in arm.spec.method.required()
        }
        reporter.stage("Model")
        with heard(reporter):
            base = load_proxy(trained_model(config), GradientConfig())
            sample = [pool.encoded.example(int(row)) for row in rows[: _STEPS * config.training.batch_size]]
            trial = config.training.model_copy(update={"max_steps": _STEPS, "mode": "lora"})
            trained = fine_tune(base, trainable(sample), trial, config.seed, Path(temporary) / "trainer")
            restore(trained)
        begun = time.perf_counter()
        row_losses(LossEngine(base), held.rows, config.gradients.batch_tokens)
        took = time.perf_counter() - begun
    return StudyPrice(
        trainings=len(sizes),
        known=sum(place in known for place, _ in sizes),
        tokens=round(sum(amount for place, amount in sizes if place not in known)),
        collections=len(grounds),
        pool_tokens=int(lengths.sum()),
        train_rate=trained.tokens / max(trained.seconds, 1e-9),
        evaluation_seconds=took,
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
