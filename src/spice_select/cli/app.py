"""The verbs, in the order in which a person meets them."""

from __future__ import annotations

from typing import Annotated

import typer

from spice_select.cli import (
    analyze,
    collect,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    methods,
    proxy_check,
    report,
    run,
    select,
    study,
    train,
)

app = typer.Typer(
    name="spice-select",
    help="Choose the part of an instruction-tuning set that teaches a language model the most.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"spice-select {version('spice-select')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Choose the part of an instruction-tuning set that teaches a language model the most."""


app.command("run")(run.run)
app.command("collect")(collect.collect)
app.command("select")(select.select)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("analyze")(analyze.analyze)
app.command("proxy-check")(proxy_check.proxy_check)
app.command("compare")(compare.compare)
app.command("study")(study.study)
app.command("methods")(methods.methods)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
