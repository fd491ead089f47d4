"""All analyses of a selection or a pool in one: what can be measured is, and what can't is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.analysis.account import Analysis, PoolFacts, Subject, TraceFacts
from spice_select.analysis.certificate import Certificate, certify_selection
from spice_select.analysis.chosen import open_rows, squared_norms
from spice_select.analysis.coverage import Coverage, cluster_labels, length_labels, measure_coverage
from spice_select.analysis.curves import half_life
from spice_select.analysis.diversity import Diversity, measure_diversity
from spice_select.analysis.overlap import overlaps
from spice_select.analysis.pool_theory import analyse_pool
from spice_select.analysis.ranks import spearman
from spice_select.analysis.theory import analyse_theory
from spice_select.errors import ConfigError
from spice_select.reporter import Reporter, Silent
from spice_select.selection import Selection
from spice_select.selection.options import alpha_of, row_numbers, token_lengths
from spice_select.selection.rows import as_rows

CLUSTERS = 8
FEWEST = 2
"""Rows from which diversity means something."""


@dataclass(frozen=True)
class Trace:
    """The columns of ``trace.parquet`` that analysis reads, one entry a pick; None for what needs absent gradients."""

    indices: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"] | None
    bases: Float[np.ndarray, " k"] | None
    epsilons: Float[np.ndarray, " k"] | None
    conflicts: Float[np.ndarray, " k"] | None

    def facts(self, *, pools: bool) -> TraceFacts | None:
        """What it says by itself; gains of different pools have no half-life together."""
        if self.gains is None or self.bases is None or self.epsilons is None or self.conflicts is None:
            return None
        return TraceFacts(
            picks=len(self.indices),
            first_gain=float(self.gains[0]),
            median_gain=float(np.median(self.gains)),
            median_base=float(np.median(self.bases)),
            median_epsilon=float(np.median(self.epsilons)),
            opposing=float((self.conflicts > 0).mean()),
            gain=spearman(self.conflicts, self.gains),
            epsilon=spearman(self.conflicts, np.abs(self.epsilons)),
            half_life=None if pools else half_life(self.gains).gain,
        )


@dataclass
class Material:
    """What there is to analyse; parts that are not there are None."""

    subject: Subject
    trace: Trace | None = None
    gradients: Any = None
    factors: Float[np.ndarray, " n"] | None = None
    usable: Bool[np.ndarray, " n"] | None = None
    lengths: Int[np.ndarray, " n"] | None = None
    labels: dict[str, Sequence[Any]] = field(default_factory=dict)
    certificate: Certificate | None = None
    others: dict[str, Sequence[int]] = field(default_factory=dict)
    initial: Sequence[int] = ()
    pools: PoolFacts | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def open_rows(self) -> Bool[np.ndarray, " n"] | None:
        """Rows that could be chosen: usable, and not in hand before the first pick."""
        if self.usable is None:
            return None
        found = self.usable.copy()
        found[list(self.initial)] = False
        return found


NO_PICKS = (
    "Certificate, gain curves, conflict of picks, and picks beside the pool: nothing was chosen yet; select first."
)


def analyse_rows(
    gradients: Any,
    selection: Selection | None = None,
    *,
    name: str = "in memory",
    alpha: float | str = "auto",
    lengths: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    labels: Mapping[str, Sequence[Any]] | None = None,
    against: Mapping[str, Sequence[int] | Int[np.ndarray, " k"]] | None = None,
    initial: Sequence[int] | Int[np.ndarray, " m"] | None = None,
    exclude: Sequence[int] | np.ndarray | None = None,
    clusters: int = CLUSTERS,
    samples: int = 200,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Analysis:
    """Analyse an array, a tensor or a store, with what ``select`` chose from it.

    Args:
        gradients: What was handed to ``select``, ``[n, d]``.
        selection: Its result; without one, what needs no picks is measured.
        name: What to call it.
        alpha: Fisher scale without a selection; with one, its own is taken.
        lengths: Response tokens of each row; a store's own where absent.
        labels: Labels of every row by what they are of, such as ``{"domain": [...]}``.
        against: Row numbers of other selections by name.
        initial: As handed to ``select``; row numbers.
        exclude: As handed to ``select``.
        clusters: Clusters of gradient directions.
        samples: Random pairs of each size for the theory.
        seed: Of every random choice.
        reporter: Hears the progress.

    Raises:
        ConfigError: A setting that does not fit the rows.
        DataError: No rows.
    """
    rows = as_rows(gradients)
    n, dim = rows.shape
    given = lengths if lengths is not None else getattr(gradients, "lengths", None)
    marked = getattr(gradients, "usable", None)
    norms = squared_norms(open_rows(rows))
    usable = np.isfinite(norms) if marked is None else np.isfinite(norms) & np.asarray(marked, dtype=bool)
    usable[row_numbers("exclude", exclude, n)] = False
    in_hand = row_numbers("initial", initial, n).tolist()
    for what, values in (labels or {}).items():
        if len(values) != n:
            raise ConfigError(f"labels '{what}' are {len(values)} for {n} rows; give one for each row.")
    trace = certificate = None
    if selection is not None:
        trace = Trace(selection.indices, selection.gains, selection.bases, selection.epsilons, selection.conflicts)
        certificate = certify_selection(
            gradients, selection, budget=max(len(selection), 1), initial=in_hand, exclude=exclude
        )
    scale = selection.alpha if selection is not None else alpha_of(alpha, norms[usable])[0]
    material = Material(
        subject=Subject(
            kind="array",
            name=name,
            rows=n,
            usable=int(usable.sum()),
            picks=None if selection is None else len(selection),
            dim=dim,
            alpha=scale,
            normalize="none" if selection is None else selection.normalize,
            fisher="exact" if selection is None else selection.fisher,
            conflict_weight=None if selection is None else selection.conflict_weight,
            penalty="" if selection is None else penalty_text(selection),
            information=None if selection is None else selection.information,
            stop_reason=None if selection is None else selection.stop_reason,
        ),
        trace=trace,
        gradients=gradients,
        factors=None if selection is None else selection.factors,
        usable=usable,
        lengths=token_lengths(given, n),
        labels=dict(labels or {}),
        certificate=certificate,
        others={key: np.asarray(rows, dtype=np.int64).tolist() for key, rows in (against or {}).items()},
        initial=in_hand,
    )
    if selection is None:
        material.left_out.append(NO_PICKS)
    return assemble(material, clusters=clusters, samples=samples, seed=seed, reporter=reporter or Silent())


def assemble(material: Material, *, clusters: int, samples: int, seed: int, reporter: Reporter) -> Analysis:
    """Measure all that the material allows.

    Args:
        material: What there is; sentences on what had to be left out are added to it.
        clusters: Clusters of gradient directions.
        samples: Random pairs of each size for the theory.
        seed: Of every random choice.
        reporter: Hears the progress.
    """
    trace, subject, missing = material.trace, material.subject, material.left_out
    picks = None if trace is None else trace.indices
    theory = pool_theory = facts = diversity = None
    notes: tuple[str, ...] = ()
    if material.gradients is not None:
        assert material.usable is not None and subject.alpha is not None
        reporter.stage("Theory")
        common: dict[str, Any] = {
            "alpha": subject.alpha,
            "factors": material.factors,
            "candidates": material.usable,
            "seed": seed,
            "samples": samples,
        }
        if trace is None:
            pool_theory = analyse_pool(material.gradients, **common)
            notes = pool_theory.notes
        elif subject.fisher != "exact":
            missing.append(
                f"Theory: it speaks of the exact form of the Fisher information, and this run maximised '"
                f"{subject.fisher}'."
            )
        elif not len(trace.indices):
            missing.append("Theory: nothing was picked.")
        elif not subject.maximised or trace.gains is None or trace.conflicts is None:
            missing.append(
                "Theory of the picks: it speaks of greedy picks, and these were chosen by another objective."
            )
            pool_theory = analyse_pool(material.gradients, **common)
            notes = pool_theory.notes
        else:
            theory = analyse_theory(
                material.gradients,
                trace.indices,
                conflict_weight=subject.conflict_weight or 0.0,
                gains=trace.gains,
                conflicts=trace.conflicts,
                initial=material.initial,
                **common,
            )
            notes = theory.notes
        reporter.stage("Diversity")
        diversity = _diversity(material, picks, seed)
    if theory is None and trace is not None and len(trace.indices):
        facts = trace.facts(pools=material.pools is not None)
    reporter.stage("Coverage")
    found = _coverage(material, picks, clusters, seed)
    beside = None
    if material.others:
        if picks is None:
            missing.append("Overlap: nothing was chosen here.")
        else:
            sets = {material.subject.name: picks.tolist(), **material.others}
            most = max(len(set(rows)) for rows in sets.values())
            beside = overlaps(sets, max(subject.usable - len(material.initial), most))
    return Analysis(
        subject=subject,
        certificate=material.certificate,
        certificate_sentence=None if material.certificate is None else material.certificate.sentence(),
        theory=theory,
        pool_theory=pool_theory,
        trace=facts,
        pools=material.pools,
        diversity=diversity,
        coverage=found,
        overlap=beside,
        notes=notes,
        left_out=tuple(missing),
        seed=seed,
    )


def _diversity(material: Material, picks: Int[np.ndarray, " k"] | None, seed: int) -> Diversity | None:
    """Directions beside random ones; rows without any are left out first, in picks and pool alike."""
    candidates = material.open_rows
    assert candidates is not None
    norms = squared_norms(open_rows(as_rows(material.gradients)))
    pointing = np.isfinite(norms) & (norms > 0)
    pool = np.flatnonzero(candidates & pointing)
    chosen = None if picks is None else picks[pointing[picks]]
    if len(pool) < FEWEST or (chosen is not None and len(chosen) < FEWEST):
        material.left_out.append(f"Diversity: it takes {FEWEST} rows whose gradients are not zero.")
        return None
    return measure_diversity(as_rows(material.gradients), chosen, pool=pool, seed=seed)


def _coverage(
    material: Material, picks: Int[np.ndarray, " k"] | None, clusters: int, seed: int
) -> tuple[Coverage, ...]:
    candidates = material.open_rows
    pool = None if candidates is None else np.flatnonzero(candidates)
    found = [
        measure_coverage(labels, picks, pool=pool, by=by)
        for by, labels in material.labels.items()
        if by != "source" or len(set(labels)) > 1
    ]
    if material.lengths is not None:
        labels, order = length_labels(material.lengths, pool=pool)
        found.append(measure_coverage(labels, picks, pool=pool, by="response tokens", order=order))
    if material.gradients is not None:
        labels, order = cluster_labels(material.gradients, pool=pool, clusters=clusters, seed=seed)
        found.append(measure_coverage(labels, picks, pool=pool, by="direction", order=order))
    return tuple(found)


def penalty_text(settings: Any) -> str:
    """The penalty in words, of a selection or of the objective in a record."""
    if not settings.conflict_weight:
        return "none"
    where = "mean of the picks" if settings.reference == "selected" else "mean of the pool"
    hinge = f", hinge {settings.hinge:.3g}" if settings.hinge else ""
    return f"{settings.conflict_weight:g}, {settings.penalty}, for opposing the {where}{hinge}"
