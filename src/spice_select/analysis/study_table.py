"""All arms of one budget side by side: means, differences, shares, and who is told from whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spice_select.analysis import study_estimates as estimates
from spice_select.analysis.study_costs import cost_line
from spice_select.analysis.study_estimates import Sample
from spice_select.analysis.study_measures import BENCHMARKS, MACRO, MICRO, Ground, Start, is_higher
from spice_select.analysis.study_record import Equal, Outcome
from spice_select.analysis.study_summary import ArmLine, Difference, Family, GainShare, Measure, Standing

MARGIN = 0.1
"""An arm reaches the whole pool where it is shown to lose less than this share of the whole pool's gain."""
_SAME = 1e-12


@dataclass(frozen=True, eq=False)
class Entry:
    """An arm's trainings in one table.

    Attributes:
        label: Its name.
        ended: Those that came to an end, by seed.
        failed: Seeds whose training failed.
    """

    label: str
    ended: dict[int, Outcome]
    failed: tuple[int, ...] = ()

    def outcomes(self, seeds: Sequence[int] | None = None) -> list[Outcome]:
        """In the order of the seeds."""
        return [self.ended[seed] for seed in (self.seeds if seeds is None else seeds)]

    @property
    def seeds(self) -> list[int]:
        """Seeds that came to an end, ascending."""
        return sorted(self.ended)


@dataclass(frozen=True, eq=False)
class Table:
    """How the arms of one budget are set side by side.

    Attributes:
        ground: What all trainings are measured on.
        primary: Name of the measure that the verdict goes by.
        before: The model before any training; None where it was not measured.
        random: Label of the arm that others are measured by; None without one.
        planned: Seeds that every arm is planned under.
    """

    ground: Ground
    primary: str
    before: Start | None
    random: str | None
    planned: tuple[int, ...]

    def family(self, budget: str, equal: Equal, arms: Sequence[Entry], full: Entry | None) -> Family:
        """One table; what is said of it comes from its numbers alone."""
        whole = None if full is None else self.line(full, planned=(), whole=True)
        base = next((arm for arm in arms if arm.label == self.random and arm.ended), None)
        lines = [self.line(arm, planned=self.planned, random=base, full=full) for arm in arms]
        lines = _corrected(lines)
        lines = [line.model_copy(update={"standing": _standing(line, self.primary)}) for line in lines]
        found = Family(
            budget=budget,
            equal=equal,
            arms=tuple(lines),
            full=whole,
            margin=self.margin(whole),
            detectable=_detectable(lines, self.primary),
        )
        best = _best(lines, self.primary)
        if best is not None:
            found = found.model_copy(update={"best": best, "rivals": self.rivals(best, arms)})
        found = found.model_copy(update={"reaching": self.reaching(found)})
        return found

    def line(
        self,
        arm: Entry,
        *,
        planned: Sequence[int],
        random: Entry | None = None,
        full: Entry | None = None,
        whole: bool = False,
    ) -> ArmLine:
        """One arm with everything that is said of it; the whole pool is the measure of its own cost."""
        ended = arm.outcomes()
        missing = len(set(planned) - set(arm.ended) - set(arm.failed))
        if not ended:
            return ArmLine(arm=arm.label, seeds=(), failed=len(arm.failed), missing=missing)
        values = [self.ground.values(outcome) for outcome in ended]
        names = [name for name in values[0] if all(name in one for one in values)]
        names.sort(key=lambda name: (name != self.primary, name not in (MACRO, MICRO, BENCHMARKS)))
        others = None if random is None or random.label == arm.label else random
        return ArmLine(
            arm=arm.label,
            seeds=tuple(arm.seeds),
            failed=len(arm.failed),
            missing=missing,
            subsets=len({outcome.subset for outcome in ended}),
            rows=_mean([outcome.rows for outcome in ended]),
            response_tokens=_mean([outcome.response_tokens for outcome in ended]),
            steps=_mean([outcome.steps for outcome in ended]),
            measures=tuple(_measure(name, [one[name] for one in values]) for name in names),
            against_random=self.differences(names, arm, others, loosely=True),
            against_full=self.differences(names, arm, full, loosely=False),
            share=None if full is None else self.share(arm, full),
            cost=cost_line(ended, ended if whole else [] if full is None else full.outcomes()),
        )

    def differences(
        self, names: Sequence[str], arm: Entry, other: Entry | None, *, loosely: bool
    ) -> tuple[Difference, ...]:
        """Differences on every measure that both have."""
        if other is None or not other.ended:
            return ()
        known = set.intersection(*(set(self.ground.values(outcome)) for outcome in other.outcomes()))
        return tuple(self.difference(name, arm, other, loosely=loosely) for name in names if name in known)

    def difference(self, measure: str, arm: Entry, other: Entry, *, loosely: bool) -> Difference:
        """An arm less another, by seed where they share the seeds.

        Args:
            measure: Name of the measure.
            arm: The arm.
            other: What it is measured by.
            loosely: Whether two common seeds are enough for pairs; else all of the arm's seeds must be common.
        """
        first, second, paired, note = self.samples(measure, arm, other, loosely=loosely)
        terms, strata = [(1.0, first), (-1.0, second)], self.ground.strata(measure)
        found = estimates.spread(terms, strata, paired=paired)
        mean = first.mean - second.mean
        if abs(mean) <= _SAME * max(abs(first.mean), abs(second.mean)):
            mean = 0.0
        if found.seeds is not None and found.seeds.variance == 0 and mean != 0:
            # Seeds that change nothing tell nothing of luck.
            found, note = replace(found, seeds=None), "no spread over the seeds"
        seeds, both = estimates.interval(mean, found.seeds), estimates.interval(mean, found.both)
        if found.assumed:
            note = f"{other.label if second.n == 1 else arm.label} has one seed; its spread is taken to be the other's"
        # One seed on either side is no ground for a test, whatever is assumed of its spread.
        chances = [estimates.two_sided(mean, one) for one in (seeds, both)] if min(first.n, second.n) > 1 else []
        return Difference(
            measure=measure,
            other=other.label,
            mean=mean,
            n=first.n,
            n_other=second.n,
            paired=paired,
            seeds=seeds,
            rows=estimates.interval(mean, found.rows),
            both=both,
            # Over the seeds and over seeds and rows: what is claimed must hold by both.
            p=max((chance for chance in chances if chance is not None), default=None),
            note=note,
        )

    def samples(self, measure: str, arm: Entry, other: Entry, *, loosely: bool) -> tuple[Sample, Sample, bool, str]:
        """Both sides, whether they are pairs, and what to know of that."""
        common = sorted(set(arm.ended) & set(other.ended))
        paired = len(common) >= 2 if loosely else bool(common) and len(common) == len(arm.ended)
        if not paired and common and len(arm.ended) == len(other.ended) == 1:
            paired = True
        seeds = (common, common) if paired else (arm.seeds, other.seeds)
        first = self.ground.sample(measure, arm.outcomes(seeds[0]))
        second = self.ground.sample(measure, other.outcomes(seeds[1]))
        if max(first.n, second.n) == 1:
            return first, second, paired, "one seed"
        if not paired:
            return first, second, paired, "unpaired (Welch)"
        partly = len(common) < max(len(arm.ended), len(other.ended)) and loosely
        return first, second, paired, f"over the {len(common)} seeds that both have" if partly else ""

    def margin(self, whole: ArmLine | None) -> float | None:
        """What an arm may lose to the whole pool and still reach it: a share of the whole pool's gain."""
        mean = None if whole is None else whole.measure(self.primary)
        if mean is None or self.before is None:
            return None
        start = self.ground.values(self.before).get(self.primary)
        if start is None:
            return None
        gain = (mean.mean - start) if is_higher(self.primary) else (start - mean.mean)
        return MARGIN * gain if gain > 0 else None

    def reaching(self, family: Family) -> tuple[str, ...]:
        """Arms that are shown to be within the margin of the whole pool, all of them at once."""
        if family.margin is None:
            return ()
        sign = -1.0 if is_higher(self.primary) else 1.0
        chances: list[float | None] = []
        for line in family.arms:
            found = line.from_full(self.primary)
            known = [] if found is None or min(found.n, found.n_other) < 2 else [found.both, found.seeds]
            tests = [
                estimates.not_worse(sign * found.mean, one, family.margin)
                for one in known
                if found is not None and one is not None
            ]
            chances.append(None if line.failed else max(tests, default=None))
        adjusted = estimates.holm(chances)
        return tuple(
            line.arm
            for line, chance in zip(family.arms, adjusted, strict=True)
            if chance is not None and chance < estimates.LEVEL / 2
        )

    def rivals(self, best: str, arms: Sequence[Entry]) -> tuple[str, ...]:
        """Arms that are not told from the best."""
        leader = next(arm for arm in arms if arm.label == best)
        found = []
        for arm in arms:
            if arm.label == best or not arm.ended:
                continue
            if any(self.primary not in self.ground.values(outcome) for outcome in arm.outcomes()):
                continue
            chance = self.difference(self.primary, leader, arm, loosely=True).p
            if chance is None or chance >= estimates.LEVEL:
                found.append(arm.label)
        return tuple(found)

    def share(self, arm: Entry, full: Entry) -> GainShare | None:
        """Share of the whole pool's gain; None where the whole pool gains nothing over the untrained model."""
        measure = self.primary
        start = None if self.before is None else self.ground.values(self.before).get(measure)
        if start is None or self.before is None or not full.ended:
            return None
        if any(measure not in self.ground.values(one) for one in (*arm.outcomes(), *full.outcomes())):
            return None
        first, second, paired, note = self.samples(measure, arm, full, loosely=False)
        origin = self.ground.sample(measure, self.before)
        strata = self.ground.strata(measure)
        gain, own = start - second.mean, start - first.mean
        if (gain <= 0) != is_higher(measure) or gain == 0:
            return None
        share = own / gain
        at_gain = estimates.spread([(1.0, origin), (-1.0, second)], strata, paired=paired)
        kind = (
            "both"
            if at_gain.both and min(first.n, second.n) > 1
            else "seeds"
            if at_gain.seeds and min(first.n, second.n) > 1
            else "rows"
        )

        def terms(ratio: float) -> tuple[float, estimates.Part | None]:
            weighted = [(1.0 - ratio, origin), (-1.0, first), (ratio, second)]
            return own - ratio * gain, getattr(estimates.spread(weighted, strata, paired=paired), kind)

        ends = None
        if terms(share)[1] is not None:
            ends = estimates.fieller(share, terms, (gain, getattr(at_gain, kind)))
            note = note if ends else "the whole pool's gain is not told from nothing"
        covers = {"both": "seeds and rows", "seeds": "seeds", "rows": "rows"}[kind] if ends else "nothing"
        return GainShare.model_validate(
            {
                "share": share,
                "low": ends[0] if ends else None,
                "high": ends[1] if ends else None,
                "covers": covers,
                "note": note,
            }
        )


def _corrected(lines: Sequence[ArmLine]) -> list[ArmLine]:
    """Holm's correction over the arms, for each measure and each reference by itself."""
    for field in ("against_random", "against_full"):
        found = [(line.arm, one) for line in lines for one in getattr(line, field)]
        adjusted: dict[tuple[str, str], float | None] = {}
        for name in dict.fromkeys(one.measure for _, one in found):
            own = [(arm, one) for arm, one in found if one.measure == name]
            for (arm, _), chance in zip(own, estimates.holm([one.p for _, one in own]), strict=True):
                adjusted[arm, name] = chance
        lines = [
            line.model_copy(
                update={
                    field: tuple(
                        one.model_copy(update={"p_adjusted": adjusted[line.arm, one.measure]})
                        for one in getattr(line, field)
                    )
                }
            )
            for line in lines
        ]
    return list(lines)


def _standing(line: ArmLine, primary: str) -> Standing:
    found = line.from_random(primary)
    if found is None or found.p_adjusted is None:
        return "unknown"
    if found.p_adjusted >= estimates.LEVEL:
        return "alike"
    return "better" if (found.mean > 0) == is_higher(primary) else "worse"


def _best(lines: Sequence[ArmLine], primary: str) -> str | None:
    """The arm with the best mean; of several the first by name."""
    sign = -1.0 if is_higher(primary) else 1.0
    known = [(sign * one.mean, line.arm) for line in lines if (one := line.measure(primary)) is not None]
    return min(known)[1] if known else None


def _detectable(lines: Sequence[ArmLine], primary: str) -> float | None:
    """By the arms' pooled standard error of the difference, as the test has it."""
    known = [one for line in lines if (one := line.from_random(primary)) is not None and one.p is not None]
    parts = [found for one in known if (found := one.both or one.seeds) is not None and found.error > 0]
    if not parts:
        return None
    error = math.sqrt(_mean([part.error**2 for part in parts]))
    freedom = float(np.median([part.freedom for part in parts]))
    return estimates.detectable(error, freedom, tests=len(known))


def _measure(name: str, values: Sequence[float]) -> Measure:
    several = len(values) > 1
    deviation = float(np.std(values, ddof=1)) if several else None
    return Measure(
        name=name,
        higher=is_higher(name),
        n=len(values),
        mean=_mean(values),
        deviation=deviation,
        error=None if deviation is None else deviation / math.sqrt(len(values)),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
