"""A made-up run for tests of the page: numbers as a selection has them, texts as hostile as asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from spice_select.analysis.certificate import Certificate
from spice_select.analysis.neighbours import near_duplicates
from spice_select.analysis.picked import Picked
from spice_select.analysis.projection import project
from spice_select.analysis.record import (
    BudgetRecord,
    Fingerprints,
    MethodRecord,
    ModelRecord,
    ObjectiveRecord,
    PassRecord,
    SelectionRecord,
    SourceRecord,
)
from spice_select.analysis.rejected import measure_rejected
from spice_select.analysis.summary import summarise
from spice_select.report.content import Messages, RunContent, Texts, Trace
from spice_select.report.points import map_rows

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


ORDINARY = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?"
DIM = 24


def made_run(
    n: int = 2000, k: int = 200, *, hostile: bool = True, seed: int = 7, title: str = "SPICE selection"
) -> RunContent:
    """A run of made-up numbers whose gradients have copies among them and rows in conflict."""
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
    trace = Trace(picks, gains, bases, gains - bases, conflicts)
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
    gradients = generator.standard_normal((n, DIM)) + np.linspace(0.8, 0.0, DIM)
    gradients *= (np.sqrt(squared_norms) / np.sqrt((gradients**2).sum(axis=1)))[:, None]
    left = np.setdiff1d(np.arange(n), picks)
    copies = left[: min(len(left) // 2, 70)]
    gradients[copies] = gradients[picks[np.arange(len(copies)) % k]]
    rejected = measure_rejected(gradients, picks, alpha=0.01, candidates=np.ones(n, bool), hinge=0.4)
    content = RunContent(
        title=title,
        record=record,
        trace=trace,
        sources=sources,
        lengths=lengths,
        norms=np.sqrt(squared_norms),
        usable=np.ones(n, bool),
        rejected=rejected,
        neighbours=near_duplicates(gradients, picks),
        texts=made_texts(picks, hostile=hostile),
        remarks=(f"A part is missing{evil}",) if hostile else (),
    )
    listed = [*picks[:200].tolist(), *copies.tolist()]
    placed = map_rows(picks, np.ones(n, bool), listed)
    return replace(content, projection=project(gradients, placed) if n > 2 else None)


def made_method_run(n: int = 2000, k: int = 200, *, hostile: bool = True) -> RunContent:
    """The same rows, chosen by a method that measured no gradients."""
    run = made_run(n, k, hostile=hostile)
    evil = "".join(HOSTILE[:5]) if hostile else ""
    assert run.lengths is not None and run.sources is not None
    scores = np.random.default_rng(3).standard_normal(n)
    scores[run.trace.indices] = np.linspace(4.0, 2.5, k)
    method = MethodRecord(
        name=f"mine{evil}",
        settings={f"variant{evil}": f"cherry{evil}"},
        summary=f"the surprise{evil}",
        source=f"arXiv 2308.12032{evil}",
        score=f"loss over loss{evil}",
        passes=(PassRecord(what=f"losses{evil}", forwards=2 * n, tokens=90 * n, seconds=12.5),),
    )
    picked = Picked(run.trace.indices, scores[run.trace.indices])
    summary = summarise(
        picked, lengths=run.lengths, squared_norms=None, sources=run.sources, maximised=False, normalize="none"
    )
    record = run.record.model_copy(
        update={
            "method": method,
            "objective": None,
            "information": None,
            "certificate": None,
            "certificate_sentence": None,
            "loop": "",
            "summary": summary,
        }
    )
    return replace(
        run,
        title=f"{record.label} selection",
        record=record,
        trace=Trace(picked.indices, None, None, None, None, picked.scores),
        norms=None,
        rejected=None,
        neighbours=None,
        projection=None,
        pool_scores=scores,
    )


def made_texts(picks: np.ndarray, *, hostile: bool) -> Texts:
    """Texts of rows; every other one hostile, and one of them 100 kB long."""
    ranks = {index: place for place, index in enumerate(picks.tolist())}

    def texts(rows: Sequence[int]) -> Mapping[int, Messages]:
        return {index: _messages(ranks.get(index, index), hostile, picked=index in ranks) for index in rows}

    return texts


def _messages(place: int, hostile: bool, *, picked: bool) -> Messages:
    if hostile and place == 5:
        return [("user", "A" * 100_000), ("assistant", '"<&' * 40_000)]
    said = HOSTILE[place % len(HOSTILE)] if hostile and place % 2 else ORDINARY
    what = "Answer" if picked else "Unpicked"
    return [("user", said), ("assistant", f"{said} {what} number {place}: " + "thus and so, " * (place % 40))]
