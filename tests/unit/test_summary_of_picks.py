"""The summary: numbers checked by hand, and a warning for everything beyond a factor of 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spice_select.analysis.activity import activity_of_gram
from spice_select.analysis.summary import Summary, summarise


@dataclass
class Picked:
    indices: list[int]
    gains: list[float] = field(default_factory=list)
    conflicts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gains = self.gains or [1.0] * len(self.indices)
        self.conflicts = self.conflicts or [0.0] * len(self.indices)


def pool(**changes: Any) -> dict[str, Any]:
    return {
        "lengths": np.array([10, 20, 30, 40, 50, 60, 70, 80]),
        "squared_norms": np.array([1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0]),
        "sources": ["a", "a", "a", "a", "b", "b", "b", "b"],
        **changes,
    }


def test_numbers() -> None:
    summary = summarise(Picked([1, 6, 3, 4], conflicts=[0, 0.5, 0, 0.25]), **pool())
    assert (summary.picks, summary.pool) == (4, 8)
    assert summary.length_median.picks == 45 and summary.length_median.pool == 45
    assert summary.length_mean.picks == 45
    assert summary.norm_median.picks == 4.5 and summary.norm_median.pool == 4.5
    assert [(s.name, s.pool, s.picks, s.pool_share, s.picks_share) for s in summary.sources] == [
        ("a", 4, 2, 0.5, 0.5),
        ("b", 4, 2, 0.5, 0.5),
    ]
    assert (summary.opposing, summary.opposing_share, summary.largest_conflict) == (2, 0.5, 0.5)
    assert summary.warnings == ()
    assert summary.advice is None


def test_unusable_rows_are_no_part_of_the_pool() -> None:
    usable = np.array([True] * 4 + [False] * 4)
    summary = summarise(Picked([0, 3]), **pool(usable=usable))
    assert summary.pool == 4
    assert summary.length_median.pool == 25
    assert [s.pool for s in summary.sources] == [4, 0]
    assert summary.warnings == ()


def test_short_picks_are_a_warning_that_says_what_it_means_and_what_to_do() -> None:
    lengths = np.array([5, 5, 100, 100, 100, 100, 5, 5])
    (warning,) = summarise(Picked([0, 1, 6, 7]), **pool(lengths=lengths, squared_norms=np.ones(8))).warnings
    assert "shorter" in warning and "averaged over tokens" in warning and "random" in warning
    assert "selection.normalize=sqrt_tokens" in warning and "selection.quotas=proportional" in warning
    (after,) = summarise(
        Picked([0, 1, 6, 7]), **pool(lengths=lengths, squared_norms=np.ones(8)), normalize="sqrt_tokens"
    ).warnings
    assert "normalize=sqrt_tokens" not in after


def test_long_picks_and_large_norms() -> None:
    lengths = np.array([10, 10, 10, 10, 10, 90, 90, 90])
    warnings = summarise(Picked([5, 6, 4, 3, 7]), **pool(lengths=lengths, squared_norms=lengths**2.0)).warnings
    assert any("longer" in w for w in warnings)
    assert any("norms are 9.0 times larger" in w for w in warnings)


@pytest.mark.parametrize(("norm", "said"), [(2.01, True), (1.99, False), (1 / 1.99, False), (1 / 2.01, True)])
def test_the_threshold_is_a_factor_of_two_either_way(norm: float, said: bool) -> None:
    norms = np.array([norm**2] * 2 + [1.0] * 6)
    summary = summarise(Picked([0, 1]), **pool(squared_norms=norms, lengths=np.full(8, 9), sources=["a"] * 8))
    assert bool(summary.warnings) is said


def test_source_shares() -> None:
    sources = ["code"] * 10 + ["maths"] * 90
    quiet = {"lengths": np.full(100, 9), "squared_norms": np.ones(100), "sources": sources}
    (warning,) = summarise(Picked([*range(8), 50, 60]), **quiet).warnings
    assert "code from 10.0% to 80.0%" in warning and "maths from 90.0% to 20.0%" in warning
    assert summarise(Picked([0, 1, *range(50, 60)]), **quiet).warnings == ()
    (lost,) = summarise(Picked(list(range(10, 40))), **quiet).warnings
    assert "code from 10.0% to 0.0%" in lost
    # One row more or less is no change of balance.
    assert summarise(Picked(list(range(10, 20))), **quiet).warnings == ()


def test_many_sources_make_one_warning() -> None:
    sources = [f"s{i // 10}" for i in range(200)]
    picks = Picked(list(range(40)))
    summary = summarise(picks, lengths=np.full(200, 9), squared_norms=np.ones(200), sources=sources)
    (warning,) = summary.warnings
    assert "and 15 more" in warning


def test_groups_are_compared_too() -> None:
    groups = ["x"] * 4 + ["y"] * 4
    summary = summarise(Picked([0, 1, 2, 3]), **pool(sources=["a"] * 8, groups=groups, lengths=np.full(8, 9)))
    assert [(g.name, g.picks) for g in summary.groups] == [("x", 4), ("y", 0)]
    assert any("groups" in warning for warning in summary.warnings)


def test_first_gain_outlier() -> None:
    steady = summarise(Picked([1, 6, 3, 4], gains=[1.2, 1.0, 1.0, 0.9]), **pool())
    led = summarise(Picked([1, 6, 3, 4], gains=[9.0, 1.0, 1.0, 0.9]), **pool())
    assert not steady.first_gain_outlier
    assert led.first_gain_outlier
    assert any("robust_stop" in warning for warning in led.warnings)


def test_a_penalty_that_did_nothing_is_explained_in_one_sentence() -> None:
    unopposed = summarise(Picked([1, 6, 3, 4]), **pool(), changed_by_penalty=0)
    opposed = summarise(Picked([1, 6, 3, 4], conflicts=[0, 0.1, 0, 0]), **pool(), changed_by_penalty=0)
    assert unopposed.advice and "changed no pick" in unopposed.advice and "no pick opposes" in unopposed.advice
    assert opposed.advice and "small beside their gains" in opposed.advice
    for advice in (unopposed.advice, opposed.advice):
        assert advice.endswith(".") and ". " not in advice
        assert "--schedule fixed --set schedule.warmup_steps=50" in advice
        assert "--schedule pools" in advice
        assert "selection.penalty=relative" in advice and "selection.reference=pool" in advice
    assert summarise(Picked([1, 6, 3, 4]), **pool(), changed_by_penalty=1).advice is None
    assert summarise(Picked([1, 6, 3, 4]), **pool()).advice is None
    assert summarise(Picked(list(range(8))), **pool(), changed_by_penalty=0).advice is None


def test_a_penalty_that_changed_few_picks_is_explained_too() -> None:
    many = {"lengths": np.full(300, 9), "squared_norms": np.ones(300), "sources": ["a"] * 300}
    picks = Picked(list(range(100)), conflicts=[0.1] * 100)
    few = summarise(picks, **many, changed_by_penalty=2).advice
    assert few and "changed 2 of 100 picks" in few
    assert summarise(picks, **many, changed_by_penalty=3).advice is None


def test_advice_does_not_recommend_what_was_done() -> None:
    warmed = summarise(Picked([1, 6]), **pool(), changed_by_penalty=0, proxy="warmed").advice
    pools = summarise(Picked([1, 6]), **pool(), changed_by_penalty=0, proxy="pools").advice
    assert warmed and "for longer" in warmed and "--schedule pools" in warmed and "fixed" not in warmed
    assert pools and "schedule" not in pools and "selection.penalty=relative" in pools


def test_activity_is_told_and_kept() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 3))
    chosen = SimpleNamespace(indices=[1, 6], reference="selected", hinge=0.0)
    activity = activity_of_gram(rows @ rows.T, chosen)
    summary = summarise(Picked([1, 6]), **pool(), activity=activity)
    assert [line for line in activity.describe() if line in summary.describe()] == activity.describe()
    assert len(summary.describe()) - len(summarise(Picked([1, 6]), **pool()).describe()) <= 3
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    earlier = summary.model_dump(mode="json")
    del earlier["activity"]
    assert Summary.model_validate(earlier).activity is None


def test_lines_and_json() -> None:
    summary = summarise(Picked([0, 1, 4], conflicts=[0, 0.5, 0]), **pool(), changed_by_penalty=0)
    lines = summary.describe()
    assert lines[0] == "3 picks of 8 usable rows"
    assert "Response tokens, median: picks 20, pool 45" in lines
    assert any(line.startswith("Source a: 2 picks (66.7%) of 4 rows") for line in lines)
    assert "Picks changed by the penalty: 0" in lines
    assert sum(line.startswith("Warning: ") for line in lines) == len(summary.warnings) > 0
    assert lines[-1].startswith("Advice: ")
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_no_picks_and_values_that_are_no_numbers() -> None:
    norms = np.array([np.nan, np.inf, 1, 1, 1, 1, 1, 1])
    summary = summarise(Picked([]), **pool(squared_norms=norms))
    assert summary.length_mean.picks is None
    assert summary.norm_median.pool == 1
    assert summary.warnings == ()
    assert "picks none" in summary.describe()[1]
