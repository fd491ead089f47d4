"""A study from its plan to its table: choices, trainings, evaluations, each once, in any number of processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from spice_select.analysis.study_record import UNTRAINED, WHOLE, Equal, Outcome, Study, StudyPlan
from spice_select.analysis.study_statistics import summarise
from spice_select.config import RunConfig, TrainingConfig, load_config, to_yaml
from spice_select.errors import ConfigError, OutputError
from spice_select.features.heldout import trained_model
from spice_select.files import Lock, make_folder, remove_file, remove_tree, write_text
from spice_select.pool import excluded_rows, read_pool
from spice_select.preconditions import require_named
from spice_select.reporter import Clock, Reporter
from spice_select.results import versions
from spice_select.run_folder import differences
from spice_select.study.arms import FULL, StudyArm
from spice_select.study.choosing import (
    SELECTIONS,
    Choosing,
    Chosen,
    StudyBudget,
    budgets_of,
    choose_all,
    share_of,
)
from spice_select.study.heldout import HELDOUT, held_out
from spice_select.study.ledger import LEDGER, Ledger
from spice_select.study.training import Bench, Suites, Unit
from spice_select.training.sft import planned_steps, require_trainer

CLAIMS = "claims"
CONFIG = "study.yaml"
_PATIENCE = 2.0
"""Seconds between two looks at what other processes have done."""


@dataclass(frozen=True)
class StudySettings:
    """What a study is beside its configuration and arms.

    Attributes:
        budgets: Shares of the pool, or rows.
        equals: What sets of one budget have as much of.
        seeds: Seeds.
        full_seeds: Seeds of the training on the whole pool; the first so many.
        holdout: Rows of every source to hold out, where no files are named.
        ledger: The ledger; in the study's folder where None.
        suites: Evaluates on benchmarks.
        suites_digest: What decides their numbers.
        overwrite: Start again.
        share: Leave trainings that another process has begun to it, and end without waiting for them.
        train: Train what the ledger does not know; without, the table is of what it knows.
    """

    budgets: tuple[str, ...]
    equals: tuple[Equal, ...]
    seeds: tuple[int, ...]
    full_seeds: int
    holdout: int | None = None
    ledger: Path | None = None
    suites: Suites | None = None
    suites_digest: str | None = None
    overwrite: bool = False
    share: bool = False
    train: bool = True


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        folder: Where everything lies.
        study: What ``study.json`` holds.
        failed: Planned trainings whose arm could not choose.
    """

    folder: Path
    study: Study
    failed: int = 0

    @property
    def exit_code(self) -> int:
        """0 where every training that was begun came to an end, and every arm could choose."""
        return 3 if self.failed or any(one.error for one in self.study.outcomes) else 0

    def describe(self, width: int = 80) -> list[str]:
        """The study in a short table."""
        from spice_select.report.study_text import describe

        lines = list(describe(self.study, width))
        lines.append(f"The page is {self.folder / 'report.html'}, the numbers are {self.folder / 'study.json'}.")
        return lines


def study(
    config: RunConfig, arms: Sequence[StudyArm], settings: StudySettings, reporter: Reporter
) -> StudyResult | None:
    """Select, train and evaluate for every arm, budget and seed, and say what can be told apart.

    A study that was cut off goes on where it stopped: choices and trainings are on disk. With more seeds, arms or
    budgets than before only what is missing is done.

    Args:
        config: The settings that all arms share.
        arms: Ways of choosing.
        settings: The plan.
        reporter: Hears the progress.

    Returns:
        The study, written to ``config.output.folder``; None where ``share`` leaves the table to another process.

    Raises:
        ConfigError: A setting that is missing or does not fit.
        DataError, ModelError: Something that cannot be read.
        OutputError, ResourceError: Something that cannot be written.
    """
    begun = time.perf_counter()
    require_named(config, output=True)
    require_trainer()
    folder, clock = Path(config.output.folder), Clock()
    _check_folder(config, folder, overwrite=settings.overwrite)
    asked, config = config, _of_responses(config)
    # Whatever an arm's gradients are of, models are trained on responses and judged by them.
    pool = read_pool(config, reporter, clock)
    make_folder(folder)
    with Lock.acquire(folder / ".study.lock"):
        config, held = held_out(config, pool, settings.holdout, folder, reporter, clock)
        _check_folder(asked, folder, overwrite=settings.overwrite)
        if settings.overwrite:
            _forget(folder)
        write_text(folder / CONFIG, to_yaml(asked))
    arms = [_sharing(arm, config) for arm in arms]
    free = pool.encoded.usable & ~excluded_rows(config, pool)
    tokens = int(pool.encoded.response_tokens[free].sum())
    budgets = budgets_of(settings.budgets, settings.equals, int(free.sum()), tokens)
    choices = choose_all(arms, budgets, settings.seeds, folder, pool.rows.fingerprint, reporter, clock)
    bench = Bench(config, pool, held, folder, reporter, settings.suites, settings.suites_digest)
    whole = Chosen(tuple(int(row) for row in free.nonzero()[0]))
    units = _units(arms, budgets, settings, choices, whole, config.training)
    failed = sum(one.error is not None and one.planned for one in choices.values())
    ledger = Ledger(settings.ledger or folder / LEDGER)
    reporter.stage("Trainings")
    outcomes = (
        _train_all(bench, units, ledger, folder, reporter, share=settings.share)
        if settings.train
        else _finished(bench, units, ledger, reporter)
    )
    if settings.share:
        return None
    untrained = next((one for one in outcomes if one.budget == UNTRAINED), None)
    plan = StudyPlan(
        data=tuple(source.name for source in pool.rows.sources),
        model=_shown(trained_model(config).name),
        proxy=_shown(config.model.name),
        rows=int(free.sum()),
        response_tokens=tokens,
        arms=tuple(arm.record() for arm in arms),
        budgets=settings.budgets,
        equals=settings.equals,
        seeds=settings.seeds,
        training=config.training.model_dump(mode="json", exclude={"model", "heldout"}),
        heldout=held.domains,
        heldout_rows=tuple(held.rows.subtasks),
        fingerprints={
            "rows": pool.rows.fingerprint,
            "weights": bench.base.weights_hash,
            "heldout": held.digest,
        },
        note=_seeds_note(arms),
    )
    trained = tuple(one for one in outcomes if one.budget != UNTRAINED)
    losses = None if untrained is None else untrained.losses
    found = Study(
        plan=plan,
        outcomes=trained,
        untrained=losses,
        summary=summarise(plan, trained, losses),
        missing=len(units) + failed - len(trained),
        versions=versions(),
        seconds=time.perf_counter() - begun,
    )
    with Lock.acquire(folder / ".page.lock"):
        from spice_select.report.study import write_study

        write_study(folder, found)
    return StudyResult(folder, found, failed)


def _check_folder(config: RunConfig, folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder of something else, or of a study of other rows, models or settings; nothing is written yet."""
    path = folder / CONFIG
    if path.is_file() and not overwrite:
        found = differences(load_config(path), config, ignored=[("selection",), ("method",), ("preset",)])
        if found:
            listed = "; ".join(f"{name} was {old!r} and is now {new!r}" for name, old, new in found[:4])
            raise OutputError(
                f"The output {folder} belongs to a study of other settings ({listed}); name another folder, or "
                "start again with --overwrite."
            )
    elif folder.exists() and not folder.is_dir():
        raise OutputError(f"The output {folder} is a file; name a folder.")
    elif folder.is_dir() and not path.is_file() and not all(_ours(one.name) for one in folder.iterdir()):
        raise OutputError(f"The output {folder} holds files that no study has left; name a new folder.")


def _forget(folder: Path) -> None:
    """Take away outcomes and choices, with all that these rest on: it may be what is damaged.

    Raises:
        OutputBusy: Another process is choosing.
    """
    with ExitStack() as held:
        # The locks stay, as their files are what excludes.
        for lock in sorted((folder / SELECTIONS).glob(".*.lock")):
            held.enter_context(Lock.exclusive(lock, str(folder)))
        remove_file(folder / LEDGER)
        for path in (folder / SELECTIONS).glob("*"):
            if path.suffix != ".lock":
                remove_tree(path) if path.is_dir() else remove_file(path)


def _ours(name: str) -> bool:
    """Whether a study leaves something of this name before it has written its settings."""
    return name in _OURS or (name.startswith("excluded-rows-") and name.endswith(".json"))


def _of_responses(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"gradients": config.gradients.model_copy(update={"loss": "response"})})


_OURS = frozenset({".study.lock", LEDGER, f".{LEDGER}.lock", SELECTIONS, HELDOUT})


def _sharing(arm: StudyArm, config: RunConfig) -> StudyArm:
    """The arm under the exclusions that all share."""
    selection = arm.config.selection.model_copy(update={"exclude": config.selection.exclude})
    return StudyArm(arm.label, arm.spec, arm.overrides, arm.config.model_copy(update={"selection": selection}))


def _units(
    arms: Sequence[StudyArm],
    budgets: Sequence[StudyBudget],
    settings: StudySettings,
    choices: Choosing,
    whole: Chosen,
    training: TrainingConfig,
) -> list[Unit]:
    """The trainings of the plan: all arms under one seed before the next seed begins."""
    full = next((arm.label for arm in arms if arm.spec.name == FULL), None)
    if full is None and any(share_of(name, len(whole.rows)) >= 1 for name in settings.budgets):
        full = FULL
    fixed = planned_steps(len(whole.rows), training)
    found = []
    for place, seed in enumerate(settings.seeds):
        for budget in budgets:
            for arm in arms:
                if arm.spec.name == FULL:
                    continue
                chosen = choices[(arm.label, budget.name, budget.equal, seed)]
                if chosen.error is None:
                    steps = fixed if budget.equal == "steps" else None
                    found.append(Unit(arm.label, budget.name, budget.equal, seed, chosen, steps))
        if full is not None and place < settings.full_seeds:
            found.append(Unit(full, WHOLE, settings.equals[0], seed, whole))
    return found


def _train_all(
    bench: Bench, units: Sequence[Unit], ledger: Ledger, folder: Path, reporter: Reporter, *, share: bool
) -> list[Outcome]:
    """Every training that the ledger does not know, whoever does it."""
    claims = make_folder(folder / CLAIMS)
    keys = {unit.place: bench.key(unit) for unit in units}
    waiting = list(units)
    base = bench.untrained_key()
    for key in {one.key for one in ledger.read()} & set(keys.values()):
        # Of a process that was killed between its line and the end.
        bench.forget(key)
    while True:
        known = ledger.read()
        by_place = {(one.arm, one.budget, one.equal, one.seed, one.key): one for one in known}
        by_key = {one.key: one for one in known}
        waiting = [unit for unit in waiting if (*unit.place, keys[unit.place]) not in by_place]
        if base in by_key and not waiting:
            break
        worked = False
        if base not in by_key:
            with _Claim(claims, base) as lock:
                if lock is not None:
                    if all(one.key != base for one in ledger.read()):
                        reporter.note("the model before any training")
                        ledger.add(bench.untrained())
                    continue
        for unit in waiting:
            key = keys[unit.place]
            with _Claim(claims, key) as lock:
                if lock is None:
                    continue
                worked = True
                # Another process may have ended it since the ledger was read.
                fresh = ledger.read()
                if not any((one.arm, one.budget, one.equal, one.seed, one.key) == (*unit.place, key) for one in fresh):
                    twin = next((one for one in fresh if one.key == key), None)
                    outcome = bench.outcome(unit, twin)
                    ledger.add(outcome)
                    bench.forget(key)
                    done = len(units) - len(waiting) + 1
                    reporter.note(_line(outcome, done, len(units), again=twin is not None))
                break
        if not worked:
            if share:
                break
            time.sleep(_PATIENCE)
    return _finished(bench, units, ledger, reporter)


def _finished(bench: Bench, units: Sequence[Unit], ledger: Ledger, reporter: Reporter) -> list[Outcome]:
    """What the ledger knows of the plan, in the order of the plan; the model before any training last."""
    known = ledger.read()
    by_place = {(one.arm, one.budget, one.equal, one.seed, one.key): one for one in known}
    found = [by_place.get((*unit.place, bench.key(unit))) for unit in units]
    kept = [one for one in found if one is not None]
    for one in kept:
        if one.error:
            reporter.warn(f"{one.arm}, {one.budget}, seed {one.seed}: {one.error}")
    base = bench.untrained_key()
    return kept + [one for one in known if one.key == base][:1]


class _Claim:
    """The right to do one training, as long as the block or the process lives; None where another has it."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key[:32]}.lock"
        self._lock: Lock | None = None

    def __enter__(self) -> Lock | None:
        self._lock = Lock.try_acquire(self._path)
        return self._lock

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()


def _line(one: Outcome, number: int, total: int, *, again: bool) -> str:
    loss = "failed" if one.losses is None else f"held-out loss {one.losses.macro:.4f}"
    how = "as another arm's same rows" if again else f"{one.cost.training_seconds:.0f} s"
    by = "" if one.equal == "rows" else f" of {one.equal}"
    return f"{number}/{total} {one.arm}, {one.budget}{by}, seed {one.seed}: {one.rows:,} rows, {loss} ({how})"


def _seeds_note(arms: Sequence[StudyArm]) -> str:
    drawn = [arm.label for arm in arms if arm.varies == "draw"]
    who = f"Drawn anew under every seed: {', '.join(drawn)}. " if drawn else ""
    return f"{who}A choice that does not draw is made once, and its seeds are those of the training."


def _shown(name: str) -> str:
    return Path(name).name if Path(name).exists() else name


def check(config: RunConfig, settings: StudySettings) -> None:
    """Refuse a plan that is none.

    Raises:
        ConfigError: No seeds, or a setting that does not fit.
    """
    if not settings.seeds:
        raise ConfigError("--seeds cannot be 0; give at least 1.")
    if settings.full_seeds < 0:
        raise ConfigError(f"--full-seeds cannot be {settings.full_seeds}; give 0 or more.")
    if config.schedule.kind == "pools":
        raise ConfigError(
            "schedule.kind pools cannot be set for all arms; give it to the arm that it is for, as "
            "spice:schedule.kind=pools."
        )
