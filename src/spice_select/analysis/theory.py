"""Whether the theory holds on the data at hand: decomposition, bounds, curvature, trajectory and correlations in one.

References:
    SPICE, ICLR 2026, arXiv 2601.23155.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.bounds import BoundCheck, bounds_table, check_bounds
from spice_select.analysis.chosen import open_rows, require_range, squared_norms, usable_rows
from spice_select.analysis.comparison import Numbers
from spice_select.analysis.correlations import ConflictCorrelation, conflict_correlations, correlation_table
from spice_select.analysis.curvature import Curvature, measure_curvature
from spice_select.analysis.decomposition import Decomposition, decompose_picks, decompose_random, random_pairs
from spice_select.analysis.opposition import against_mean
from spice_select.analysis.trajectory import Trajectory, follow
from spice_select.errors import ConfigError
from spice_select.selection.options import LARGEST_SCALE

if TYPE_CHECKING:
    import pandas

RECONSTRUCTION = 1e-6
"""Largest error of base + epsilon that is no cause for a note."""


class TheoryReport(Numbers):
    """The theory beside the data.

    Attributes:
        n: Rows of the pool, as given.
        usable: Rows that could be chosen.
        dim: Dimension of a row.
        alpha: Fisher scale a of the selection.
        conflict_weight: lambda of the selection.
        seed: Of every random choice here.
        picks: Decomposition of the picks.
        random: Decomposition of random pairs (x, S), one for each size |S|.
        bounds: Theorem 4 and the assumption-free bound on those pairs, at the run's scale and at that of Table 4.
        curvature: Curvature at both scales; empty for a pool of no length.
        trajectory: Half-lives, curves, and the fifths of least and most conflict.
        correlations: Conflict with gain and epsilon.
        notes: What was sampled, left out or does not hold, in plain sentences.
    """

    n: int
    usable: int
    dim: int
    alpha: float
    conflict_weight: float
    seed: int
    picks: Decomposition
    random: tuple[Decomposition, ...]
    bounds: tuple[BoundCheck, ...]
    curvature: tuple[Curvature, ...]
    trajectory: Trajectory
    correlations: tuple[ConflictCorrelation, ...]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Largest |base + epsilon - gain| over picks and random pairs, in nats."""
        return max([self.picks.error, *(one.error for one in self.random)])

    def describe(self) -> list[str]:
        """Lines for the terminal, notes last."""
        return [*_lines(self), *(f"Note: {note}" for note in self.notes)]

    def to_pandas(self) -> dict[str, pandas.DataFrame]:
        """Tables by name: picks, random, bounds, curvature, curves, fifths, correlations."""
        import pandas

        random = [one.to_pandas().assign(size=one.size) for one in self.random]
        fifths = [{**fifth.model_dump(exclude={"half_life"})} for fifth in self.trajectory.fifths]
        return {
            "picks": self.picks.to_pandas(),
            "random": pandas.concat(random, ignore_index=True) if random else pandas.DataFrame(),
            "bounds": bounds_table(self.bounds),
            "curvature": pandas.concat([one.to_pandas() for one in self.curvature], ignore_index=True),
            "curves": self.trajectory.to_pandas(),
            "fifths": pandas.DataFrame(fifths),
            "correlations": correlation_table(self.correlations),
        }


def analyse_theory(
    rows: Any,
    indices: Sequence[int] | Int[np.ndarray, " k"],
    *,
    alpha: float,
    factors: Float[np.ndarray, " n"] | None = None,
    conflict_weight: float,
    gains: Sequence[float] | Float[np.ndarray, " k"],
    conflicts: Sequence[float] | Float[np.ndarray, " k"],
    candidates: Bool[np.ndarray, " n"] | None = None,
    seed: int = 0,
    sizes: Sequence[int] = (16, 64, 256),
    samples: int = 200,
    initial: Sequence[int] | Int[np.ndarray, " m"] = (),
) -> TheoryReport:
    """Measure on a selection what the theory says of it. Rows are read in chunks; nothing here holds the whole pool.

    Args:
        rows: ``[n, d]`` array, tensor or store that was selected from.
        indices: Picks in order of choice.
        alpha: Fisher scale a, resolved.
        factors: Factor of every row, as normalisation made them.
        conflict_weight: lambda of the selection.
        gains: Gain of each pick when it was picked, in nats, of the exact log-determinant.
        conflicts: Conflict of each pick when it was picked.
        candidates: Rows that could be chosen; a store's usable ones, or all, where absent.
        seed: Of every random choice.
        sizes: |S| of the random pairs; sizes that the pool is too small for are left out with a note.
        samples: Random pairs of each size.
        initial: Rows that were in hand before the first pick.

    Raises:
        ConfigError: No pick, columns of different length, a row number that is not there, a row of NaN or Inf among
            the picks, no pair to draw, or numbers whose squares float64 does not hold.
    """
    opened = open_rows(rows, factors)
    n, dim = opened.shape
    picks = np.asarray(indices, dtype=np.int64)
    held = np.asarray(initial, dtype=np.int64)
    measured, conflict = np.asarray(gains, dtype=np.float64), np.asarray(conflicts, dtype=np.float64)
    norms = squared_norms(opened)
    _check(picks, held, measured, conflict, norms, samples)
    require_range(norms, alpha)
    usable = usable_rows(rows, candidates, norms)
    pool = np.flatnonzero(usable)
    notes: list[str] = []

    picked = decompose_picks(opened, picks, measured, alpha=alpha, initial=held)
    if len(picked) < len(picks):
        notes.append(f"The decomposition looks at the first {len(picked):,} of {len(picks):,} picks.")
    random, bounds = [], []
    generator = np.random.default_rng(seed)
    for size in sizes:
        if size + 1 > len(pool):
            notes.append(f"Random sets of {size:,} rows were left out: only {len(pool):,} rows could be chosen.")
            continue
        pairs = random_pairs(opened, pool, size, samples, generator)
        random.append(decompose_random(pairs, alpha))
        bounds += [check_bounds(pairs, alpha=alpha, scale=scale) for scale in ("run", "paper-table-4")]
    opposition = against_mean(opened, pool)
    curvature = measure_curvature(opened, pool, opposition, alpha=alpha, seed=seed)
    trajectory = follow(
        opened,
        picks,
        measured,
        pool,
        norms,
        opposition,
        alpha=alpha,
        conflict_weight=conflict_weight,
        initial=held,
        seed=seed,
    )
    correlations = conflict_correlations(
        opened, picks, measured, conflict, pool, norms, alpha=alpha, initial=held, seed=seed
    )
    report = TheoryReport(
        n=n,
        usable=len(pool),
        dim=dim,
        alpha=alpha,
        conflict_weight=conflict_weight,
        seed=seed,
        picks=picked,
        random=tuple(random),
        bounds=tuple(bounds),
        curvature=curvature,
        trajectory=trajectory,
        correlations=correlations,
    )
    return report.model_copy(update={"notes": (*notes, *_notes(report))})


def _check(
    picks: Int[np.ndarray, " k"],
    held: Int[np.ndarray, " m"],
    gains: Float[np.ndarray, " k"],
    conflicts: Float[np.ndarray, " k"],
    norms: Float[np.ndarray, " n"],
    samples: int,
) -> None:
    if not len(picks):
        raise ConfigError("There is no pick to analyse; select at least one row.")
    if not len(picks) == len(gains) == len(conflicts):
        raise ConfigError(
            f"{len(picks)} picks, {len(gains)} gains and {len(conflicts)} conflicts don't go together; "
            "give one of each for every pick."
        )
    if samples < 1:
        raise ConfigError(f"samples cannot be {samples}; give 1 at least.")
    for name, numbers in (("indices", picks), ("initial", held)):
        outside = numbers[(numbers < 0) | (numbers >= len(norms))]
        if len(outside):
            raise ConfigError(f"{name} names row {outside[0]}, and rows run from 0 to {len(norms) - 1}; leave it out.")
        broken = numbers[~np.isfinite(norms[numbers])]
        if len(broken):
            raise ConfigError(f"{name} names row {broken[0]}, which holds NaN or Inf; leave it out.")


def _notes(report: TheoryReport) -> Iterator[str]:
    largest = float(np.exp(max(report.picks.base))) - 1.0
    if report.error > RECONSTRUCTION and largest > LARGEST_SCALE:
        yield (
            f"a |g|^2 reaches {largest:.1e}, where rounding leaves few digits: base + epsilon misses gains by up to "
            f"{report.error:.2g} nats."
        )
    elif report.picks.error > RECONSTRUCTION:
        yield (
            f"The gains of the picks differ from base + epsilon by up to {report.picks.error:.2g} nats: they are not "
            "those of the exact log-determinant of these rows."
        )
    run = [check for check in report.bounds if check.scale == "run"]
    silent = [check for check in run if check.applies == 0]
    if silent:
        yield (
            f"Theorem 4 says nothing about this selection at its own scale: {silent[-1].reason}. Its right side is "
            "therefore shown at a = 0.5 / |F_S|, the scale called paper-table-4."
        )
    for check in report.bounds:
        if check.scale == "paper-table-4" and check.applies < 1:
            yield (
                f"At |S| = {check.size} Theorem 4 applies to {check.applies:.0%} of the pairs even at the scale of "
                f"Table 4: {check.reason}."
            )
    for one in report.curvature[:1]:
        if one.sampled:
            yield (
                f"Curvature is that of {one.rows:,} random rows of {one.of:,}; that of the whole pool is at least as "
                "large."
            )
    if report.conflict_weight and report.curvature:
        yield "The guarantee of curvature speaks of greedy without penalty, and this selection had one."
    if report.trajectory.picks < report.trajectory.of:
        yield f"Curves reach {report.trajectory.picks:,} of {report.trajectory.of:,} picks."


def _lines(report: TheoryReport) -> Iterator[str]:
    yield f"{len(report.picks):,} picks of {report.usable:,} usable rows, a = {report.alpha:.4g}"
    yield f"Gain = base + epsilon to {report.error:.1e} nats over picks and random sets"
    for one in report.random:
        yield (
            f"|S| = {one.size}: Spearman of |epsilon| with the squared inner products "
            f"{_show(one.correlates.spearman)}, over 1 + a |g|^2 {_show(one.correlates.spearman_scaled)}"
        )
    for check in report.bounds:
        where = "at the run's scale" if check.scale == "run" else "at a = 0.5 / |F_S|"
        if check.theorem_violations is None:
            theorem = "Theorem 4 does not apply"
        else:
            theorem = (
                f"Theorem 4 applies to {check.applies:.0%}, Spearman {_show(check.theorem_spearman)}, violated in "
                f"{check.theorem_violations:.1%} (by the diagonal approximation in {check.diagonal_violations:.1%})"
            )
        yield (
            f"Bounds {where}, |S| = {check.size}: {theorem}; the assumption-free bound is violated in "
            f"{check.free_violations:.1%}"
        )
    for one in report.curvature:
        where = "at the run's scale" if one.scale == "run" else "at a = 0.5 / |F|"
        yield f"Curvature {where}: {one.value:.3f}, mean {one.mean:.3f}; greedy reaches {one.guarantee:.3f} at least"
        if one.terciles:
            parts = ", ".join(f"{part.name} {part.curvature:.3f} (mean {part.mean:.3f})" for part in one.terciles)
            yield f"  by conflict with the pool's mean: {parts}"
    decay = report.trajectory.half_life
    gone = "never" if decay.gain is None else f"with pick {decay.gain:,}"
    yield f"Half of the first gain is gone {gone}; half of the information is reached with pick {decay.information:,}"
    for curve in report.trajectory.curves:
        if curve.information:
            yield f"Information of {curve.name} at {curve.picks[-1]:,} rows: {curve.information[-1]:.4g} nats"
    for fifth in report.trajectory.fifths:
        yield (
            f"Fifth of {fifth.name} conflict, {fifth.budget:,} rows: random {fifth.random:.4g}, greedy "
            f"{fifth.greedy:.4g}, random at equal norms {fifth.random_unit:.4g} nats"
        )
    names = {"picks": "Along the picks", "pool": "Across the pool", "pairs": "Between two rows"}
    for one in report.correlations:
        yield (
            f"{names[one.setting]}: Spearman of conflict with gain {_show(one.gain)}, with |epsilon| "
            f"{_show(one.epsilon)}; of -cos {_show(one.signed_gain)} and {_show(one.signed_epsilon)}"
        )


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:+.2f}"
