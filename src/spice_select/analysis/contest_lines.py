"""From single choices to lines of a table: means and spreads over seeds, overlap, sharing, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from spice_select.analysis.certificate import percent_down
from spice_select.analysis.contest import (
    Contestant,
    MethodLine,
    OverlapMatrix,
    PickNumbers,
    PoolNumbers,
    Sharing,
    Spread,
    Taken,
    Yardstick,
)
from spice_select.analysis.contest_training import (
    TrainingLine,
    TrainingSetup,
    training_line,
    training_sentence,
)
from spice_select.analysis.overlap import expected_jaccard
from spice_select.analysis.tables import number

MEASURES = (
    "k",
    "information",
    "share_of_best",
    "vendi",
    "vendi_2",
    "g_vendi",
    "novelsum_paper",
    "novelsum_official",
    "ldd",
    "logdet",
    "mean_cosine",
    "imbalance",
    "tokens",
    "tokens_median",
    "norm_median",
    "opposing_share",
)
"""Fields of :class:`PickNumbers` that means and spreads are taken of."""
NEAR = 0.05
"""Part by which numbers of rows may differ for the information of the rows to be compared."""
FEW_DRAWS = 3
"""Draws of random below which its spread is hardly known."""
APART = 2.0
"""Standard deviations of random beyond which a difference is told from chance."""
TOKENS_APART = 1.5
"""Ratio of response tokens between the methods that is worth a sentence."""
_EXACT = 1e-9


def method_lines(contestants: Sequence[Contestant], random: str | None) -> tuple[MethodLine, ...]:
    """One line for each method, in the order of its first appearance.

    Args:
        contestants: Every method under every seed.
        random: Label of the method whose spread is the unit of differences.
    """
    by_label: dict[str, list[Contestant]] = {}
    for contestant in contestants:
        by_label.setdefault(contestant.label, []).append(contestant)
    unit = {} if random is None else {s.measure: s for s in _spreads(by_label[random], {})}
    base = None if random is None else _training(by_label[random], None)
    lines = []
    for label, entries in by_label.items():
        near = _near(entries, unit)
        lines.append(_line(label, entries, unit if near else {}, base if near else None))
    return tuple(lines)


def _near(entries: Sequence[Contestant], unit: Mapping[str, Spread]) -> bool:
    """Whether a method chose about as many rows as random did: almost every measure grows with their number."""
    usual = unit["k"].mean if "k" in unit else None
    sizes = [entry.numbers.k for entry in entries if entry.numbers is not None]
    return usual is not None and all(abs(size - usual) <= NEAR * usual for size in sizes)


def yardstick_label(contestants: Sequence[Contestant]) -> str | None:
    """Label of the first uniformly random method that made a choice."""
    return next((one.label for one in contestants if one.method == "random" and one.numbers is not None), None)


def overlap_matrix(
    picks: Mapping[str, Sequence[Sequence[int] | Int[np.ndarray, " k"]]], n: int, candidates: int
) -> OverlapMatrix:
    """Jaccard indices of every two methods, averaged over all pairs of their seeds.

    Args:
        picks: By method, the rows chosen under each seed.
        n: Rows.
        candidates: Rows that random sets are drawn from.
    """
    masks = {label: _masks(sets, n) for label, sets in picks.items()}
    sizes = {label: [int(one.sum()) for one in held] for label, held in masks.items()}
    known: dict[tuple[int, int], float] = {}

    def expected(a: int, b: int) -> float:
        key = (min(a, b), max(a, b))
        if key not in known:
            known[key] = expected_jaccard(max(candidates, key[1]), *key)
        return known[key]

    jaccard: list[tuple[float, ...]] = []
    random: list[tuple[float, ...]] = []
    for first in masks:
        line, by_chance = [], []
        for second in masks:
            pairs = [
                (one, other)
                for one in range(len(masks[first]))
                for other in range(len(masks[second]))
                if first != second or one != other
            ]
            line.append(_mean([_jaccard(masks[first][a], masks[second][b]) for a, b in pairs], 1.0))
            by_chance.append(_mean([expected(sizes[first][a], sizes[second][b]) for a, b in pairs], 1.0))
        jaccard.append(tuple(line))
        random.append(tuple(by_chance))
    return OverlapMatrix(labels=tuple(masks), jaccard=tuple(jaccard), expected=tuple(random))


def sharing(taken: Mapping[str, Sequence[Taken]]) -> Sharing:
    """What measuring once saved.

    Args:
        taken: By method, the measurements that it needs.
    """
    once = {one.measurement: one.work for held in taken.values() for one in held if one.within is None}
    alone = [_work(held) for held in taken.values()]
    total, dearest = sum(once.values()), max(alone, default=0.0)
    return Sharing(
        methods=tuple(taken),
        total=total,
        dearest=dearest,
        alone=sum(alone),
        ratio=total / dearest if dearest else None,
    )


def verdict(
    lines: Sequence[MethodLine],
    pool: PoolNumbers,
    yardstick: Yardstick | None,
    random: str | None,
    training: TrainingSetup | None = None,
) -> tuple[str, ...]:
    """What the numbers say and what they don't, in plain sentences."""
    done, sentences = [line for line in lines if line.seeds], []
    if training is not None:
        trained = {line.label: line.training for line in as_many(done, random) if line.training is not None}
        sentences.append(training_sentence(trained, random, training))
    if yardstick is not None:
        sentences += [*_information(as_many(done, random), random), *_best(done, yardstick)]
        sentences.append(
            "Information is what spice and fisher maximise themselves, so that they lead by it is no test of them; it "
            "says nothing by itself of how well a model trained on the picks would do."
        )
    sentences += _tokens(done, pool)
    return tuple(sentences)


def as_many(lines: Sequence[MethodLine], random: str | None) -> list[MethodLine]:
    """Methods that chose about as many rows as random did: information grows with every row."""
    usual = next((line.mean("k") for line in lines if line.label == random), None)
    return [line for line in lines if usual is None or abs((line.mean("k") or 0.0) - usual) <= NEAR * usual]


def _information(lines: Sequence[MethodLine], random: str | None) -> list[str]:
    if random is None:
        return ["No random choice was among the methods, so that differences have no yardstick; add random."]
    drawn = next(line for line in lines if line.label == random)
    base, draws = drawn.spread("information"), len(drawn.seeds)
    if base.deviation is None or base.mean is None:
        return ["Random chose once, so that its spread is unknown; give --seeds 5 to tell differences from chance."]
    groups: dict[str, list[str]] = {"more": [], "alike": [], "less": []}
    for line in lines:
        spread = line.spread("information")
        if line.label == random or spread.mean is None:
            continue
        apart = spread.mean - base.mean
        # A method's own spread counts too: several of its seeds may lie within random's.
        chance = max(APART * max(base.deviation, spread.deviation or 0.0), _EXACT * abs(base.mean))
        kind = "alike" if abs(apart) <= chance else "more" if apart > 0 else "less"
        by = "" if spread.from_random is None else f" ({spread.from_random:+,.1f})"
        groups[kind].append(f"{line.label}{by if kind != 'alike' else ''}")
    sentences = []
    if groups["more"]:
        sentences.append(
            f"More information than random by more than twice its spread: {', '.join(groups['more'])}; in brackets, by "
            f"how many of random's standard deviations ({number(base.deviation, digits=3)} nats around "
            f"{number(base.mean)}, {draws} draws)."
        )
    else:
        sentences.append("No method holds more information than random by more than twice its spread.")
    if draws < FEW_DRAWS:
        sentences.append(f"{draws} draws tell random's spread poorly; give --seeds 5 or more.")
    if groups["alike"]:
        sentences.append(f"Not told apart from random by information: {', '.join(groups['alike'])}.")
    if groups["less"]:
        sentences.append(f"Less information than random by more than twice its spread: {', '.join(groups['less'])}.")
    return sentences


def _best(lines: Sequence[MethodLine], yardstick: Yardstick) -> list[str]:
    shares = [(share, line.label) for line in lines if (share := line.mean("share_of_best")) is not None]
    if not shares or yardstick.upper_bound is None:
        return []
    share, label = max(shares, key=lambda one: one[0])
    return [
        f"No rows within the budget hold more than {number(yardstick.upper_bound)} nats (proven on this pool); "
        f"{label} holds at least {percent_down(share)} of what is possible."
    ]


def _tokens(lines: Sequence[MethodLine], pool: PoolNumbers) -> list[str]:
    sizes = {line.label: (line.mean("tokens") or 0.0, line.mean("k") or 0.0) for line in lines}
    # Only picks of about as many rows compare: a method that takes all rows has more tokens by that alone.
    usual = float(np.median([k for _, k in sizes.values()])) if sizes else 0.0
    near = {label: tokens for label, (tokens, k) in sizes.items() if tokens > 0 and abs(k - usual) <= NEAR * usual}
    if len(near) < 2:
        return []
    least, most = min(near, key=lambda label: near[label]), max(near, key=lambda label: near[label])
    if near[most] < TOKENS_APART * near[least]:
        return []
    return [
        f"The picks differ in length: {least} has {near[least]:,.0f} response tokens and {most} {near[most]:,.0f}, so "
        "that a training on each row once costs more for one than for the other; a budget in tokens makes them alike."
    ]


def _line(
    label: str, entries: Sequence[Contestant], unit: Mapping[str, Spread], base: TrainingLine | None
) -> MethodLine:
    costs = [entry.cost for entry in entries if entry.cost is not None]
    taken = {one.measurement: one for cost in costs for one in cost.taken}
    memory = [cost.memory_bytes for cost in costs if cost.memory_bytes is not None]
    return MethodLine(
        label=label,
        method=entries[0].method,
        varies=entries[0].varies,
        seeds=tuple(entry.seed for entry in entries if entry.numbers is not None),
        error=next((entry.error for entry in entries if entry.error is not None), None),
        spreads=_spreads(entries, unit),
        seconds=_mean([cost.seconds for cost in costs], None),
        process_seconds=_mean([cost.process_seconds for cost in costs], None),
        memory_bytes=max(memory, default=None),
        work=_work(list(taken.values())),
        training=_training(entries, base),
    )


def _training(entries: Sequence[Contestant], unit: TrainingLine | None) -> TrainingLine | None:
    """All trainings of a method; None where none was asked for."""
    trained = [entry for entry in entries if entry.training is not None]
    if not trained:
        return None
    error = next((entry.training_error for entry in trained if entry.training_error is not None), None)
    return training_line([trial for entry in trained for trial in entry.training or ()], error, unit)


def _spreads(entries: Sequence[Contestant], unit: Mapping[str, Spread]) -> tuple[Spread, ...]:
    numbers = [entry.numbers for entry in entries if entry.numbers is not None]
    return tuple(_spread(measure, numbers, unit.get(measure)) for measure in MEASURES)


def _spread(measure: str, numbers: Sequence[PickNumbers], unit: Spread | None) -> Spread:
    values = [value for one in numbers if (value := getattr(one, measure)) is not None]
    if not values:
        return Spread(measure=measure, mean=None)
    mean = math.fsum(values) / len(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    apart = None
    if unit is not None and unit.mean is not None and unit.deviation:
        # A spread that is rounding alone measures nothing.
        apart = (mean - unit.mean) / unit.deviation if unit.deviation > _EXACT * abs(unit.mean) else None
    return Spread(measure=measure, mean=mean, deviation=deviation, from_random=apart)


def _work(taken: Sequence[Taken]) -> float:
    return sum(one.work for one in taken)


def _masks(sets: Sequence[Sequence[int] | np.ndarray], n: int) -> np.ndarray:
    masks = np.zeros((len(sets), n), dtype=bool)
    for mask, rows in zip(masks, sets, strict=True):
        mask[np.asarray(rows, dtype=np.int64)] = True
    return masks


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def _mean(values: Sequence[float], empty: float | None) -> float | None:
    return math.fsum(values) / len(values) if values else empty
