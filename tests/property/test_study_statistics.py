from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.analysis.study_estimates import Sample, Strata, holm, interval, spread
from spice_select.analysis.study_statistics import summarise
from tests.studies import drawn, losses, outcome, plan

ARMS = {"random": 0.0, "spice": -0.03, "ifd": 0.01, "long": 0.05}
CHANCE = st.floats(0, 1)
PROPERTY = settings(max_examples=15, deadline=None, derandomize=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), CHANCE), max_size=8), st.randoms(use_true_random=False))
def test_holm_raises_keeps_order_and_does_not_mind_the_order(values: list[float | None], shuffle: object) -> None:
    found = holm(values)
    known = [(one, two) for one, two in zip(values, found, strict=True) if one is not None and two is not None]
    assert len(known) == sum(value is not None for value in values)
    for one, two in known:
        assert one <= two <= min(1.0, one * len(known)) or two == pytest.approx(one * len(known)) or _raised(two, known)
    for one, two in known:
        assert all(two <= other or value < one for value, other in known if value >= one)
    assert holm(values[::-1]) == found[::-1]


def _raised(adjusted: float, known: list[tuple[float, float]]) -> bool:
    """It was lifted to that of a smaller probability, as the correction must stay monotone."""
    return sum(two == adjusted for _, two in known) > 1


@PROPERTY
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 10))
def test_a_shift_changes_no_difference_and_a_scale_scales_it(seed: int, shift: float, scale: float) -> None:
    found = drawn(ARMS, range(3), generator=np.random.default_rng(seed))
    of = plan(list(ARMS), range(3))

    def of_table(by: float, times: float) -> list[tuple[float, float, float, float]]:
        outcomes = [
            outcome(arm, one, losses((np.asarray(each.rows) * times + by).tolist()))
            for (arm, one), each in found.items()
        ]
        differences = [line.from_random("macro") for line in summarise(of, outcomes, None).families[0].arms[1:]]
        known = [each for each in differences if each is not None and each.both is not None]
        assert len(known) == 3
        return [(each.mean, each.both.low, each.both.high, each.p or 0.0) for each in known if each.both is not None]

    plain, shifted, scaled = np.array(of_table(0, 1)), np.array(of_table(shift, 1)), np.array(of_table(0, scale))
    assert np.allclose(plain, shifted, atol=1e-8)
    assert np.allclose(plain[:, :3] * scale, scaled[:, :3], atol=1e-8) and np.allclose(plain[:, 3], scaled[:, 3])


@PROPERTY
@given(st.permutations(list(ARMS)), st.permutations(range(12)))
def test_order_of_arms_seeds_and_lines_changes_nothing(arms: list[str], order: list[int]) -> None:
    found = drawn(ARMS, range(3), generator=np.random.default_rng(5))
    outcomes = [outcome(arm, seed, one) for (arm, seed), one in found.items()]
    plain = summarise(plan(list(ARMS), range(3)), outcomes, None)
    moved = summarise(plan(arms, (2, 0, 1)), [outcomes[place] for place in order], None)
    before, after = plain.families[0], moved.families[0]
    assert {line.arm: line for line in before.arms} == {line.arm: line for line in after.arms}
    assert (before.best, before.winner, set(before.rivals)) == (after.best, after.winner, set(after.rivals))
    assert before.detectable == pytest.approx(after.detectable)


@PROPERTY
@given(st.integers(0, 10_000))
def test_pairs_take_out_what_a_seed_does_to_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    common = generator.normal(0, 1.0, 5)
    first, second = (Sample(common + generator.normal(0, 0.05, 5)) for _ in range(2))
    terms = [(1.0, first), (-1.0, second)]
    paired, apart = spread(terms, None, paired=True).seeds, spread(terms, None, paired=False).seeds
    assert paired is not None and apart is not None
    assert paired.variance < apart.variance


@PROPERTY
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_interval_of_both_is_never_narrower_than_either(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(0, 1, (n, 20)) + generator.normal(0, generator.uniform(0, 3), (n, 1))
    strata = Strata((np.arange(12), np.arange(12, 20)), (0.5, 0.5))
    found = spread([(1.0, Sample(strata.average(rows), rows))], strata, paired=True)
    widths = [each.high - each.low for part in (found.seeds, found.rows, found.both) if (each := interval(0.0, part))]
    assert len(widths) == 3 and widths[2] >= max(widths[:2]) * (1 - 1e-9)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("of_seed", "of_row", "single"), [(0.02, 0.2, 0.05), (0.02, 0.1, 0.1), (0.01, 0.02, 0.2)])
def test_intervals_cover_what_they_say(seeds: int, of_seed: float, of_row: float, single: float) -> None:
    """Of 1,000 studies: seeds on fixed rows, rows under fixed trainings, and both drawn anew."""
    generator = np.random.default_rng(11)
    strata = Strata((np.arange(30), np.arange(30, 50)), (0.5, 0.5))
    hits, studies = np.zeros(3), 1000
    for _ in range(studies):
        draw, rows = generator.normal(0, of_seed, seeds), generator.normal(0, of_row, 50)
        values = draw[:, None] + rows + generator.normal(0, single, (seeds, 50))
        sample = Sample(strata.average(values), values)
        found = spread([(1.0, sample)], strata, paired=True)
        truths = (float(strata.average(rows)), float(draw.mean()), 0.0)
        for place, (part, truth) in enumerate(zip((found.seeds, found.rows, found.both), truths, strict=True)):
            each = interval(sample.mean, part)
            assert each is not None
            hits[place] += each.low <= truth <= each.high
    over_seeds, over_rows, over_both = hits / studies
    # Three standard errors of a share of 95% among 1,000 are 0.021.
    assert abs(over_seeds - 0.95) < 0.021 and abs(over_rows - 0.95) < 0.021
    assert over_both > 0.929


def test_studies_without_any_effect_seldom_name_an_arm() -> None:
    generator, false = np.random.default_rng(2), 0
    of = plan(["random", "a", "b", "c"], range(3))
    for _ in range(60):
        found = drawn(dict.fromkeys(("random", "a", "b", "c"), 0.0), range(3), generator=generator)
        family = summarise(of, [outcome(arm, seed, one) for (arm, seed), one in found.items()], None).families[0]
        false += any(line.standing in ("better", "worse") for line in family.arms)
    # At 5%, of 60 more than 8 come with a probability below 0.5%.
    assert false <= 8
