"""Options that several verbs share, and how they become a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spice_select.config import RunConfig, load_config
from spice_select.errors import ConfigError
from spice_select.paths import with_whole_paths

if TYPE_CHECKING:
    from spice_select.cost.collecting import Fleet
    from spice_select.distributed.crew import RayCrew
    from spice_select.reporter import Reporter

Data = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders or Hub ids (owner/name, owner/name@revision).", show_default=False),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Proxy: folder or Hub id of a causal language model.")]
Budget = Annotated[
    str | None,
    typer.Option("--budget", "-b", help="Rows (12), a share (10% or 0.1), or response tokens ('50000 tokens')."),
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Folder to write.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file, such as the config.yaml that a run writes.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."),
]
Preset = Annotated[str | None, typer.Option("--preset", help="paper | recommended.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The one seed of the run.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Use only the first this many rows.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="fixed: one checkpoint, one selection. pools: some picks of each pool, and a proxy that learns from them.",
    ),
]
WarmupSteps = Annotated[
    str | None,
    typer.Option("--warmup-steps", help="Train the proxy on random rows first: optimiser steps (50), or a share (5%)."),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", help="How rows are chosen; `spice-select methods` lists them. Its settings: --set method.x=y."
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="File of target examples, for a method that needs them; may be repeated."),
]
Engine = Annotated[
    str,
    typer.Option("--engine", help="local: this process. ray: workers that Ray starts here, or has on a cluster."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Workers of --engine ray; one for each GPU, or for each core up to four on a machine, if left out.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster to work on (auto, or HOST:PORT), instead of one on this machine alone."
    ),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        help="Deal the rows to this many partitions, each greedy by itself, and choose from the picks of all.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few batches and print the cost of the whole; write nothing.")
]
AtRows = Annotated[
    int | None, typer.Option("--at-rows", help="With --dry-run: price this many rows, of lengths as those given.")
]
AtMachines = Annotated[
    int | None,
    typer.Option("--at-machines", help="With --dry-run: price workers on this many machines like this one."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Take up what an interrupted run has left; this is the default.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again, replacing what is in the output folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the result only.")]


def refuse_both(resume: bool, overwrite: bool) -> None:
    """Refuse two flags that ask for opposite things.

    Raises:
        ConfigError: Both were given.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite cannot go together; leave one of them out.")


def warn_unused(reporter: Reporter, at_rows: int | None, at_machines: int | None) -> None:
    """Say which sizes have no effect, as nothing is priced."""
    for name, value in (("--at-rows", at_rows), ("--at-machines", at_machines)):
        if value is not None:
            reporter.warn(f"{name} {value} has no effect without --dry-run.")


def fleet(engine: str, workers: int | None, address: str | None, machines: int | None) -> Fleet:
    """Who shares a collect that is priced.

    Raises:
        ConfigError: Options that do not go together.
    """
    from spice_select.cost.collecting import Fleet

    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine cannot be '{engine}'; use local or ray.")
    if engine == "local" and address is not None:
        raise ConfigError(f"--address {address} goes with --engine ray; add that, or leave --address out.")
    if address is not None and machines is None:
        raise ConfigError(f"--address {address} does not tell how many machines are priced; add --at-machines.")
    return Fleet.of(workers, machines, ray=engine == "ray")


@contextmanager
def crew(
    engine: str, workers: int | None, address: str | None, settings: RunConfig | None = None
) -> Iterator[RayCrew | None]:
    """Where a command runs: workers of Ray, which end with the block, or None for this process.

    Args:
        engine: ``local`` or ``ray``.
        workers: How many.
        address: Of a cluster that is there.
        settings: Of a command that measures; the workers are started for it at once, and the pipeline is loaded while
            Ray's processes start, so that the caller should import it within the block.

    Raises:
        ConfigError: Options that do not go together, or Ray is not installed.
        ResourceError: Ray cannot be started.
    """
    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine cannot be '{engine}'; use local or ray.")
    if engine == "local":
        for name, value in (("--workers", workers), ("--address", address)):
            if value is not None:
                raise ConfigError(f"{name} {value} goes with --engine ray; add that, or leave {name} out.")
        yield None
        return
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise ConfigError("--engine ray starts its own workers; start the command without torchrun or accelerate.")
    from spice_select.distributed.crew import RayCrew

    with RayCrew(workers, address) as found:
        if settings is not None and settings.schedule.kind == "fixed":
            _load_meanwhile("spice_select.pipeline")
            found.begin(settings)
        yield found


def _load_meanwhile(name: str) -> None:
    """Import a module beside what this thread does; whoever imports it waits for that."""

    def load() -> None:
        # What is wrong with it is told to whoever asks for it.
        with suppress(Exception):
            import_module(name)

    Thread(target=load).start()


def warmup(value: str | None) -> dict[str, Any]:
    """The settings that ``--warmup-steps`` stands for.

    Raises:
        ConfigError: Neither a number of steps nor a share.
    """
    if value is None:
        return {}
    text = value.strip()
    try:
        if text.endswith("%") or "." in text:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            return {"schedule__warmup_share": share, "schedule__warmup_steps": 0}
        return {"schedule__warmup_steps": int(text)}
    except ValueError:
        raise ConfigError(f"--warmup-steps cannot be '{value}'; give optimiser steps (50) or a share (5%).") from None


def settings(
    *,
    config: Path | None,
    overrides: list[str] | None,
    preset: str | None = None,
    seed: int | None = None,
    **flags: Any,
) -> RunConfig:
    """Resolve the configuration of a command.

    Args:
        config: YAML file.
        overrides: ``--set`` values.
        preset: Name of a preset.
        seed: The one seed.
        **flags: Settings by ``section__key``; those that are None were not given.

    Raises:
        ConfigError: A setting that does not fit.
    """
    values: dict[str, Any] = {} if seed is None else {"seed": seed, "gradients": {"seed": seed}}
    for name, value in flags.items():
        section, _, key = name.partition("__")
        if value is not None:
            values.setdefault(section, {})[key] = value
    return with_whole_paths(load_config(config, overrides or (), values, preset))
