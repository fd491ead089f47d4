"""A made-up run for tests of the page: numbers as a selection has them, texts as hostile as asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spice_select.analysis.certificate import Certificate
from spice_select.analysis.record import (
    BudgetRecord,
    Fingerprints,
    ModelRecord,
    ObjectiveRecord,
    SelectionRecord,
    SourceRecord,
)
from spice_select.analysis.summary import summarise

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<svg onload=\"document.title='owned'\"><script>document.title='owned'</script></svg>",
    "</script><script>document.title='owned'</script><!--",
    "<img src=x onerror=\"document.title='owned'\">",
    "{{ 7 * 191 }}{% raw %}",
    "' onmouseover='document.title=1' \"`",
    "\u202eright to left\u2066 override",
    "null \x00 escape \x1b[31m bell \x07 delete \x7f c1 \x9b lone \ud800 separator \u2028",
    "a\u0301" * 300,
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "]]> --> </style></textarea></title>",
    "https://example.invalid/pixel.png",
)


@dataclass
class MadeTrace:
    indices: np.ndarray
    gains: np.ndarray
    bases: np.ndarray
    epsilons: np.ndarray
    conflicts: np.ndarray


def made_run(n: int = 2000, k: int = 200, *, hostile: bool = True, seed: int = 7) -> dict[str, Any]:
    """Arguments of ``render_report``."""
    generator = np.random.default_rng(seed)
    lengths = np.maximum(1, generator.lognormal(4.5, 0.8, n)).astype(np.int64)
    squared_norms = 400.0 / lengths * generator.lognormal(0, 0.7, n)
    names = ["gsm8k.jsonl", "code_alpaca.json", HOSTILE[0] if hostile else "alpaca.json"]
    sources = [names[i] for i in generator.choice(3, n, p=[0.5, 0.35, 0.15])]
    picks = np.argsort(-squared_norms * generator.lognormal(0, 0.8, n), kind="stable")[:k]
    bases = np.log1p(squared_norms[picks] / np.median(squared_norms))
    gains = np.sort(bases * generator.uniform(0.3, 0.9, k))[::-1]
    bases = np.maximum(bases, gains)
    conflicts = np.maximum(0, generator.normal(-0.05, 0.06, k))
    trace = MadeTrace(picks, gains, bases, gains - bases, conflicts)
    summary = summarise(
        trace,
        lengths=lengths,
        squared_norms=squared_norms,
        sources=sources,
        groups=[f"domain {i % 7}" for i in range(n)],
        changed_by_penalty=0,
    )
    total = float(gains.sum())
    certificate = Certificate(
        value=0.8765, information=total, upper_bound=total / 0.8765, budget=k, prefix=0, prefixes=(0, 1), penalised=True
    )
    evil = "".join(HOSTILE[:4]) if hostile else ""
    record = SelectionRecord(
        n=n,
        usable=n,
        k=k,
        objective=ObjectiveRecord(
            fisher="exact",
            alpha=0.0123456,
            alpha_asked="auto",
            conflict_weight=0.1,
            penalty="absolute",
            reference="selected",
            hinge=0.0,
            normalize="sqrt_tokens",
        ),
        budget=BudgetRecord(asked="10%", rows=k),
        information=total,
        certificate=certificate,
        certificate_sentence=certificate.sentence(),
        stop_reason="budget",
        summary=summary,
        loop="lazy",
        timings={"rows": 0.52, "encode": 3.1, "gradients": 812.4, "selection": 1.7},
        preset="recommended",
        sketch="fold, 4096 dimensions, seed 0",
        versions={"python": "3.11.2", "spice-select": "0.1.0", "torch": "2.13.0"},
        model=ModelRecord(name=f"models/SmolLM2-135M-Instruct{evil}", dtype="float32", device="cpu", coverage=0.997),
        fingerprints=Fingerprints(rows="1" * 64, encoded="2" * 64, weights="3" * 64, sketch="4" * 64),
        sources=tuple(
            SourceRecord(
                name=name,
                origin=f"data/{name}",
                format="jsonl",
                rows=sources.count(name),
                fingerprint=str(place) * 64,
                columns="pair: question, answer",
            )
            for place, name in enumerate(names)
        ),
        notes=(f"3 responses were truncated{evil}",),
        warnings=(f"2 rows had gradients that were no numbers{evil}",),
    )
    ordinary = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?"
    texts = []
    for place in range(min(k, 250)):
        said = HOSTILE[place % len(HOSTILE)] if hostile and place % 2 else ordinary
        answer = f"{said} Answer number {place}: " + "thus and so, " * (place % 40)
        texts.append([("user", said), ("assistant", answer)])
    if hostile and k > 5:
        texts[5] = [("user", "A" * 100_000), ("assistant", '"<&' * 40_000)]
    return {
        "record": record,
        "trace": trace,
        "lengths": lengths,
        "squared_norms": squared_norms,
        "sources": sources,
        "texts": texts,
    }
