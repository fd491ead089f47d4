"""``spice-select study``: the whole experiment, from selection to evidence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say
from spice_select.errors import ConfigError

WIDEST = 120


def study(
    data: o.Data = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model that is trained: folder or Hub id; the proxy if absent.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="Model that selects: folder or Hub id; the trained model if absent.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Arms with commas between, each NAME[:key=value...]; a key with a point is a setting of that arm "
            "alone (spice:schedule.warmup_steps=50), and label=NAME names it.",
        ),
    ] = "spice,random,length,full",
    budgets: Annotated[
        str, typer.Option("--budgets", help="Shares of the pool with commas between, or rows; 100% is the whole pool.")
    ] = "10%,100%",
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds, from --seed on.")] = 3,
    full_seeds: Annotated[
        int | None, typer.Option("--full-seeds", help="Seeds of the training on the whole pool; all if absent.")
    ] = None,
    equal: Annotated[
        str,
        typer.Option("--equal", help="What sets of one budget have as much of: rows, tokens (of responses), steps."),
    ] = "rows,tokens",
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", help="File of held-out rows; may be repeated.")
    ] = None,
    holdout: Annotated[
        int | None,
        typer.Option("--holdout", help="Without --heldout: rows to hold out of every source; a tenth if absent."),
    ] = None,
    target: o.Target = None,
    suites: Annotated[
        str | None, typer.Option("--suites", help="Benchmarks as well: paper, or names with commas between.")
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option("--eval-data", help="Folder of local benchmark files; the Hub if absent.")
    ] = None,
    eval_limit: Annotated[
        int | None, typer.Option("--eval-limit", help="Rows of each benchmark; all if absent.")
    ] = None,
    execute_code: Annotated[
        bool, typer.Option("--execute-code", help="Run the code that models write, in a sandbox, for HumanEval, MBPP.")
    ] = False,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", help="File of finished trainings; ledger.jsonl in the output if absent.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes on this machine; on several, start the command on each.")
    ] = 1,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train what is missing, or write the table of what is there.")
    ] = True,
    output: o.Output = None,
    config: o.Config = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    seed: o.Seed = None,
    limit: o.Limit = None,
    dry_run: o.DryRun = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    share: Annotated[bool, typer.Option("--share", hidden=True)] = False,
) -> None:
    """Select, train and evaluate for several methods, budgets and seeds, and say what can be told apart.

    A study that was cut off goes on where it stopped when the same command is given again; with more seeds, methods or
    budgets, only what is missing is done. Several processes may work on one output.
    """
    from spice_select.study.arms import parse_arms
    from spice_select.study.benchmarks import suites_of
    from spice_select.study.running import StudySettings, check
    from spice_select.study.running import study as run_study
    from spice_select.study.workers import started

    o.refuse_both(resume, overwrite)
    settings = o.settings(
        config=config,
        overrides=overrides,
        preset=preset,
        seed=seed,
        data__sources=tuple(data) if data else None,
        data__limit=limit,
        data__target=tuple(target) if target else None,
        model__name=proxy or model,
        training__model=model,
        training__heldout=tuple(heldout) if heldout else None,
        output__folder=output,
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        evaluate, digest = suites_of(suites, eval_data, eval_limit, execute_code, settings, reporter)
        plan = StudySettings(
            budgets=_listed(budgets),
            equals=_equals(equal),
            seeds=tuple(range(settings.seed, settings.seed + max(0, seeds))),
            full_seeds=seeds if full_seeds is None else full_seeds,
            holdout=holdout,
            ledger=ledger,
            suites=evaluate,
            suites_digest=digest,
            overwrite=overwrite,
            share=share,
            train=train,
        )
        check(settings, plan)
        if dry_run:
            from spice_select.study.pricing import price

            for line in price(settings, parse_arms(methods, settings), plan, reporter).describe():
                say(line)
            return
        with started(workers, overwrite=overwrite, reporter=reporter):
            result = run_study(settings, parse_arms(methods, settings), plan, reporter)
    if result is None:
        return
    if as_json:
        say(result.study.model_dump_json())
    else:
        for line in result.describe(max(80, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))):
            say(line)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _listed(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ConfigError("--budgets names nothing; give shares such as 10%,100%.")
    return found


def _equals(text: str) -> tuple:
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in found if part not in ("rows", "tokens", "steps")]
    if unknown or not found:
        raise ConfigError(f"--equal cannot have '{', '.join(unknown) or text}'; give rows, tokens, steps.")
    return found
