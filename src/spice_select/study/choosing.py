"""What every arm of a study chooses, budget by budget and seed by seed; what arms share is measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spice_select.analysis.contest import ChoiceCost
from spice_select.analysis.study_record import Equal
from spice_select.choices import Choices
from spice_select.choosing import Entrant, Ground, choice_of, shared_gradients
from spice_select.config import RunConfig
from spice_select.errors import ConfigError, RowsChanged, SpiceError
from spice_select.features.gather import foresee
from spice_select.files import Lock, make_folder
from spice_select.gradients.store import GradientStore
from spice_select.measuring import Measuring
from spice_select.methods import Need
from spice_select.pool import Pool, check_selection, read_pool, require_same_rows
from spice_select.preconditions import chosen_method, varies
from spice_select.reporter import Clock, Reporter
from spice_select.run_folder import RunFolder
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.warmup import wanted
from spice_select.study.arms import FULL, StudyArm
from spice_select.study.pooled import picked_in_pools

SELECTIONS = "selections"


@dataclass(frozen=True)
class StudyBudget:
    """How much an arm may choose.

    Attributes:
        name: As the user wrote it: ``10%``.
        equal: What sets of this budget have as much of.
        amount: Rows, or ``N tokens``, of the pool as it is.
    """

    name: str
    equal: Equal
    amount: int | str

    @property
    def folder(self) -> str:
        """Name of the folder of its choices: two budgets of one amount share it."""
        return str(self.amount).replace(" ", "-")


@dataclass(frozen=True)
class Chosen:
    """What an arm chose.

    Attributes:
        rows: Row numbers.
        forward_tokens: Tokens that went forward through a model for it.
        backward_tokens: Tokens that went backward.
        seconds: Time, measurements included, whether made for this arm or shared.
        backward_work: Operations of a token's backward pass for each weight of the proxy: 4, or 2 where the gradients
            are of adapters alone.
        error: Why it chose nothing.
        planned: Whether the arm can have a budget of this kind at all.
    """

    rows: tuple[int, ...] = ()
    forward_tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0
    backward_work: float = 4.0
    error: str | None = None
    planned: bool = True


Choosing = dict[tuple[str, str, Equal, int], Chosen]
"""By arm, budget, what is equal, and seed."""


def choose_all(
    arms: Sequence[StudyArm],
    budgets: Sequence[StudyBudget],
    seeds: Sequence[int],
    output: Path,
    rows: str,
    reporter: Reporter,
    clock: Clock,
) -> Choosing:
    """Let every arm choose.

    What was measured or chosen before is on disk; another process that works at it is waited for.

    Args:
        arms: The arms.
        budgets: Budgets beside the whole pool.
        seeds: Seeds of arms that draw; others choose once.
        output: Folder of the study.
        rows: Fingerprint of the pool's rows, which every arm must find as they are.
        reporter: Hears the progress.
        clock: Seconds by stage.

    Returns:
        The choices. Of an arm that could not choose, why.

    Raises:
        SpiceError: What concerns all arms: rows, which may have changed meanwhile, models, folders.
    """
    found: Choosing = {}
    grounds: dict[str, list[StudyArm]] = {}
    for arm in arms:
        if arm.spec.name != FULL:
            grounds.setdefault("pools-" + arm.label if arm.in_pools else ground_of(arm.config), []).append(arm)
    for name, members in grounds.items():
        folder = output / SELECTIONS / name
        make_folder(folder.parent)
        with Lock.acquire(folder.parent / f".{name}.lock"):
            if members[0].in_pools:
                _in_pools(members[0], budgets, seeds, folder, rows, reporter, found)
            else:
                _from_ground(members, budgets, seeds, folder, rows, reporter, clock, found)
    return found


def ground_of(config: RunConfig) -> str:
    """Arms whose measurements are the same share a folder."""
    settings = config.model_dump(mode="json", include={"data", "model", "gradients", "schedule", "embeddings", "seed"})
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _from_ground(
    arms: Sequence[StudyArm],
    budgets: Sequence[StudyBudget],
    seeds: Sequence[int],
    place: Path,
    rows: str,
    reporter: Reporter,
    clock: Clock,
    found: Choosing,
) -> None:
    first = arms[0].config
    config = first.model_copy(update={"output": first.output.model_copy(update={"folder": str(place)})})
    folder = RunFolder(place)
    folder.check(config, overwrite=False, selection=False)
    pool = read_pool(config, reporter, clock)
    require_same_rows(pool, rows)
    measuring = Measuring(config, pool, folder, Ranks(), reporter, clock)
    entrants = {arm.label: _entrant(arm, seeds) for arm in arms}
    foresee([arm.spec.method for arm in arms], measuring.bench)
    target = None
    if any(Need.TARGET in arm.spec.method.required() for arm in arms):
        target = measuring.bench.target
    store, taken = shared_gradients(measuring, list(entrants.values()), folder, pool, information=False)
    reporter.stage("Choices")
    for arm in arms:
        known: dict = {}
        for budget in budgets:
            own = _with_budget(entrants[arm.label].config, budget)
            ground = Ground(
                replace(measuring.bench, config=own),
                store,
                target,
                Choices(place / "methods" / arm.label / budget.folder),
                taken,
                known,
            )
            _choose(arm, replace(entrants[arm.label], config=own), budget, seeds, ground, pool, found)


def _choose(
    arm: StudyArm,
    entrant: Entrant,
    budget: StudyBudget,
    seeds: Sequence[int],
    ground: Ground,
    pool: Pool,
    found: Choosing,
) -> None:
    why = not_for(arm, budget)
    if why is not None:
        ground.bench.reporter.note(f"{arm.label}: {why}")
    for seed in seeds:
        key = (arm.label, budget.name, budget.equal, seed)
        if why is not None:
            found[key] = Chosen(error=why, planned=False)
            continue
        if seed not in entrant.seeds:
            # Nothing of this choice depends on the seed.
            found[key] = found[(arm.label, budget.name, budget.equal, entrant.seeds[0])]
            continue
        try:
            resolved = check_selection(entrant.config, pool)
            saved = choice_of(ground, entrant, seed, resolved)
        except SpiceError as error:
            if isinstance(error, ConfigError) and not isinstance(ground.store, GradientStore):
                raise
            ground.bench.reporter.warn(f"{arm.label}, {budget.name}: no choice: {error}")
            found[key] = Chosen(error=str(error))
            continue
        cost = saved.cost
        warm = _warm_tokens(arm, pool, cost)
        found[key] = Chosen(
            rows=saved.indices,
            forward_tokens=warm + sum(one.tokens for one in cost.taken),
            backward_tokens=warm + sum(one.backward_tokens for one in cost.taken),
            seconds=cost.seconds + sum(one.seconds for one in cost.taken),
            backward_work=2.0 if arm.config.gradients.lora is not None else 4.0,
        )


def not_for(arm: StudyArm, budget: StudyBudget) -> str | None:
    """Why an arm cannot have a budget; None where it can."""
    if budget.equal != "tokens":
        return None
    if arm.config.selection.quotas is not None:
        return "quotas count rows, so that it has no sets equal in response tokens"
    if arm.config.gradients.loss != "response":
        return "its loss is over prompts too, so that it has no sets equal in response tokens"
    return None


def _warm_tokens(arm: StudyArm, pool: Pool, cost: ChoiceCost) -> int:
    """Tokens of the proxy's warm-up, for a choice that measured anything with it; by the mean length of a row."""
    schedule = arm.config.schedule
    if not (cost.taken and wanted(schedule)):
        return 0
    usable = pool.encoded.usable
    examples = schedule.warmup_steps * schedule.batch_size
    if schedule.warmup_share is not None:
        examples = round(schedule.warmup_share * int(usable.sum()))
    return round(examples * float(pool.encoded.lengths[usable].mean()))


def _entrant(arm: StudyArm, seeds: Sequence[int]) -> Entrant:
    resolved, method = chosen_method(
        arm.config.model_copy(
            update={"method": arm.config.method.model_validate({"name": arm.spec.name, **arm.spec.settings})}
        )
    )
    return Entrant(arm.spec, resolved, tuple(seeds) if varies(method, resolved) == "draw" else (seeds[0],))


def _with_budget(config: RunConfig, budget: StudyBudget) -> RunConfig:
    return config.model_copy(update={"selection": config.selection.model_copy(update={"budget": budget.amount})})


def _in_pools(
    arm: StudyArm,
    budgets: Sequence[StudyBudget],
    seeds: Sequence[int],
    place: Path,
    known_rows: str,
    reporter: Reporter,
    found: Choosing,
) -> None:
    """An arm whose proxy learns while it chooses: one run for every budget, of the first seed."""
    work = 2.0 if arm.config.schedule.scope == "lora" else 4.0
    for budget in budgets:
        config = _with_budget(_entrant(arm, seeds).config, budget)
        folder = place / budget.folder
        config = config.model_copy(update={"output": config.output.model_copy(update={"folder": str(folder)})})
        why = not_for(arm, budget)
        if why is not None:
            reporter.note(f"{arm.label}: {why}")
            one = Chosen(error=why, planned=False)
        else:
            try:
                rows, tokens, seconds = picked_in_pools(
                    config, place / f".{budget.folder}.candidates", known_rows, reporter
                )
                one = Chosen(rows, tokens, tokens, seconds, work)
            except RowsChanged:
                raise
            except SpiceError as error:
                reporter.warn(f"{arm.label}, {budget.name}: no choice: {error}")
                one = Chosen(error=str(error))
        for seed in seeds:
            found[(arm.label, budget.name, budget.equal, seed)] = one


def budgets_of(
    names: Sequence[str], equals: Sequence[Equal], usable: int, response_tokens: int
) -> tuple[StudyBudget, ...]:
    """Shares of the pool as amounts, for everything that is to be equal.

    Args:
        names: Shares such as ``10%`` or ``0.1``, or rows.
        equals: What sets of one budget have as much of.
        usable: Rows that can be chosen.
        response_tokens: Their response tokens.

    Raises:
        ConfigError: A budget that is none.
    """
    found = []
    for name in names:
        share = share_of(name, usable)
        if share >= 1.0:
            continue
        rows, tokens = max(1, round(share * usable)), max(1, round(share * response_tokens))
        for equal in equals:
            found.append(StudyBudget(name, equal, f"{tokens} tokens" if equal == "tokens" else rows))
    return tuple(found)


def share_of(name: str, usable: int) -> float:
    """The share of the usable rows that a budget is.

    Raises:
        ConfigError: It is no share and no number of rows that the pool has.
    """
    text = name.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        if not text.endswith("%") and "." not in text:
            share = int(text) / usable
    except ValueError:
        share = -1.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--budgets cannot have '{name}'; give shares (1%,5%,100%) or rows, of the {usable:,} that can be chosen."
        )
    return share
