"""``spice-select compare``: several methods on one pool, on one footing."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say
from spice_select.errors import ConfigError

WIDEST = 120


def compare(
    data: o.Data = None,
    model: o.Model = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Methods with commas between, each NAME or NAME:key=value[:key=value...], or all.",
        ),
    ] = "spice,fisher,random,length,loss",
    budget: o.Budget = None,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Seeds of methods that draw, from --seed on; random's spread needs several.")
    ] = 5,
    train_seeds: Annotated[
        int,
        typer.Option(
            "--train-seeds",
            help="Seeds of methods that train a model; with --train, also trainings on the one choice of others.",
        ),
    ] = 1,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="File of examples that methods may choose towards; may be repeated."),
    ] = None,
    information: Annotated[
        bool,
        typer.Option(
            "--information/--no-information",
            help="Measure gradients as the yardstick, even where no method needs them.",
        ),
    ] = True,
    train: Annotated[
        bool,
        typer.Option("--train", help="Train adapters on every choice, and report the loss on the rows of --heldout."),
    ] = False,
    heldout: Annotated[
        list[str] | None,
        typer.Option("--heldout", help="File of held-out rows for --train; may be repeated."),
    ] = None,
    output: o.Output = None,
    config: o.Config = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    seed: o.Seed = None,
    limit: o.Limit = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Let several methods choose from one pool, and set what they chose and what it cost side by side.

    What methods share is measured once. A comparison that was cut off goes on where it stopped when the same command
    is given again.
    """
    from spice_select.comparing import compare as compare_methods
    from spice_select.methods.specs import parse_specs

    o.refuse_both(resume, overwrite)
    if heldout and not train:
        raise ConfigError("--heldout names rows that only --train reads; add --train, or leave it out.")
    _refuse_method_settings(overrides or [])
    settings = o.settings(
        config=config,
        overrides=overrides,
        preset=preset,
        seed=seed,
        data__sources=tuple(data) if data else None,
        data__limit=limit,
        data__target=tuple(target) if target else None,
        model__name=model,
        training__heldout=tuple(heldout) if heldout else None,
        selection__budget=budget,
        output__folder=output,
    )
    specs = parse_specs(methods, target=bool(settings.data.target))
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        result = compare_methods(
            settings,
            specs,
            seeds,
            reporter,
            train_seeds=train_seeds,
            overwrite=overwrite,
            information=information,
            train=train,
        )
    if as_json:
        say(result.contest.model_dump_json())
    else:
        for line in result.describe(max(80, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))):
            say(line)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _refuse_method_settings(overrides: list[str]) -> None:
    """Refuse settings of one method, which would be those of no method here.

    Raises:
        ConfigError: There is one.
    """
    from spice_select.errors import ConfigError

    for text in overrides:
        path, _, value = text.partition("=")
        section, _, key = path.strip().partition(".")
        if section == "method":
            form = value if key in ("", "name") else f"NAME:{key}={value}"
            raise ConfigError(
                f"--set {text} would be a setting of no method here; give it with its method, as --methods {form}."
            )
