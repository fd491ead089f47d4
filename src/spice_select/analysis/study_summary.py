"""What the trainings of a study say: means, differences with their intervals, costs and the verdict."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Standing = Literal["better", "worse", "alike", "unknown"]
"""Whether an arm is told from random: better, worse, not told apart, or not testable."""


class _Found(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(_Found):
    """A confidence interval at 95%.

    Attributes:
        low: Lower end.
        high: Upper end.
        error: Standard error.
        freedom: Degrees of freedom of the t distribution.
    """

    low: float
    high: float
    error: float
    freedom: float


class Measure(_Found):
    """One measure over the seeds of an arm.

    Attributes:
        name: ``macro``, ``micro``, ``domain NAME``, or ``TASK METRIC`` of a benchmark.
        higher: Whether more of it is better.
        n: Seeds.
        mean: Mean over the seeds.
        deviation: Standard deviation over the seeds (n - 1); None for one.
        error: Standard error of the mean; None for one.
    """

    name: str
    higher: bool
    n: int
    mean: float
    deviation: float | None = None
    error: float | None = None


class Difference(_Found):
    """An arm less another, on one measure.

    Attributes:
        measure: Name of the measure.
        other: Label of the other.
        mean: The difference.
        n: Seeds of the arm that enter.
        n_other: Seeds of the other that enter.
        paired: Whether both were trained under the same seeds and are compared seed by seed.
        seeds: Interval over the seeds: the luck of the draw and of the training, on these held-out rows.
        rows: Interval over the held-out rows: the luck of the test rows, for the trainings at hand.
        both: Interval over seeds and rows together; never narrower than that over the seeds.
        p: Two-sided, of no difference: the larger of that over the seeds and of that over seeds and rows.
        p_adjusted: The same after Holm's correction over the arms of one table; None where none is made.
        note: What limits it, in a few words.
    """

    measure: str
    other: str
    mean: float
    n: int
    n_other: int
    paired: bool
    seeds: Interval | None = None
    rows: Interval | None = None
    both: Interval | None = None
    p: float | None = None
    p_adjusted: float | None = None
    note: str = ""

    @property
    def widest(self) -> Interval | None:
        """The interval that covers most: seeds and rows, else the seeds, else the rows."""
        return self.both or self.seeds or self.rows


class GainShare(_Found):
    """Share of the whole pool's gain over the untrained model that an arm reaches.

    Attributes:
        share: The ratio of the mean gains.
        low: Lower end of Fieller's interval at 95%; None where it has none.
        high: Upper end.
        covers: What the interval covers.
        note: What limits it, in a few words.
    """

    share: float
    low: float | None = None
    high: float | None = None
    covers: Literal["seeds and rows", "seeds", "rows", "nothing"] = "nothing"
    note: str = ""


class CostLine(_Found):
    """Mean cost over the trainings of an arm.

    Attributes:
        selection_forward_tokens: Tokens forward through the proxy.
        selection_backward_tokens: Tokens backward through it.
        selection_seconds: Time of the selection.
        selection_flops: Operations of the selection.
        training_tokens: Tokens trained on.
        training_seconds: Time of the training.
        training_flops: Operations of the training.
        tokens_of_full: Training tokens over those of the whole pool; None where that was not trained on.
        seconds_of_full: Selection and training over the time of training on the whole pool.
        flops_of_full: Selection and training over the operations of training on the whole pool.
    """

    selection_forward_tokens: float
    selection_backward_tokens: float
    selection_seconds: float
    selection_flops: float
    training_tokens: float
    training_seconds: float
    training_flops: float
    tokens_of_full: float | None = None
    seconds_of_full: float | None = None
    flops_of_full: float | None = None

    @property
    def seconds(self) -> float:
        """Selection and training."""
        return self.selection_seconds + self.training_seconds

    @property
    def flops(self) -> float:
        """Selection and training."""
        return self.selection_flops + self.training_flops


class ArmLine(_Found):
    """One arm over its seeds, in one table.

    Attributes:
        arm: Its label.
        seeds: Seeds whose training came to an end.
        failed: Seeds whose training failed.
        missing: Planned seeds without an outcome yet.
        subsets: Different sets among the seeds.
        rows: Mean number of rows.
        response_tokens: Mean number of response tokens.
        steps: Mean number of optimiser steps.
        measures: Every measure that all its trainings have.
        against_random: Differences from random, one for each measure; empty for random itself.
        against_full: Differences from the whole pool; empty for the whole pool itself.
        share: Share of the whole pool's gain that it reaches, by the first measure.
        standing: Whether it is told from random by the first measure.
        cost: What it takes; None where no training came to an end.
    """

    arm: str
    seeds: tuple[int, ...]
    failed: int = 0
    missing: int = 0
    subsets: int = 0
    rows: float | None = None
    response_tokens: float | None = None
    steps: float | None = None
    measures: tuple[Measure, ...] = ()
    against_random: tuple[Difference, ...] = ()
    against_full: tuple[Difference, ...] = ()
    share: GainShare | None = None
    standing: Standing = "unknown"
    cost: CostLine | None = None

    def measure(self, name: str) -> Measure | None:
        """One of the measures."""
        return next((one for one in self.measures if one.name == name), None)

    def from_random(self, name: str) -> Difference | None:
        """The difference from random on one of the measures."""
        return next((one for one in self.against_random if one.measure == name), None)

    def from_full(self, name: str) -> Difference | None:
        """The difference from the whole pool on one of the measures."""
        return next((one for one in self.against_full if one.measure == name), None)


class Family(_Found):
    """All arms of one budget, equal in one thing: one table.

    Attributes:
        budget: As it was given.
        equal: What the sets have as much of.
        arms: One line for each arm, in the order of the plan.
        full: The whole pool, for comparison; None where it was not trained on.
        best: Label of the arm with the best mean; None without any.
        winner: That label, where it is told from random and from every other arm.
        rivals: Arms that are not told from the best.
        reaching: Arms that are shown to be within the margin of the whole pool.
        margin: That margin, on the scale of the measure.
        detectable: Smallest difference from random that would be seen with a probability of 80%.
        verdict: What can be said, in plain sentences.
    """

    budget: str
    equal: str
    arms: tuple[ArmLine, ...]
    full: ArmLine | None = None
    best: str | None = None
    winner: str | None = None
    rivals: tuple[str, ...] = ()
    reaching: tuple[str, ...] = ()
    margin: float | None = None
    detectable: float | None = None
    verdict: tuple[str, ...] = ()

    def line(self, arm: str) -> ArmLine | None:
        """The line of one arm."""
        return next((one for one in self.arms if one.arm == arm), None)


class Summary(_Found):
    """What all trainings of a study say.

    Attributes:
        measure: Name of the measure that the verdict goes by.
        higher: Whether more of it is better.
        random: Label of the arm that others are measured by; None without one.
        untrained: That measure before any training.
        families: One for each budget and what it is equal in.
        verdict: What can be said of the whole, in plain sentences.
        notes: What to know: failures, gaps, single seeds, domains where an arm is worse.
    """

    measure: str = "macro"
    higher: bool = False
    random: str | None = None
    untrained: float | None = None
    families: tuple[Family, ...] = ()
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = Field(default=())
