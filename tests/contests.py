"""Made-up comparisons of methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spice_select.analysis.contest import (
    ChoiceCost,
    Contest,
    Contestant,
    PickNumbers,
    PoolNumbers,
    Taken,
    Yardstick,
)
from spice_select.analysis.contest_lines import method_lines, overlap_matrix, sharing, verdict, yardstick_label
from spice_select.analysis.coverage import measure_coverage

HOSTILE = ("<img src=x onerror=\"document.title='owned'\">", "plain | pipe")
POOL = 40


def taken(measurement: str, *, tokens: int, backward: int = 0) -> Taken:
    return Taken(
        measurement=measurement,
        forwards=POOL,
        backwards=POOL if backward else 0,
        tokens=tokens,
        backward_tokens=backward,
        seconds=1.5,
    )


def chosen(
    label: str,
    seed: int,
    *,
    k: int = 4,
    tokens: int = 100,
    information: float | None = 5.0,
    varies: Literal["no", "draw", "training"] = "no",
) -> Contestant:
    method = label.partition("-")[0]
    return Contestant(
        label=label,
        method=method,
        settings={"alpha": None, "loop": "auto"},
        seed=seed,
        varies="draw" if method == "random" else varies,
        numbers=PickNumbers(
            k=k,
            information=information,
            share_of_best=None if information is None or k > 4 else min(1.0, information / 60),
            vendi=3.5,
            diversity_rows=k,
            imbalance=0.1,
            tokens=tokens,
            tokens_median=tokens / k,
        ),
        cost=ChoiceCost(
            seconds=0.25,
            process_seconds=0.2,
            memory_bytes=3_000_000,
            taken=() if method in ("random", "full") else (taken("gradients-1", tokens=500, backward=500),),
        ),
        stop_reason="budget",
    )


def failed(label: str, error: str) -> Contestant:
    return Contestant(label=label, method=label, settings={}, seed=0, varies="no", error=error, exit_code=3)


def made_contest(
    contestants: Sequence[Contestant], *, sources: Sequence[str] = ("a", "b"), measured: bool = True
) -> Contest:
    """All that follows from some contestants; their picks are rows in a row, shifted by the seed."""
    labels = [sources[row % len(sources)] for row in range(POOL)]
    entries: list[Contestant] = []
    picks: dict[str, list[list[int]]] = {}
    for one in contestants:
        if one.numbers is not None:
            rows = [(one.seed + row) % POOL for row in range(one.numbers.k)]
            picks.setdefault(one.label, []).append(rows)
            numbers = one.numbers.model_copy(update={"balance": (measure_coverage(labels, rows, by="source"),)})
            one = one.model_copy(update={"numbers": numbers})
        entries.append(one)
    random = yardstick_label(entries)
    lines = method_lines(entries, random)
    pool = PoolNumbers(n=POOL, candidates=POOL, tokens_median=20.0, norm_median=1.0, sources=tuple(sources))
    yardstick = Yardstick(alpha=1.0, normalize="none", upper_bound=60.0, greedy=55.0, dim=16) if measured else None
    held: dict[str, Any] = {one.label: one.cost.taken for one in entries if one.cost is not None}
    return Contest(
        pool=pool,
        asked="10%",
        selection={"budget": "10%"},
        rows=4,
        tokens=None,
        seed=0,
        seeds=3,
        yardstick=yardstick,
        random=random,
        methods=lines,
        contestants=tuple(entries),
        overlap=overlap_matrix(picks, POOL, POOL),
        gradient_sharing=sharing({label: each for label, each in held.items() if each}),
        sharing=sharing(held),
        verdict=verdict(lines, pool, yardstick, random),
        warnings=tuple(f"{one.label} made no choice: {one.error}" for one in entries if one.error),
        model="demo",
        fingerprints={"rows": "0" * 64, "weights": None},
        versions={"spice-select": "0.1.0"},
        timings={"choices": 1.0},
    )
