"""Made-up studies: trainings with known effects of arm, seed and held-out row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from spice_select.analysis.study_record import Arm, Cost, Equal, Losses, Outcome, Study, StudyPlan
from spice_select.analysis.study_statistics import summarise

DOMAINS = {"maths": 12, "talk": 8}
BASE = {"maths": 1.2, "talk": 2.0}


def losses(rows: Sequence[float], domains: Mapping[str, int] = DOMAINS) -> Losses:
    """Losses of these rows, which lie domain by domain."""
    found, start = {}, 0
    for name, count in domains.items():
        found[name] = float(np.mean(rows[start : start + count]))
        start += count
    assert start == len(rows)
    return Losses(
        macro=float(np.mean(list(found.values()))), micro=float(np.mean(rows)), by_domain=found, rows=tuple(rows)
    )


def cost(*, selection: float = 0.0, training: float = 1e12) -> Cost:
    return Cost(
        selection_forward_tokens=int(selection / 1e9),
        selection_backward_tokens=int(selection / 1e9),
        selection_seconds=selection / 1e11,
        selection_flops=selection,
        training_tokens=int(training / 1e9),
        training_seconds=training / 1e10,
        training_flops=training,
    )


def outcome(
    arm: str,
    seed: int,
    found: Losses | float | None,
    *,
    budget: str = "10%",
    equal: Equal = "rows",
    suites: dict[str, dict[str, float]] | None = None,
    error: str | None = None,
    written: str = "2026-01-01T00:00:00Z",
    spent: Cost | None = None,
    subset: str | None = None,
) -> Outcome:
    """One training; a number stands for the loss of every row."""
    if isinstance(found, float):
        found = losses([found] * sum(DOMAINS.values()))
    key = hashlib.sha256(f"{arm} {seed} {budget} {equal} {written}".encode()).hexdigest()
    return Outcome(
        key=key,
        arm=arm,
        seed=seed,
        budget=budget,
        equal=equal,
        rows=1000 if budget == "100%" else 100,
        response_tokens=90_000 if budget == "100%" else 9_000,
        tokens=200_000 if budget == "100%" else 20_000,
        steps=750 if budget == "100%" else 75,
        subset=subset or key,
        sources={"a": 60, "b": 40},
        first_loss=2.5,
        train_loss=1.5,
        losses=found,
        suites=suites or {},
        cost=spent or (cost(training=1e13) if budget == "100%" else cost()),
        error=error,
        written=written,
    )


def plan(
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    budgets: Sequence[str] = ("10%",),
    equals: Sequence[Equal] = ("rows",),
    domains: Mapping[str, int] = DOMAINS,
    **more: Any,
) -> StudyPlan:
    def varies(label: str) -> Literal["no", "draw"]:
        return "draw" if label.startswith("random") else "no"

    return StudyPlan(
        data=("pool.jsonl",),
        model="target",
        proxy="proxy",
        rows=1000,
        response_tokens=90_000,
        arms=tuple(
            Arm(label=label, method=label.partition("-")[0], varies=varies(label), summary=f"what {label} does")
            for label in arms
        ),
        budgets=tuple(budgets),
        equals=tuple(equals),
        seeds=tuple(seeds),
        training={"epochs": 3, "lr": 5e-5, "lora_r": 16},
        heldout=dict(domains),
        heldout_rows=tuple(name for name, count in domains.items() for _ in range(count)),
        fingerprints={"pool": "0" * 64},
        **more,
    )


def drawn(
    effects: Mapping[str, float],
    seeds: Sequence[int],
    *,
    generator: np.random.Generator,
    domains: Mapping[str, int] = DOMAINS,
    common: float = 0.02,
    own: float = 0.005,
    by_row: float = 0.02,
    single: float = 0.02,
    domain_effects: Mapping[tuple[str, str], float] | None = None,
) -> dict[tuple[str, int], Losses]:
    """Losses by arm and seed: row, seed of all arms, seed of one arm, row of one arm, and what is left.

    Args:
        effects: Mean of each arm, less the base of the rows.
        seeds: Seeds.
        generator: Where chance comes from.
        domains: Held-out rows by domain.
        common: Standard deviation of what a seed does to all arms alike.
        own: That of what it does to one.
        by_row: That of what an arm does to a row.
        single: That of what is left.
        domain_effects: Further means by arm and domain.
    """
    names = [name for name, count in domains.items() for _ in range(count)]
    ground = np.asarray([BASE.get(name, 1.5) for name in names]) + generator.normal(0, 0.3, len(names))
    of_seed = dict(zip(seeds, generator.normal(0, common, len(seeds)), strict=True))
    found = {}
    for arm, effect in effects.items():
        rows = generator.normal(0, by_row, len(names))
        shifts = np.asarray([(domain_effects or {}).get((arm, name), 0.0) for name in names])
        for seed in seeds:
            noise = generator.normal(0, own) + generator.normal(0, single, len(names))
            found[arm, seed] = losses((ground + effect + shifts + rows + of_seed[seed] + noise).tolist(), domains)
    return found


def study(of: StudyPlan, outcomes: Sequence[Outcome], untrained: Losses | None = None, *, missing: int = 0) -> Study:
    return Study(
        plan=of,
        outcomes=tuple(outcomes),
        untrained=untrained,
        summary=summarise(of, outcomes, untrained),
        missing=missing,
        versions={"spice-select": "0.1.0"},
        seconds=1.0,
    )
