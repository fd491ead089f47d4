"""One choice of one method after another from shared measurements, each kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from spice_select.analysis.contest import ChoiceCost, Taken
from spice_select.choices import Choices, SavedChoice, choice_identity
from spice_select.config import MethodConfig, RunConfig
from spice_select.errors import ConfigError
from spice_select.features.bench import Bench, Passes
from spice_select.features.gather import gather
from spice_select.features.target import TargetRows
from spice_select.files import make_folder
from spice_select.gradients.store import GradientStore
from spice_select.measuring import Measuring
from spice_select.methods import Need
from spice_select.methods.specs import Spec
from spice_select.pool import Pool
from spice_select.preconditions import chosen_method, require_budget, varies
from spice_select.run_folder import RunFolder
from spice_select.selection.budget import Budget


@dataclass(frozen=True)
class Entrant:
    """A method that will choose.

    Attributes:
        spec: The method.
        config: The configuration with all that follows from it.
        seeds: Seeds that it chooses under.
    """

    spec: Spec
    config: RunConfig
    seeds: tuple[int, ...]


@dataclass
class Ground:
    """What all methods choose from.

    Attributes:
        bench: Measures.
        store: The gradients, where there are any.
        target: The target examples, where there are any.
        choices: Where choices are kept.
        gradient_taken: What the gradients took.
        known: Measurements that each method was seen to use.
    """

    bench: Bench
    store: GradientStore | None
    target: TargetRows | None
    choices: Choices
    gradient_taken: tuple[Taken, ...]
    known: dict[str, dict[str, Taken]] = field(default_factory=dict)


def entrants_of(config: RunConfig, specs: Sequence[Spec], seeds: int, train_seeds: int) -> list[Entrant]:
    """Every fault of a setting is found here, before anything is read."""
    for name, count in (("--seeds", seeds), ("--train-seeds", train_seeds)):
        if count < 1:
            raise ConfigError(f"{name} cannot be {count}; give at least 1.")
    if config.schedule.kind == "pools":
        raise ConfigError(
            "schedule.kind pools changes the proxy while it selects, and compare sets methods side by side on one "
            "proxy; use schedule.kind fixed."
        )
    found = []
    for spec in specs:
        own = config.model_copy(update={"method": MethodConfig(name=spec.name, **spec.settings)})
        resolved, method = chosen_method(own)
        require_budget(resolved, method)
        count = {"no": 1, "draw": seeds, "training": train_seeds}[varies(method, resolved)]
        found.append(Entrant(spec, resolved, tuple(range(config.seed, config.seed + count))))
    return found


def shared_gradients(
    measuring: Measuring, entrants: Sequence[Entrant], folder: RunFolder, pool: Pool, *, information: bool
) -> tuple[GradientStore | None, tuple[Taken, ...]]:
    """The gradients, where a method or the yardstick needs them, and what they took."""
    needed = any(Need.GRADIENTS in one.spec.method.required() for one in entrants)
    if not (information or needed):
        measuring.leave_gradients()
        make_folder(folder.features)
        return None, ()
    # The proxy first: the folder becomes this comparison's once it is known that it can be measured.
    measuring.proxy()
    make_folder(folder.features)
    bench = measuring.bench
    before = set(bench.passes)
    store, _ = measuring.gradients()
    lengths = pool.encoded.lengths[pool.encoded.usable]
    rows, tokens = len(lengths), int(lengths.sum())
    taken = []
    for key in bench.passes.keys() - before:
        passes = bench.passes[key]
        # A run that was killed could not say what it had done: every usable row has gone through once at least.
        taken.append(
            Taken(
                measurement=key,
                forwards=max(passes.forwards, rows),
                backwards=max(passes.backwards, rows),
                tokens=max(passes.tokens, tokens),
                backward_tokens=max(passes.backward_tokens, tokens),
                seconds=passes.seconds,
            )
        )
    return store, tuple(sorted(taken, key=lambda one: one.measurement))


def choice_of(ground: Ground, entrant: Entrant, seed: int, budget: Budget) -> SavedChoice:
    """The choice of one method under one seed: that which is on disk, or a new one that then is."""
    from spice_select.metering import metered

    spec, bench = entrant.spec, ground.bench
    identity = choice_identity(spec, seed, bench, budget, ground.store, ground.target)
    label = spec.label if len(entrant.seeds) == 1 else f"{spec.label}, seed {seed}"
    kept = ground.choices.read(spec.label, seed, identity)
    if kept is not None:
        bench.reporter.note(f"{label}: {len(kept.indices):,} rows, as chosen before")
        return kept
    before, bench.passes = bench.passes, {}
    told = len(bench.warnings)
    try:
        inputs = gather(spec.method, bench, budget, ground.store, seed=seed)
        with bench.clock.stage("choices"), metered() as meter:
            choice = spec.method.choose(inputs)
        # Warnings of its measurements belong to the choice: a later run that finds it on disk must tell them too.
        choice = replace(choice, warnings=tuple(dict.fromkeys([*bench.warnings[told:], *choice.warnings])))
    finally:
        # What training methods measure while they choose is theirs too.
        used, bench.passes = bench.passes, {**before, **bench.passes}
    known = ground.known.setdefault(spec.label, {})
    known.update({key: _taken(key, passes) for key, passes in used.items()})
    if Need.LOSSES in spec.method.required() and not any(key.startswith("losses-") for key in used):
        # The gradients' own forward pass has told them; by itself the method would have gone through it.
        for one in ground.gradient_taken:
            name = f"losses-{one.measurement.rpartition('-')[2]}"
            known[name] = one.forward_alone(name)
    if Need.GRADIENTS in spec.method.required():
        known.update({one.measurement: one for one in ground.gradient_taken})
    cost = ChoiceCost(
        seconds=meter.seconds,
        process_seconds=meter.process_seconds,
        memory_bytes=meter.memory_bytes,
        taken=tuple(known[key] for key in sorted(known)),
    )
    saved = SavedChoice.of(spec, seed, identity, choice, cost)
    ground.choices.write(saved)
    bench.reporter.note(f"{label}: {len(saved.indices):,} rows in {meter.seconds:.2f} s")
    return saved


def _taken(key: str, passes: Passes) -> Taken:
    return Taken(measurement=key, **passes.model_dump(exclude={"what"}))
