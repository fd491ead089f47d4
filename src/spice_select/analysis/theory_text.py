"""The theory beside the data, as plain tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spice_select.analysis.bounds import BoundCheck
from spice_select.analysis.correlations import ConflictCorrelation
from spice_select.analysis.curvature import Curvature
from spice_select.analysis.decomposition import Decomposition
from spice_select.analysis.tables import aligned, number, percent
from spice_select.analysis.trajectory import Trajectory

Section = tuple[str, list[str]]
_SCALES = {"run": "own a", "paper-table-4": "a = 0.5/|F|"}
_SETTINGS = {
    "picks": "along the picks",
    "pool": "pool, against the picks",
    "pairs": "between two rows",
}


def sections(
    *,
    picks: Decomposition | None = None,
    random: Sequence[Decomposition] = (),
    bounds: Sequence[BoundCheck] = (),
    curvature: Sequence[Curvature] = (),
    trajectory: Trajectory | None = None,
    correlations: Sequence[ConflictCorrelation] = (),
) -> list[Section]:
    """A title and lines for every part that is there."""
    found: list[Section] = []
    if picks is not None or random:
        found.append(("Gain = base + epsilon, in nats", list(_decomposition(picks, random))))
    if bounds:
        found.append(("Bounds on |epsilon| of random rows x and sets S", list(_bounds(bounds))))
    if curvature:
        found.append(("Curvature, by conflict with the pool's mean", list(_curvature(curvature))))
    if trajectory is not None:
        found.append(("Information at equal numbers of rows, in nats", list(_trajectory(trajectory))))
        if trajectory.fifths:
            found.append(("Fifths of the pool by conflict, in nats", list(_fifths(trajectory))))
    if correlations:
        found.append(("Spearman of conflict with gain and |epsilon|", list(_correlations(correlations))))
    return found


def _decomposition(picks: Decomposition | None, random: Sequence[Decomposition]) -> Iterator[str]:
    parts = ([] if picks is None else [picks]) + list(random)
    error = max(part.error for part in parts)
    yield from aligned(
        ("", "pairs", "base", "epsilon", "gain", "rho, squares", "rho, bound"),
        [
            (
                "picks" if part.kind == "picks" else f"|S| = {part.size}",
                f"{len(part):,}",
                number(_median(part.base)),
                number(_median(part.epsilon)),
                number(_median(part.gain)),
                _correlation(part.correlates.spearman),
                _correlation(part.correlates.spearman_scaled),
            )
            for part in parts
        ],
    )
    yield "  Medians. rho: Spearman of |epsilon| with sum (g_x.g_y)^2, and with that over 1 + a|g_x|^2."
    yield f"  The gain, computed apart, is base + epsilon to within {error:.1e} nats."


def _bounds(checks: Sequence[BoundCheck]) -> Iterator[str]:
    yield from aligned(
        ("|S|", "scale", "a|F_S|", "Theorem 4 for", "rho", "violated", "free: rho", "viol."),
        [
            (
                str(check.size),
                _SCALES[check.scale],
                number(check.rho, digits=3),
                percent(check.applies),
                _correlation(check.theorem_spearman),
                percent(check.theorem_violations),
                _correlation(check.free_spearman),
                percent(check.free_violations),
            )
            for check in checks
        ],
        words=(1,),
    )
    yield "  rho: Spearman of the bound with |epsilon|. free: the bound without assumptions."
    approximate = [check for check in checks if check.diagonal_violations is not None]
    if approximate:
        listed = ", ".join(f"{check.diagonal_violations:.1%} (|S| = {check.size})" for check in approximate)
        yield f"  Violated by the paper's diagonal approximation of epsilon: {listed}."


def _curvature(measured: Sequence[Curvature]) -> Iterator[str]:
    lines = []
    for one in measured:
        lines.append(
            (_SCALES[one.scale], "all", f"{one.rows:,}", "", number(one.value, digits=3), number(one.mean, digits=3))
        )
        lines += [
            (
                "",
                part.name,
                f"{part.rows:,}",
                f"{part.conflict:+.3f}",
                number(part.curvature, digits=3),
                number(part.mean, digits=3),
            )
            for part in one.terciles
        ]
    yield from aligned(("scale", "conflict", "rows", "-cos", "curvature c", "mean"), lines, words=(0, 1))
    if measured[0].sampled:
        yield (
            f"  Of {measured[0].rows:,} random rows of {measured[0].of:,}; the pool's own c is no smaller, and greedy"
            " without penalty is only known to reach 1 - 1/e of the best set."
        )
        return
    listed = ", ".join(f"{one.guarantee:.3f} at {_SCALES[one.scale]}" for one in measured)
    yield f"  Greedy without penalty reaches (1 - e^-c)/c of the best set at least: {listed}."


def _trajectory(trajectory: Trajectory) -> Iterator[str]:
    curves = trajectory.curves
    steps = curves[0].picks
    # Every other checkpoint, the last one with it: about one a doubling.
    places = sorted(set(range(len(steps) - 1, -1, -2)))
    yield from aligned(
        ("rows", *({"picks": "these picks", "fisher": "no penalty"}.get(curve.name, curve.name) for curve in curves)),
        [(f"{steps[at]:,}", *(number(curve.information[at]) for curve in curves)) for at in places],
        words=(),
    )
    decay = trajectory.half_life
    gone = "no pick" if decay.gain is None else f"pick {decay.gain:,}"
    half = "-" if decay.information is None else f"{decay.information:,}"
    yield f"  Half of the first gain is gone at {gone}; {half} picks hold half of the information."


def _fifths(trajectory: Trajectory) -> Iterator[str]:
    yield from aligned(
        ("conflict", "rows", "-cos", "norm", "chosen", "random", "greedy", "random, one norm"),
        [
            (
                part.name,
                f"{part.rows:,}",
                f"{part.conflict:+.3f}",
                number(part.norm, digits=3),
                f"{part.budget:,}",
                number(part.random),
                number(part.greedy),
                number(part.random_unit),
            )
            for part in trajectory.fifths
        ],
    )


def _correlations(found: Sequence[ConflictCorrelation]) -> Iterator[str]:
    yield from aligned(
        ("", "pairs", "opposing", "gain", "|eps|", "-cos: gain", "|eps|"),
        [
            (
                _SETTINGS[one.setting],
                f"{one.pairs:,}",
                percent(one.opposing),
                _correlation(one.gain),
                _correlation(one.epsilon),
                _correlation(one.signed_gain),
                _correlation(one.signed_epsilon),
            )
            for one in found
        ],
    )
    yield "  Conflict is max(0, -cos), 0 for most rows where few oppose; -cos keeps the rest."


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
