from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spice_select.analysis.study_estimates import detectable, holm
from spice_select.analysis.study_record import Outcome, Study
from spice_select.analysis.study_statistics import summarise
from spice_select.analysis.study_summary import Family, Summary
from spice_select.errors import StoreError
from tests.studies import DOMAINS, drawn, losses, outcome, plan, study

SEEDS = (0, 1, 2)
RANDOM = (2.0, 2.2, 2.1)
SPICE = (1.8, 1.9, 1.85)


def table(summary: Summary, place: int = 0) -> Family:
    return summary.families[place]


def two_arms() -> list[Outcome]:
    return [
        *(outcome("random", seed, value) for seed, value in zip(SEEDS, RANDOM, strict=True)),
        *(outcome("spice", seed, value) for seed, value in zip(SEEDS, SPICE, strict=True)),
    ]


def test_means_errors_and_the_paired_difference_are_those_of_the_t_test() -> None:
    summary = summarise(plan(["random", "spice"], SEEDS), two_arms(), None)
    line = table(summary).line("spice")
    assert line is not None and line.seeds == SEEDS
    macro, found = line.measure("macro"), line.from_random("macro")
    assert macro is not None and found is not None and found.seeds is not None
    assert macro.mean == pytest.approx(1.85) and macro.deviation == pytest.approx(0.05)
    assert macro.error == pytest.approx(0.05 / np.sqrt(3))
    by_scipy = stats.ttest_rel(SPICE, RANDOM)
    low, high = by_scipy.confidence_interval(0.95)
    # Differences -0.2, -0.3, -0.25: mean -0.25, standard deviation 0.05.
    assert found.mean == pytest.approx(-0.25) and found.paired and (found.n, found.n_other) == (3, 3)
    assert (found.seeds.low, found.seeds.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(by_scipy.pvalue) and found.p_adjusted == pytest.approx(by_scipy.pvalue)
    assert line.standing == "better" and table(summary).winner == "spice"
    assert "spice wins" in summary.verdict[0]


def test_the_interval_over_rows_is_that_of_a_stratified_mean() -> None:
    one, two = np.arange(20.0) / 10, np.arange(20.0)[::-1] / 10 + np.linspace(0, 1, 20) ** 2
    outcomes = [outcome("random", 0, losses(one.tolist())), outcome("spice", 0, losses(two.tolist()))]
    line = table(summarise(plan(["random", "spice"], (0,)), outcomes, None)).line("spice")
    assert line is not None
    apart = two - one
    first, second = apart[:12], apart[12:]
    by_hand = {
        "macro": (0.25 * first.var(ddof=1) / 12 + 0.25 * second.var(ddof=1) / 8, (first.mean() + second.mean()) / 2),
        "micro": (0.36 * first.var(ddof=1) / 12 + 0.16 * second.var(ddof=1) / 8, apart.mean()),
        "domain talk": (second.var(ddof=1) / 8, second.mean()),
    }
    for measure, (variance, mean) in by_hand.items():
        found = line.from_random(measure)
        assert found is not None and found.rows is not None
        assert found.rows.error == pytest.approx(np.sqrt(variance)) and found.mean == pytest.approx(mean)
        # One seed: neither an interval over seeds, nor a test, nor a claim.
        assert found.seeds is None and found.both is None and found.p is None and found.note == "one seed"
    talk = line.from_random("domain talk")
    assert talk is not None and talk.rows is not None
    reach = stats.t.ppf(0.975, 7) * np.sqrt(second.var(ddof=1) / 8)
    assert talk.rows.high - talk.mean == pytest.approx(reach)


def test_one_seed_claims_nothing() -> None:
    outcomes = [outcome("random", 0, 2.0), outcome("spice", 0, 1.0), outcome("full", 0, 0.9, budget="100%")]
    summary = summarise(plan(["random", "spice", "full"], (0,), budgets=("10%", "100%")), outcomes, losses([3.0] * 20))
    family = table(summary)
    assert family.winner is None and family.reaching == () and family.detectable is None
    assert [line.standing for line in family.arms] == ["unknown", "unknown"]
    assert any("one seed, so that no win is claimed" in sentence for sentence in summary.verdict)
    assert not any("wins" in sentence for sentence in summary.verdict)
    assert any("One seed, which is no ground" in note for note in summary.notes)


def test_nothing_distinguishable_names_the_smallest_difference_it_could_see() -> None:
    values = {"random": (2.0, 2.1, 2.2), "spice": (2.1, 1.95, 2.2), "ifd": (2.05, 2.2, 2.1)}
    outcomes = [outcome(arm, seed, value) for arm, row in values.items() for seed, value in enumerate(row)]
    summary = summarise(plan(list(values), SEEDS), outcomes, None)
    assert "nothing is distinguishable from random at this number of seeds (3 seeds)" in summary.verdict[0]
    variances = [np.var(np.subtract(values[arm], values["random"]), ddof=1) / 3 for arm in ("spice", "ifd")]
    expected = detectable(float(np.sqrt(np.mean(variances))), 2, tests=2)
    assert table(summary).detectable == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("freedom", "tests"), [(2.0, 1), (4.0, 3), (30.0, 1)])
def test_what_is_detectable_has_the_power_that_the_noncentral_t_gives(freedom: float, tests: int) -> None:
    shift = detectable(1.0, freedom, tests=tests)
    critical = stats.t.ppf(1 - 0.025 / tests, freedom)
    power = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    assert power == pytest.approx(0.8, abs=2e-3)


def test_full_under_fewer_seeds_is_compared_by_welch() -> None:
    outcomes = [*two_arms(), outcome("full", 0, 1.7, budget="100%"), outcome("full", 1, 1.74, budget="100%")]
    of = plan(["random", "spice", "full"], SEEDS, budgets=("10%", "100%"))
    summary = summarise(of, outcomes, losses([3.0] * 20))
    found = table(summary).arms[1].from_full("macro")
    assert found is not None and found.seeds is not None
    by_scipy = stats.ttest_ind(SPICE, (1.7, 1.74), equal_var=False)
    low, high = by_scipy.confidence_interval(0.95)
    assert not found.paired and (found.n, found.n_other) == (3, 2) and found.note == "unpaired (Welch)"
    assert (found.seeds.low, found.seeds.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(by_scipy.pvalue)
    assert any("unpaired (Welch)" in note for note in summary.notes)


def test_full_under_one_seed_gets_an_interval_and_no_test() -> None:
    outcomes = [*two_arms(), outcome("full", 0, 1.7, budget="100%")]
    of = plan(["random", "spice", "full"], SEEDS, budgets=("10%", "100%"))
    family = table(summarise(of, outcomes, losses([3.0] * 20)))
    found = family.arms[1].from_full("macro")
    assert found is not None and found.seeds is not None and found.p is None
    # The spread of one training is taken to be that of the arm: 0.05 * sqrt(1 + 1/3), 2 degrees of freedom.
    assert found.seeds.error == pytest.approx(0.05 * np.sqrt(4 / 3)) and found.seeds.freedom == 2
    assert "taken to be the other's" in found.note and family.reaching == ()
    assert any("have one seed, so that no arm is said to reach" in sentence for sentence in family.verdict)


def test_reaching_the_whole_pool_takes_an_interval_within_the_margin() -> None:
    near, far = (1.501, 1.502, 1.5, 1.499, 1.503), (1.6, 1.3, 1.7, 1.2, 1.7)
    full = (1.5, 1.501, 1.5, 1.499, 1.501)
    outcomes = [outcome("full", seed, value, budget="100%") for seed, value in enumerate(full)]
    for arm, row in {"random": far, "spice": near}.items():
        outcomes += [outcome(arm, seed, value) for seed, value in enumerate(row)]
    of = plan(["random", "spice", "full"], range(5), budgets=("10%", "100%"))
    family = table(summarise(of, outcomes, losses([2.5] * 20)))
    assert family.margin == pytest.approx(0.1 * (2.5 - np.mean(full)))
    # Random's mean is as near, and its spread says nothing: what is not told from full has not thereby reached it.
    assert family.reaching == ("spice",)
    share = family.arms[1].share
    assert share is not None and share.low is not None and share.high is not None
    assert share.share == pytest.approx((2.5 - np.mean(near)) / (2.5 - np.mean(full)))
    assert share.low < share.share < share.high and share.high - share.low < 0.01


def test_fiellers_interval_is_the_root_of_its_quadratic() -> None:
    arm, full, start = np.array([1.9, 2.0, 1.95, 2.05]), np.array([1.5, 1.7, 1.55, 1.75]), 3.0
    outcomes = [outcome("spice", seed, float(value)) for seed, value in enumerate(arm)]
    outcomes += [outcome("full", seed, float(value), budget="100%") for seed, value in enumerate(full)]
    of = plan(["spice", "full"], range(4), budgets=("10%", "100%")).model_copy(update={"heldout_rows": ()})
    share = table(summarise(of, outcomes, losses([start] * 20))).arms[0].share
    assert share is not None and share.covers == "seeds"
    top, bottom = start - arm, start - full
    n, d, t = top.mean(), bottom.mean(), stats.t.ppf(0.975, 3)
    nn, dd, nd = np.var(top, ddof=1) / 4, np.var(bottom, ddof=1) / 4, np.cov(top, bottom)[0, 1] / 4
    roots = np.roots([d**2 - t**2 * dd, -2 * (n * d - t**2 * nd), n**2 - t**2 * nn])
    assert (share.low, share.high) == (pytest.approx(roots.min()), pytest.approx(roots.max()))


def test_a_gain_that_is_not_told_from_nothing_has_no_interval_and_a_loss_no_share() -> None:
    of = plan(["spice", "full"], range(3), budgets=("10%", "100%"))
    outcomes = [outcome("spice", seed, value) for seed, value in enumerate((1.9, 2.0, 2.1))]
    noisy = [outcome("full", seed, value, budget="100%") for seed, value in enumerate((1.0, 2.5, 2.2))]
    share = table(summarise(of, [*outcomes, *noisy], losses([2.1] * 20))).arms[0].share
    assert share is not None and (share.low, share.high, share.covers) == (None, None, "nothing")
    harm = [outcome("full", seed, value, budget="100%") for seed, value in enumerate((2.5, 2.7, 2.65))]
    summary = summarise(of, [*outcomes, *harm], losses([2.1] * 20))
    assert table(summary).arms[0].share is None and table(summary).margin is None
    assert any("gains nothing over the untrained model" in sentence for sentence in summary.verdict)
    assert any("training did harm" in note for note in summary.notes)


def test_the_best_that_is_not_told_from_the_second_does_not_win() -> None:
    outcomes = [*two_arms(), *(outcome("ifd", seed, value) for seed, value in enumerate((1.83, 1.86, 1.9)))]
    summary = summarise(plan(["random", "spice", "ifd"], SEEDS), outcomes, None)
    family = table(summary)
    assert (family.best, family.winner, family.rivals) == ("spice", None, ("ifd",))
    assert "not told from ifd" in summary.verdict[0] and "wins" not in summary.verdict[0]


def test_an_arm_with_a_failed_training_wins_nothing_and_the_failure_is_told() -> None:
    outcomes = [*two_arms(), outcome("spice", 3, None, error="Its loss is not finite."), outcome("random", 3, 2.1)]
    summary = summarise(plan(["random", "spice"], range(5)), outcomes, None)
    family = table(summary)
    assert family.winner is None and family.best == "spice" and family.arms[1].failed == 1
    assert (family.arms[0].missing, family.arms[1].missing) == (1, 1)
    assert "no win is claimed, as 1 training of it failed" in summary.verdict[0]
    assert any(note.startswith("spice failed once (10%, equal rows, seed 3)") for note in summary.notes)
    assert any(note.startswith("2 planned trainings of these tables have no outcome") for note in summary.notes)


def test_a_later_training_takes_the_place_of_a_failed_one_and_of_an_earlier() -> None:
    again = [
        outcome("spice", 0, None, error="It diverged.", written="2026-01-01T00:00:00Z"),
        outcome("spice", 0, 1.5, written="2026-01-02T00:00:00Z"),
        outcome("spice", 0, None, error="It was killed.", written="2026-01-03T00:00:00Z"),
    ]
    line = table(summarise(plan(["spice"], (0,)), again, None)).arms[0]
    macro = line.measure("macro")
    assert macro is not None and macro.mean == pytest.approx(1.5) and line.failed == 0


def test_equal_rows_and_equal_tokens_are_set_beside_each_other() -> None:
    values = {"random": (2.0, 2.2, 2.1), "spice": (1.8, 1.9, 1.85), "long": (1.7, 1.8, 1.75)}
    swapped = {"random": (2.0, 2.2, 2.1), "spice": (1.8, 1.9, 1.85), "long": (2.4, 2.5, 2.45)}
    outcomes = [outcome(arm, seed, value) for arm, row in values.items() for seed, value in enumerate(row)]
    outcomes += [
        outcome(arm, seed, value, equal="tokens") for arm, row in swapped.items() for seed, value in enumerate(row)
    ]
    summary = summarise(plan(list(values), SEEDS, equals=("rows", "tokens")), outcomes, None)
    last = summary.verdict[-1]
    # Of three pairs one is in the same order (random and spice), two are not.
    assert "rank the arms differently (Kendall's tau -0.33)" in last and "long leads one, spice the other" in last
    assert "long (better by rows, worse by tokens)" in last


def test_benchmarks_are_better_when_higher() -> None:
    scores = {"random": (0.30, 0.32, 0.31), "spice": (0.40, 0.43, 0.415)}
    outcomes = [
        outcome(
            arm, seed, None, suites={"arc": {"acc": value, "acc_stderr": 0.01}, "gsm8k": {"exact_match": value / 2}}
        )
        for arm, row in scores.items()
        for seed, value in enumerate(row)
    ]
    summary = summarise(plan(["random", "spice"], SEEDS), outcomes, None)
    line = table(summary).arms[1]
    assert summary.measure == "benchmarks" and summary.higher
    assert [one.name for one in line.measures] == ["benchmarks", "arc acc", "gsm8k exact_match"]
    macro = line.measure("benchmarks")
    assert macro is not None and macro.mean == pytest.approx(0.75 * 0.415)
    assert line.standing == "better" and table(summary).winner == "spice" and "highest" not in summary.verdict[0]
    found = line.from_random("benchmarks")
    assert found is not None and found.rows is None
    assert any("No interval over the test rows" in note for note in summary.notes)


def test_domains_that_lose_are_told_of_an_arm_that_wins() -> None:
    generator = np.random.default_rng(3)
    found = drawn(
        {"random": 0.0, "spice": -0.1},
        range(5),
        generator=generator,
        domain_effects={("spice", "talk"): 0.2, ("spice", "maths"): -0.3},
    )
    outcomes = [outcome(arm, seed, one) for (arm, seed), one in found.items()]
    summary = summarise(plan(["random", "spice"], range(5)), outcomes, None)
    assert table(summary).arms[1].standing == "better"
    assert any("worse on held-out loss on talk" in note for note in summary.notes)


def test_seeds_that_change_nothing_are_no_evidence() -> None:
    outcomes = [outcome(arm, seed, value) for arm, value in (("random", 2.0), ("spice", 1.5)) for seed in SEEDS]
    summary = summarise(plan(["random", "spice"], SEEDS), outcomes, None)
    found = table(summary).arms[1].from_random("macro")
    assert found is not None and found.p is None and found.seeds is None and found.note == "no spread over the seeds"
    assert table(summary).winner is None


def test_an_arm_that_is_random_itself_is_not_told_apart() -> None:
    outcomes = [*two_arms()[:3], *(outcome("twin", seed, value) for seed, value in zip(SEEDS, RANDOM, strict=True))]
    found = table(summarise(plan(["random", "twin"], SEEDS), outcomes, None)).arms[1].from_random("macro")
    assert found is not None and found.mean == 0 and found.p == 1.0


def test_rows_that_do_not_average_to_the_loss_give_no_interval() -> None:
    first, second = losses([2.0] * 20), losses(list(np.linspace(1, 2, 20)))
    spoiled = second.model_copy(update={"macro": 1.0})
    outcomes = [outcome("random", 0, first), outcome("spice", 0, spoiled)]
    line = table(summarise(plan(["random", "spice"], (0,)), outcomes, None)).arms[1]
    macro, talk = line.from_random("macro"), line.from_random("domain talk")
    assert macro is not None and macro.rows is None
    assert talk is not None and talk.rows is not None


def test_nothing_yet_and_unknown_arms() -> None:
    empty = summarise(plan(["random", "spice"], SEEDS), [], None)
    assert "No training of this study has come to an end" in empty.verdict[0]
    stranger = summarise(plan(["random"], SEEDS), [outcome("other", 0, 1.0)], None)
    assert any("arms that this plan does not name" in note for note in stranger.notes)
    alone = summarise(plan(["spice"], SEEDS), [outcome("spice", seed, 1.0 + seed) for seed in SEEDS], None)
    assert "random was not trained" in alone.verdict[0]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None]
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_record_comes_back_as_it_was(tmp_path: Path) -> None:
    made = study(plan(["random", "spice"], SEEDS), two_arms(), losses([3.0] * sum(DOMAINS.values())))
    made.write(tmp_path / "study.json")
    assert Study.read(tmp_path / "study.json") == made
    line = made.outcomes[0].model_dump_json()
    assert "\n" not in line and Outcome.model_validate_json(line) == made.outcomes[0]
    with pytest.raises(StoreError, match="cannot be read"):
        Study.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(StoreError, match="no study of this version"):
        Study.read(tmp_path / "bad.json")
