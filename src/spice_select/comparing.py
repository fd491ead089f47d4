"""Several methods on one pool, on one footing: what they share is measured once, and each choice is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spice_select.analysis.contest import Contest, Contestant
from spice_select.choices import Choices
from spice_select.choosing import Entrant, Ground, choice_of, entrants_of, shared_gradients
from spice_select.config import RunConfig
from spice_select.contest_of import contest_of
from spice_select.errors import ConfigError, OutputError, ResourceError, SpiceError
from spice_select.features.gather import foresee
from spice_select.features.heldout import read_heldout, require_heldout
from spice_select.files import Lock, make_folder, remove_file, remove_tree
from spice_select.measuring import Measuring
from spice_select.methods import Need
from spice_select.methods.specs import Spec
from spice_select.pool import check_selection, read_pool
from spice_select.preconditions import require_named, varies
from spice_select.report.contest import FILES, write_contest
from spice_select.report.contest_text import describe
from spice_select.reporter import Clock, Reporter
from spice_select.run_folder import RunFolder
from spice_select.schedule.checks import check_warmup
from spice_select.schedule.ranks import joined
from spice_select.selection.budget import Budget
from spice_select.trials import Trials

METHODS = "methods"
RECORD = FILES[-1]


@dataclass(frozen=True)
class ContestResult:
    """A finished comparison.

    Attributes:
        folder: Where everything lies.
        contest: What ``comparison.json`` holds.
    """

    folder: Path
    contest: Contest

    @property
    def exit_code(self) -> int:
        """0 where every method chose, and was trained on where that was asked for; else that of the gravest failure."""
        return max((one.exit_code for one in self.contest.contestants), default=0)

    def describe(self, width: int = 80) -> list[str]:
        """The comparison in a short table, warnings last."""
        lines = describe(self.contest, width)
        lines.append(f"The page is {self.folder / 'report.html'}, the numbers are {self.folder / RECORD}.")
        return lines


def compare(
    config: RunConfig,
    specs: Sequence[Spec],
    seeds: int,
    reporter: Reporter,
    *,
    train_seeds: int = 1,
    overwrite: bool = False,
    information: bool = True,
    train: bool = False,
) -> ContestResult:
    """Let several methods choose from one pool, and measure all choices by one yardstick.

    A comparison that was cut off goes on where it stopped: measurements and finished choices are on disk. A method
    that fails while it works is told in the table, and the others go on; what can be known to fail is found before
    anything is measured.

    Args:
        config: The settings; those of the selection section are the yardstick's too.
        specs: The methods, as ``parse_specs`` reads them.
        seeds: Seeds of a method that draws: that of the configuration and those after it.
        reporter: Hears the progress.
        train_seeds: Seeds of a method that trains a model; with ``train``, also trainings on the choice of a method
            that does not vary.
        overwrite: Start again in a folder that holds something of other settings.
        information: Measure the gradients, by which all choices are judged, even where no method needs them.
        train: Train a model on every choice, as the training section has it, and measure its loss on held-out rows.

    Returns:
        The comparison, written to ``config.output.folder``.

    Raises:
        ConfigError: A setting that is missing or does not fit a method or these rows.
        DataError, ModelError: Something that cannot be read.
        OutputError, ResourceError: Something that cannot be written.
    """
    require_named(config, output=True)
    if train:
        require_heldout(config)
    entrants = entrants_of(config, specs, seeds, train_seeds)
    with joined() as ranks:
        if ranks.world > 1:
            raise ConfigError(
                "compare works in one process; measure the gradients by 'spice-select collect' under torchrun into the "
                "same folder first, and start compare without it."
            )
        folder = RunFolder(config.output.folder)
        folder.check(config, overwrite=overwrite, selection=True)
        reporter = _Once(reporter)
        clock = Clock()
        check_warmup(config)
        pool = read_pool(config, reporter, clock)
        budget = check_selection(config, pool, everything=not any(one.spec.method.takes_budget for one in entrants))
        budgets = {
            one.spec.label: check_selection(one.config, pool, everything=not one.spec.method.takes_budget)
            for one in entrants
        }
        measuring = Measuring(config, pool, folder, ranks, reporter, clock, overwrite=overwrite)
        held = read_heldout(config, pool, reporter, clock) if train else None
        foresee([one.spec.method for one in entrants], measuring.bench)
        target = None
        if any(Need.TARGET in one.spec.method.required() for one in entrants):
            target = measuring.bench.target
        store, taken = shared_gradients(measuring, entrants, folder, pool, information=information)
        make_folder(folder.path)
        with Lock.exclusive(folder.path / ".lock", str(folder.path)):
            if overwrite:
                remove_tree(folder.path / METHODS)
            for name in reversed(FILES):
                # The record goes first: what an earlier comparison has left must not pass for this one's.
                remove_file(folder.path / name)
            ground = Ground(measuring.bench, store, target, Choices(folder.path / METHODS), taken)
            reporter.stage("Choices")
            entries, picks = _choose_all(ground, entrants, budgets)
            training = None
            if held is not None:
                reporter.stage("Training on the picks")
                trials = Trials(config, pool, held, folder.path / METHODS, reporter, clock)
                entries, training = trials.run(entries, picks, train_seeds)
            reporter.stage("Yardstick")
            contest = contest_of(
                config, pool, budget, store, taken, entries, picks, clock, seeds=seeds, training=training
            )
            reporter.stage("Results")
            write_contest(folder.path, contest)
        return ContestResult(folder.path, contest)


def _choose_all(
    ground: Ground, entrants: Sequence[Entrant], budgets: dict[str, Budget]
) -> tuple[list[Contestant], dict[str, list[tuple[int, ...]]]]:
    """Every method under every seed; picks by method, for those that chose."""
    entries: list[Contestant] = []
    picks: dict[str, list[tuple[int, ...]]] = {}
    errors: list[SpiceError] = []
    for entrant in entrants:
        for seed in entrant.seeds:
            spec = entrant.spec
            base = Contestant(
                label=spec.label,
                method=spec.name,
                settings=spec.method.model_dump(mode="json"),
                seed=seed,
                varies=varies(spec.method, entrant.config),
            )
            try:
                choice = choice_of(ground, entrant, seed, budgets[spec.label])
            except OutputError:
                raise
            except (SpiceError, MemoryError) as error:
                told = _told(spec, error)
                ground.bench.reporter.warn(f"{spec.label} made no choice: {told}")
                entries.append(base.model_copy(update={"error": str(told), "exit_code": told.exit_code}))
                errors.append(told)
                # The next seed would meet the same.
                break
            picks.setdefault(spec.label, []).append(choice.indices)
            entries.append(
                base.model_copy(
                    update={
                        "cost": choice.cost,
                        "stop_reason": choice.stop_reason,
                        "warnings": choice.warnings,
                        "notes": choice.notes,
                    }
                )
            )
    if not picks:
        raise errors[0]
    return entries, picks


def _told(spec: Spec, error: SpiceError | MemoryError) -> SpiceError:
    if isinstance(error, SpiceError):
        return error
    return ResourceError(f"Memory ran out while '{spec.label}' chose; give it fewer rows, or leave it out.")


class _Once:
    """Hands on notes and warnings, each sentence once: methods that are measured alike would repeat them."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._said: set[str] = set()

    def stage(self, name: str) -> None:
        """Announce what comes next."""
        self._reporter.stage(name)

    def note(self, line: str) -> None:
        """A fact worth reading."""
        if self._new(line):
            self._reporter.note(line)

    def warn(self, line: str) -> None:
        """Something the user should act on or know."""
        if self._new(line):
            self._reporter.warn(line)

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        """Examples done of all."""
        self._reporter.advance(done, total, tokens, seconds, detail)

    def _new(self, line: str) -> bool:
        new = line not in self._said
        self._said.add(line)
        return new
