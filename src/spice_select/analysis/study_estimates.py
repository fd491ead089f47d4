"""Intervals of differences between trainings: over seeds, over held-out rows, and over both."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from spice_select.analysis.study_summary import Interval

LEVEL = 0.05
"""One less the confidence of every interval, and the size of every test."""
POWER = 0.8
_EXACT = 1e-12
_QUANTILES = 4000


@dataclass(frozen=True, eq=False)
class Strata:
    """Held-out rows by domain, and the weight of each domain in an average.

    Attributes:
        members: Row numbers of each domain, each used once.
        weights: Weight of each; the average is the weighted sum of the domains' means.
    """

    members: tuple[Int[np.ndarray, " m"], ...]
    weights: tuple[float, ...]

    def average(self, values: Float[np.ndarray, "*s m"]) -> Float[np.ndarray, "*s"]:
        """The average of values by row, which lie on the last axis."""
        total = np.zeros(values.shape[:-1])
        for rows, weight in zip(self.members, self.weights, strict=True):
            total = total + weight * values[..., rows].mean(axis=-1)
        return total


@dataclass(frozen=True, eq=False)
class Sample:
    """One arm on one measure.

    Attributes:
        values: ``[s]`` by seed.
        rows: ``[s, m]`` by seed and held-out row; None where the measure is no average over rows.
        fixed: It has no seed: the model before any training.
    """

    values: Float[np.ndarray, " s"]
    rows: Float[np.ndarray, "s m"] | None = None
    fixed: bool = False

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.values.tolist()) / self.n

    def of(self, places: Sequence[int]) -> Sample:
        """Some of the seeds, in that order."""
        chosen = list(places)
        return Sample(self.values[chosen], None if self.rows is None else self.rows[chosen], self.fixed)


@dataclass(frozen=True)
class Part:
    """A variance of a mean and its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Spread:
    """Variances of an estimate; each is None where it is not known.

    Attributes:
        seeds: Over the seeds, on these rows.
        rows: Over the rows, for these trainings.
        shared: Variance of single rows under single seeds, which both of them hold.
        assumed: Whether the spread of a single training was taken to be that of the others.
    """

    seeds: Part | None
    rows: Part | None
    shared: float
    assumed: bool = False

    @property
    def both(self) -> Part | None:
        """Over seeds and rows: their sum less what is in both, and never a narrower interval than that of one of them.

        With few seeds, the degrees of freedom of the sum (Satterthwaite's) promise too much when the seeds vary by
        chance less than they should; the wider one of the two intervals is taken then.
        """
        if self.seeds is None or self.rows is None:
            return None
        first, second = self.seeds, self.rows
        total = first.variance + second.variance
        if total <= 0:
            return Part(0.0, first.freedom)
        parts = sum(part.variance**2 / part.freedom for part in (first, second))
        whole = Part(max(first.variance, second.variance, total - self.shared), total**2 / parts)
        return max((whole, first, second), key=lambda part: _quantile(part.freedom) * math.sqrt(part.variance))


Term = tuple[float, Sample]
"""A factor and what it multiplies."""


def spread(terms: Sequence[Term], strata: Strata | None, *, paired: bool) -> Spread:
    """Variances of the sum of some arms' means, each times a factor.

    Args:
        terms: Factors and arms.
        strata: The rows' domains; None where the measure is no average over rows.
        paired: Whether the seeds of all of them agree, place by place.
    """
    with_rows = strata is not None and all(sample.rows is not None for _, sample in terms)
    size = max(abs(factor) * float(np.abs(sample.values).max()) for factor, sample in terms)
    if paired:
        together = _joined(terms, with_rows)
        over_seeds, assumed = _seed_part([(1.0, together)], size)
        shared = _shared([(1.0, together)], strata) if with_rows else 0.0
    else:
        over_seeds, assumed = _seed_part(terms, size)
        shared = _shared(terms, strata) if with_rows else 0.0
    over_rows = None
    if with_rows:
        assert strata is not None
        averaged = [factor * _rows(sample).mean(axis=0) for factor, sample in terms]
        over_rows = _row_part(np.sum(averaged, axis=0), strata)
    return Spread(over_seeds, over_rows, shared, assumed)


def interval(mean: float, part: Part | None, *, level: float = LEVEL) -> Interval | None:
    """The t interval around an estimate."""
    if part is None:
        return None
    error = math.sqrt(max(part.variance, 0.0))
    reach = _quantile(part.freedom, level) * error
    return Interval(low=mean - reach, high=mean + reach, error=error, freedom=part.freedom)


def two_sided(mean: float, found: Interval | None) -> float | None:
    """Probability of an estimate as far from 0 as this one, if there is no difference."""
    if found is None:
        return None
    if found.error == 0:
        return 1.0 if mean == 0 else None
    return float(2 * special.stdtr(found.freedom, -abs(mean) / found.error))


def not_worse(mean: float, found: Interval, margin: float) -> float:
    """One-sided probability of so low an excess, if the true one were the margin; lower is better."""
    if found.error == 0:
        return 0.0 if mean < margin else 1.0
    return float(special.stdtr(found.freedom, (mean - margin) / found.error))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of probabilities; those that are None are not tested, and stay so.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    found: list[float | None] = [None] * len(values)
    height = 0.0
    for rank, (value, place) in enumerate(known):
        height = max(height, min(1.0, (len(known) - rank) * value))
        found[place] = height
    return found


def detectable(error: float, freedom: float, *, tests: int = 1, power: float = POWER, level: float = LEVEL) -> float:
    """Smallest true difference that a t test finds with a given probability.

    Args:
        error: Standard error of the difference.
        freedom: Degrees of freedom of the test.
        tests: Tests that the level is shared among, as by the first step of Holm's correction.
        power: The probability.
        level: Size of all tests together.
    """
    critical = _quantile(freedom, level / max(tests, 1))
    # The test's denominator varies: its distribution is averaged over, which stays exact where the noncentral t
    # distribution's series fail, at one degree of freedom.
    chance = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    scales = critical * np.sqrt(special.chdtri(freedom, chance) / freedom)

    def short(shift: float) -> float:
        return float((special.ndtr(shift - scales) + special.ndtr(-shift - scales)).mean()) - power

    high = 1.0
    while short(high) < 0:
        high *= 2
    return _root(short, 0.0, high) * error


def fieller(
    share: float, terms: Callable[[float], tuple[float, Part | None]], gain: tuple[float, Part | None]
) -> tuple[float, float] | None:
    """Ends of Fieller's interval of a ratio; None where it has no ends.

    It holds every ratio r for which the numerator less r times the denominator is not told from 0.

    Args:
        share: The ratio of the estimates.
        terms: Estimate and variance of the numerator less r times the denominator, for any r.
        gain: Estimate and variance of the denominator.
    """

    def beyond(mean: float, part: Part | None) -> float:
        assert part is not None
        return abs(mean) - _quantile(part.freedom) * math.sqrt(max(part.variance, 0.0))

    if gain[1] is None or beyond(*gain) <= 0:
        return None
    ends = []
    for side in (-1.0, 1.0):
        step = 1e-3 * max(1.0, abs(share))
        while beyond(*terms(share + side * step)) <= 0:
            step *= 2
            if step > 1e9:
                return None
        inner, outer = share, share + side * step
        if beyond(*terms(inner)) >= 0:
            ends.append(share)
            continue
        ends.append(_root(lambda ratio: beyond(*terms(ratio)), inner, outer))
    return ends[0], ends[1]


def _quantile(freedom: float, level: float = LEVEL) -> float:
    """Two-sided quantile of the t distribution."""
    return float(special.stdtrit(freedom, 1 - level / 2))


def _root(of: Callable[[float], float], low: float, high: float) -> float:
    return cast(float, optimize.brentq(of, low, high, xtol=1e-10))


def _rows(sample: Sample) -> Float[np.ndarray, "s m"]:
    assert sample.rows is not None
    return sample.rows


def _joined(terms: Sequence[Term], with_rows: bool) -> Sample:
    # The model before any training has one line of rows for all seeds.
    values = functools.reduce(np.add, [factor * sample.values for factor, sample in terms])
    rows = functools.reduce(np.add, [factor * _rows(sample) for factor, sample in terms]) if with_rows else None
    return Sample(values, rows)


def _seed_part(terms: Sequence[Term], size: float) -> tuple[Part | None, bool]:
    """Welch's variance of a sum of means; a single training takes the spread of the others.

    A spread that is rounding alone, beside numbers of this size, is none.
    """
    drawn = [(factor, sample) for factor, sample in terms if not sample.fixed and factor != 0]
    several = [sample for _, sample in drawn if sample.n > 1]
    if not several:
        return None, False
    if len(several) < len(drawn):
        squares = math.fsum(float(np.var(sample.values, ddof=1)) * (sample.n - 1) for sample in several)
        freedom = sum(sample.n - 1 for sample in several)
        pooled = squares / freedom
        return Part(pooled * sum(factor**2 / sample.n for factor, sample in drawn), freedom), True
    parts = [(factor**2 * float(np.var(sample.values, ddof=1)) / sample.n, sample.n - 1) for factor, sample in drawn]
    total = sum(variance for variance, _ in parts)
    if total <= (_EXACT * size) ** 2:
        return Part(0.0, sum(freedom for _, freedom in parts)), False
    return Part(total, total**2 / sum(variance**2 / freedom for variance, freedom in parts)), False


def _row_part(values: Float[np.ndarray, " m"], strata: Strata) -> Part | None:
    """Variance of a stratified mean; None where a domain has one row."""
    if any(len(rows) < 2 for rows in strata.members):
        return None
    parts = [
        (weight**2 * float(np.var(values[rows], ddof=1)) / len(rows), len(rows) - 1)
        for rows, weight in zip(strata.members, strata.weights, strict=True)
    ]
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return Part(0.0, sum(freedom for _, freedom in parts))
    return Part(total, total**2 / sum(variance**2 / freedom for variance, freedom in parts))


def _shared(terms: Sequence[Term], strata: Strata | None) -> float:
    """Variance that rows and seeds share: of what is left of each number once row and seed are taken out."""
    assert strata is not None
    total, missing, pool, freedom = 0.0, 0.0, 0.0, 0
    for factor, sample in terms:
        if sample.fixed or factor == 0:
            continue
        if sample.n < 2:
            missing += factor**2
            continue
        own = 0.0
        for rows, weight in zip(strata.members, strata.weights, strict=True):
            block = _rows(sample)[:, rows]
            if block.shape[1] < 2:
                continue
            left = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
            own += weight**2 * float((left**2).sum()) / ((sample.n - 1) * (len(rows) - 1)) / len(rows)
        total += factor**2 * own / sample.n
        pool, freedom = pool + own * (sample.n - 1), freedom + sample.n - 1
    return total + (missing * pool / freedom if freedom else 0.0)
