"""Several methods on one pool: what each chose, what that is worth by one yardstick, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.contest_training import TrainingLine, TrainingNumbers, TrainingSetup
from spice_select.analysis.coverage import Coverage
from spice_select.errors import StoreError
from spice_select.files import write_text

SCHEMA_VERSION = 1
BACKWARD_WORK = 2.0
"""Work of a backward pass in forward passes of as many tokens."""

Varies = Literal["no", "draw", "training"]


class Taken(Numbers):
    """What one measurement of the rows took.

    Attributes:
        measurement: Which one; the same name means the same numbers on disk.
        forwards: Examples that went forward through the model.
        backwards: Examples that went backward through it.
        tokens: Tokens of the forward passes, padding aside.
        backward_tokens: Tokens of the backward passes.
        seconds: Time.
        within: The measurement that told it on its way, so that it cost nothing of its own; None where it was made.
    """

    measurement: str
    forwards: int
    backwards: int
    tokens: int
    backward_tokens: int
    seconds: float
    within: str | None = None

    def forward_alone(self, name: str) -> Taken:
        """What the forward pass of this measurement told: work for a method by itself, none beside this one."""
        return Taken(
            measurement=name,
            forwards=self.forwards,
            backwards=0,
            tokens=self.tokens,
            backward_tokens=0,
            seconds=0.0,
            within=self.measurement,
        )

    @property
    def work(self) -> float:
        """Tokens, those of a backward pass counted twice."""
        return self.tokens + BACKWARD_WORK * self.backward_tokens


class ChoiceCost(Numbers):
    """What one choice took.

    Attributes:
        seconds: Time of the choice itself, all measurements being at hand.
        process_seconds: Processor time of the same, all threads together.
        memory_bytes: Growth of the process's own memory meanwhile, at its height; None where it cannot be read.
        taken: The measurements that it needed, whether made for it or for another method before it.
    """

    seconds: float
    process_seconds: float
    memory_bytes: int | None
    taken: tuple[Taken, ...] = ()


class PickNumbers(Numbers):
    """Some picks by the yardstick that all methods share. What needs gradients is None where none were measured.

    Attributes:
        k: Rows.
        without_gradient: Those of them whose gradient is unknown; they hold no information.
        information: F(S) in nats.
        share_of_best: F(S) over an upper bound of F for any rows within the budget; None for picks beyond it.
        vendi: Vendi score of the gradients' directions.
        vendi_2: The same of order 2.
        g_vendi: G-Vendi.
        novelsum_paper: NovelSum as the paper has it.
        novelsum_official: NovelSum as its authors' code has it.
        ldd: Log-determinant distance; lower is more diverse.
        logdet: log det(K + I) of the cosine similarities.
        mean_cosine: Mean cosine of two different picks; lower is more diverse.
        diversity_rows: Picks that diversity was measured of: all, or a random sample.
        imbalance: Total variation distance between the shares of picks and pool, by the grouping column where there is
            one, else by source: 0 is the pool's mixture, 1 nothing in common. None for a single group.
        tokens: Response tokens.
        tokens_median: Median of the response tokens of a pick.
        norm_median: Median gradient norm, before any normalisation.
        opposing_share: Share of the picks whose gradient opposes the sum of the others'.
        balance: Picks beside the pool, by source, and by the grouping column if there is one.
    """

    k: int
    without_gradient: int = 0
    information: float | None = None
    share_of_best: float | None = None
    vendi: float | None = None
    vendi_2: float | None = None
    g_vendi: float | None = None
    novelsum_paper: float | None = None
    novelsum_official: float | None = None
    ldd: float | None = None
    logdet: float | None = None
    mean_cosine: float | None = None
    diversity_rows: int = 0
    imbalance: float | None = None
    tokens: int
    tokens_median: float | None = None
    norm_median: float | None = None
    opposing_share: float | None = None
    balance: tuple[Coverage, ...] = ()


class Contestant(Numbers):
    """One method under one seed.

    Attributes:
        label: Its name in this comparison.
        method: Name of the method.
        settings: All its settings.
        seed: Seed of its random choices.
        varies: What of it depends on the seed.
        error: Why there is no choice.
        exit_code: That of the error, of choice or training; 0 without.
        numbers: Its picks by the common yardstick.
        cost: What the choice took.
        stop_reason: Why it ended.
        warnings: What to act on.
        notes: What to know.
        training: What the trainings on the picks came to; None where none was asked for.
        training_error: Why one of them has no loss.
    """

    label: str
    method: str
    settings: dict[str, Any]
    seed: int
    varies: Varies
    error: str | None = None
    exit_code: int = 0
    numbers: PickNumbers | None = None
    cost: ChoiceCost | None = None
    stop_reason: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    training: tuple[TrainingNumbers, ...] | None = None
    training_error: str | None = None


class Spread(Numbers):
    """One measure over the seeds of a method.

    Attributes:
        measure: Which one, as :class:`PickNumbers` names it.
        mean: Mean over the seeds.
        deviation: Standard deviation over the seeds (n - 1); None for one.
        from_random: Mean less that of random, in random's standard deviations; None where random has no
            spread, or the method chose another number of rows.
    """

    measure: str
    mean: float | None
    deviation: float | None = None
    from_random: float | None = None


class MethodLine(Numbers):
    """One method over its seeds.

    Attributes:
        label: Its name in this comparison.
        method: Name of the method.
        varies: What of it depends on the seed.
        seeds: Seeds under which it chose.
        error: Why it chose nothing, or not under every seed.
        spreads: Every measure.
        seconds: Mean time of a choice.
        process_seconds: Mean processor time of a choice.
        memory_bytes: Largest growth of memory while choosing.
        work: Work of the measurements that the method would need alone, in tokens, backward ones counted twice.
        training: All trainings on its picks; None where none was asked for.
    """

    label: str
    method: str
    varies: Varies
    seeds: tuple[int, ...]
    error: str | None
    spreads: tuple[Spread, ...]
    seconds: float | None
    process_seconds: float | None
    memory_bytes: int | None
    work: float
    training: TrainingLine | None = None

    def spread(self, measure: str) -> Spread:
        """One of the measures."""
        return next(spread for spread in self.spreads if spread.measure == measure)

    def mean(self, measure: str) -> float | None:
        """Mean of one of the measures."""
        return self.spread(measure).mean


class OverlapMatrix(Numbers):
    """Jaccard indices of every two methods, averaged over their seeds.

    Attributes:
        labels: The methods.
        jaccard: ``[m, m]``; on the diagonal the mean over different seeds, and 1 where there is one.
        expected: The same for random sets of those sizes.
    """

    labels: tuple[str, ...]
    jaccard: tuple[tuple[float, ...], ...]
    expected: tuple[tuple[float, ...], ...]


class Sharing(Numbers):
    """What measuring once saved, in tokens, those of backward passes counted twice.

    Attributes:
        methods: Methods counted.
        total: Work of all measurements together, each made once.
        dearest: Work of the method that needs most.
        alone: Sum over the methods, as if each had measured for itself.
        ratio: Total over dearest; None where nothing was measured.
    """

    methods: tuple[str, ...]
    total: float
    dearest: float
    alone: float
    ratio: float | None


class PoolNumbers(Numbers):
    """The pool that all chose from.

    Attributes:
        n: Rows.
        candidates: Rows that could be chosen.
        tokens_median: Median response tokens of those.
        norm_median: Median gradient norm of those.
        sources: Names of the sources.
    """

    n: int
    candidates: int
    tokens_median: float | None
    norm_median: float | None
    sources: tuple[str, ...]


class Yardstick(Numbers):
    """The one scale by which information is measured.

    Attributes:
        alpha: Fisher scale a.
        normalize: Normalisation of the gradient rows.
        upper_bound: No rows within the budget hold more, in nats; proven on this pool.
        greedy: Information of the picks that the bound was measured at, exact greedy's without penalty.
        dim: Numbers of a gradient row.
    """

    alpha: float
    normalize: str
    upper_bound: float | None
    greedy: float | None
    dim: int


class Contest(Numbers):
    """The content of ``comparison.json``.

    Attributes:
        schema_version: Version of this layout.
        pool: The pool.
        asked: The budget as it was given.
        selection: The selection section: the yardstick's settings, and those of methods that maximise information where
            they say nothing else.
        rows: Rows that it comes to; None for a budget of tokens.
        tokens: Response tokens that it comes to; None for a budget of rows.
        seed: First seed.
        seeds: Seeds of every method that draws.
        yardstick: Scale of the information; None where no gradients were measured.
        random: Label of the method whose spread is the unit of differences; None without one.
        methods: One line for each method, in the order given.
        contestants: One for each method and seed.
        overlap: Which picks they share.
        gradient_sharing: What measuring once saved among the methods that need gradients of the proxy as it is.
        sharing: The same among all methods.
        verdict: What can be said, in plain sentences.
        warnings: What to act on.
        training: What the trainings on the picks share; None where none was asked for.
        model: Name of the proxy.
        fingerprints: Digests of rows, token ids and weights, by name.
        versions: Versions of Python and the libraries.
        timings: Seconds of this command by stage.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    pool: PoolNumbers
    asked: int | float | str | None
    selection: dict[str, Any]
    rows: int | None
    tokens: int | None
    seed: int
    seeds: int
    yardstick: Yardstick | None
    random: str | None
    methods: tuple[MethodLine, ...]
    contestants: tuple[Contestant, ...]
    overlap: OverlapMatrix
    gradient_sharing: Sharing
    sharing: Sharing
    verdict: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    training: TrainingSetup | None = None
    model: str
    fingerprints: dict[str, str | None]
    versions: dict[str, str]
    timings: dict[str, float]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Contest:
        """Read the file.

        Raises:
            StoreError: It is missing or not what :meth:`write` writes.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise StoreError(f"{path} cannot be read ({reason}); compare again.") from None
        except ValidationError:
            raise StoreError(f"{path} is no comparison of this version; compare again.") from None
